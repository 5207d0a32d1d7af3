"""What thorough evidence and a look at the pile cost as a user times them, and the memory of a million inputs.

    OMP_NUM_THREADS=1 python -m covary_bench.studies.pile.cost [times] [compiled] [million] [--repeats 15]

`times`: `Detector.rows` on 256 images in batches of 64 against forwards under `inference_mode`, processor time, the
least of interleaved repeats on one thread; the pile's part against those rows. `compiled`: `torch.compile` of the
network, tried once. `million`: `covary score --together` over partitions of a million table rows, its peak memory.
Writes `bench/results/pile-cost.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from covary.data.source import open_data
from covary.detector import Detector
from covary.features.survival import Survival
from covary.scoring.pile.stored import verdicts_together
from covary_bench.images.public import load_public
from covary_bench.speed.as_used import SIZE, least
from covary_bench.speed.cost import IMAGES, forward
from covary_bench.speed.images import test_images

RESULTS = Path(__file__).resolve().parents[4] / "results" / "pile-cost.json"
NETWORK, TRUSTED, PILE = "cifar10_resnet20_clean", 500, 1_000
MILLION, COLUMNS, CLASSES = 1_000_000, 20, 5


def table_network() -> nn.Module:
    """A network of tables, 20 numbers and 5 classes, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(COLUMNS, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, CLASSES)).eval()


def times(repeats: int) -> dict[str, Any]:
    """Rows by fast and by thorough evidence in plain forwards, and what looking at a pile adds to thorough rows."""
    x, _ = test_images(NETWORK, IMAGES)
    network, inputs = load_public(NETWORK), open_data(x.numpy())
    detectors = {evidence: Detector(load_public(NETWORK), batch_size=SIZE) for evidence in ("fast", "thorough")}
    extractor = detectors["thorough"].extractor
    extractor.survival = Survival(extractor.module, extractor.choose_logits).choose([x[:200]])
    todo: dict[str, Callable[[], Any]] = {"forward": forward(network, x, SIZE)}
    todo |= {name: lambda own=own: own.rows(inputs) for name, own in detectors.items()}
    taken = least(todo, repeats)
    found: dict[str, Any] = {name: round(taken[name] / taken["forward"], 2) for name in detectors}
    found["depths"] = len(extractor.survival.depths)
    found["milliseconds a forward"] = round(1e3 * taken["forward"] / len(x), 3)
    return found | _pile_pass(taken["thorough"] / len(x))


def _pile_pass(an_input: float) -> dict[str, Any]:
    """Seconds of judging together and alone, an input, over seconds of its thorough rows; 500 trusted, 5 folds."""
    x = test_images(NETWORK, IMAGES + TRUSTED + PILE)[0][IMAGES:]
    detector = Detector(load_public(NETWORK), batch_size=SIZE, evidence="thorough")
    detector.fit(x[:TRUSTED].numpy())
    rows = detector.rows(open_data(x[TRUSTED:].numpy()))
    verdicts_together(detector.judge, rows.take(np.arange(10)))  # views are made on first use
    taken = least(
        {
            "alone": lambda: detector.judge.judge(rows),
            "together": lambda: verdicts_together(detector.judge, rows),
        },
        3,
    )
    each = {name: seconds / PILE / an_input for name, seconds in taken.items()}
    return {f"judging {name}, of thorough rows": round(share, 3) for name, share in each.items()}


def compiled() -> dict[str, Any]:
    """A compiled forward against a plain one, and whether rows can be taken of a compiled network."""
    x, _ = test_images(NETWORK, IMAGES)
    network, began = load_public(NETWORK), time.perf_counter()
    fast = torch.compile(network)
    assert isinstance(fast, nn.Module)
    found: dict[str, Any] = {}
    forward(fast, x, SIZE)()
    found["seconds to compile"] = round(time.perf_counter() - began, 1)
    taken = least({"plain": forward(network, x, SIZE), "compiled": forward(fast, x, SIZE)}, 7)
    found["forward, compiled over plain"] = round(taken["compiled"] / taken["plain"], 3)
    inputs = open_data(x.numpy())
    try:
        plain, hooked = (Detector(module, batch_size=SIZE) for module in (load_public(NETWORK), fast))
        rows = [own.rows(inputs) for own in (plain, hooked)]
        taken = least({"plain": lambda: plain.rows(inputs), "compiled": lambda: hooked.rows(inputs)}, 5)
        found["rows, compiled over plain"] = round(taken["compiled"] / taken["plain"], 3)
        found["layers seen"] = [len(own.functional) for own in rows]
    except Exception as problem:  # whatever goes wrong is the finding
        found["rows of a compiled network"] = f"{type(problem).__name__}: {str(problem).splitlines()[0][:160]}"
    return found


def million(n: int) -> dict[str, Any]:
    """Peak memory and processor time of a million inputs in partitions, judged together."""
    found: dict[str, Any] = {"inputs": n}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        Detector("covary_bench.studies.pile.cost:table_network").fit(
            rng.normal(size=(500, COLUMNS)).astype(np.float32)
        ).save(home / "detector")
        pile = rng.normal(size=(n, COLUMNS)).astype(np.float32)
        pile[: n // 100] += 1.5
        np.savez(home / "pile.npz", x=pile)
        del pile
        command = [sys.executable, "-m", "covary", "score", str(home / "detector"), str(home / "pile.npz")]
        command += ["--out", str(home / "out"), "--partition-size", "8192", "--trust-code", "--quiet", "--together"]
        code = f"import resource, subprocess, sys; r = subprocess.run({command!r}).returncode; "
        code += "u = resource.getrusage(resource.RUSAGE_CHILDREN); print(r, u.ru_maxrss, u.ru_utime + u.ru_stime)"
        # In a process of its own, so that the peak is that of this command alone.
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        status, peak, seconds = told.split()[-3:]
        found |= {"exit": int(status), "MB": round(int(peak) / 1024), "processor seconds": round(float(seconds))}
    return found


def main() -> None:
    """Measures what is asked for and puts it into the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["times", "compiled", "million"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--inputs", type=int, default=MILLION)
    options = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for what in options.what:
        begin = os.getloadavg()[0]
        if what == "times":
            found = times(options.repeats)
        else:
            found = compiled() if what == "compiled" else million(options.inputs)
        record[what] = found | {"load": [round(begin, 1), round(os.getloadavg()[0], 1)]}
        print(what, record[what], flush=True)
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
