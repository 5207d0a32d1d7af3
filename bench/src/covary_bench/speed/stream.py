"""A million queries in flat memory, and verdicts on stored rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from covary.features.gradient import GradientExtractor
from covary.scoring.judge import Judge
from covary.scoring.rows import Batch, Rows

QUERIES, AT_ONCE = 1_000_000, 1_000


def megabytes(what: str) -> float:
    """The process's resident memory: `VmRSS` now, `VmHWM` at its peak; nan where the system does not tell.

    Not `ru_maxrss`, which a child process inherits from its parent.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:")), float("nan"))


def million() -> dict[str, Any]:
    """A small network (20 inputs, 5 classes) with 500 trusted samples; queries are made as they are scored."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5)).eval()
    extractor = GradientExtractor(network, lambda out: out)

    def rows(n: int, first: int) -> Rows:
        generator = torch.Generator().manual_seed(first)
        return extractor.rows(Batch([str(first + i) for i in range(n)], torch.randn(n, 20, generator=generator)))

    judge = Judge().fit(rows(500, 10**9))
    flagged, begin, marks = 0, time.process_time(), []
    for done in range(0, QUERIES, AT_ONCE):
        flagged += int(judge.judge(rows(AT_ONCE, done)).flagged.sum())
        if (done + AT_ONCE) % (QUERIES // 10) == 0:
            seconds = round(time.process_time() - begin, 1)
            marks.append(
                {"queries": done + AT_ONCE, "processor_seconds": seconds, "resident_mb": round(megabytes("VmRSS"))}
            )
    half, full = marks[4]["processor_seconds"], marks[-1]["processor_seconds"]
    return {
        "queries": QUERIES,
        "marks": marks,
        "second_half_over_first": round((full - half) / half, 3),
        "growth_after_a_tenth_mb": marks[-1]["resident_mb"] - marks[0]["resident_mb"],
        "flagged": flagged,
    }


def stored_rows(layers: int = 30, classes: int = 10, trusted: int = 500, n: int = 2000) -> dict[str, Any]:
    """Microseconds a row for the profile and for the combined verdict: 500 trusted samples, 10 classes, 30 layers."""
    from covary.features.projections import numbers_per_layer

    k, rng = numbers_per_layer(layers), np.random.default_rng(0)

    def rows(n: int, name: str) -> Rows:
        functional = {str(i): rng.standard_normal((n, k)).astype(np.float32) for i in range(layers)}
        return Rows(
            ids=[f"{name}{i}" for i in range(n)],
            predicted=rng.integers(0, classes, n),
            observable=rng.standard_normal(n),
            functional=functional,
            functional_norms=np.stack([np.linalg.norm(r, axis=1).astype(np.float64) for r in functional.values()], 1),
            latent={str(i): rng.standard_normal((n, 64)).astype(np.float32) for i in range(layers)},
            confidence={"margin": rng.standard_normal(n), "energy": rng.standard_normal(n)},
        )

    found: dict[str, Any] = {"layers": layers, "classes": classes, "trusted": trusted, "k": k, "rows": n}
    known, fresh = rows(trusted, "t"), rows(n, "q")
    for score in ("profile", "combined"):
        judge = Judge(score=score).fit(known)
        judge.judge(fresh)
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(3):
            judge.judge(fresh)
        found[f"{score}_microseconds_wall"] = round((time.perf_counter() - wall) / 3 / n * 1e6, 1)
        found[f"{score}_microseconds_processor"] = round((time.process_time() - processor) / 3 / n * 1e6, 1)
    return found
