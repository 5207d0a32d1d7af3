"""The one frozen configuration of a detector, and the table of estimators that sets some of its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from covary.errors import CovaryError, unknown_name
from covary.scoring.couplings import COUPLINGS
from covary.scoring.scores import SCORES
from covary.scoring.splits import kind_for


@dataclass(frozen=True)
class Estimator:
    """An estimator as data: which draws it takes, and what it is read by unless told otherwise.

    Attributes:
        preset: a name in `samplers.PRESETS`; None for gradients.
        observable, score, coupling: the defaults of those three settings.
        draws: kept draws a chain.
        burn_in: steps whose draws are dropped.
        thinning: every so-many-th step is kept.
        needs_sampling: whether its chains need labelled data of their own.
    """

    preset: str | None
    observable: str
    score: str
    coupling: str
    draws: int = 0
    burn_in: int = 0
    thinning: int = 1
    needs_sampling: bool = False


# `paper`: 2,000 steps of which 250 are dropped, as published (arXiv 2604.18970), and every tenth kept, since a step
# forgets 5 %; scored by the largest class mean of Lin's concordance of the nll ("Class CCC").
ESTIMATORS: dict[str, Estimator] = {
    "first-order": Estimator(None, "margin", "combined", "cosine"),
    "gaussian": Estimator("gaussian", "margin", "class-max", "cosine", draws=250),
    "paper": Estimator("paper", "nll", "class-max", "ccc", draws=175, burn_in=250, thinning=10, needs_sampling=True),
    "sgld": Estimator(
        "sgld", "margin", "class-max", "cosine", draws=175, burn_in=250, thinning=10, needs_sampling=True
    ),
}


def estimator_named(name: str) -> Estimator:
    """The estimator of that name; an unknown name lists the valid ones."""
    if name not in ESTIMATORS:
        raise unknown_name("estimator", name, ESTIMATORS)
    return ESTIMATORS[name]


SAMPLED_ONLY = (
    "draws", "chains", "burn_in", "thinning", "sigma", "batchnorm", "constants", "layerwise", "half_draws",
    "draws_at_once", "compiled", "stop_when_stable",
)  # fmt: skip


def _sampled_names() -> str:
    return ", ".join(name for name, estimator in ESTIMATORS.items() if estimator.preset)


class Settings(BaseModel):
    """Settings of a detector; saved with it and checked when it is loaded.

    Attributes:
        observable: name of the observable (see `OBSERVABLES`).
        space: which weights may move (see `select_parameters`).
        score: name of the score (see `SCORES`).
        coupling: name of the coupling that the first four scores read (see `COUPLINGS`).
        fpr: false-alarm rate asked for, in (0, 1).
        per_class: rank p-values within predicted classes where calibration suffices.
        conformal: `split` calibrates on 30 % of the trusted inputs, `cross` on every one by turns (five scores for each
            input); `auto` crosses up to 4,000 trusted inputs.
        allow_missing_classes: go on where no trusted input is answered with some of the network's classes (it is told).
        metric: how far weights may move, `identity`, `diagonal` or `kronecker` (see `METRICS`).
        damping: of the metric's factors, in units of their mean eigenvalue, > 0.
        half_rows: keep rows of trusted inputs in float16, half the space on disk.
        seed: of roles and projections.
        output: key or index of the logits in what the network returns.
        device: where the network runs.
        batch_size: inputs a pass.
        amp: `bf16` or `fp16` autocast, or None.
        channels_last: memory format of images.
        engine: how per-sample gradients are taken: `hooks` (one pass) or `exact` (torch.func).
        false_alarms: clean inputs over which the rate holds: `all`, or those that the network answers `right`.
        evidence: `fast` (one forward and one backward pass) or `thorough` (three more forward passes, for survival; see
            `covary.features.survival`).
        estimator: gradients at w* (`first-order`) or traces along draws of weights (see `ESTIMATORS`), which sets the
            defaults of `observable`, `score` and `coupling`.

    Of the sampled estimators alone; None takes the estimator's own:
        draws: kept draws of each chain.
        chains: independent chains.
        burn_in: steps whose draws are dropped.
        thinning: every so-many-th step is kept.
        sigma: standard deviation of a weight (`gaussian`); None chooses it on trusted accuracy.
        batchnorm: `drift` or `frozen` running statistics along chains.
        constants: other constants of the sampler, by name, such as step_size.
        layerwise: one layer moves at a time, so that every layer gets rows of its own; the score is then `profile`.
        half_draws: keep draws in float16.
        draws_at_once: draws that go through one vectorised pass.
        compiled: run forward passes through torch.compile.
        stop_when_stable: stop drawing when half of the draws rank trusted inputs as all do, to this Spearman
            correlation; None takes all draws.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    observable: str = "margin"
    space: str = "all"
    score: str = "combined"
    coupling: str = "cosine"
    fpr: float = Field(default=0.01, gt=0, lt=1)
    per_class: bool = False
    conformal: Literal["auto", "split", "cross"] = "auto"
    allow_missing_classes: bool = True
    metric: Literal["identity", "diagonal", "kronecker"] = "identity"
    damping: float = Field(default=0.1, gt=0)
    half_rows: bool = False
    seed: int = Field(default=0, ge=0)
    output: str | int | None = None
    device: str = "cpu"
    batch_size: int = Field(default=64, ge=1)
    amp: Literal["bf16", "fp16"] | None = None
    channels_last: bool = False
    engine: Literal["hooks", "exact"] = "hooks"
    false_alarms: Literal["all", "right"] = "all"
    evidence: Literal["fast", "thorough"] = "fast"
    estimator: str = "first-order"
    draws: int | None = Field(default=None, ge=4)
    chains: int = Field(default=1, ge=1)
    burn_in: int | None = Field(default=None, ge=0)
    thinning: int | None = Field(default=None, ge=1)
    sigma: float | None = Field(default=None, gt=0)
    batchnorm: Literal["drift", "frozen"] | None = None
    constants: dict[str, float] = Field(default_factory=dict)
    layerwise: bool = False
    half_draws: bool = False
    draws_at_once: int = Field(default=1, ge=1)
    compiled: bool = False
    stop_when_stable: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_estimator(cls, values: dict[str, Any]) -> dict[str, Any]:
        estimator = ESTIMATORS.get(values.get("estimator", "first-order"), ESTIMATORS["first-order"])
        given = {name: value for name, value in values.items() if value is not None}
        score = "profile" if given.get("layerwise") and estimator.preset else estimator.score
        return {"observable": estimator.observable, "score": score, "coupling": estimator.coupling, **given}

    @property
    def sampled(self) -> bool:
        """Whether rows are traces along draws rather than gradients."""
        return estimator_named(self.estimator).preset is not None

    def calibrates_by(self, n: int) -> Literal["split", "cross"]:
        """How n trusted inputs calibrate; those that something was chosen on may not where they suffice."""
        chosen = self.sampled or self.metric != "identity" or self.evidence == "thorough"
        return kind_for(n, self.conformal, chosen_on_trusted=chosen)

    @staticmethod
    def checked(**values: Any) -> Settings:
        """Settings from loose values; a wrong one is told in one sentence, before any work."""
        try:
            settings = Settings(**values)
        except ValidationError as problem:
            raise wrong_value(problem) from None
        tables = {"score": SCORES, "coupling": COUPLINGS, "estimator": ESTIMATORS}
        for kind, table in tables.items():
            if getattr(settings, kind) not in table:
                raise unknown_name(kind, getattr(settings, kind), table)
        settings._check_what_does_nothing()
        return settings

    def _check_what_does_nothing(self) -> None:
        if self.sampled:
            if self.compiled and self.draws_at_once > 1:
                raise CovaryError("compiled passes take one draw at a time", "draws_at_once 1, or no compiled")
            if self.evidence == "thorough":
                found = f"evidence thorough with the estimator {self.estimator}, whose rows carry no survival"
                raise CovaryError(found, "evidence fast", "or use --estimator first-order")
            if self.metric != "identity":
                found = f"metric {self.metric!r} with the estimator {self.estimator}, whose draws know none"
                raise CovaryError(found, "metric identity", "or use --estimator first-order")
            return
        for name in SAMPLED_ONLY:
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                remedy = f"choose one of them (--estimator), or leave --{name.replace('_', '-')} away"
                raise CovaryError(f"{name} says nothing to the estimator {self.estimator}", _sampled_names(), remedy)


def wrong_value(problem: ValidationError) -> CovaryError:
    """What pydantic has to say, as one sentence with the value that was given."""
    first = problem.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown_name("setting", name, Settings.model_fields)
    expected = first["msg"].removeprefix("Input should be ")
    expected = f"a number {expected}" if expected.startswith(("greater", "less")) else expected
    return CovaryError(f"{name} is {first.get('input')!r}", expected)
