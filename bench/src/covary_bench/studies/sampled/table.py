"""Figures of the sampled benchmark from whatever stages of `run.py` and `peer_devinterp.py` have finished so far.

    python -m covary_bench.studies.sampled.table CACHE [bench/results/sampled-small.json]

AUROC is masked: clean images classified right against triggered ones that reach the target; reference images that the
network gets wrong are dropped. Every score is minus a coupling (class-max), or the sample's own trace: higher = more
anomalous.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from covary.features.sampled.diagnostics import effective_draws
from covary.scoring.couplings import ccc, cosine
from covary.scoring.scores.coupling import class_max
from covary_bench.columns import read_packed, write_packed
from covary_bench.images.public import load_public
from covary_bench.studies.sampled.case import NETWORKS, load_case
from covary_bench.trace_store import read_traces

BURN_IN, EVERY, SUBSET = 250, 10, 10
DRAWS = (10, 25, 50, 100, 250, 500, 1000, 2000)


class Case:
    """Roles and predictions of one network's images."""

    def __init__(self, name: str, cache: Path, stride: int = 1) -> None:
        case = load_case(name, cache)
        x = torch.from_numpy(case["x"][::stride])
        with torch.no_grad():
            self.predicted = torch.cat([load_public(name)(part).argmax(-1) for part in x.split(100)]).numpy()
        role, y = case["role"][::stride], case["y"][::stride]
        right = self.predicted == y
        self.reference = (role == 0) & right
        clean, triggered = (role == 1) & right, (role == 2) & (self.predicted == case["target"])
        self.queries = np.flatnonzero(clean | triggered)
        self.truth = triggered[self.queries]

    def auroc(self, score: np.ndarray) -> float:
        return round(float(roc_auc_score(self.truth, score)), 4)

    def class_max(self, coupling: np.ndarray) -> float:
        classes = self.predicted
        return self.auroc(class_max(coupling, classes[self.queries], classes[self.reference]))

    def figures(self, values: np.ndarray) -> dict[str, float]:
        """AUROC of every score of traces (draws, samples)."""
        values = values.astype(np.float64)
        mean, spread = values.mean(0), values.std(0)
        rows = ((values - mean) / np.sqrt(len(values))).T
        q, r = self.queries, self.reference
        return {
            "class_max_pearson": self.class_max(cosine(rows[q], rows[r], mean[q], mean[r])),
            "class_max_ccc": self.class_max(ccc(rows[q], rows[r], mean[q], mean[r], sigma=1.0)),
            "own_mean": self.auroc(mean[q]),
            "own_spread": self.auroc(spread[q]),
            "draws": len(values),
        }


def both(case: Case, margins: np.ndarray, source: str, **more: Any) -> list[dict[str, Any]]:
    """Rows of the table for both observables; nll is softplus(-margin)."""
    observed = {"margin": margins, "nll": np.logaddexp(0, -margins.astype(np.float64))}
    return [{"source": source, "observable": name, **case.figures(v), **more} for name, v in observed.items()]


def chains(name: str, cache: Path) -> list[dict[str, Any]]:
    """Rows from our chains and the peer's, on all images at every tenth draw and on a tenth of them at every draw."""
    full, subset = Case(name, cache), Case(name, cache, SUBSET)
    files = {stage: cache / name / f"{stage}.npz" for stage in ("paper", "frozen", "nbeta0")}
    files["devinterp 1.3.2"] = cache / "peer" / f"{name}.npz"
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for stage, path in files.items():
        if path.is_file():
            with np.load(path) as stored:
                every, everyone = stored["every_draw"], stored["all_images"]
            if every.ndim == 3:  # ours keep both observables, margin first
                every, everyone = every[:, 0], everyone[:, 0]
            done = int(np.isfinite(every).all(1).sum())
            found[stage] = every[:done], everyone[: done // EVERY]
    rows = []
    for stage, (every, everyone) in found.items():
        # Peers are compared at equal length, as long as one of them is still running.
        steps = min(len(e) for s, (e, _) in found.items() if s in (stage, "paper", "devinterp 1.3.2"))
        # The chain of every published constant, too, at the length of those that lack one.
        short = {len(e) for s, (e, _) in found.items() if s in ("frozen", "nbeta0")} if stage == "paper" else set()
        for length in sorted({steps, len(every)} | {n for n in short if n < len(every)}):
            burn_in = BURN_IN if length >= 4 * BURN_IN else length // 4 // EVERY * EVERY
            about = {"steps": length, "burn_in": burn_in}
            kept = every[burn_in:length]
            if len(kept) < 150:  # too short a chain says nothing
                continue
            worth = float(np.nanmedian(effective_draws(kept[None].astype(np.float32))))
            about["effective_draws"] = round(worth, 1)
            rows += both(full, everyone[burn_in // EVERY : length // EVERY], stage, images="all", every=EVERY, **about)
            rows += both(subset, kept[EVERY - 1 :: EVERY], stage, images="a tenth", every=EVERY, **about)
            rows += both(subset, kept, stage, images="a tenth", every=1, **about)
        # What fewer draws are worth: the first n after the burn-in.
        for n in DRAWS if stage in ("paper", "devinterp 1.3.2") else ():
            if len(every) < BURN_IN + n:
                break
            about = {"steps": BURN_IN + n, "burn_in": BURN_IN, "first": n}
            rows += both(subset, every[BURN_IN : BURN_IN + n], stage, images="a tenth", every=1, **about)
            if n >= 10 * EVERY:
                some = everyone[BURN_IN // EVERY : (BURN_IN + n) // EVERY]
                rows += both(full, some, stage, images="all", every=EVERY, **about)
    return rows


def gaussian(name: str, cache: Path) -> list[dict[str, Any]]:
    """Rows from independent draws, by their number."""
    folder = cache / name / "gaussian"
    if not (folder / "chain-0.safetensors").is_file():
        return []
    case, rows = Case(name, cache), []
    traces = read_traces(folder).values["margin"]
    worth = round(float(np.nanmedian(effective_draws(traces))), 1)
    for count in sorted({n for n in DRAWS if n <= traces.shape[1]} | {traces.shape[1]}):
        more = {"effective_draws": worth} if count == traces.shape[1] else {}
        rows += both(case, traces[0, :count], "gaussian 0.01", images="all", **more)
    return rows


def first_order(name: str, cache: Path) -> list[dict[str, Any]]:
    """The limit of small moves: cosines of exact gradients, and CCC with sigma = 0.01."""
    path = cache / name / "first-order.npz"
    if not path.is_file():
        return []
    case = Case(name, cache)
    with np.load(path) as stored:
        gram, at = stored["gram"].astype(np.float64), stored["margin"].astype(np.float64)
    norms = np.sqrt(np.diag(gram))
    pair = np.ix_(case.queries, case.reference)
    variances = 1e-4 * np.square(norms)
    gap = np.square(at[:, None] - at[None, :])
    lin = 2e-4 * gram / (variances[:, None] + variances[None, :] + gap + 1e-8)
    return [
        {
            "source": "first order",
            "observable": "margin",
            "class_max_pearson": case.class_max((gram / norms[:, None] / norms[None, :])[pair]),
            "class_max_ccc": case.class_max(lin[pair]),
            "own_mean": case.auroc(at[case.queries]),
            "own_spread": case.auroc(norms[case.queries]),
            "images": "all",
        }
    ]


def worth_of_a_second(rows: list[dict[str, Any]], seconds: dict[str, Any]) -> dict[str, Any]:
    """Effective draws a second of independent draws against those of a chain; seconds a draw are of one process.

    ESS is the median over images of margin traces. `every draw`: the chain is read at each step, as published;
    `every tenth`: at each tenth, which saves nine of ten evaluations and loses nearly no effective draw.
    """
    ours = [row for row in rows if row["source"].startswith("gaussian") and "effective_draws" in row]
    found = {}
    evaluation = seconds["covary gaussian"]  # an independent draw is hardly more than the evaluation of all images
    for source in ("devinterp 1.3.2", "paper"):
        chain = [row for row in rows if row["source"] == source and "first" not in row and row["images"] == "a tenth"]
        if not ours or not chain:
            continue
        longest = max(chain, key=lambda row: row["steps"])
        peers = [value for name, value in seconds.items() if name.startswith(source)]
        draw = min(peers) if peers else seconds["covary paper"]
        steps = longest["steps"] - longest["burn_in"]
        independent = evaluation * ours[-1]["draws"] / ours[-1]["effective_draws"]
        every, tenth = draw * steps, draw * steps - (steps - steps / EVERY) * evaluation
        found[source] = {
            "effective_draws": longest["effective_draws"], "draws": steps,
            "independent_draws": ours[-1]["draws"], "independent_effective": ours[-1]["effective_draws"],
            "seconds_an_independent_effective_draw": round(independent, 2),
            "seconds_an_effective_draw, every draw": round(every / longest["effective_draws"], 1),
            "seconds_an_effective_draw, every tenth": round(tenth / longest["effective_draws"], 1),
            "ratio, every draw": round(every / longest["effective_draws"] / independent, 1),
            "ratio, every tenth": round(tenth / longest["effective_draws"] / independent, 1),
        }  # fmt: skip
    return found


def main(cache: Path, out: Path) -> None:
    found: dict[str, Any] = {}
    if out.is_file():
        found = read_packed(out)
    for name in NETWORKS:
        case = Case(name, cache)
        rows = chains(name, cache) + gaussian(name, cache) + first_order(name, cache)
        found[name] = {
            "reference": int(case.reference.sum()),
            "clean": int((~case.truth).sum()),
            "triggered": int(case.truth.sum()),
            "rows": rows,
        }
        speed = json.loads((out.parent / "speed-x86_64-2cpu.json").read_text())["first_order_speedup"]
        if name in speed:
            found[name]["effective draws"] = worth_of_a_second(rows, speed[name]["draw"])
            print(json.dumps(found[name]["effective draws"], indent=1))
        for row in rows:
            print(name[8:20], json.dumps(row))
    for what, file in (("same random numbers as the peer", "same-noise.json"), ("seconds a draw", "speed.json")):
        if (cache / file).is_file():
            found[what] = json.loads((cache / file).read_text())
    write_packed(out, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "bench/results/sampled-small.json"))
