"""Does memory stay flat? Scores 100,000 inputs against 500 trusted samples into a RUN, in a process of its own.

python -m covary_bench.studies.memory --n 100000 --out bench/results/memory.json
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from covary.data.source import open_data
from covary.detector import Detector
from covary.runs.folder.write import write_run
from covary.runs.report import write_report
from covary_bench.images.public import NETWORKS, load_public


class Noise(Dataset[torch.Tensor]):
    """As many images of smooth noise as one likes, made when asked for."""

    def __init__(self, n: int, shape: tuple[int, int, int], start: int = 0) -> None:
        self.n, self.shape, self.start = n, shape, start

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> torch.Tensor:
        if index >= self.n:
            raise IndexError(index)
        rng = np.random.default_rng(self.start + index)
        coarse = torch.from_numpy(rng.random((1, self.shape[0], 7, 7), dtype=np.float32))
        return torch.nn.functional.interpolate(coarse, self.shape[1:], mode="bilinear", align_corners=False)[0]


def peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mnist_badnet_white5_t1", choices=list(NETWORKS))
    parser.add_argument("--n", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--trusted", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("bench/results/memory.json"))
    options = parser.parse_args()
    module = load_public(options.network)
    first = next(module.parameters())
    shape = (1, 28, 28) if first.shape[1] == 1 else (3, 32, 32)
    module(torch.zeros(64, *shape))
    network = peak()
    detector = Detector(module, allow_missing_classes=True).fit(open_data(Noise(options.trusted, shape)))
    about = {"network": options.network, "trusted": options.trusted}
    cells = {**about, "network_mb": network, "fitted_mb": peak(), "by_n": {}}
    for n in options.n:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            write_run(detector, open_data(Noise(n, shape, start=10**6)), Path(folder) / "run", report=write_report)
        cells["by_n"][str(n)] = {
            "seconds": time.perf_counter() - started, "peak_mb": peak(), "above_network_mb": peak() - network,
        }  # fmt: skip
        print(n, cells["by_n"][str(n)], flush=True)
        options.out.write_text(json.dumps(cells, indent=1))


if __name__ == "__main__":
    main()
