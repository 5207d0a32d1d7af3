"""The one frozen configuration of a detector: everything that decides a score, and nothing else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from covary.couplings import COUPLINGS
from covary.errors import CovaryError, unknown_name
from covary.scores import SCORES


class Settings(BaseModel):
    """Settings of a detector; saved with it and checked when it is loaded.

    Attributes:
        observable: name of the observable (see `OBSERVABLES`).
        space: which weights may move (see `select_parameters`).
        score: name of the score (see `SCORES`).
        coupling: name of the coupling that the first four scores read (see `COUPLINGS`).
        fpr: false-alarm rate asked for, in (0, 1).
        per_class: rank p-values within predicted classes where calibration suffices.
        allow_missing_classes: go on where no trusted input is answered with some of the network's classes.
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
    allow_missing_classes: bool = False
    seed: int = Field(default=0, ge=0)
    output: str | int | None = None
    device: str = "cpu"
    batch_size: int = Field(default=64, ge=1)
    amp: Literal["bf16", "fp16"] | None = None
    channels_last: bool = False
    engine: Literal["hooks", "exact"] = "hooks"

    @staticmethod
    def checked(**values: Any) -> Settings:
        """Settings from loose values; a wrong one is told in one sentence, before any work."""
        try:
            settings = Settings(**values)
        except ValidationError as problem:
            raise wrong_value(problem) from None
        for kind, name, table in (("score", settings.score, SCORES), ("coupling", settings.coupling, COUPLINGS)):
            if name not in table:
                raise unknown_name(kind, name, table)
        return settings


def wrong_value(problem: ValidationError) -> CovaryError:
    """What pydantic has to say, as one sentence with the value that was given."""
    first = problem.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown_name("setting", name, Settings.model_fields)
    expected = first["msg"].removeprefix("Input should be ")
    expected = f"a number {expected}" if expected.startswith(("greater", "less")) else expected
    return CovaryError(f"{name} is {first.get('input')!r}", expected)
