"""What rows cost as a user times them: `Detector.rows` on 256 images in batches of 64, against plain forwards.

`python -m covary_bench.speed.as_used [NETWORK ...]` prints a line of docs/speed.md for each. The least of many
interleaved repeats in processor time on one thread, since other programs only ever add to it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from covary.data.source import open_data
from covary.detector import Detector
from covary_bench.images.public import load_public
from covary_bench.speed.cost import IMAGES, TARGETS, forward
from covary_bench.speed.images import test_images

SIZE, REPEATS = 64, 15


def least(todo: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Least processor seconds of each function, called in turn after one call to warm up."""
    for run in todo.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(repeats):
        for name, run in todo.items():
            started = time.process_time()
            run()
            taken[name].append(time.process_time() - started)
    return {name: min(times) for name, times in taken.items()}


def in_forwards(name: str, repeats: int = REPEATS) -> dict[str, float]:
    """Rows by images as they lie and channels last, and a forward and backward pass, in plain forwards."""
    torch.set_num_threads(1)
    x, _ = test_images(name, IMAGES)
    network, inputs = load_public(name), open_data(x.numpy())

    def passes() -> None:
        """A forward pass and the gradients of activations: what any way to rows has to do."""
        for start in range(0, len(x), SIZE):
            some = x[start : start + SIZE].clone().requires_grad_()
            network(some).max(1).values.sum().backward()

    network.requires_grad_(False)
    plain = Detector(load_public(name), batch_size=SIZE)
    plain.extractor.channels_last = False
    chosen = Detector(load_public(name), batch_size=SIZE)
    times = least(
        {
            "forward": forward(network, x, SIZE),
            "forward and backward": passes,
            "rows, as images lie": lambda: plain.rows(inputs),
            "rows": lambda: chosen.rows(inputs),
        },
        repeats,
    )
    return {kind: seconds / times["forward"] for kind, seconds in times.items()}


if __name__ == "__main__":
    print("| network | forward and backward | rows, images as they lie | rows |\n| --- | --- | --- | --- |")
    for target in sys.argv[1:] or TARGETS:
        _, *found = in_forwards(target).values()
        print(f"| {target} | {' | '.join(f'{ratio:.2f}' for ratio in found)} |")
