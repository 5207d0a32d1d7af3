"""`covary-bench speed`: what the first-order engine costs, against what, and how close it is; one JSON a machine.

Sections that are in the result file already are kept unless asked for `again`. Times are medians of interleaved repeats
in one process; the machine may be shared, so ratios are told for wall and for processor time.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from covary.errors import CovaryError, unknown_name
from covary.storage.fingerprints import versions
from covary_bench.speed.allocator import keep_freed_memory


@dataclass(frozen=True)
class Options:
    """What the sections need to know.

    Attributes:
        cases: folder of built cases, for `fidelity`.
        peer: Python of an environment with devinterp 1.3.2, for the published pipeline; None = not measured.
        sampled: results of `python -m covary_bench.studies.sampled.table`, for the chart.
    """

    cases: Path = Path("cache/cases")
    peer: Path | None = None
    sampled: Path = Path("bench/results/sampled-small.json")


def _feature_cost_in_forwards(options: Options) -> dict[str, Any]:
    """First-order features of 256 images against a plain forward, and exact per-sample gradients."""
    from covary_bench.speed.cost import image_networks, transformer_blocks

    return {**image_networks(), **transformer_blocks()}


def _first_order_speedup(options: Options) -> dict[str, Any]:
    """The published estimator at 2,000 draws against one pass of ours, on the same images."""
    from covary_bench.speed.versus import speedup

    return speedup(options.peer)


def _score_only(options: Options) -> dict[str, Any]:
    """Verdicts on rows that are there."""
    from covary_bench.speed.stream import stored_rows

    return stored_rows()


def _fidelity(options: Options) -> dict[str, Any]:
    """Compressed couplings and verdicts against exact ones, and the curve over k."""
    from covary_bench.speed.fidelity import all_cases

    return all_cases(options.cases)


def _memory(options: Options) -> dict[str, Any]:
    """Peak memory of features against a bare forward and backward pass, in processes of their own."""
    from covary_bench.speed.memory import peaks

    return peaks()


def _scaling(options: Options) -> dict[str, Any]:
    """Cost against the number of trusted samples, classes and parameters."""
    from covary_bench.speed.scaling import everything

    return everything()


def _stream(options: Options) -> dict[str, Any]:
    """A million queries through network, engine and judge."""
    from covary_bench.speed.stream import million

    return million()


SECTIONS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "feature_cost_in_forwards": _feature_cost_in_forwards,
    "first_order_speedup": _first_order_speedup,
    "score_only": _score_only,
    "fidelity": _fidelity,
    "memory": _memory,
    "scaling": _scaling,
    "stream": _stream,
}


def machine() -> str:
    """A short name: what the processor is, how many of it, and the accelerator if there is one."""
    name = f"{platform.machine()}-{os.cpu_count()}cpu"
    return f"{name}-{torch.cuda.get_device_name(0).replace(' ', '-')}" if torch.cuda.is_available() else name


def run(
    sections: Sequence[str], out: Path, options: Options, *, threads: int = 1, again: bool = False
) -> dict[str, Any]:
    """Runs the sections that are not in `out` yet (all of them when none is named) and writes after each.

    Raises:
        CovaryError: an unknown section.
    """
    for name in sections:
        if name not in SECTIONS:
            raise unknown_name("section", name, SECTIONS)
    if options.peer is not None and not options.peer.is_file():
        raise CovaryError(f"{options.peer} is not a file", "the Python of an environment with devinterp 1.3.2")
    torch.set_num_threads(threads)
    kept = keep_freed_memory()
    record = json.loads(out.read_text("utf-8")) if out.is_file() else {}
    record |= {
        "versions": versions(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "not measured",
        "allocator": "keeps freed memory, for forwards and features alike" if kept else "as it comes",
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in sections or SECTIONS:
        if name in record and not again:
            continue
        begin = time.perf_counter()
        found = SECTIONS[name](options)
        found |= {
            "measured_in_seconds": round(time.perf_counter() - begin),
            "load_average": round(os.getloadavg()[0], 1),
        }
        record[name] = found
        part = out.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1) + "\n")
        part.rename(out)
        print(name, json.dumps(found), file=sys.stderr, flush=True)
    return record
