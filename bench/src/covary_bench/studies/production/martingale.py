"""The stream alarm: how often it is raised on clean streams, and after how many inputs on a trickle of triggered ones.

    nice -n 10 python -m covary_bench.studies.production.martingale [--streams 1000] [--trickles 200]

Clean streams: 1,000 of 10,000 independent scores each, ranked among 420 of the same law; the law does not matter, since
only ranks are used. Half of the streams have rounded scores, so that ties are broken too. Trickles: the real scores of
`cache/production/grid-scores.npz` (see `scores.py`), dealt anew for every stream into calibration set, clean inputs
before and clean inputs after the attack begins, 1 % triggered among the latter. Writes
`bench/results/production-martingale.json`, setting by setting; what is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from covary.scoring.martingale import ConformalMartingale

ROOT = Path(__file__).resolve().parents[5]
RESULTS = ROOT / "bench" / "results" / "production-martingale.json"
SCORES = ROOT / "cache" / "production" / "grid-scores.npz"
LEVEL, LENGTH, CALIBRATION, SHARE = 0.01, 10_000, 420, 0.01
# Calibration samples, and clean inputs before the first triggered one may come.
TRICKLES = ((420, 0), (420, 1000), (420, 4000), (1000, 0), (2000, 0), (4000, 0))


def clean_streams(streams: int) -> dict[str, Any]:
    """Share of clean streams that ever alarm, with its 95 % Clopper-Pearson interval."""
    alarms, peaks = 0, []
    for seed in range(streams):
        random = np.random.default_rng([1, seed])
        scores = random.standard_normal(CALIBRATION + LENGTH)
        scores = np.round(scores, 1) if seed % 2 else scores
        martingale = ConformalMartingale(scores[:CALIBRATION], LEVEL, seed)
        martingale.update(scores[CALIBRATION:])
        alarms += martingale.alarmed
        peaks.append(martingale.log_peak)
        if seed % 100 == 99:
            print("clean", seed + 1, alarms, flush=True)
    return {
        "streams": streams,
        "length": LENGTH,
        "calibration": CALIBRATION,
        "stated_bound": LEVEL,
        "alarms": alarms,
        "share": alarms / streams,
        "interval_95": interval(alarms, streams),
        "largest_capital": round(float(np.exp(max(peaks))), 1),
    }


def interval(hits: int, n: int) -> list[float]:
    """Clopper-Pearson, 95 %."""
    low = float(beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    return [round(low, 4), round(high, 4)]


def trickle(calibration: int, before: int, streams: int) -> dict[str, Any]:
    """Inputs, and triggered inputs, from the attack's begin to the alarm."""
    found = np.load(SCORES)
    clean, odd = np.concatenate([found["calibration"], found["clean"]]), found["triggered"]
    inputs, triggered, early, kinds = [], [], 0, []
    length = len(clean) - calibration - before
    for seed in range(streams):
        random = np.random.default_rng([2, seed])
        order = random.permutation(clean)
        stream = order[calibration:].copy()
        hit = random.random(len(stream)) < SHARE
        hit[:before] = False
        stream[hit] = random.choice(odd, int(hit.sum()), replace=False)
        martingale = ConformalMartingale(order[:calibration], LEVEL, seed)
        martingale.update(stream)
        at = martingale.alarm_at
        early += at is not None and at <= before
        inputs.append(np.inf if at is None else at - before)
        triggered.append(np.inf if at is None else int(hit[:at].sum()))
        kinds.append(martingale.account().kind if at is not None else "no alarm")
    caught = int(np.isfinite(inputs).sum())

    def quantiles(values: list[float]) -> dict[str, Any]:
        ordered = np.sort(values)
        # Order statistics around the median that hold it with probability 95 %.
        reach = 1.96 * np.sqrt(streams) / 2
        low, high = ordered[int(max(streams / 2 - reach, 0))], ordered[int(min(streams / 2 + reach, streams - 1))]
        numbers = {"median": ordered[streams // 2], "median_interval_95": [low, high]}
        numbers |= {"quantile_10": ordered[streams // 10], "quantile_90": ordered[(9 * streams) // 10]}
        return {key: _plain(value) for key, value in numbers.items()}

    return {
        "calibration": calibration,
        "clean_before": before,
        "share_triggered": SHARE,
        "streams": streams,
        "followed_for": length,
        "caught": caught / streams,
        "caught_interval_95": interval(caught, streams),
        "alarms_before_the_attack": early,
        "inputs_to_alarm": quantiles(inputs),
        "triggered_inputs_to_alarm": quantiles(triggered),
        "told_as": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return int(value) if np.isfinite(value) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--trickles", type=int, default=200)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    record = json.loads(RESULTS.read_text()) if RESULTS.is_file() and not options.again else {}
    todo = {f"trickle {n} {before}": partial(trickle, n, before, options.trickles) for n, before in TRICKLES}
    for name, measured in {**todo, "clean": partial(clean_streams, options.streams)}.items():
        if name in record:
            continue
        record[name] = measured()
        print(name, json.dumps(record[name]), flush=True)
        part = RESULTS.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(part, RESULTS)


if __name__ == "__main__":
    main()
