"""The usual suspects of preprocessing: which scale, mean, standard deviation and channel order fit a network?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from covary.data.source import Source
from covary.models.network import Network

Numbers = tuple[float, ...]
# Nats between inputs and what the network's first BatchNorm layer remembers. On public networks for CIFAR-10 and
# traffic signs the right preprocessing gives 0.001-0.03, another mean or standard deviation 0.5 and more.
FAR = 0.2
# Suspects that lose against the present preprocessing on this many inputs are not tried on all.
SCREEN = 64
# Fewer inputs say too little about mean and variance.
ENOUGH = 32
REVERSE = "covary.data.preprocessing:reverse_channels"
# (mean, standard deviation) of pixels in [0, 1], as training scripts have them, by number of channels.
NORMALISATIONS: dict[str, tuple[Numbers, Numbers]] = {
    "(x - 0.5) / 0.5": ((0.5,), (0.5,)),
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's mean and std": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "MNIST's mean and std": ((0.1307,), (0.3081,)),
    "pixels from 0 to 255": ((0.0,), (1 / 255,)),
}


@dataclass(frozen=True)
class Suspect:
    """One way of preprocessing raw inputs, and the flags that ask for it."""

    name: str
    mean: Numbers | None
    std: Numbers | None
    transform: str | None = None

    @property
    def flags(self) -> str:
        """The command-line flags; "no --mean and no --std" where it takes none."""
        parts = []
        if self.transform:
            parts.append(f"--transform {self.transform}")
        for flag, numbers in (("--mean", self.mean), ("--std", self.std)):
            if numbers is not None:
                parts.append(f"{flag} {','.join(f'{v:.6g}' for v in numbers)}")
        return " ".join(parts) or "no --mean and no --std"

    def applied(self, source: Source) -> Source:
        """The source's raw inputs preprocessed this way; a transform of the user's own stays."""
        return source.preprocessed(mean=self.mean, std=self.std, transform=self.transform or source.transform)


@dataclass(frozen=True)
class Trial:
    """What a network makes of labelled inputs: which it gets right, and the loss of the true class."""

    right: Bool[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]


def suspects(source: Source) -> Iterator[Suspect]:
    """What to try on a source's raw inputs, depending on their range and channels; images only."""
    raw = source.preprocessed(transform=source.transform).describe(64)
    if len(raw["shape"]) != 3 or raw["dtype"] != "float32" or raw["shape"][0] not in (1, 3):
        return
    channels, low, high = raw["shape"][0], raw["min"], raw["max"]
    unit = 255.0 if low >= 0 and high > 2 else 1.0
    found = [Suspect("the values as they are", None, None)]
    if unit == 255:
        found.append(Suspect("pixels from 0 to 1", (0.0,), (255.0,)))
    for name, (mean, std) in NORMALISATIONS.items():
        if len(mean) not in (1, channels) or (name.startswith("MNIST") and channels != 1):
            continue
        if low < -0.01:
            # The data were normalised before: undo that.
            undone = tuple(-m / s for m, s in zip(mean, std, strict=True)), tuple(1 / s for s in std)
            if not name.startswith("pixels"):
                found.append(Suspect(f"{name} undone", *undone))
        elif not (unit == 255 and name.startswith("pixels")):
            found.append(Suspect(name, tuple(m * unit for m in mean), tuple(s * unit for s in std)))
    yield from found
    if channels == 3 and source.transform is None:
        for suspect in found:
            yield Suspect(f"channels reversed (BGR), {suspect.name}", suspect.mean, suspect.std, REVERSE)
        caffe = tuple(m / 255 * unit for m in (103.939, 116.779, 123.68)), (unit / 255,)
        yield Suspect("channels reversed (BGR), Caffe's mean", *caffe, REVERSE)


def trial(network: Network, source: Source, labels: np.ndarray, batch_size: int = 64) -> Trial:
    """Runs a network on labelled inputs."""
    logits = torch.cat([network.logits(batch.x).cpu() for batch in source.batches(batch_size)])
    y = torch.from_numpy(labels)
    loss = nn.functional.cross_entropy(logits, y, reduction="none")
    return Trial((logits.argmax(1) == y).numpy(), loss.double().numpy())


def clearly_better(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether `one` is right on clearly more of the same inputs than `other`: 3 points, and 3 standard errors."""
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return gained - lost >= max(0.03 * len(one), 3 * math.sqrt(gained + lost), 1)


def best_fits(network: Network, source: Source, labels: np.ndarray, now: Trial) -> list[tuple[Suspect, float]]:
    """The suspects that are clearly more accurate than the present preprocessing, with their accuracy, best first.

    Only the best and those that accuracy cannot tell from it (two standard errors), in the order of the network's own
    stored statistics where it has some, else of the loss.
    """
    few, own = source.take(np.arange(min(SCREEN, len(source)))), labels[:SCREEN]
    trials = []
    for suspect in suspects(source):
        screened = trial(network, suspect.applied(few), own).right
        if screened.sum() >= now.right[: len(screened)].sum():
            trials.append((suspect, trial(network, suspect.applied(source), labels)))
    better = [(suspect, t) for suspect, t in trials if clearly_better(t.right, now.right)]
    if not better:
        return []
    top = max((t for _, t in better), key=lambda t: t.right.sum())
    equal = []
    for suspect, t in better:
        gained, lost = int((top.right & ~t.right).sum()), int((t.right & ~top.right).sum())
        if gained - lost <= 2 * math.sqrt(gained + lost):
            equal.append((suspect, t))
    norm = first_norm(network)
    order = {s: t.loss.mean() if norm is None else statistics_gap(network, norm, s.applied(source)) for s, t in equal}
    return [(suspect, float(t.right.mean())) for suspect, t in sorted(equal, key=lambda pair: order[pair[0]])]


def closest_to_training(network: Network, source: Source) -> tuple[Suspect, float, float] | None:
    """Without labels: the suspect nearest to the network's stored statistics, its gap and the present one, in nats.

    None where the network stores none, inputs are few, the present gap is small, or nothing comes much nearer.
    """
    norm = first_norm(network)
    if norm is None or len(source) < ENOUGH:
        return None
    present = statistics_gap(network, norm, source)
    if present < FAR:
        return None
    gaps = [(statistics_gap(network, norm, suspect.applied(source)), suspect) for suspect in suspects(source)]
    gap, best = min(gaps, key=lambda pair: pair[0], default=(math.inf, None))
    return (best, gap, present) if best is not None and gap < present / 4 else None


def first_norm(network: Network) -> _BatchNorm | None:
    """The BatchNorm layer that comes first in the network, with statistics stored in training; None without one."""
    for module in network.module.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            return module
    return None


class _Seen(Exception):
    """Ends a forward pass whose rest nobody needs."""


def statistics_gap(network: Network, norm: _BatchNorm, source: Source, batch_size: int = 64) -> float:
    """How far inputs are from the data a network was trained on, as its first BatchNorm layer remembers them.

    Mean over channels of KL(inputs || stored) between normal distributions, in nats: near 0 where inputs are
    preprocessed as in training.
    """
    sums: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1).double().cpu()
        sums.append(torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)]))
        raise _Seen

    hook = norm.register_forward_pre_hook(note)
    try:
        for batch in source.batches(batch_size):
            with suppress(_Seen):
                network.logits(batch.x)
    finally:
        hook.remove()
    if not sums or norm.running_mean is None or norm.running_var is None:
        return 0.0  # a layer that takes no part in the answer says nothing
    n, total, squares = torch.stack(sums).sum(0)
    mean = total / n
    variance = (squares / n - mean.square()).clamp_min(1e-12)
    stored_mean, stored = norm.running_mean.double().cpu(), norm.running_var.double().cpu() + norm.eps
    kl = 0.5 * ((stored / variance).log() + (variance + (mean - stored_mean).square()) / stored - 1)
    return float(kl.mean())
