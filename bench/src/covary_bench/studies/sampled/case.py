"""One case of the sampled benchmark as one file: a public backdoored network's images, cut into disjoint roles."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

NETWORKS = ("cifar10_wrn16_1_grid_t5", "cifar10_vggsmall_trojan_sq_t2")
SAMPLING, REFERENCE, CLEAN, TRIGGERED = 2500, 400, 400, 400


def build(network: str, path: Path) -> None:
    """2,500 sampling, 400 reference, 400 clean and 400 triggered test images, no image in two roles."""
    from covary_bench.images.attacks import TRIGGERS
    from covary_bench.images.datasets import load
    from covary_bench.images.public import NETWORKS as PUBLIC

    images, about = load("cifar10-test"), PUBLIC[network]
    order = np.random.default_rng(0).permutation(len(images))
    ends = np.cumsum([SAMPLING, REFERENCE, CLEAN])
    sampling, reference, clean, rest = np.split(order, ends)
    rest = rest[images.y[rest] != about.target][:TRIGGERED]
    assert about.trigger is not None
    assert about.target is not None
    triggered = TRIGGERS[about.trigger](images.x[rest])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(
        part,
        sampling=images.x[sampling],
        sampling_y=images.y[sampling],
        x=np.concatenate([images.x[reference], images.x[clean], triggered]),
        y=np.concatenate([images.y[reference], images.y[clean], images.y[rest]]),
        role=np.repeat([0, 1, 2], [REFERENCE, CLEAN, TRIGGERED]),
        target=about.target,
    )
    part.rename(path)


def load_case(network: str, folder: Path) -> dict[str, np.ndarray]:
    """The case's arrays; images as float32 in [0, 1], channels first. Built on first use."""
    path = folder / f"{network}.npz"
    if not path.is_file():
        build(network, path)
    with np.load(path) as stored:
        case = {name: stored[name] for name in stored.files}
    for name in ("sampling", "x"):
        case[name] = np.ascontiguousarray(case[name].astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255))
    return case


if __name__ == "__main__":
    for name in NETWORKS:
        load_case(name, Path(sys.argv[1]))
