"""Trains many victims one after another, cheap ones first; killed, the same command goes on where it was.

python -m covary_bench.victim_queue --kind cifar10 gtsrb --seed 0 1 --out cache/victims

`victims.json` in that folder holds the figures of every victim so far.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from covary.errors import CovaryError
from covary_bench import attacks
from covary_bench.datasets import cache_folder
from covary_bench.victims import SLOW, VICTIMS, home_of, read_victim, train_victim

# Simple triggers first; those that are trained longer last.
ORDER = [name for name in attacks.ATTACKS if name not in SLOW] + [name for name in attacks.ATTACKS if name in SLOW]


def write_figures(folder: Path) -> list[dict[str, object]]:
    """Writes `folder`/victims.json: the figures of every victim there, whole or not at all; returns them."""
    rows = [asdict(read_victim(path.parent)) for path in sorted(folder.glob("*/victim.json"))]
    part = folder / f"victims.json-{os.getpid()}.part"
    part.write_text(json.dumps({"victims": rows}, indent=1) + "\n")
    part.replace(folder / "victims.json")
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Markdown: one row a victim."""
    lines = ["| victim | attack | target | seed | clean accuracy | attack success | marks |", "| --- " * 7 + "|"]
    for row in rows:
        success = "–" if row["attack_success"] is None else f"{row['attack_success']:.3f}"
        marks = ", ".join(str(mark) for mark in row["marks"]) if isinstance(row["marks"], list | tuple) else ""
        names = f"| {row['kind']} | {row['attack'] or 'none'} | {row['target']} | {row['seed']} |"
        lines.append(f"{names} {row['clean_accuracy']:.3f} | {success} | {marks} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m covary_bench.victim_queue", description="Train victims.")
    parser.add_argument("--kind", nargs="+", default=["cifar10", "gtsrb"], choices=list(VICTIMS))
    parser.add_argument("--attack", nargs="+", default=["none", *ORDER], choices=["none", *ORDER])
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--target", default="0", help="a class number, or all-to-all")
    parser.add_argument("--ratio", type=float, default=None, help="poisoned fraction instead of the attack's own")
    parser.add_argument("--device", default="cpu", help="where networks train: cpu, cuda, mps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=cache_folder() / "victims")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    target = options.target if options.target == attacks.ALL_TO_ALL else int(options.target)
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seed:
        for name in sorted(options.attack, key=["none", *ORDER].index):
            for kind in options.kind:
                attack = None if name == "none" else name
                home = home_of(options.out, kind, attack, target, seed, options.ratio)
                if (home / "victim.json").is_file():
                    continue
                try:
                    victim = train_victim(kind, attack, options.out, target, seed, options.ratio, options.device)
                except CovaryError as error:
                    print(f"error: {home.name}: {error}", file=sys.stderr, flush=True)
                    continue
                write_figures(options.out)
                found = f"clean {victim.clean_accuracy:.4f}, attack {victim.attack_success}, marks {list(victim.marks)}"
                print(f"{home.name}: {found}, {victim.seconds} s", flush=True)
    print(table(write_figures(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
