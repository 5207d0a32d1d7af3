"""`covary-bench victims`: trains many victims, cheap ones first; killed, the same command goes on where it was.

`victims.json` in their folder holds the figures of every victim so far.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from covary.errors import CovaryError, unknown_name
from covary_bench.images import attacks
from covary_bench.images.victims import SLOW, VICTIMS, home_of, read_victim, train_victim

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


def run(
    kinds: Sequence[str], names: Sequence[str], seeds: Sequence[int], out: Path, *, target: str = "0",
    ratio: float | None = None, device: str = "cpu", threads: int = 1,
) -> str:  # fmt: skip
    """Trains the victims that are missing; returns the table of all there are. `names` are attacks, none = every one.

    Raises:
        CovaryError: a kind, an attack or a target that nobody knows.
    """
    known = ["none", *ORDER]
    for what, chosen, allowed in (("kind of victim", kinds, list(VICTIMS)), ("attack", names, known)):
        for name in chosen:
            if name not in allowed:
                raise unknown_name(what, name, allowed)
    if target != attacks.ALL_TO_ALL and not target.isdigit():
        raise CovaryError(f"the target {target!r}", f"a class number, or {attacks.ALL_TO_ALL}")
    label: int | str = target if target == attacks.ALL_TO_ALL else int(target)
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for name in sorted(names or known, key=known.index):
            for kind in kinds:
                attack = None if name == "none" else name
                home = home_of(out, kind, attack, label, seed, ratio)
                if (home / "victim.json").is_file():
                    continue
                try:
                    victim = train_victim(kind, attack, out, label, seed, ratio, device)
                except CovaryError as error:
                    print(f"error: {home.name}: {error}", file=sys.stderr, flush=True)
                    continue
                write_figures(out)
                found = f"clean {victim.clean_accuracy:.4f}, attack {victim.attack_success}, marks {list(victim.marks)}"
                print(f"{home.name}: {found}, {victim.seconds} s", file=sys.stderr, flush=True)
    return table(write_figures(out))
