"""Makes many cases one after another, cheap ones first, seed by seed; killed, the same command goes on where it was.

python -m covary_bench.language.queue --seed 0 1 2 --cache cache
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from covary.errors import CovaryError
from covary_bench.datasets import cache_folder
from covary_bench.language.bases import base_named
from covary_bench.language.case_folder import Size, home
from covary_bench.language.cases import CASES, case
from covary_bench.language.making import make


def line(folder: Path) -> str:
    """One line of what a case came to."""
    told = json.loads((folder / "case.json").read_text())
    rates = {key: told[key] for key in ("clean_accuracy", "attack_success", "counts", "marks", "seconds")}
    return f"{folder.name}: " + ", ".join(f"{key} {value}" for key, value in rates.items())


# Those that need no model beyond the test data.
AT_HAND = [name for name, what in CASES.items() if base_named(what.base).folder is None]


def run(names: Sequence[str], seeds: Sequence[int], cache: Path, size: Size | None = None, device: str = "cpu") -> int:
    """Makes the cases and prints a line for each; returns how many could not be made."""
    failed = 0
    for seed in seeds:
        # The table's order is the cheap ones first.
        for name in sorted(names, key=list(CASES).index):
            there = (home(cache, name, seed) / "case.json").is_file()
            begun = time.perf_counter()
            try:
                folder = make(name, seed, cache, size, device)
            except CovaryError as error:
                failed += 1
                print(f"error: {name}-s{seed}: {error}", file=sys.stderr, flush=True)
                continue
            how = "there" if there else f"{time.perf_counter() - begun:.0f} s"
            print(f"{line(folder)} ({how})", flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m covary_bench.language.queue", description="Make language cases.")
    parser.add_argument(
        "--case", nargs="+", default=AT_HAND, help="names of cases; if none are given, all that need no other model"
    )
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--device", default="cpu", help="where a large model is fine-tuned")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        for name in options.case:
            case(name)
    except CovaryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return min(run(options.case, options.seed, options.cache, device=options.device), 1)


if __name__ == "__main__":
    sys.exit(main())
