"""Samplers of weights around w*, each a pure `init`/`step` pair over explicit state; the table below is all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from covary.errors import CovaryError, unknown_name
from covary.features.sampled.samplers import gaussian, rmsprop_sgld, sgld
from covary.features.sampled.samplers.gaussian import GaussianSettings
from covary.features.sampled.samplers.rmsprop_sgld import RmspropSgldSettings
from covary.features.sampled.samplers.sgld import SgldSettings
from covary.features.sampled.samplers.state import State


@dataclass(frozen=True)
class Sampler:
    """A sampler as data: how to start, how to move, what it is set by.

    Attributes:
        init: (w*, settings) -> state.
        step: (state, gradient, w*, settings, generator) -> state; pure.
        settings: the frozen dataclass of its constants.
        needs_gradient: whether it needs sampling data; without, draws are independent.
        lower: the setting to lower when a chain diverges.
    """

    init: Callable[..., State]
    step: Callable[..., State]
    settings: type
    needs_gradient: bool
    lower: str


SAMPLERS: dict[str, Sampler] = {
    "rmsprop_sgld": Sampler(rmsprop_sgld.init, rmsprop_sgld.step, RmspropSgldSettings, True, "step_size"),
    "sgld": Sampler(sgld.init, sgld.step, SgldSettings, True, "step_size"),
    "gaussian": Sampler(gaussian.init, gaussian.step, GaussianSettings, False, "sigma"),
}


def sampler_named(name: str) -> Sampler:
    """The sampler of that name; an unknown name lists the valid ones."""
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    return SAMPLERS[name]


@dataclass(frozen=True)
class SamplingPlan:
    """Everything that fixes the draws, apart from the network and its data.

    Attributes:
        sampler: a name in `SAMPLERS`.
        settings: changes to the sampler's default constants, by name.
        steps: steps of each chain, burn-in included.
        burn_in: steps whose draws are dropped.
        thinning: keep every so-many-th draw after burn-in; kept draws a chain: (steps - burn_in) // thinning.
        chains: independent chains, each with its own generator.
        minibatch: sampling inputs a step, drawn without replacement within an epoch.
        batchnorm: `drift`: the gradient's forward pass updates running statistics, and draws are read on those;
            `frozen`: they stay at w*.
        seed: with the chain's number, the seed of its generator.
    """

    sampler: str = "rmsprop_sgld"
    settings: Mapping[str, float] = field(default_factory=dict)
    steps: int = 2000
    burn_in: int = 250
    thinning: int = 1
    chains: int = 1
    minibatch: int = 256
    batchnorm: Literal["drift", "frozen"] = "drift"
    seed: int = 0

    def __post_init__(self) -> None:
        self.resolved()
        if self.batchnorm not in ("drift", "frozen"):
            raise unknown_name("batchnorm", self.batchnorm, ("drift", "frozen"))
        if min(self.thinning, self.chains, self.minibatch) < 1 or self.burn_in < 0 or self.draws < 2:
            raise CovaryError(
                f"{self.chains} chains of {self.steps} steps, burn-in {self.burn_in}, thinning {self.thinning}",
                "at least two kept draws a chain",
                "raise steps or lower burn-in or thinning",
            )

    @property
    def draws(self) -> int:
        """Kept draws a chain."""
        return (self.steps - self.burn_in) // self.thinning

    def resolved(self) -> Any:
        """The sampler's settings with the changes applied; an unknown setting lists the valid ones."""
        kind = sampler_named(self.sampler).settings
        for name in self.settings:
            if name not in kind.__dataclass_fields__:
                raise unknown_name(f"setting of {self.sampler}", name, kind.__dataclass_fields__)
        return kind(**self.settings)


# `paper` carries every published constant (arXiv 2604.18970); `gaussian` takes 0.01 from it unless sigma is chosen.
PRESETS: dict[str, SamplingPlan] = {
    "paper": SamplingPlan(),
    "sgld": SamplingPlan(sampler="sgld", batchnorm="frozen"),
    "gaussian": SamplingPlan(sampler="gaussian", steps=250, burn_in=0, batchnorm="frozen"),
}


def preset_named(name: str) -> SamplingPlan:
    """The preset of that name; an unknown name lists the valid ones."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]


__all__ = ["PRESETS", "SAMPLERS", "Sampler", "SamplingPlan", "State", "preset_named", "sampler_named"]
