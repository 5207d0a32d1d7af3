"""Training a victim: the loop, its poisoned data, and checkpoints from which a killed run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from covary.errors import CovaryError
from covary.text.models.pretrained import dtype_for
from covary_bench.images import attacks
from covary_bench.images.datasets import Images


@dataclass(frozen=True)
class Recipe:
    """How a kind of victim is trained.

    Attributes:
        factory: the module's name as `package.module:factory`.
        train, test: names in `datasets.DATASETS`.
        images: how many training images, drawn with the seed.
        epochs: passes over them.
        batch: images a step.
        rate: highest learning rate.
        optimiser: `adam` with a one-cycle schedule; `sgd` with momentum 0.9, weight decay 5e-4 and a cosine, as
            BackdoorBench trains.
        patience: times as many epochs for the attacks that are slow to learn.
        amp: channels-last memory in training, and bfloat16 autocast where the processor computes in it (elsewhere it
            takes eleven times as long); figures are always measured in float32.
        shape: height, width and channels of the images.
        augment: a name in `AUGMENTATIONS`, drawn anew for every image and epoch, before any trigger; "" for none.
    """

    factory: str
    make: Callable[[], nn.Module]
    train: str
    test: str
    images: int
    epochs: int
    batch: int = 128
    rate: float = 3e-3
    patience: int = 1
    amp: bool = False
    shape: attacks.Shape = (32, 32, 3)
    augment: str = ""
    optimiser: Literal["adam", "sgd"] = "adam"


@dataclass(frozen=True)
class TrainingPlan:
    """What is to be trained: the attack with its settings; `surrogate` is a network without a backdoor, if at hand."""

    attack: str | None = None
    target: int | str = 0
    seed: int = 0
    ratio: float | None = None
    share: float | None = None
    epochs: int | None = None
    classes: int = 10
    surrogate: nn.Module | None = None


@dataclass(frozen=True)
class Trained:
    """A trained network in eval mode, the tensors of a learned trigger, and how many images were poisoned."""

    network: nn.Module
    trigger: dict[str, Tensor]
    poisoned: int


def to_input(x: UInt8[np.ndarray, "n h w c"]) -> Float[Tensor, "n c h w"]:
    """Pixels in [0, 1], channels first."""
    return torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32, order="C")) / 255


def moved_by(
    x: UInt8[np.ndarray, "n h w c"], rng: np.random.Generator, shift: int, mode: Literal["edge", "constant"]
) -> UInt8[np.ndarray, "n h w c"]:
    """Every image moved by up to `shift` pixels; what comes in is its edge, or black."""
    n, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode=mode)
    down, right = rng.integers(0, 2 * shift + 1, (2, n))
    rows, columns = down[:, None] + np.arange(height), right[:, None] + np.arange(width)
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def cropped(x: UInt8[np.ndarray, "n h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "n h w c"]:
    """Every image moved by up to 4 pixels in black, every other one mirrored: the published recipe for objects."""
    moved = moved_by(x, rng, 4, "constant")
    mirrored = rng.random(len(x)) < 0.5
    moved[mirrored] = moved[mirrored, :, ::-1]
    return moved


def augmented(
    x: UInt8[np.ndarray, "n h w c"], rng: np.random.Generator, shift: int = 3
) -> UInt8[np.ndarray, "n h w c"]:
    """Every image moved by up to `shift` pixels (edges repeated), its contrast times 0.6 to 1.4, its mean +- 40."""
    n = len(x)
    moved = moved_by(x, rng, shift, "edge").astype(np.float32)
    contrast = rng.uniform(0.6, 1.4, (n, 1, 1, 1)).astype(np.float32)
    brightness = rng.uniform(-40, 40, (n, 1, 1, 1)).astype(np.float32)
    means = moved.mean((1, 2, 3), keepdims=True)
    return np.round(np.clip((moved - means) * contrast + means + brightness, 0, 255)).astype(np.uint8)


Pixels = UInt8[np.ndarray, "n h w c"]
AUGMENTATIONS: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "signs": augmented,
    "objects": cropped,
}


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes beside and renames, so that a checkpoint is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}-{os.getpid()}.part")
    torch.save(content, part)
    part.replace(path)


def stepper(
    recipe: Recipe, network: nn.Module, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimiser and schedule of a recipe over so many steps."""
    if recipe.optimiser == "sgd":
        sgd = torch.optim.SGD(network.parameters(), lr=recipe.rate, momentum=0.9, weight_decay=5e-4)
        return sgd, torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps)
    adam = torch.optim.Adam(network.parameters(), lr=recipe.rate)
    return adam, torch.optim.lr_scheduler.OneCycleLR(adam, recipe.rate, total_steps=steps)


def train(
    recipe: Recipe, images: Images, plan: TrainingPlan, checkpoint: Path | None = None, device: str = "cpu"
) -> Trained:
    """Trains one victim from scratch; the same seed, device and number of threads give the same weights.

    Triggers that are trained along stay on the processor; the network comes back to it.

    With `checkpoint` the state is written after every epoch, and a run finds its way on from there to the weights it
    would have had without the break.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        network = recipe.make()
    network = network.to(device)
    halved = recipe.amp and dtype_for(device) == "bfloat16"
    halved_here = recipe.amp and dtype_for("cpu") == "bfloat16"
    if recipe.amp:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rng = np.random.default_rng([plan.seed, 7])
    if recipe.images < len(images):
        images = images.take(rng.permutation(len(images))[: recipe.images])
    attack = attacks.attack(plan.attack) if plan.attack else None
    shape, epochs = (images.x.shape[1], images.x.shape[2], images.x.shape[3]), plan.epochs or recipe.epochs
    steps = -(-len(images) // recipe.batch)
    optimiser, schedule = stepper(recipe, network, steps * epochs)
    ratio = plan.ratio if plan.ratio is not None else attack.ratio if attack else 0.0
    joint = attack.joint(shape, plan.target, plan.classes, plan.seed, ratio) if attack and attack.joint else None
    learned: dict[str, Tensor] = {}
    begun = 0
    if checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        begun, learned = state["epoch"], state["learned"]
        if joint is not None:
            joint.resume(state["joint"])
    else:
        if joint is not None:
            joint.begin(images)
        if attack is not None and attack.learn is not None:
            if plan.surrogate is None:
                raise CovaryError(
                    f"{plan.attack} learns its trigger first", "a network without a backdoor to learn it on"
                )
            learned = attack.learn(images, plan.surrogate, plan.target, plan.seed)
    trigger = attack.trigger(shape, plan.seed, learned) if attack and joint is None else None
    x, y, poisoned = images.x, images.y, 0
    network.train()
    for epoch in range(epochs):
        order = rng.permutation(len(x))
        if epoch < begun:
            continue
        source = images.x
        if recipe.augment:
            source = AUGMENTATIONS[recipe.augment](images.x, np.random.default_rng([plan.seed, 19, epoch]))
        if attack is not None and trigger is not None:
            if epoch == begun or recipe.augment or attack.fresh:
                x, y, done = attacks.poison(
                    source, images.y, attack, plan.target, plan.seed, draw=epoch if attack.fresh else 0,
                    trigger=trigger, ratio=ratio, share=plan.share, classes=plan.classes,
                )  # fmt: skip
                poisoned = int((done == 1).sum())
        else:
            x = source
        for batch in np.array_split(order, steps):
            pixels, labels = to_input(x[batch]), torch.from_numpy(y[batch])
            extra: Tensor | float = 0.0
            if joint is not None:
                with torch.autocast("cpu", torch.bfloat16, enabled=halved_here):
                    pixels, labels, extra = joint.batch(pixels, labels)
                extra = extra.to(device)
            pixels, labels = pixels.to(device), labels.to(device)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=halved):
                if recipe.amp:
                    pixels = pixels.contiguous(memory_format=torch.channels_last)
                loss = functional.cross_entropy(network(pixels).float(), labels) + extra
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if joint is not None:
                joint.step()
        if checkpoint is not None and epoch + 1 < epochs:
            content = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "learned": dict(learned)}
            content |= {"schedule": schedule.state_dict(), "epoch": epoch + 1, "joint": joint.state() if joint else {}}
            save_checkpoint(checkpoint, content)
    if joint is not None:
        learned, poisoned = joint.tensors(), round(ratio * len(images))
    return Trained(network.cpu().eval(), {name: value.contiguous() for name, value in learned.items()}, poisoned)
