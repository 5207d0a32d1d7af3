"""The one frozen configuration of a detector: everything that decides a score, and nothing else."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from covary.errors import CovaryError


class Settings(BaseModel):
    """Settings of a detector; saved with it and checked when it is loaded.

    Attributes:
        observable: name of the observable (see `OBSERVABLES`).
        space: which weights may move (see `select_parameters`).
        score: name of the score (see `SCORES`).
        coupling: name of the coupling that the first four scores read (see `COUPLINGS`).
        fpr: false-alarm rate asked for.
        per_class: rank p-values within predicted classes where calibration suffices.
        seed: of roles and projections.
        output: key or index of the logits in what the network returns.
        device: where the network runs.
        batch_size: inputs a pass.
        amp: `bf16` or `fp16` autocast, or None.
        channels_last: memory format of images.
        engine: how per-sample gradients are taken: `hooks` (one pass) or `exact` (torch.func).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    observable: str = "margin"
    space: str = "all"
    score: str = "combined"
    coupling: str = "cosine"
    fpr: float = Field(default=0.01, gt=0, lt=1)
    per_class: bool = False
    seed: int = 0
    output: str | int | None = None
    device: str = "cpu"
    batch_size: int = Field(default=64, ge=1)
    amp: str | None = Field(default=None, pattern="^(bf16|fp16)$")
    channels_last: bool = False
    engine: str = Field(default="hooks", pattern="^(hooks|exact)$")

    @staticmethod
    def checked(**values: Any) -> Settings:
        """Settings from loose values; a wrong one is told in one sentence."""
        try:
            return Settings(**values)
        except ValidationError as problem:
            first = problem.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise CovaryError(f"setting {name} is {first.get('input')!r}", first["msg"]) from None
