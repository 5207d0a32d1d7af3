"""How much of a pile an attack has to be: 0 to 50 % anomalous inputs in piles of 500 to 9,000.

    nice -n 10 python -m covary_bench.studies.pile.sizes NETWORK KIND [--deals 10] [--cache cache]

Trusted inputs, clean and anomalous ones are dealt anew; figures are of p-values at 1 and 5 % as a user gets them.
Every deal is kept in the cache; `bench/results/pile-sizes.json` has the means.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covary_bench.images import datasets
from covary_bench.studies.pile.dealt import WAYS, Deal, Material, caught, pile_of
from covary_bench.studies.pile.rows import stored

RESULTS = Path(__file__).resolve().parents[4] / "results" / "pile-sizes.json"
SIZES = (500, 2_000, 9_000)
SHARES = (0.0, 0.001, 0.005, 0.01, 0.05, 0.2, 0.5)


def one_deal(material: Material, kind: str, seed: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """way -> size -> share -> caught at 1 %, false alarms at 1 and at 5 %; not of shares below one input."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    rng = np.random.default_rng([seed, 1])
    known, left = material.draw(rng)
    candidates = np.concatenate([left["clean"], left[kind]])
    piles = {}
    for size in SIZES:
        for share in SHARES:
            odd = round(share * size)
            if odd or not share:
                piles[size, share] = odd, pile_of(left, {kind: odd, "clean": size - odd}, rng)
    for is_thorough in (True, False):
        own = material if is_thorough else material.without_survival()
        deal = Deal(own, known, candidates, seed)
        for way, (together, survives) in WAYS.items():
            if survives != is_thorough:
                continue
            for (size, share), (odd, pile) in piles.items():
                p = deal.verdicts(pile, together).p_value
                figures = [caught(p[:odd], 0.01), caught(p[odd:], 0.01), caught(p[odd:], 0.05)]
                found.setdefault(way, {}).setdefault(str(size), {})[str(share)] = figures
    return found


def summary(deals: list[dict[str, Any]]) -> dict[str, Any]:
    """way -> size -> share -> caught, its standard error, mean false alarms at 1 and at 5 %."""
    result: dict[str, Any] = {}
    for way, sizes in deals[0].items():
        for size, shares in sizes.items():
            for share in shares:
                every = np.array([deal[way][size][share] for deal in deals])
                (mean, *alarms), error = every.mean(0), every[:, 0].std(ddof=1) / np.sqrt(len(every))
                figures = [_short(mean, 3), _short(error, 3), *(_short(v) for v in alarms)]
                result.setdefault(way, {}).setdefault(size, {})[share] = figures
    return result


def _short(value: float, digits: int = 4) -> float | None:
    return None if np.isnan(value) else round(float(value), digits)


def main() -> None:
    """Measures deal by deal; those that the cache has are read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("kind")
    parser.add_argument("--name", help="what the table calls it")
    parser.add_argument("--deals", type=int, default=10)
    parser.add_argument("--cache", type=Path, default=datasets.cache_folder())
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = options.cache / "pile" / options.network / f"sizes-{options.kind}.json"
    deals: list[Any] = json.loads(kept.read_text()) if kept.is_file() else []
    if len(deals) < options.deals:
        clean, odd = (stored(options.network, kind, options.cache) for kind in ("clean", options.kind))
        material = Material.of(clean, **{options.kind: odd})
        for seed in range(len(deals), options.deals):
            deals.append(one_deal(material, options.kind, seed))
            kept.with_suffix(".part").write_text(json.dumps(deals))
            kept.with_suffix(".part").rename(kept)
            print(seed, deals[-1]["together, thorough"], flush=True)
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    name = options.name or f"{options.network}, {options.kind}"
    record[name] = {"deals": len(deals), "ways": summary(deals)}
    RESULTS.write_text(json.dumps(record, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
