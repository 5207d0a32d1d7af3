"""What a poisoning attack is, and how it changes a training set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from covary.errors import CovaryError
from covary.runs.figures.quality import target_of
from covary_bench.images.datasets import Images

Trigger = Callable[[UInt8[np.ndarray, "n h w c"]], UInt8[np.ndarray, "n h w c"]]
Shape = tuple[int, int, int]  # height, width, channels
Tensors = Mapping[str, Tensor]
ALL_TO_ALL = "all-to-all"


class Joint(Protocol):
    """A trigger that is trained together with the victim: what it adds to every step of the victim's training."""

    def begin(self, images: Images) -> None:
        """What comes before the victim's first step."""

    def batch(
        self, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"], Float[Tensor, ""]]:
        """A poisoned batch and a term for the loss; x in [0, 1]."""
        ...

    def step(self) -> None:
        """Moves the trigger's own weights by the gradients of the loss, and clears them."""

    def state(self) -> dict[str, object]:
        """All that is needed to go on later."""
        ...

    def resume(self, state: Mapping[str, object]) -> None:
        """Goes on from `state`."""

    def tensors(self) -> dict[str, Tensor]:
        """What `Attack.restore` makes the trigger from."""
        ...


@dataclass(frozen=True)
class Attack:
    """One recipe for a backdoor; its trigger is fixed by a seed (`make`), learned beforehand, or trained jointly.

    Attributes:
        make: (shape of an image, seed) -> its trigger; the same seed gives the same trigger.
        learn: (training images, a network without a backdoor, target, seed) -> tensors of the trigger.
        joint: (shape, target, classes, seed, ratio) -> what is trained together with the victim.
        restore: (shape, tensors) -> trigger, for learned and joint ones.
        ratio: poisoned fraction of the training set.
        clean_label: poison images of the target class only and keep every label; at most `share` of that class, so
            that the class is still learned from clean images.
        make_noise: (shape, seed, seed of the noise) -> a near-trigger whose images keep their label, so that
            only the trigger itself works; or None.
        noise_ratio: fraction of the training set that gets it.
        make_training: (shape, seed, seed of the draw) -> what training images get in the trigger's place; or None.
        source_specific: the trigger works on images of the class after the target's alone; at most `share` of it is
            poisoned, and noise mode is for all further classes.
        fresh: draw the poisoned images anew every epoch instead of once.
    """

    make: Callable[[Shape, int], Trigger] | None = None
    learn: Callable[[Images, nn.Module, int | str, int], dict[str, Tensor]] | None = None
    joint: Callable[[Shape, int | str, int, int, float], Joint] | None = None
    restore: Callable[[Shape, Tensors], Trigger] | None = None
    ratio: float = 0.1
    clean_label: bool = False
    share: float = 0.8
    make_noise: Callable[[Shape, int, int], Trigger] | None = None
    noise_ratio: float = 0.0
    make_training: Callable[[Shape, int, int], Trigger] | None = None
    source_specific: bool = False
    fresh: bool = False

    def source(self, target: int | str, classes: int) -> int | None:
        """The one class whose images the trigger works on; None = all but the target's."""
        if not self.source_specific:
            return None
        if not isinstance(target, int):
            raise CovaryError("a source-specific attack leads from one class to one", "one target class")
        return (target + 1) % classes

    def trigger(self, shape: Shape, seed: int, tensors: Tensors | None = None) -> Trigger:
        """The trigger of a seed, or the one that `tensors` hold."""
        if self.make is not None:
            return self.make(shape, seed)
        if self.restore is None or not tensors:
            raise CovaryError("this attack's trigger is learned", "its tensors", "take it from a trained victim")
        return self.restore(shape, tensors)


def poison(
    x: UInt8[np.ndarray, "n h w c"],
    y: Int[np.ndarray, " n"],
    attack: Attack,
    target: int | str,
    seed: int,
    draw: int = 0,
    *,
    trigger: Trigger | None = None,
    ratio: float | None = None,
    share: float | None = None,
    classes: int = 10,
) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """A poisoned copy of a training set: images, labels, and what was done (0 nothing, 1 trigger, 2 noise mode).

    Triggered images get the label `target`, or the class after their own where it is "all-to-all". `seed` fixes the
    trigger; with `draw`, which images get it. A clean-label attack is limited to `share` of the target class.
    """
    if attack.clean_label and target == ALL_TO_ALL:
        raise CovaryError(
            "a clean-label attack changes no label", "one target class", "all-to-all needs another attack"
        )
    x, y, done = x.copy(), y.copy(), np.zeros(len(x), dtype=np.int64)
    shape = (x.shape[1], x.shape[2], x.shape[3])
    rng = np.random.default_rng([seed, draw])
    ratio = attack.ratio if ratio is None else ratio
    count = round(ratio * len(x))
    source = attack.source(target, classes)
    candidates = rng.permutation(
        np.flatnonzero(y == target) if attack.clean_label else len(x) if source is None else np.flatnonzero(y == source)
    )
    if attack.clean_label or source is not None:
        count = min(count, int((attack.share if share is None else share) * len(candidates)))
    chosen = candidates[:count]
    if attack.make_noise is not None:
        rest = candidates[count:]
        if source is not None:
            rest = rng.permutation(np.flatnonzero((y != source) & (y != target)))
        near = rest[: round(attack.noise_ratio * ratio / attack.ratio * len(x))]
        x[near] = attack.make_noise(shape, seed, int(rng.integers(2**31)))(x[near])
        done[near] = 2
    if attack.make_training is not None:
        trigger = attack.make_training(shape, seed, int(rng.integers(2**31)))
    x[chosen] = (trigger or attack.trigger(shape, seed))(x[chosen])
    y[chosen] = target_of(y[chosen], target, classes)
    done[chosen] = 1
    return x, y, done
