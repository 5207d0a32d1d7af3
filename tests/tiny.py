"""A tiny trained network and tiny data for tests: scikit-learn's 8 x 8 digits, learned in about a second."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from covary.detector import Detector
from covary.models.network import load_network

TRAINED, TRUSTED, CLEAN, ODD = 700, 420, 100, 60


def network() -> nn.Module:
    """The network's factory: `tiny:network`."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 10),
    )  # fmt: skip


@cache
def images() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 digits, uint8 (n, 8, 8), in random order, and their classes."""
    x, y = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(x))
    return (x.reshape(-1, 8, 8) * 15).astype(np.uint8)[order], y.astype(np.int64)[order]


def odd(x: np.ndarray) -> np.ndarray:
    """Anomalies: the digit with a checkerboard laid over it."""
    board = np.indices((8, 8)).sum(0) % 2
    return np.where(board == 1, 255 - x, x).astype(np.uint8)


@cache
def state() -> dict[str, torch.Tensor]:
    """Trained weights."""
    x, y = images()
    inputs, labels = torch.from_numpy(x[:TRAINED]).float().div(255).unsqueeze(1), torch.from_numpy(y[:TRAINED])
    torch.manual_seed(0)
    model = network().train()
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(p) for p in parameters]
    for _ in range(12):
        for some in torch.randperm(TRAINED).split(32):
            loss = F.cross_entropy(model(inputs[some]), labels[some])
            gradients = torch.autograd.grad(loss, parameters)
            for p, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                velocity.mul_(0.9).add_(gradient)
                p.data.sub_(velocity, alpha=0.05)
    return {name: tensor.detach().clone() for name, tensor in model.eval().state_dict().items()}


def trained() -> nn.Module:
    """The trained network; as a factory, one that needs no weights file."""
    model = network()
    model.load_state_dict(state())
    return model.eval()


def loaded():
    """The trained network as covary loads it."""
    return load_network(trained())


def trusted() -> tuple[np.ndarray, np.ndarray]:
    """Trusted digits and their classes, none of which the network was trained on."""
    x, y = images()
    return x[TRAINED : TRAINED + TRUSTED], y[TRAINED : TRAINED + TRUSTED]


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits to judge, their classes, and 1 for those that are odd."""
    x, y = (part[TRAINED + TRUSTED : TRAINED + TRUSTED + CLEAN + ODD].copy() for part in images())
    truth = np.repeat([0, 1], [CLEAN, ODD])
    x[truth == 1] = odd(x[truth == 1])
    return x, y, truth


def write_files(folder: Path) -> None:
    """weights.safetensors, weights.pt, trusted.npz, inputs.npz."""
    from safetensors.torch import save_file

    save_file(state(), folder / "weights.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state().items()}}, folder / "weights.pt")
    x, y = trusted()
    np.savez(folder / "trusted.npz", x=x, y=y, id=[f"trusted-{i}" for i in range(len(x))])
    x, y, truth = inputs()
    np.savez(folder / "inputs.npz", x=x, y=y, truth=truth, id=[f"input-{i}" for i in range(len(x))])


class Digits(torch.utils.data.Dataset):
    """The trusted digits as a torch Dataset of (image, label)."""

    def __len__(self) -> int:
        return TRUSTED

    def __getitem__(self, i: int):
        x, y = trusted()
        return torch.from_numpy(x[i]).float().div(255).unsqueeze(0), int(y[i])


def dataset() -> Digits:
    """The trusted digits by name: `tiny:dataset`."""
    return Digits()


def detector(**settings) -> Detector:
    """A detector of the network, fitted on the trusted digits."""
    return Detector(trained(), **settings).fit(trusted())
