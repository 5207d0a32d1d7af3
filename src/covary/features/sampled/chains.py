"""Running a chain: the minibatch loop around a sampler's `step`, its statistics, its checkpoint, its divergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from covary.errors import CovaryError
from covary.features.sampled.samplers import SamplingPlan, sampler_named
from covary.features.sampled.samplers.state import State, generator_for, members
from covary.models.functional import Buffers, FunctionalNetwork, Params

# A chain whose mean minibatch accuracy over a block falls under this share of that at w* has left the network.
COLLAPSE = 0.5


@dataclass(frozen=True)
class SamplingData:
    """What the loss of a chain is taken on: inputs on the device with their true labels, disjoint from all else.

    Attributes:
        x: inputs, (n, ...).
        y: true labels, (n,).
    """

    x: Tensor
    y: Int[Tensor, " n"]


@dataclass(frozen=True)
class Chain:
    """A chain between two steps; with its generator's state it is all that resuming needs.

    Attributes:
        number: which chain, from 0.
        step: steps taken.
        state: the sampler's flat state.
        buffers: running statistics, drifting or frozen.
        generator: the chain's own generator.
        start_accuracy: accuracy of the first minibatch, taken at w*; nan before the first block ends.
    """

    number: int
    step: int
    state: State
    buffers: Buffers
    generator: torch.Generator
    start_accuracy: float = float("nan")

    @property
    def weights(self) -> Params:
        """Where the chain stands."""
        return members(self.state, "w")

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        return {
            **{f"state/{name}": value.contiguous() for name, value in self.state.items()},
            **{f"buffers/{name}": value.contiguous() for name, value in self.buffers.items()},
            "generator": self.generator.get_state(),
            "step": torch.tensor(self.step),
            "start_accuracy": torch.tensor(self.start_accuracy, dtype=torch.float64),
        }


def start(network: FunctionalNetwork, plan: SamplingPlan, number: int) -> Chain:
    """Chain `number` of the plan, at w*."""
    state = sampler_named(plan.sampler).init(network.moving, plan.resolved())
    return Chain(number, 0, state, dict(network.buffers), generator_for(plan.seed, number))


def restore(network: FunctionalNetwork, plan: SamplingPlan, number: int, tensors: dict[str, Tensor]) -> Chain:
    """The chain whose `tensors()` these are, on the network's device."""
    fresh = start(network, plan, number)
    fresh.generator.set_state(tensors["generator"].cpu())
    return replace(
        fresh,
        step=int(tensors["step"]),
        state={name: tensors[f"state/{name}"].to(network.device) for name in fresh.state},
        buffers={name: tensors[f"buffers/{name}"].to(network.device) for name in fresh.buffers},
        start_accuracy=float(tensors["start_accuracy"]),
    )


class Minibatches:
    """Which sampling inputs each step sees: every epoch a fresh permutation, its last minibatch may be short.

    The permutation depends on (seed, chain, epoch) alone, never on the steps before, so that a resumed chain needs
    no more than its step.
    """

    def __init__(self, n: int, size: int, seed: int, chain: int) -> None:
        self.n, self.size, self.seed, self.chain = n, min(size, n), seed, chain
        self.per_epoch = -(-n // self.size)
        self._epoch, self._order = -1, torch.empty(0)

    def at(self, step: int) -> Int[Tensor, " m"]:
        """Positions of the inputs of one step."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(self.n, generator=generator_for(self.seed, self.chain, stream=3 + epoch))
        return self._order[place * self.size : (place + 1) * self.size]


def dropout_seed(plan: SamplingPlan, chain: int, step: int) -> int:
    """What the global generator is seeded with for one training pass, so that dropout can be replayed."""
    return step + 2**20 * (plan.seed + 1009 * chain)


@dataclass(frozen=True)
class ChainStats:
    """Minibatch loss and accuracy at each step of a stretch of a chain, (steps,); nan where nothing was computed."""

    loss: Float[np.ndarray, " steps"]
    accuracy: Float[np.ndarray, " steps"]


def advance(
    chain: Chain, network: FunctionalNetwork, plan: SamplingPlan, data: SamplingData | None, batches: Minibatches | None
) -> tuple[Chain, Tensor, Tensor]:
    """One step: the chain after it, and loss and accuracy of its minibatch, left on the device."""
    sampler = sampler_named(plan.sampler)
    gradient: Params = {}
    buffers = chain.buffers
    loss = accuracy = torch.full((), torch.nan, device=network.device)
    weights = chain.weights
    if sampler.needs_gradient:
        if data is None or batches is None:
            raise CovaryError(f"the sampler {plan.sampler} has no sampling data", "inputs with true labels")
        # Neither this copy nor the noise's waits for the device, so that the host stays ahead of it.
        index = batches.at(chain.step).to(data.x.device, non_blocking=True)
        seed = dropout_seed(plan, chain.number, chain.step)
        gradient, buffers, loss, accuracy = network.gradient(
            weights, buffers, data.x[index], data.y[index], plan.batchnorm, seed
        )
    state = sampler.step(chain.state, gradient, network.moving, plan.resolved(), chain.generator)
    return replace(chain, step=chain.step + 1, state=state, buffers=buffers), loss, accuracy


def run_block(
    chain: Chain,
    network: FunctionalNetwork,
    plan: SamplingPlan,
    data: SamplingData | None,
    draws: int,
    on_draw: Callable[[Params, Buffers], None],
) -> tuple[Chain, ChainStats]:
    """The chain after `draws` more kept draws, each shown to `on_draw`; the first block takes the burn-in with it.

    Raises:
        CovaryError: the chain diverged: infinite or NaN loss, or accuracy under half of that at w*.
    """
    batches = Minibatches(len(data.y), plan.minibatch, plan.seed, chain.number) if data is not None else None
    losses, accuracies = [], []
    first = chain.step
    for _ in range(draws):
        for _ in range(plan.thinning + (plan.burn_in if chain.step == 0 else 0)):
            chain, loss, accuracy = advance(chain, network, plan, data, batches)
            losses.append(loss)
            accuracies.append(accuracy)
        on_draw(chain.weights, chain.buffers)
    return _checked(chain, plan, first, losses, accuracies)


def _checked(
    chain: Chain, plan: SamplingPlan, first: int, losses: list[Tensor], accuracies: list[Tensor]
) -> tuple[Chain, ChainStats]:
    # The statistics of a whole block come to the host at once: a look at every loss would stall the device.
    loss, accuracy = (torch.stack(values).double().cpu().numpy() for values in (losses, accuracies))
    if not sampler_named(plan.sampler).needs_gradient:
        return chain, ChainStats(loss, accuracy)
    bad = ~np.isfinite(loss)
    if bad.any():
        raise diverged(chain.number, first + int(np.flatnonzero(bad)[0]) + 1, "its loss is not finite", plan)
    chain = replace(chain, start_accuracy=float(accuracy[0])) if first == 0 else chain
    if accuracy.mean() < COLLAPSE * chain.start_accuracy:
        what = f"accuracy on its sampling data fell from {chain.start_accuracy:.2f} to {accuracy.mean():.2f}"
        raise diverged(chain.number, chain.step, what, plan)
    return chain, ChainStats(loss, accuracy)


def diverged(number: int, step: int, what: str, plan: SamplingPlan) -> CovaryError:
    """The error of a chain that left the network's neighbourhood."""
    setting = sampler_named(plan.sampler).lower
    value: Any = getattr(plan.resolved(), setting)
    return CovaryError(
        f"chain {number} of {plan.sampler} diverged at step {step}: {what}",
        "draws that stay near the trained weights",
        f"lower {setting} (now {value:g})",
    )
