"""What the monitor adds to a batch on ResNet-20, in forward passes, and to an answer's latency when deferred.

    OMP_NUM_THREADS=1 python -m covary_bench.studies.production.monitor [--repeats 15]

Bare forward passes and monitored ones are interleaved in one process; medians of wall and of processor time. Deferred
calls are timed while verdicts of earlier batches are being worked out in the other thread, which takes a spare core:
besides wall time the caller's own processor time is told, which other programs' load does not enter. Needs the case
`pgd-linf` under `cache/cases` (the network is `cifar10_resnet20_clean`). Writes
`bench/results/production-monitor.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from covary.detector import Detector
from covary.serving.monitor import Monitor
from covary.storage.fingerprints import versions
from covary_bench.cached import read_cached
from covary_bench.speed.allocator import keep_freed_memory

ROOT = Path(__file__).resolve().parents[5]
RESULTS = ROOT / "bench" / "results" / "production-monitor.json"
CASE = ROOT / "cache" / "cases" / "pgd-linf"
SIZES = (32, 64, 128, 256)


def fitted() -> tuple[Detector, torch.Tensor]:
    """The detector on the case's trusted images, and 256 of its inputs as the network takes them."""
    case = read_cached(CASE / "case.json")
    detector = Detector(case["model"], weights=case["weights"])
    detector.fit(CASE / "trusted.npz", mean=case["mean"], std=case["std"])
    return detector, next(detector.open(CASE / "inputs.npz").batches(max(SIZES))).x


def timed(run: Any) -> tuple[float, float, float]:
    """Wall, processor and own-thread seconds of a call."""
    wall, processor, thread = time.perf_counter(), time.process_time(), time.thread_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor, time.thread_time() - thread


def one_pass(detector: Detector, x: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Monitored calls against bare ones."""
    monitor, module = Monitor(detector), detector.network.module
    found: dict[str, Any] = {}
    for size in SIZES:
        part = x[:size]
        with torch.no_grad():
            for warmed in (monitor, module):
                warmed(part)
            outputs, _ = monitor(part)
            same = torch.equal(outputs, module(part))
            taken: dict[str, list[tuple[float, float, float]]] = {"bare": [], "monitored": []}
            for _ in range(repeats):
                taken["bare"].append(timed(lambda part=part: module(part)))
                taken["monitored"].append(timed(lambda part=part: monitor(part)))
        middle = {name: [statistics.median(t[i] for t in times) for i in (0, 1)] for name, times in taken.items()}
        added = [[m[i] / b[i] - 1 for b, m in zip(taken["bare"], taken["monitored"], strict=True)] for i in (0, 1)]
        found[str(size)] = {
            "outputs_identical": same,
            "added_forwards_wall": round(middle["monitored"][0] / middle["bare"][0] - 1, 2),
            "added_forwards_processor": round(middle["monitored"][1] / middle["bare"][1] - 1, 2),
            "added_forwards_processor_median_of_pairs": round(statistics.median(added[1]), 2),
            "forward_processor_seconds": round(middle["bare"][1], 4),
        }
        print(size, found[str(size)], flush=True)
    return found | {"notes": monitor.notes}


def deferred(detector: Detector, x: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Deferred calls against bare ones, the other thread at work all the while."""
    module, found = detector.network.module, {}
    for size in (32, 64):
        part = x[:size]
        taken: dict[str, list[tuple[float, float, float]]] = {"bare": [], "deferred": []}
        with Monitor(detector, deferred=True, deliver=lambda _: None, backlog=64) as monitor, torch.no_grad():
            monitor(part)
            monitor.drain()
            for _ in range(repeats):
                for _ in range(4):
                    taken["bare"].append(timed(lambda part=part: module(part)))
                for _ in range(2):
                    monitor(part)  # work for the other thread
                for _ in range(4):
                    taken["deferred"].append(timed(lambda part=part, monitor=monitor: monitor(part)))
                monitor.drain()
        middle = {name: [statistics.median(t[i] for t in times) for i in (0, 2)] for name, times in taken.items()}
        found[str(size)] = {
            "added_latency_wall": round(middle["deferred"][0] / middle["bare"][0] - 1, 3),
            "added_own_processor_time": round(middle["deferred"][1] / middle["bare"][1] - 1, 3),
            "bare_wall_seconds": round(middle["bare"][0], 4),
            "bare_own_processor_seconds": round(middle["bare"][1], 4),
        }
        print("deferred", size, found[str(size)], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    detector, x = fitted()
    begin = os.getloadavg()[0]
    record = {
        "network": "cifar10_resnet20_clean",
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, one thread a pass",
        "repeats": options.repeats,
        "one_pass": one_pass(detector, x, options.repeats),
        "deferred": deferred(detector, x, options.repeats),
        "load_average": [round(begin, 1), round(os.getloadavg()[0], 1)],
        "versions": versions(),
    }
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, RESULTS)


if __name__ == "__main__":
    main()
