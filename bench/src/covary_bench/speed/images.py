"""Test images as a public network wants them."""

from __future__ import annotations

import torch
from torch import Tensor

from covary_bench.images.datasets import load
from covary_bench.images.public import NETWORKS


def test_images(network: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n test images of a public network's data set, scaled and normalised, and their labels."""
    about = NETWORKS[network]
    images = load(about.dataset)
    x = torch.from_numpy(images.x[:n].copy()).permute(0, 3, 1, 2).float().div(255)
    if about.mean is not None:
        x = (x - torch.tensor(about.mean).view(-1, 1, 1)) / torch.tensor(about.std).view(-1, 1, 1)
    return x.contiguous(), torch.from_numpy(images.y[:n].copy()).long()


test_images.__test__ = False  # type: ignore[attr-defined]  # a name for people, not for pytest
