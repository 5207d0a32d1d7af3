"""Settings of a detector: what every one has, and those of its extractor, which are a union by kind.

An option that an extractor makes no use of is no field of its settings, so it cannot be written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from covary.errors import CovaryError, unknown_name
from covary.objects import load_object


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


FIRST_ORDER = "first-order"
# `paper`: 2,000 steps of which 250 are dropped, as published (arXiv 2604.18970), and every tenth kept, since a step
# forgets 5 %; scored by the largest class mean of Lin's concordance of the nll ("Class CCC").
ESTIMATORS: dict[str, Estimator] = {
    FIRST_ORDER: Estimator(None, "margin", "combined", "cosine"),
    "gaussian": Estimator("gaussian", "margin", "class-max", "cosine", draws=250),
    "paper": Estimator("paper", "nll", "class-max", "ccc", draws=175, burn_in=250, thinning=10, needs_sampling=True),
    "sgld": Estimator(
        "sgld", "margin", "class-max", "cosine", draws=175, burn_in=250, thinning=10, needs_sampling=True
    ),
}
SAMPLED = ", ".join(name for name, estimator in ESTIMATORS.items() if estimator.preset)


def estimator_named(name: str) -> Estimator:
    """The estimator of that name; an unknown name lists the valid ones."""
    if name not in ESTIMATORS:
        raise unknown_name("estimator", name, ESTIMATORS)
    return ESTIMATORS[name]


# Scores that join the evidence parts there are, by which a pile can be looked at as well.
OF_PARTS = ("combined", "equal-confidence")

# Panels of the command line's help.
NETWORK, DETECTOR, VERDICTS = "The network", "The detector", "Verdicts and figures"
SAMPLED_PANEL, TEXT_PANEL = "Sampled estimators", "Language models"


def option(default: Any, help: str, panel: str = DETECTOR, *, flag: str | None = None, **bounds: Any) -> Any:
    """A setting with what the command line says of it: help text, panel, and a flag of its own where it needs one."""
    return Field(default, description=help, json_schema_extra={"panel": panel, "flag": flag}, **bounds)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExtractorSettings(_Frozen):
    """What every extractor's settings have: the extractor they are of, and its key.

    Attributes:
        kind: its key in `EXTRACTORS`, saved with a detector.
        extractor_class: the class, or its name `package.module:Class`, which is imported when a detector is made.
    """

    kind: str
    extractor_class: ClassVar[str | type[Any]]


class ArraySettings(ExtractorSettings):
    """What settings of networks of arrays share."""

    output: str | int | None = option(None, "Key or index of the logits in the network's output.", NETWORK)
    channels_last: bool = option(
        False, "Images lie channels last in any case; by default where a processor is faster so.", NETWORK
    )


class GradientSettings(ArraySettings):
    """Of gradients at w*, the estimator `first-order`.

    Attributes:
        engine: how per-sample gradients are taken: `hooks` (one pass) or `exact` (torch.func).
        false_alarms: clean inputs over which the rate holds: `all`, or those that the network answers `right`.
        evidence: `fast` (one forward and one backward pass), `thorough` (three more forward passes, for survival; see
            `covary.features.survival`) or `latent` (one forward pass alone: activations and confidence, no gradients).
        preconditioner: how far weights may move, `identity`, `diagonal` or `kronecker`.
        damping: of the preconditioner's factors, in units of their mean eigenvalue, > 0.
        output: key or index of the logits in what the network returns.
        channels_last: images lie channels last in any case; by default where that is faster on a processor.
    """

    kind: Literal["gradient"] = "gradient"  # pyright: ignore[reportIncompatibleVariableOverride]
    extractor_class = "covary.features.gradient:GradientExtractor"
    engine: Literal["hooks", "exact"] = option("hooks", "hooks (one fast pass) or exact (torch.func, the oracle).")
    evidence: Literal["fast", "thorough", "latent"] = option(
        "fast", "fast; thorough: three more forward passes, for how the answer survives amplified layers; or latent: a "
        "forward pass alone, without gradients. By default thorough where a pile is judged together.",
    )  # fmt: skip
    preconditioner: Literal["identity", "diagonal", "kronecker"] = option(
        "identity", "identity, diagonal or kronecker: how far each weight direction may move."
    )
    damping: float = option(0.1, "Of the preconditioner's factors, in units of their mean eigenvalue.", gt=0)

    @model_validator(mode="after")
    def _check(self) -> GradientSettings:
        if self.evidence == "latent" and (self.preconditioner != "identity" or self.engine != "hooks"):
            what = "preconditioner" if self.preconditioner != "identity" else "engine"
            found = f"{what} {getattr(self, what)} beside evidence latent, which takes no gradients"
            raise CovaryError(found, "evidence fast or thorough", f"leave {what}= away")
        return self


class SampledSettings(ArraySettings):
    """Of traces along draws of weights; None takes the estimator's own.

    Attributes:
        estimator: `gaussian`, `paper` or `sgld` (see `ESTIMATORS`).
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
        output, channels_last: as of gradients.
    """

    kind: Literal["sampled"] = "sampled"  # pyright: ignore[reportIncompatibleVariableOverride]
    extractor_class = "covary.features.sampled.extractor:SampledExtractor"
    estimator: str = option("gaussian", f"{FIRST_ORDER} (gradients), or by draws of weights: {SAMPLED}.")
    draws: int | None = option(None, "Kept draws of each chain.", SAMPLED_PANEL, ge=4)
    chains: int = option(1, "Independent chains.", SAMPLED_PANEL, ge=1)
    burn_in: int | None = option(None, "Steps whose draws are dropped.", SAMPLED_PANEL, ge=0)
    thinning: int | None = option(None, "Keep every so-many-th step.", SAMPLED_PANEL, ge=1)
    sigma: float | None = option(
        None, "Deviation of a weight (gaussian); by default chosen on trusted accuracy.", SAMPLED_PANEL, gt=0
    )
    batchnorm: Literal["drift", "frozen"] | None = option(
        None, "drift or frozen running statistics along chains.", SAMPLED_PANEL
    )
    constants: dict[str, float] = option(
        {}, "Other constants of the sampler, as in step_size=1e-7,nbeta=0.", SAMPLED_PANEL
    )
    layerwise: bool = option(
        False, "Move one layer at a time, for the profile: so many times the passes.", SAMPLED_PANEL
    )
    half_draws: bool = option(False, "Keep draws in float16; what it costs is told.", SAMPLED_PANEL)
    draws_at_once: int = option(1, "Draws a vectorised pass.", SAMPLED_PANEL, ge=1)
    compiled: bool = option(False, "Use torch.compile.", SAMPLED_PANEL)
    stop_when_stable: float | None = option(
        None, "Stop when half of the draws rank trusted inputs as all do, to this Spearman correlation.", SAMPLED_PANEL,
        gt=0, le=1,
    )  # fmt: skip

    @model_validator(mode="after")
    def _check(self) -> SampledSettings:
        if estimator_named(self.estimator).preset is None:
            raise CovaryError(f"the estimator {self.estimator} takes no draws", SAMPLED)
        if self.compiled and self.draws_at_once > 1:
            raise CovaryError("compiled passes take one draw at a time", "draws_at_once 1, or no compiled")
        return self


class TextSettings(ExtractorSettings):
    """Of the answers of a language model.

    Attributes:
        engine: how gradients are taken, as of arrays.
        pooling: `root`, `sum` or `mean` of the answer's tokens (see `pooled`): directions of gradients are the same,
            lengths are not.
        groups: what takes the place of the predicted class: `none`, `label` or `nearest` (see `Grouping`); `auto` =
            label where all trusted texts have one, twenty a label on average, else none.
        max_new_tokens: length of answers that the model is asked for.
        max_length: positions a text may take; None = as many as the model was made for.
        dtype: of the weights; `auto` = bfloat16 where the processor computes in it, else float32. What it came to is
            kept with the detector.
        adapter: `fresh:R` or a folder of peft's, or None.
        side: where batches are padded; changes no score.
        judge: what is judged: the `prompt` before anything is answered, the `answer`, or `both`, each with a pass of
            its own. Of classifiers always their one pass.
        at_equal_length: compare numbers with those of trusted texts of like length (see `AtEqualLengths`).
    """

    kind: Literal["text"] = "text"  # pyright: ignore[reportIncompatibleVariableOverride]
    extractor_class = "covary.text.extractor:TextExtractor"
    engine: Literal["hooks", "exact"] = "hooks"
    pooling: Literal["root", "sum", "mean"] = option("root", "root, sum or mean over the answer's tokens.", TEXT_PANEL)
    groups: Literal["auto", "none", "label", "nearest"] = option(
        "auto", "In place of classes: auto, none, label, nearest.", TEXT_PANEL
    )
    max_new_tokens: int = option(64, "Length of answers the model is asked for.", TEXT_PANEL, ge=1)
    max_length: int | None = option(None, "Tokens a text may take.", TEXT_PANEL, ge=2)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "float32", "Of the weights: float32, bfloat16, float16, or auto: bfloat16 where the processor computes in it.",
        TEXT_PANEL,
    )  # fmt: skip
    adapter: str | None = option(
        None, "Folder of a trained adapter, or fresh:R for new LoRA adapters of rank R.", TEXT_PANEL
    )
    judge: Literal["prompt", "answer", "both"] = option(
        "both", "What is judged: prompt (before anything is answered), answer, or both.", TEXT_PANEL
    )
    at_equal_length: bool = option(
        True, "Compare with trusted texts of like length, or of any.", TEXT_PANEL,
        flag="--at-equal-length/--at-any-length",
    )  # fmt: skip
    side: Literal["right", "left"] = option("right", "Where batches are padded; changes no score.", TEXT_PANEL)


# What settings of texts meant before they could be set otherwise.
_BEFORE = {"judge": "answer", "at_equal_length": False}


def as_before(extractor: Any) -> Any:
    """Settings of an extractor as they were kept, with what later ones would choose otherwise put in."""
    if isinstance(extractor, Mapping) and extractor.get("kind") == "text":
        return {**_BEFORE, **extractor}
    return extractor


# kind -> the settings of its extractor, which name the extractor: the class, or its name `package.module:Class`. A new
# modality is one folder and one line here.
EXTRACTORS: dict[str, str | type[ExtractorSettings]] = {
    "gradient": GradientSettings,
    "sampled": SampledSettings,
    "text": TextSettings,
}


def settings_classes() -> dict[str, type[ExtractorSettings]]:
    """The settings of every extractor by kind, those imported that `EXTRACTORS` has by name."""
    return {
        kind: load_object(entry, "settings of an extractor") if isinstance(entry, str) else entry
        for kind, entry in EXTRACTORS.items()
    }


def own_names() -> dict[str, None]:
    """Names of all settings that some extractor has and not every detector, in order."""
    return dict.fromkeys(name for own in settings_classes().values() for name in own.model_fields if name != "kind")


# Names of before, which go on being read.
FORMER = {"metric": "preconditioner"}


class Settings(_Frozen):
    """Settings of a detector; saved with it and checked when it is loaded.

    Those of the extractor may be given by their names alone: `Settings(estimator="gaussian", draws=20)`.

    Attributes:
        observable: name of the observable (see `OBSERVABLES`).
        space: which weights may move (see `select_parameters`).
        score: name of the score (see `SCORES`).
        coupling: name of the coupling that the first four scores read (see `COUPLINGS`).
        fpr: false-alarm rate asked for, in (0, 1).
        per_class: rank p-values within predicted classes where calibration suffices.
        false_alarms: clean inputs over which the rate holds: `all`, or those that the network answers `right`.
        conformal: `split` calibrates on 30 % of the trusted inputs, `cross` on every one by turns (five scores for each
            input); `auto` crosses up to 4,000 trusted inputs. With thorough evidence 15 % of them, at most 200, only
            choose what is amplified.
        allow_missing_classes: go on where no trusted input is answered with some of the network's classes.
        half_rows: keep rows of trusted inputs in float16, half the space on disk.
        seed: of roles and projections.
        device: where the network runs.
        batch_size: inputs a pass.
        amp: `bf16` or `fp16` autocast, or None.
        extractor: settings of what turns inputs into rows: gradients at w* (`GradientSettings`), traces along draws of
            weights (`SampledSettings`) or answers of a language model (`TextSettings`). The estimator sets the
            defaults of `observable`, `score` and `coupling`.
    """

    observable: str = option(
        "margin", "margin, nll or `package.module:function`; by default margin, of paper nll."
    )
    space: str = option("all", "all, last-layer, modules:A,B or pattern:GLOB.")
    score: str = option(
        "combined",
        "combined, equal-confidence, profile, explained, class-max, mean, own-class, top-k; by default combined "
        "first-order, else class-max.",
    )
    coupling: str = option(
        "cosine", "cosine, covariance or ccc, for the coupling scores; by default cosine, of paper ccc."
    )  # fmt: skip
    fpr: float = option(0.01, "False-alarm rate.", VERDICTS, gt=0, lt=1)
    per_class: bool = option(False, "Rank p-values within predicted classes where possible.")
    false_alarms: Literal["all", "right"] = option(
        "all", "Clean inputs over which the rate holds: all, or those answered right (needs trusted classes).", VERDICTS
    )
    conformal: Literal["auto", "split", "cross"] = option(
        "auto", "split (30 % calibrate), cross (all by turns, five scores an input) or auto: cross up to 4,000 trusted "
        "inputs.",
    )  # fmt: skip
    allow_missing_classes: bool = option(
        True, "Go on though some classes have no trusted inputs; refused with the second option.",
        flag="--allow-missing-classes/--refuse-missing-classes",
    )  # fmt: skip
    half_rows: bool = option(False, "Keep rows of trusted inputs in float16.")
    seed: int = option(0, "Seed of roles and projections.", ge=0)
    device: str = option("cpu", "cpu, cuda, cuda:1, mps.", NETWORK)
    batch_size: int = option(64, "Inputs a pass; changes speed, not scores.", NETWORK, ge=1)
    amp: Literal["bf16", "fp16"] | None = option(None, "bf16 or fp16 autocast.", NETWORK)
    # A union by kind over `EXTRACTORS`, which `_gather` looks up: a new modality is a line there.
    extractor: SerializeAsAny[ExtractorSettings] = Field(default_factory=GradientSettings)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Names of the extractor's settings go to it; what the estimator sets is filled in."""
        values = {FORMER.get(name, name): value for name, value in values.items()}
        flat = {name: values.pop(name) for name in own_names() if name in values}
        flat = {name: value for name, value in flat.items() if value is not None}
        own = values.pop("extractor", None)
        own = {"kind": own} if isinstance(own, str) else own.model_dump() if isinstance(own, BaseModel) else own or {}
        estimator = flat.pop("estimator", None)
        if estimator is not None:
            estimator_named(estimator)
        kind = own.get("kind") or ("gradient" if estimator in (None, FIRST_ORDER) else "sampled")
        classes = settings_classes()
        if kind not in classes:
            raise unknown_name("extractor", kind, classes)
        if estimator is not None and kind == "sampled":
            own = {**own, "estimator": estimator}
        elif estimator not in (None, FIRST_ORDER):
            raise does_nothing("estimator", kind, own)
        fields = classes[kind].model_fields
        for name, value in flat.items():
            if name in fields:
                own = {**own, name: value}
            elif value != _default(name):
                raise does_nothing(name, kind, own)
        entry = ESTIMATORS.get(str(own.get("estimator", "gaussian" if kind == "sampled" else FIRST_ORDER)))
        arguments = {name: value for name, value in values.items() if value is not None}
        if entry is not None:
            score = "profile" if own.get("layerwise") else entry.score
            arguments = {"observable": entry.observable, "score": score, "coupling": entry.coupling, **arguments}
        try:
            return {**arguments, "extractor": classes[kind](**{**own, "kind": kind})}
        except ValidationError as problem:
            raise wrong_value(problem) from None

    @property
    def kind(self) -> str:
        """Key of the extractor in `EXTRACTORS`."""
        return self.extractor.kind

    @property
    def estimator(self) -> str:
        """Name of the estimator in `ESTIMATORS`."""
        return self.extractor.estimator if isinstance(self.extractor, SampledSettings) else FIRST_ORDER

    @property
    def sampled(self) -> bool:
        """Whether rows are traces along draws rather than gradients."""
        return self.kind == "sampled"

    def calibrates_by(self, n: int) -> Literal["split", "cross"]:
        """How n trusted inputs calibrate; a preconditioner's or those that draws were chosen on may not."""
        from covary.scoring.calibration.splits import kind_for

        own = self.extractor
        chosen = self.sampled or (isinstance(own, GradientSettings) and own.preconditioner != "identity")
        return kind_for(n, self.conformal, chosen_on_trusted=chosen)

    @property
    def sets_apart(self) -> bool:
        """Whether some trusted inputs never calibrate, since what is amplified for survival is chosen on them."""
        return isinstance(self.extractor, GradientSettings) and self.extractor.evidence == "thorough"

    @property
    def by_gradients(self) -> bool:
        """Whether rows hold gradients or traces, or what a forward pass alone gives."""
        return not (isinstance(self.extractor, GradientSettings) and self.extractor.evidence == "latent")

    @staticmethod
    def checked(**values: Any) -> Settings:
        """Settings from loose values; a wrong one is told in one sentence, before any work."""
        # Here, since the command line reads this module's fields before anything heavy is loaded.
        from covary.scoring.couplings import COUPLINGS
        from covary.scoring.scores import SCORES

        try:
            settings = Settings(**values)
        except ValidationError as problem:
            raise wrong_value(problem) from None
        for kind, table in (("score", SCORES), ("coupling", COUPLINGS)):
            if getattr(settings, kind) not in table:
                raise unknown_name(kind, getattr(settings, kind), table)
        if not settings.by_gradients and settings.score not in OF_PARTS:
            found = f"the score {settings.score} beside evidence latent, which takes no gradients"
            raise CovaryError(found, " or ".join(OF_PARTS), "leave score= away, or choose evidence=fast")
        return settings


def _default(name: str) -> Any:
    own = next(own for own in settings_classes().values() if name in own.model_fields)
    return own.model_fields[name].get_default(call_default_factory=True)


def does_nothing(name: str, kind: str, own: Mapping[str, Any]) -> CovaryError:
    """The error for a setting that the chosen extractor makes no use of."""
    estimator = own.get("estimator") if kind == "sampled" else FIRST_ORDER
    to = "texts" if kind == "text" else f"the estimator {estimator}"
    owners = [other for other, settings in settings_classes().items() if name in settings.model_fields]
    for_whom = {"gradient": FIRST_ORDER, "sampled": SAMPLED, "text": "a language model"}
    remedy = f"leave {name}= away" if kind == "text" else f"choose one of them with estimator=, or leave {name}= away"
    if owners == ["text"]:
        remedy = f"leave {name}= away"
    whose = ", ".join(for_whom.get(other, other) for other in owners)
    return CovaryError(f"{name} says nothing to {to}", whose, remedy)


def wrong_value(problem: ValidationError) -> CovaryError:
    """What pydantic has to say, as one sentence with the value that was given."""
    first = problem.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        shared = [own for own in Settings.model_fields if own != "extractor"]
        return unknown_name("setting", name, [*shared, *own_names()])
    expected = first["msg"].removeprefix("Input should be ")
    expected = f"a number {expected}" if expected.startswith(("greater", "less")) else expected
    return CovaryError(f"{name} is {first.get('input')!r}", expected)
