"""Hard benign inputs beside ordinary and triggered ones: what a detector of other mechanisms flags without cause.

What a cell may name: `misclassified`, `low-confidence`, `rare-classes`, or a corruption. The victim is BadNets'.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from covary.errors import unknown_name
from covary.features.observables import margin
from covary_bench.cell import Cell
from covary_bench.images.case_files import Group, write_case
from covary_bench.images.corruptions import CORRUPTIONS
from covary_bench.images.datasets import Images
from covary_bench.images.ingredients import AttackedNetwork, Cutter, attacked_network, test_images
from covary_bench.images.makers.backdoor import triggered
from covary_bench.images.victims import to_input
from covary_bench.table import Size

KINDS = ("misclassified", "low-confidence", "rare-classes", *CORRUPTIONS)
RARE, RARE_SHARE, LOWEST = 2, 0.1, 0.1


@torch.inference_mode()
def answers(owner: AttackedNetwork, images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Predicted class and margin of every image."""
    logits = torch.cat([owner.network(to_input(images.x[i : i + 500])) for i in range(0, len(images), 500)])
    predicted = logits.argmax(1)
    return predicted.numpy(), margin(logits, predicted).numpy()


def hard_images(kind: str, owner: AttackedNetwork, cutter: Cutter, n: int, rare: np.ndarray, seed: int) -> Images:
    """n hard benign images of one kind, unused so far."""
    predicted, margins = answers(owner, cutter.images)
    right = predicted == cutter.images.y
    if kind == "misclassified":
        return cutter.first(n, ~right)
    if kind == "low-confidence":
        return cutter.first(n, right & (margins <= np.quantile(margins[right], LOWEST)))
    if kind == "rare-classes":
        return cutter.first(n, np.isin(cutter.images.y, rare))
    images = cutter.first(n)
    return Images(CORRUPTIONS[kind](images.x, seed), images.y, images.id)


def make(cell: Cell, size: Size, cache: Path, folder: Path, device: str = "cpu") -> Path:
    """Clean, hard benign and triggered images of one victim; trusted images of two classes are rare if asked for."""
    if cell.what not in KINDS:
        raise unknown_name("kind of hard input", cell.what, KINDS)
    owner = attacked_network(cell, cell.options.get("attack", "badnets"), cache, device)
    cutter = test_images(owner.dataset, cell.seed)
    labels = np.unique(cutter.images.y)
    rare = labels[-RARE:]
    usual = max(1, round(size.trusted / len(labels)))
    few = max(1, round(RARE_SHARE * usual))
    clean = cutter.first(size.clean)
    counts = {int(c): few if cell.what == "rare-classes" and c in rare else usual for c in labels}
    # Trusted images are dealt before the hard ones: else they would be easier than the clean ones they calibrate for.
    trusted = cutter.per_class(counts)
    hard = hard_images(cell.what, owner, cutter, size.clean, rare, cell.seed)
    odd = triggered(owner, cutter, size.anomalous)
    groups = [Group("clean", clean, False), Group("hard", hard, False), odd]
    return write_case(folder, owner, "hard", trusted, groups, cell.seed)
