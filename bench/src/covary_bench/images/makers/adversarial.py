"""A network without a backdoor: clean test images against adversarial ones made from images it gets right."""

from __future__ import annotations

from pathlib import Path

import torch

from covary.errors import unknown_name
from covary_bench.cell import Cell
from covary_bench.images import attacks
from covary_bench.images.attacks.adversarial import attack_in_batches
from covary_bench.images.case_files import Group, write_case
from covary_bench.images.datasets import Images
from covary_bench.images.ingredients import AttackedNetwork, Cutter, attacked_network, test_images
from covary_bench.images.victims import predictions, to_input
from covary_bench.table import Size


def perturbed(name: str, owner: AttackedNetwork, cutter: Cutter, n: int, seed: int) -> Group:
    """n adversarial images by the attack of that name, as float32: 8 bits would undo part of it."""
    if name not in attacks.ADVERSARIAL:
        raise unknown_name("adversarial attack", name, attacks.ADVERSARIAL)
    right = predictions(owner.network, cutter.images.x) == cutter.images.y
    images: Images = cutter.first(n, right)
    x, y = to_input(images.x), torch.from_numpy(images.y)
    pixels = attack_in_batches(attacks.ADVERSARIAL[name], owner.network, x, y, seed)
    return Group(name, images, True, pixels.numpy())


def make(cell: Cell, size: Size, cache: Path, folder: Path, device: str = "cpu") -> Path:
    """Trusted, clean and adversarial images of one network."""
    owner = attacked_network(cell, None, cache, device)
    cutter = test_images(owner.dataset, cell.seed)
    trusted, clean = cutter.balanced(size.trusted), cutter.first(size.clean)
    odd = perturbed(cell.what, owner, cutter, size.anomalous, cell.seed)
    groups = [Group("clean", clean, False), odd]
    return write_case(folder, owner, "adversarial", trusted, groups, cell.seed, cutter.first(size.sampling))
