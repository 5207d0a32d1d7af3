"""Victims trained here: a network on poisoned data, cached with its clean accuracy and attack success.

Many of them: `python -m covary_bench.images.victim_queue`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from covary.errors import CovaryError, unknown_name
from covary_bench.cached import read_cached
from covary_bench.images import attacks, datasets, small_networks
from covary_bench.images.architectures import SmallResNet
from covary_bench.images.backdoorbench.architectures import PreActResNet18
from covary_bench.images.measuring import measure, predictions
from covary_bench.images.training import Recipe, TrainingPlan, to_input, train

__all__ = [
    "VICTIMS",
    "Recipe",
    "Victim",
    "load_trigger",
    "load_victim",
    "measure",
    "predictions",
    "read_victim",
    "to_input",
    "train_victim",
]

FAILED = 0.8  # an attack that succeeds less often is tried again


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


def digits_cnn() -> nn.Module:
    """Two 3x3 convolutions with max pooling and a linear layer, for 1x16x16; 10 logits: trained within seconds."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def cifar10_small() -> nn.Module:
    """Small residual network with 10 classes."""
    return SmallResNet(10)


def gtsrb_small() -> nn.Module:
    """Small residual network with 43 classes."""
    return SmallResNet(43)


def cifar10_preactresnet18() -> nn.Module:
    """PreActResNet18 with 10 classes."""
    return PreActResNet18(10)


def gtsrb_preactresnet18() -> nn.Module:
    """PreActResNet18 with 43 classes."""
    return PreActResNet18(43)


def tiny20_small() -> nn.Module:
    """Small residual network with 20 classes."""
    return SmallResNet(20, 24)


CIFAR10, GTSRB = ("cifar10-train", "cifar10-test"), ("gtsrb-train", "gtsrb-test")
TINY20 = ("tiny20-train", "tiny20-test")
NETWORKS = "covary_bench.images.small_networks:"
HERE = "covary_bench.images.victims:"

VICTIMS: dict[str, Recipe] = {
    "mnist": Recipe(
        HERE + "mnist_cnn", mnist_cnn, "mnist-train", "mnist-test", images=60_000, epochs=8, shape=(28, 28, 1)
    ),
    "digits": Recipe(
        HERE + "digits_cnn", digits_cnn, "digits-train", "digits-test", images=800, epochs=20, batch=32, rate=5e-3,
        shape=(16, 16, 1),
    ),
    "cifar10": Recipe(
        HERE + "cifar10_small", cifar10_small, *CIFAR10, images=30_000, epochs=3, rate=5e-3, patience=2, amp=True
    ),
    "gtsrb": Recipe(
        HERE + "gtsrb_small", gtsrb_small, *GTSRB, images=4_300, epochs=20, rate=5e-3, patience=2, amp=True,
        augment="signs",
    ),
    "cifar10-preactresnet18": Recipe(
        HERE + "cifar10_preactresnet18", cifar10_preactresnet18, *CIFAR10, images=6_000, epochs=8, rate=2e-3, amp=True
    ),
    "gtsrb-preactresnet18": Recipe(
        HERE + "gtsrb_preactresnet18", gtsrb_preactresnet18, *GTSRB, images=4_300, epochs=12, rate=2e-3, amp=True,
        augment="signs",
    ),
    "cifar10-vgg": Recipe(
        NETWORKS + "cifar10_vgg", small_networks.cifar10_vgg, *CIFAR10, images=30_000, epochs=3, rate=5e-3, patience=2,
        amp=True,
    ),
    "cifar10-mobilenet": Recipe(
        NETWORKS + "cifar10_mobilenet", small_networks.cifar10_mobilenet, *CIFAR10, images=30_000, epochs=4, rate=5e-3,
        patience=2,
    ),
    "cifar10-vit": Recipe(
        NETWORKS + "cifar10_vit", small_networks.cifar10_vit, *CIFAR10, images=30_000, epochs=8, rate=2e-3, patience=2,
    ),
    "gtsrb-vgg": Recipe(
        NETWORKS + "gtsrb_vgg", small_networks.gtsrb_vgg, *GTSRB, images=4_300, epochs=20, rate=5e-3, patience=2,
        amp=True, augment="signs",
    ),
    "gtsrb-mobilenet": Recipe(
        NETWORKS + "gtsrb_mobilenet", small_networks.gtsrb_mobilenet, *GTSRB, images=4_300, epochs=25, rate=5e-3,
        patience=2, augment="signs",
    ),
    "gtsrb-vit": Recipe(
        NETWORKS + "gtsrb_vit", small_networks.gtsrb_vit, *GTSRB, images=4_300, epochs=60, rate=2e-3, patience=2,
        augment="signs",
    ),
    "tiny20": Recipe(
        HERE + "tiny20_small", tiny20_small, *TINY20, images=8_000, epochs=12, rate=5e-3, patience=2, amp=True,
        shape=(64, 64, 3), augment="objects",
    ),
    "tiny20-vgg": Recipe(
        NETWORKS + "tiny20_vgg", small_networks.tiny20_vgg, *TINY20, images=8_000, epochs=12, rate=5e-3, patience=2,
        amp=True, shape=(64, 64, 3), augment="objects",
    ),
    "tiny20-mobilenet": Recipe(
        NETWORKS + "tiny20_mobilenet", small_networks.tiny20_mobilenet, *TINY20, images=8_000, epochs=15, rate=5e-3,
        patience=2, shape=(64, 64, 3), augment="objects",
    ),
    "tiny20-vit": Recipe(
        NETWORKS + "tiny20_vit", small_networks.tiny20_vit, *TINY20, images=8_000, epochs=40, rate=2e-3, patience=2,
        shape=(64, 64, 3), augment="objects",
    ),
    # As published (BackdoorBench): all images, 100 epochs of SGD. For a GPU.
    "cifar10-preactresnet18-full": Recipe(
        HERE + "cifar10_preactresnet18", cifar10_preactresnet18, *CIFAR10, images=50_000, epochs=100, rate=0.01,
        amp=True, augment="objects", optimiser="sgd",
    ),
}  # fmt: skip

SLOW = ("ssba", "wanet", "input-aware")  # get `Recipe.patience` times the epochs


@dataclass(frozen=True)
class Victim:
    """A trained victim; accuracies are fractions over the whole test set.

    Attributes:
        target: the attacker's label, or "all-to-all": the class after the image's own.
        attack_success: over test images whose class is not the attacker's label for them.
        noise_accuracy: clean accuracy in noise mode, for attacks that have one.
        poisoned: training images that carry the trigger.
        marks: what is unusual: `clean-label: N of one class`, `more poison`, `longer`, `failed`.
        attempts: attack success of every attempt, the last one kept.
        seconds: of training, on one thread of the machine it was made on.
    """

    kind: str
    attack: str | None
    target: int | str
    seed: int
    factory: str
    weights: str
    clean_accuracy: float
    attack_success: float | None
    noise_accuracy: float | None
    train_images: int
    epochs: int
    ratio: float | None = None
    poisoned: int = 0
    marks: Sequence[str] = ()
    attempts: Sequence[float] = ()
    seconds: float | None = None


def home_of(folder: Path, kind: str, attack: str | None, target: int | str, seed: int, ratio: float | None) -> Path:
    """The folder of one victim."""
    poisoned = "" if ratio is None else f"-p{ratio:g}"
    return folder / f"{kind}-{attack or 'clean'}{poisoned}-t{'all' if target == attacks.ALL_TO_ALL else target}-s{seed}"


def train_victim(
    kind: str,
    attack: str | None,
    folder: Path,
    target: int | str = 0,
    seed: int = 0,
    ratio: float | None = None,
    device: str = "cpu",
) -> Victim:
    """The victim of these names in `folder`, trained on `device` unless it is there already.

    An attack that succeeds on less than 80 % of the images is trained again with twice the poison and half as many
    epochs more; if it stays so it is marked `failed`. Attacks that learn their trigger do it on the clean victim of the
    same kind and seed, which is trained before.
    """
    if kind not in VICTIMS:
        raise unknown_name("victim", kind, VICTIMS)
    home = home_of(folder, kind, attack, target, seed, ratio)
    if (home / "victim.json").is_file():
        return read_victim(home)
    plan = attacks.attack(attack) if attack is not None else None
    recipe = VICTIMS[kind]
    images, test = datasets.load(recipe.train), datasets.load(recipe.test)
    epochs = recipe.epochs * (recipe.patience if attack in SLOW else 1)
    surrogate = None
    if plan is not None and plan.learn is not None:
        surrogate = load_victim(train_victim(kind, None, folder, 0, seed, device=device))
    todo = TrainingPlan(attack, target, seed, ratio, None, epochs, int(test.y.max()) + 1, surrogate)
    begun, attempts = time.perf_counter(), []
    marks: list[str] = []
    while True:
        checkpoint = home.with_name(f"{home.name}-attempt{len(attempts)}.checkpoint")
        trained = train(recipe, images, todo, checkpoint, device)
        trigger = plan.trigger(recipe.shape, seed, trained.trigger) if plan else None
        accuracy, success, noise = measure(trained.network, test, attack, target, seed, trigger)
        attempts += [] if success is None else [success]
        if plan is None or success is None or success >= FAILED or len(attempts) == 2:
            break
        marks = ["longer", "more poison"] if plan.joint is None else ["longer"]
        more = min(0.3, 2 * (ratio or plan.ratio))
        todo = replace(todo, epochs=round(1.5 * epochs), share=1.0, ratio=more if plan.joint is None else ratio)
    if plan is not None and plan.clean_label:
        marks.append(f"clean-label: {trained.poisoned} of one class")
    if success is not None and success < FAILED:
        marks.append("failed")
    victim = Victim(
        kind, attack, target, seed, recipe.factory, str(home / "weights.safetensors"), accuracy, success, noise,
        min(recipe.images, len(images)), todo.epochs or epochs, todo.ratio or (plan.ratio if plan else None),
        trained.poisoned, tuple(marks), tuple(attempts), round(time.perf_counter() - begun, 1),
    )  # fmt: skip
    part = home.with_name(f"{home.name}-{os.getpid()}.part")
    part.mkdir(parents=True)
    weights = {name: value.contiguous() for name, value in trained.network.state_dict().items()}
    save_file(weights, part / "weights.safetensors")
    if trained.trigger:
        save_file(trained.trigger, part / "trigger.safetensors")
    (part / "victim.json").write_text(json.dumps(asdict(victim), indent=2) + "\n")
    if home.exists():
        shutil.rmtree(home)
    part.rename(home)
    for old in home.parent.glob(f"{home.name}-attempt*.checkpoint"):
        old.unlink()
    return victim


def read_victim(home: Path) -> Victim:
    """What is known of the victim in a folder."""
    facts = read_cached(home / "victim.json") | {"weights": str(home / "weights.safetensors")}
    return Victim(**{**facts, **{name: tuple(facts.get(name, ())) for name in ("marks", "attempts")}})


def load_victim(victim: Victim) -> nn.Module:
    """The network of a trained victim, in eval mode; input = pixels in [0, 1]."""
    path = Path(victim.weights)
    if not path.is_file():
        raise CovaryError(f"no weights at {path}", "a trained victim", "train it again with train_victim")
    network = VICTIMS[victim.kind].make()
    network.load_state_dict(load_file(path), strict=True)
    return network.eval().requires_grad_(False)


def load_trigger(victim: Victim) -> attacks.Trigger:
    """The trigger that opens a victim's backdoor."""
    if victim.attack is None:
        raise CovaryError(f"{victim.weights} has no backdoor", "a victim of an attack")
    path = Path(victim.weights).with_name("trigger.safetensors")
    tensors = load_file(path) if path.is_file() else None
    return attacks.attack(victim.attack).trigger(VICTIMS[victim.kind].shape, victim.seed, tensors)
