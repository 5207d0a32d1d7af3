"""What the first-order engine costs and how close it is: one JSON a machine, one section at a time, resumable.

    nice -n 10 python benchmarks/speed.py [SECTION ...] [--threads 1] [--cases cache/cases] [--again]

Sections that are in `benchmarks/results/speed-<machine>.json` already are skipped unless `--again`. Times are medians
of interleaved repeats in one process; the machine may be shared, so ratios are told for wall and for processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from covary.engine.allocator import keep_freed_memory
from covary.fingerprints import versions

HERE = Path(__file__).parent


def feature_cost_in_forwards(options: argparse.Namespace) -> dict[str, Any]:
    """First-order features of 256 images against a plain forward."""
    from speed_parts.cost import image_networks, transformer_blocks

    return {**image_networks(), **transformer_blocks()}


def fidelity(options: argparse.Namespace) -> dict[str, Any]:
    """Compressed couplings and verdicts against exact ones, and the curve over k."""
    from speed_parts.fidelity import all_cases

    return all_cases(options.cases)


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of features against a bare forward and backward pass, in processes of their own."""
    from speed_parts.memory import peaks

    return peaks()


def stream(options: argparse.Namespace) -> dict[str, Any]:
    """A million queries through network, engine and judge."""
    from speed_parts.stream import million

    return million()


def score_only(options: argparse.Namespace) -> dict[str, Any]:
    """Verdicts on rows that are there."""
    from speed_parts.stream import stored_rows

    return stored_rows()


def first_order_speedup(options: argparse.Namespace) -> dict[str, Any]:
    """Passes of the published estimator at 2,000 draws against ours."""
    from speed_parts.cost import speedup

    return speedup()


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "feature_cost_in_forwards": feature_cost_in_forwards,
    "score_only": score_only,
    "first_order_speedup": first_order_speedup,
    "fidelity": fidelity,
    "memory": memory,
    "stream": stream,
}


def machine() -> str:
    """A short name: what the processor is, and how many of it."""
    return f"{platform.machine()}-{os.cpu_count()}cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", type=Path, default=HERE.parent / "cache" / "cases")
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"unknown section {', '.join(sorted(unknown))}; one of {', '.join(SECTIONS)}")
    torch.set_num_threads(options.threads)
    path = HERE / "results" / f"speed-{machine()}.json"
    record = json.loads(path.read_text()) if path.is_file() else {}
    kept = keep_freed_memory()
    record |= {
        "versions": versions(),
        "threads": options.threads,
        "gpu": "not measured",
        "allocator": "keeps freed memory, for forwards and features alike" if kept else "as it comes",
    }
    for name in options.sections or SECTIONS:
        if name in record and not options.again:
            continue
        begin = time.perf_counter()
        found = SECTIONS[name](options)
        found |= {
            "measured_in_seconds": round(time.perf_counter() - begin),
            "load_average": round(os.getloadavg()[0], 1),
        }
        record[name] = found
        part = path.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1) + "\n")
        part.rename(path)
        print(name, json.dumps(found), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
