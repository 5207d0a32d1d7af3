"""Whether false alarms keep to their law when a pile is judged together: simulated piles from rows of real networks.

    nice -n 10 python -m covary_bench.studies.pile.validity NETWORK [--piles 1000] [--folds 100] [--cache cache]

Every pile has trusted inputs, clean and triggered ones dealt anew. With one split the number of false alarms among n
clean inputs is beta-binomial: rank k = floor(rate (m + 1)) of m calibration samples gives a rate of Beta(k, m + 1 - k).
`from the pile alone` learns its directions without calibration samples, as the library does not. Cross-conformal
calibration, the default, has no such law; its mean is told. Counts are kept in the cache; writes
`bench/results/pile-validity.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import betabinom

from covary_bench.images import datasets
from covary_bench.studies.pile.dealt import TRUSTED, Deal, Material, caught
from covary_bench.studies.pile.rows import stored

RESULTS = Path(__file__).resolve().parents[4] / "results" / "pile-validity.json"
CLEAN = 500
SHARES, RATES = (0.0, 0.01, 0.2), (0.01, 0.05)
BAND = 0.99
WAYS = ("together", "from the pile alone", "alone")


def one_deal(material: Material, seed: int, conformal: Any) -> dict[str, list[list[int]]]:
    """way -> per share of anomalies, false alarms among the clean inputs at every rate."""
    rng = np.random.default_rng([seed, 3])
    known, left = material.draw(rng, TRUSTED)
    odd = [round(share / (1 - share) * CLEAN) for share in SHARES]
    clean = rng.permutation(left["clean"])[:CLEAN]
    piles = [np.concatenate([rng.permutation(left["triggered"])[:n], clean]) for n in odd]
    candidates = np.concatenate([np.unique(np.concatenate([pile[: len(pile) - CLEAN] for pile in piles])), clean])
    deal = Deal(material, known, candidates, seed, conformal)
    found: dict[str, list[list[int]]] = {}
    for way in WAYS:
        for n, pile in zip(odd, piles, strict=True):
            if way == "alone" and n:
                continue  # the same in every pile
            by_pile = way == "from the pile alone"
            p = (deal.from_pile_alone(pile) if by_pile else deal.verdicts(pile, way == "together")).p_value[n:]
            found.setdefault(way, []).append([round(caught(p, rate) * CLEAN) for rate in RATES])
    return found


def law(calibrating: int, rate: float) -> Any:
    """The number of false alarms among the clean inputs of a pile."""
    k = int(rate * (calibrating + 1) + 1e-9)
    return betabinom(CLEAN, k, calibrating + 1 - k)


def summary(deals: list[dict[str, Any]], calibrating: int, lawful: bool) -> dict[str, Any]:
    """way -> per share, per rate: mean rate, its standard error, share of piles inside the central 99 % band.

    With them the largest distance of the distribution from its law, in standard deviations of chance (1.63 = 1 %), and
    what the law expects of mean and share.
    """
    found: dict[str, Any] = {"piles": len(deals), "calibrating": calibrating}
    if lawful:
        found["law"] = [_expected(law(calibrating, rate)) for rate in RATES]
    for way in WAYS:
        counts = np.array([deal[way] for deal in deals])  # (piles, shares, rates)
        found[way] = [
            [_told(counts[:, i, j], law(calibrating, rate) if lawful else None) for j, rate in enumerate(RATES)]
            for i in range(counts.shape[1])
        ]
    return found


def _band(distribution: Any) -> tuple[float, float]:
    return distribution.ppf((1 - BAND) / 2), distribution.ppf((1 + BAND) / 2)


def _expected(distribution: Any) -> list[float]:
    low, high = _band(distribution)
    inside = distribution.cdf(high) - distribution.cdf(low - 1)
    return [round(float(v), 4) for v in (distribution.mean() / CLEAN, inside, low / CLEAN, high / CLEAN)]


def _told(counts: np.ndarray, distribution: Any) -> list[float]:
    n = len(counts)
    figures = [counts.mean() / CLEAN, counts.std(ddof=1) / CLEAN / np.sqrt(n)]
    if distribution is not None:
        low, high = _band(distribution)
        every = np.arange(CLEAN + 1)
        gap = np.abs((counts[:, None] <= every).mean(0) - distribution.cdf(every)).max()
        figures += [((counts >= low) & (counts <= high)).mean(), gap * np.sqrt(n)]
    return [round(float(v), 4) for v in figures]


def main() -> None:
    """Simulates pile after pile; those that the cache has are read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--piles", type=int, default=1000)
    parser.add_argument("--folds", type=int, default=100, help="piles with cross-conformal calibration")
    parser.add_argument("--cache", type=Path, default=datasets.cache_folder())
    options = parser.parse_args()
    torch.set_num_threads(1)
    clean, odd = (stored(options.network, kind, options.cache) for kind in ("clean", "triggered"))
    # With survival and one split all others calibrate as ever: reference and fit are what layers are chosen on.
    material = Material.of(clean, triggered=odd)
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    own = record.setdefault(options.network, {})
    for conformal, n in (("split", options.piles), ("cross", options.folds)):
        kept = options.cache / "pile" / options.network / f"validity-{conformal}.json"
        deals: list[Any] = json.loads(kept.read_text()) if kept.is_file() else []
        for seed in range(len(deals), n):
            deals.append(one_deal(material, seed, conformal))
            if seed % 20 == 19 or seed == n - 1:
                kept.with_suffix(".part").write_text(json.dumps(deals))
                kept.with_suffix(".part").rename(kept)
                print(conformal, seed, deals[-1], flush=True)
        calibrating = round(0.3 * TRUSTED) if conformal == "split" else TRUSTED - round(0.15 * TRUSTED)
        own[conformal] = summary(deals[:n], calibrating, conformal == "split")
    RESULTS.write_text(json.dumps(record, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
