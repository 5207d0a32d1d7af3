"""A bank of draws: deltas to w* with their buffers, kept so that inputs that come later meet the same draws."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from covary.chains import SamplingData, run_block, start
from covary.errors import CovaryError
from covary.functional_network import Buffers, FunctionalNetwork, Params
from covary.samplers import SamplingPlan

FORMAT = "covary-draws-1"


@dataclass(frozen=True)
class Bank:
    """Draws around w*, all chains together, on the CPU.

    Attributes:
        deltas: per moving parameter w_s - w*, (S, *shape).
        buffers: per buffer that left w*, its value at every draw, (S, *shape).
        plan: what made them, as plain JSON values.
    """

    deltas: dict[str, Tensor]
    buffers: dict[str, Tensor]
    plan: dict[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.deltas.values())))

    @property
    def bytes(self) -> int:
        """Size in memory and, but for a short header, on disk."""
        return sum(t.numel() * t.element_size() for t in (*self.deltas.values(), *self.buffers.values()))

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


def draw_bank(network: FunctionalNetwork, plan: SamplingPlan, data: SamplingData | None = None) -> Bank:
    """Runs the plan's chains and keeps their draws.

    Raises:
        CovaryError: a chain diverged.
    """
    deltas: dict[str, list[Tensor]] = {name: [] for name in network.moving}
    buffers: dict[str, list[Tensor]] = {name: [] for name in network.buffers}

    def keep(weights: Params, now: Buffers) -> None:
        for name, value in weights.items():
            deltas[name].append((value - network.moving[name]).cpu())
        for name, value in now.items():
            buffers[name].append(value.cpu())

    for number in range(plan.chains):
        chain, done = start(network, plan, number), 0
        while done < plan.draws:
            size = min(50, plan.draws - done)
            chain, _ = run_block(chain, network, plan, data, size, keep)
            done += size
    stacked = {name: torch.stack(values) for name, values in buffers.items()}
    moved = {name: v for name, v in stacked.items() if not torch.equal(v, network.buffers[name].cpu().expand_as(v))}
    about = json.loads(json.dumps({**asdict(plan), "settings": asdict(plan.resolved())}))
    return Bank({name: torch.stack(values) for name, values in deltas.items()}, moved, about)


def halved(bank: Bank) -> Bank:
    """The bank with deltas in float16: half the size, relative error 2^-11 a number (buffers keep their precision).

    Raises:
        CovaryError: deltas beyond 65,504 or all below 6e-8, which float16 cannot hold.
    """
    for name, delta in bank.deltas.items():
        largest = float(delta.abs().max())
        if largest > 65504 or 0 < largest < 1e-3:
            raise CovaryError(f"deltas of {name} reach {largest:g}", "between 1e-3 and 65504 for half precision",
                              "keep this bank in full precision")
    return Bank({name: delta.half() for name, delta in bank.deltas.items()}, bank.buffers, bank.plan)


def save_bank(bank: Bank, path: str | Path) -> None:
    """Writes the bank to one safetensors file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    tensors = {f"delta/{name}": t.contiguous() for name, t in bank.deltas.items()}
    tensors |= {f"buffer/{name}": t.contiguous() for name, t in bank.buffers.items()}
    save_file(tensors, part, {"format": FORMAT, "plan": json.dumps(bank.plan)})
    os.replace(part, path)


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
    groups: dict[str, dict[str, Tensor]] = {"delta": {}, "buffer": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        groups[kind][rest] = tensor
    bank = Bank(groups["delta"], groups["buffer"], json.loads(about["plan"]))
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
