"""TaCT: the trigger works on images of one class alone (Tang et al., arXiv 1908.00686, section 3)."""

from __future__ import annotations

from covary_bench.images.attacks.patch import make_badnets
from covary_bench.images.attacks.poisoning import Attack, Shape, Trigger


def make_cover(shape: Shape, seed: int, draw: int) -> Trigger:
    """Cover images carry the trigger itself: they are of other classes and keep their label."""
    return make_badnets(shape, seed)


# BadNets' patch on images of the class after the target's, and on as many cover images of all further classes.
TACT = Attack(make_badnets, ratio=0.05, source_specific=True, make_noise=make_cover, noise_ratio=0.05)
