"""Victims trained here: a small network on poisoned data, cached with its clean accuracy and attack success."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from covary.bench import attacks, datasets
from covary.errors import CovaryError, unknown_name


def mnist_cnn() -> nn.Module:
    """Two 3x3 convolutions with max pooling and two linear layers, for 1x28x28; 10 logits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1568, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@dataclass(frozen=True)
class Recipe:
    """How a kind of victim is trained.

    Attributes:
        factory: the module's name as `package.module:factory`.
        train, test: names in `datasets.DATASETS`.
        images: how many training images, drawn with the seed.
        epochs: passes over them.
        batch: images a step.
        rate: highest learning rate of Adam's one-cycle schedule.
    """

    factory: str
    make: Callable[[], nn.Module]
    train: str
    test: str
    images: int
    epochs: int
    batch: int = 128
    rate: float = 3e-3


VICTIMS: dict[str, Recipe] = {
    "mnist": Recipe("covary.bench.victims:mnist_cnn", mnist_cnn, "mnist-train", "mnist-test", images=60_000, epochs=8),
}


@dataclass(frozen=True)
class Victim:
    """A trained victim; accuracies are fractions over the whole test set."""

    kind: str
    attack: str | None
    target: int
    seed: int
    factory: str
    weights: str
    clean_accuracy: float
    attack_success: float | None
    noise_accuracy: float | None
    train_images: int
    epochs: int


def to_input(x: UInt8[np.ndarray, "n h w c"]) -> torch.Tensor:
    """Pixels in [0, 1], channels first."""
    return torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32, order="C")) / 255


@torch.no_grad()
def predictions(network: nn.Module, x: UInt8[np.ndarray, "n h w c"], size: int = 500) -> Int[np.ndarray, " n"]:
    """Predicted classes of images, `size` at a time; `network` takes pixels in [0, 1]."""
    parts = [network(to_input(x[i : i + size])).argmax(1).numpy() for i in range(0, len(x), size)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def train(recipe: Recipe, images: datasets.Images, attack: str | None, target: int, seed: int) -> nn.Module:
    """Trains one victim from scratch; the same seed and number of threads give the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = recipe.make()
    rng = np.random.default_rng([seed, 7])
    if recipe.images < len(images):
        images = images.take(rng.permutation(len(images))[: recipe.images])
    plan = attacks.attack(attack) if attack else None
    x, y = images.x, images.y
    steps = -(-len(images) // recipe.batch) * recipe.epochs
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps)
    network.train()
    for epoch in range(recipe.epochs):
        if plan is not None and (epoch == 0 or plan.fresh):
            x, y, _ = attacks.poison(images.x, images.y, plan, target, seed, draw=epoch)
        for batch in np.array_split(rng.permutation(len(x)), steps // recipe.epochs):
            optimiser.zero_grad()
            functional.cross_entropy(network(to_input(x[batch])), torch.from_numpy(y[batch])).backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def measure(
    network: nn.Module, test: datasets.Images, attack: str | None, target: int, seed: int
) -> tuple[float, float | None, float | None]:
    """Clean accuracy, attack success over images of other classes, accuracy in noise mode where the attack has one."""
    accuracy = float((predictions(network, test.x) == test.y).mean())
    if attack is None:
        return accuracy, None, None
    plan = attacks.attack(attack)
    shape = (test.x.shape[1], test.x.shape[2], test.x.shape[3])
    others = test.x[test.y != target]
    success = float((predictions(network, plan.make(shape, seed)(others)) == target).mean())
    if plan.make_noise is None:
        return accuracy, success, None
    noisy = plan.make_noise(shape, seed, seed + 1)(test.x)
    return accuracy, success, float((predictions(network, noisy) == test.y).mean())


def train_victim(kind: str, attack: str | None, folder: Path, target: int = 0, seed: int = 0) -> Victim:
    """The victim in `folder`/`kind`-`attack`-t`target`-s`seed`, trained unless it is there already."""
    if kind not in VICTIMS:
        raise unknown_name("victim", kind, VICTIMS)
    if attack is not None:
        attacks.attack(attack)
    recipe, home = VICTIMS[kind], folder / f"{kind}-{attack or 'clean'}-t{target}-s{seed}"
    if (home / "victim.json").is_file():
        return Victim(
            **{**json.loads((home / "victim.json").read_text()), "weights": str(home / "weights.safetensors")}
        )
    network = train(recipe, datasets.load(recipe.train), attack, target, seed)
    accuracy, success, noise = measure(network, datasets.load(recipe.test), attack, target, seed)
    weights = str(home / "weights.safetensors")
    epochs = recipe.epochs
    victim = Victim(
        kind, attack, target, seed, recipe.factory, weights, accuracy, success, noise, recipe.images, epochs
    )
    part = home.with_name(f"{home.name}-{os.getpid()}.part")
    part.mkdir(parents=True)
    save_file(network.state_dict(), part / "weights.safetensors")
    (part / "victim.json").write_text(json.dumps(asdict(victim), indent=2) + "\n")
    if home.exists():
        shutil.rmtree(home)
    part.rename(home)
    return victim


def load_victim(victim: Victim) -> nn.Module:
    """The network of a trained victim, in eval mode; input = pixels in [0, 1]."""
    path = Path(victim.weights)
    if not path.is_file():
        raise CovaryError(f"no weights at {path}", "a trained victim", "train it again with train_victim")
    network = VICTIMS[victim.kind].make()
    network.load_state_dict(load_file(path), strict=True)
    return network.eval().requires_grad_(False)
