"""A bank of draws: deltas to w* with their buffers, kept so that inputs that come later meet the same draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from covary.errors import CovaryError
from covary.features.sampled.chains import SamplingData, run_block, start
from covary.features.sampled.samplers import SamplingPlan
from covary.models.functional import Buffers, FunctionalNetwork, Params
from covary.storage.locks import atomic_file

FORMAT = "covary-draws-1"


@dataclass(frozen=True)
class Bank:
    """Draws around w*, all chains together, on the CPU.

    Attributes:
        deltas: per moving parameter w_s - w*, (S, *shape).
        buffers: per buffer that left w*, its value at every draw, (S, *shape).
        plan: what made them, as plain JSON values.
        loss, accuracy: of every step's minibatch, (chain, step); nan for a sampler without gradients.
    """

    deltas: dict[str, Tensor]
    buffers: dict[str, Tensor]
    plan: dict[str, Any]
    loss: Float[np.ndarray, "c _"] = field(default_factory=lambda: np.zeros((0, 0)))
    accuracy: Float[np.ndarray, "c _"] = field(default_factory=lambda: np.zeros((0, 0)))

    def __len__(self) -> int:
        return len(next(iter(self.deltas.values())))

    @property
    def bytes(self) -> int:
        """Size in memory and, but for a short header, on disk."""
        return sum(t.numel() * t.element_size() for t in (*self.deltas.values(), *self.buffers.values()))

    def to(self, device: torch.device) -> Bank:
        """The same draws on a device, so that every batch meets them there."""
        deltas = {name: t.to(device) for name, t in self.deltas.items()}
        return replace(self, deltas=deltas, buffers={name: t.to(device) for name, t in self.buffers.items()})

    def at(self, s: int, network: FunctionalNetwork, only: list[str] | None = None) -> tuple[Params, Buffers]:
        """Weights and buffers of draw s; with `only`, those parameters alone move and buffers stay at w*."""
        weights = dict(network.moving)
        for name in self.deltas if only is None else only:
            w_star = network.moving[name]
            weights[name] = w_star + self.deltas[name][s].to(w_star.device, w_star.dtype)
        buffers = dict(network.buffers)
        if only is None:
            buffers.update({name: values[s].to(buffers[name].device) for name, values in self.buffers.items()})
        return weights, buffers


def draw_bank(
    network: FunctionalNetwork,
    plan: SamplingPlan,
    data: SamplingData | None = None,
    *,
    watch: Callable[[Params, Buffers], None] | None = None,
    stop: Callable[[], bool] | None = None,
    block: int = 50,
) -> Bank:
    """Runs the plan's chains and keeps their draws.

    `watch` is shown every draw of the first chain; `stop` is asked after each of its blocks whether those are enough,
    and the other chains then take as many.

    Raises:
        CovaryError: a chain diverged, or the draws do not fit in memory.
    """
    _check_too_large(network, plan)
    deltas: dict[str, list[Tensor]] = {name: [] for name in network.moving}
    buffers: dict[str, list[Tensor]] = {name: [] for name in network.buffers}

    def keep(weights: Params, now: Buffers) -> None:
        for name, value in weights.items():
            deltas[name].append((value - network.moving[name]).cpu())
        for name, value in now.items():
            buffers[name].append(value.cpu())

    def keep_and_show(weights: Params, now: Buffers) -> None:
        keep(weights, now)
        if watch is not None:
            watch(weights, now)

    limit, losses, accuracies = plan.draws, [], []
    for number in range(plan.chains):
        chain, done = start(network, plan, number), 0
        along = []
        while done < limit:
            size = min(block, limit - done)
            chain, stretch = run_block(chain, network, plan, data, size, keep_and_show if number == 0 else keep)
            along.append(stretch)
            done += size
            if number == 0 and stop is not None and stop():
                limit = done
        losses.append(np.concatenate([stretch.loss for stretch in along]))
        accuracies.append(np.concatenate([stretch.accuracy for stretch in along]))
    stacked = {name: torch.stack(values) for name, values in buffers.items()}
    moved = {name: v for name, v in stacked.items() if not torch.equal(v, network.buffers[name].cpu().expand_as(v))}
    steps = plan.burn_in + limit * plan.thinning
    about = json.loads(json.dumps({**asdict(plan), "settings": asdict(plan.resolved()), "steps": steps}))
    stacked = {name: torch.stack(deltas.pop(name)) for name in list(deltas)}
    return Bank(stacked, moved, about, np.stack(losses), np.stack(accuracies))


def _check_too_large(network: FunctionalNetwork, plan: SamplingPlan) -> None:
    numbers = sum(value.numel() for value in network.moving.values())
    needed, free = 4 * numbers * plan.draws * plan.chains, free_memory()
    if free is not None and needed > free:
        raise CovaryError(
            f"{plan.draws * plan.chains:,} draws of {numbers:,} weights take {needed / 2**30:.1f} GB",
            f"at most the {free / 2**30:.1f} GB that are free",
            "take fewer draws, move fewer weights (space=), or use estimator=first-order",
        )


def free_memory() -> int | None:
    """Bytes of main memory that can be had, or None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def to_half(bank: Bank) -> Bank:
    """The bank with deltas in float16: half the size, relative error 2^-11 a number (buffers keep their precision).

    Raises:
        CovaryError: deltas beyond 65,504 or all below 6e-8, which float16 cannot hold.
    """
    for name, delta in bank.deltas.items():
        largest = float(delta.abs().max())
        if largest > 65504 or 0 < largest < 1e-3:
            raise CovaryError(
                f"deltas of {name} reach {largest:g}",
                "between 1e-3 and 65504 for half precision",
                "keep this bank in full precision",
            )
    return replace(bank, deltas={name: delta.half() for name, delta in bank.deltas.items()})


def save_bank(bank: Bank, path: str | Path) -> None:
    """Writes the bank to one safetensors file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"delta/{name}": t.contiguous() for name, t in bank.deltas.items()}
    tensors |= {f"buffer/{name}": t.contiguous() for name, t in bank.buffers.items()}
    along = {"loss": bank.loss, "accuracy": bank.accuracy}
    tensors |= {f"along/{name}": torch.from_numpy(np.ascontiguousarray(t)) for name, t in along.items()}
    with atomic_file(path) as part:
        try:
            save_file(tensors, part, {"format": FORMAT, "plan": json.dumps(bank.plan)})
        except SafetensorError as problem:
            raise OSError(str(problem)) from problem


def load_bank(path: str | Path, network: FunctionalNetwork | None = None) -> Bank:
    """Reads a bank; with `network`, checks that its deltas fit that network's moving parameters.

    Raises:
        CovaryError: no such file, a damaged or foreign one, or another network's.
    """
    path = Path(path)
    if not path.is_file():
        raise CovaryError(f"no bank of draws at {path}", "a file written by save_bank")
    try:
        with safe_open(path, framework="pt") as stored:
            about = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except SafetensorError as problem:
        raise CovaryError(f"{path} is damaged: {problem}", "a bank of draws", "make it again") from problem
    if about.get("format") != FORMAT:
        raise CovaryError(f"{path} is of format {about.get('format')!r}", FORMAT)
    groups: dict[str, dict[str, Tensor]] = {"delta": {}, "buffer": {}, "along": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        groups[kind][rest] = tensor
    along = {name: tensor.numpy() for name, tensor in groups["along"].items()}
    bank = Bank(groups["delta"], groups["buffer"], json.loads(about["plan"]), **along)
    if network is not None:
        found = {name: tuple(delta.shape[1:]) for name, delta in bank.deltas.items()}
        expected = {name: tuple(value.shape) for name, value in network.moving.items()}
        if found != expected:
            differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))[0]
            raise CovaryError(
                f"the bank's {differing} has shape {found.get(differing)}",
                str(expected.get(differing)),
                "use the network the bank was drawn for",
            )
    return bank


def coupling_error(one: Float[np.ndarray, "n S"], other: Float[np.ndarray, "n S"]) -> float:
    """Largest change of Pearson's correlation between any two samples when one set of traces replaces the other."""

    def correlations(traces: np.ndarray) -> np.ndarray:
        centred = traces.astype(np.float64) - traces.mean(1, keepdims=True, dtype=np.float64)
        unit = centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-8)
        return unit @ unit.T

    return float(np.abs(correlations(one) - correlations(other)).max())
