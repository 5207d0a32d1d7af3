"""Options of the command line that several commands share, each written once.

A command takes a group as one keyword-only parameter; `grouped` spreads it into the options Typer sees.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Option

from covary.errors import CovaryError

NETWORK, DATA, DETECTOR, VERDICTS = "The network", "The data", "The detector", "Verdicts and figures"
SAMPLED = "Sampled estimators"
TEXTS = "Language models"

_MODEL = Option("--model", help="Factory of the network, `package.module:factory`.", rich_help_panel=NETWORK)
_TRUSTED = Option(
    "--trusted", help="Inputs you trust: .npz, folder of images, or `package.module:dataset`.", rich_help_panel=DATA
)
_INPUTS = Option("--inputs", help="Inputs to judge, in any of the same forms.", rich_help_panel=DATA)

Model = Annotated[str, _MODEL]
MaybeModel = Annotated[str | None, _MODEL]
Trusted = Annotated[str, _TRUSTED]
MaybeTrusted = Annotated[str | None, _TRUSTED]
MaybeInputs = Annotated[str | None, _INPUTS]
Weights = Annotated[
    Path | None,
    Option("--weights", help="safetensors or torch file; a state dict or a checkpoint.", rich_help_panel=NETWORK),
]
Calibration = Annotated[
    str | None, Option("--calibration", help="Calibrate on these instead of a split.", rich_help_panel=DATA)
]
Sampling = Annotated[
    str | None,
    Option("--sampling", help="Labelled inputs that chains descend on; by default half of the trusted ones.",
           rich_help_panel=DATA),
]  # fmt: skip
Fpr = Annotated[float, Option("--fpr", help="False-alarm rate.", rich_help_panel=VERDICTS)]
Out = Annotated[Path, Option("--out", help="Folder to write.")]
Json = Annotated[bool, Option("--json", help="Print one JSON document and nothing else on stdout.")]
Seed = Annotated[int, Option("--seed", help="Seed of roles and projections.", rich_help_panel=DETECTOR)]
Amp = Annotated[str | None, Option("--amp", help="bf16 or fp16 autocast.", rich_help_panel=NETWORK)]
ChannelsLast = Annotated[bool, Option("--channels-last", help="Memory format of images.", rich_help_panel=NETWORK)]
Device = Annotated[str, Option("--device", help="cpu, cuda, cuda:1, mps.", rich_help_panel=NETWORK)]


Force = Annotated[bool, Option("--force", help="Replace or change a folder though it is signed.")]
TrustCode = Annotated[
    bool,
    Option("--trust-code", help="Run the code that the folder names: a network's factory, a transform, a Dataset."),
]


@dataclass(frozen=True)
class Consent:
    """Who vouches for a detector whose folder names code to run."""

    trust_code: TrustCode = False
    public_key: Annotated[
        Path | None,
        Option("--public-key", help="The detector must be signed with the key of this, and may then run its code."),
    ] = None


@dataclass(frozen=True)
class Machine:
    """Where the network runs; decides speed, not scores."""

    device: Device = "cpu"
    batch_size: Annotated[
        int, Option("--batch-size", min=1, help="Inputs a pass; changes speed, not scores.", rich_help_panel=NETWORK)
    ] = 64


@dataclass(frozen=True)
class Output:
    """Where the logits are in what the network returns."""

    output: Annotated[
        str | None,
        Option("--output", help="Key or index of the logits in the network's output.", rich_help_panel=NETWORK),
    ] = None


@dataclass(frozen=True)
class Preparation:
    """What is done to raw inputs."""

    mean: Annotated[
        str | None,
        Option("--mean", help="Per channel, comma-separated; after scaling to [0, 1].", rich_help_panel=DATA),
    ] = None
    std: Annotated[str | None, Option("--std", help="Per channel, comma-separated.", rich_help_panel=DATA)] = None
    transform: Annotated[
        str | None,
        Option("--transform", help="`package.module:function` of one input tensor.", rich_help_panel=DATA),
    ] = None
    class_names: Annotated[
        str | None,
        Option("--class-names", help="File with a name for every class: one a line, or JSON.", rich_help_panel=DATA),
    ] = None

    def given(self) -> dict[str, Any]:
        """Mean and std as numbers, transform by name."""
        mean, std = numbers(self.mean, "--mean"), numbers(self.std, "--std")
        return {"mean": mean, "std": std, "transform": self.transform, "class_names": self.class_names}


@dataclass(frozen=True)
class Method:
    """How the detector judges."""

    estimator: Annotated[
        str, Option("--estimator", help="first-order (gradients), or by draws of weights: gaussian, paper, sgld.",
                    rich_help_panel=DETECTOR)
    ] = "first-order"  # fmt: skip
    score: Annotated[
        str | None,
        Option("--score", help="combined, profile, explained, class-max, mean, own-class, top-k; by default combined "
               "first-order, else class-max.", rich_help_panel=DETECTOR),
    ] = None  # fmt: skip
    coupling: Annotated[
        str | None, Option("--coupling", help="cosine, covariance or ccc, for the coupling scores; by default cosine, "
                           "of paper ccc.", rich_help_panel=DETECTOR)
    ] = None  # fmt: skip
    observable: Annotated[
        str | None, Option("--observable", help="margin, nll or `package.module:function`; by default margin, of paper "
                           "nll.", rich_help_panel=DETECTOR)
    ] = None  # fmt: skip
    space: Annotated[
        str, Option("--space", help="all, last-layer, modules:A,B or pattern:GLOB.", rich_help_panel=DETECTOR)
    ] = "all"
    engine: Annotated[
        str, Option("--engine", help="hooks (one fast pass) or exact (torch.func, the oracle).",
                    rich_help_panel=DETECTOR)
    ] = "hooks"  # fmt: skip
    metric: Annotated[
        str, Option("--metric", help="identity, diagonal or kronecker: how far each weight direction may move.",
                    rich_help_panel=DETECTOR)
    ] = "identity"  # fmt: skip
    half_rows: Annotated[
        bool, Option("--half-rows", help="Keep rows of trusted inputs in float16.", rich_help_panel=DETECTOR)
    ] = False
    false_alarms: Annotated[
        str, Option("--false-alarms", help="Clean inputs over which the rate holds: all, or those answered right (needs"
                    " trusted classes).", rich_help_panel=VERDICTS)
    ] = "all"  # fmt: skip
    evidence: Annotated[
        str | None,
        Option("--evidence", help="fast, or thorough: three more forward passes, for how the answer survives amplified "
               "layers. By default thorough where a pile is judged together.", rich_help_panel=DETECTOR),
    ] = None  # fmt: skip
    seed: Seed = 0
    per_class: Annotated[
        bool,
        Option("--per-class", help="Rank p-values within predicted classes where possible.", rich_help_panel=DETECTOR),
    ] = False
    conformal: Annotated[
        str, Option("--conformal", help="split (30 % calibrate), cross (all by turns, five scores an input) or auto: "
                    "cross up to 4,000 trusted inputs.", rich_help_panel=DETECTOR)
    ] = "auto"  # fmt: skip
    allow_missing_classes: Annotated[
        bool,
        Option("--allow-missing-classes/--refuse-missing-classes", help="Go on though some classes have no trusted "
               "inputs.", rich_help_panel=DETECTOR),
    ] = True  # fmt: skip
    amp: Amp = None
    channels_last: ChannelsLast = False


@dataclass(frozen=True)
class Sampled:
    """How a sampled estimator takes its draws; what is left away is the estimator's own."""

    draws: Annotated[int | None, Option("--draws", help="Kept draws of each chain.", rich_help_panel=SAMPLED)] = None
    chains: Annotated[int, Option("--chains", help="Independent chains.", rich_help_panel=SAMPLED)] = 1
    burn_in: Annotated[
        int | None, Option("--burn-in", help="Steps whose draws are dropped.", rich_help_panel=SAMPLED)
    ] = None
    thinning: Annotated[
        int | None, Option("--thinning", help="Keep every so-many-th step.", rich_help_panel=SAMPLED)
    ] = None
    sigma: Annotated[
        float | None, Option("--sigma", help="Deviation of a weight (gaussian); by default chosen on trusted accuracy.",
                             rich_help_panel=SAMPLED)
    ] = None  # fmt: skip
    batchnorm: Annotated[
        str | None, Option("--batchnorm", help="drift or frozen running statistics along chains.",
                           rich_help_panel=SAMPLED)
    ] = None  # fmt: skip
    constants: Annotated[
        str | None, Option("--constants", help="Other constants of the sampler, as in step_size=1e-7,nbeta=0.",
                           rich_help_panel=SAMPLED)
    ] = None  # fmt: skip
    layerwise: Annotated[
        bool, Option("--layerwise", help="Move one layer at a time, for the profile: so many times the passes.",
                     rich_help_panel=SAMPLED)
    ] = False  # fmt: skip
    half_draws: Annotated[
        bool, Option("--half-draws", help="Keep draws in float16; what it costs is told.", rich_help_panel=SAMPLED)
    ] = False
    draws_at_once: Annotated[
        int, Option("--draws-at-once", help="Draws a vectorised pass.", rich_help_panel=SAMPLED)
    ] = 1
    compiled: Annotated[bool, Option("--compiled", help="Use torch.compile.", rich_help_panel=SAMPLED)] = False
    stop_when_stable: Annotated[
        float | None, Option("--stop-when-stable", help="Stop when half of the draws rank trusted inputs as all do, to "
                             "this Spearman correlation.", rich_help_panel=SAMPLED)
    ] = None  # fmt: skip

    def given(self) -> dict[str, Any]:
        """Loose settings, the constants as numbers by name."""
        return {**asdict(self), "constants": named_numbers(self.constants, "--constants")}


@dataclass(frozen=True)
class Pile:
    """What is asked of a pile of inputs as a whole."""

    fdr: Annotated[
        float | None,
        Option("--fdr", help="Flag by Benjamini-Hochberg over the pile at this rate.", rich_help_panel=VERDICTS),
    ] = None
    truth: Annotated[
        str | None,
        Option("--truth", help="0/1 per input: a file, or an array of the inputs' .npz.", rich_help_panel=VERDICTS),
    ] = None
    target: Annotated[
        str | None,
        Option("--target", help="The attacker's label, or all-to-all; for figures only.", rich_help_panel=VERDICTS),
    ] = None
    together: Annotated[
        bool | None,
        Option("--together/--alone", help="Judge the pile together, so that inputs of one kind give each other away, "
               "or each input alone. `scan` judges together, `score` alone.", rich_help_panel=VERDICTS)
    ] = None  # fmt: skip
    offline: Annotated[
        bool, Option("--offline", help="Judge the pile as a whole: UMAP of all couplings, distance to trusted inputs.",
                     rich_help_panel=VERDICTS)
    ] = False  # fmt: skip
    fail_on_flag: Annotated[
        bool, Option("--fail-on-flag", help="Exit with 1 when anything is flagged.", rich_help_panel=VERDICTS)
    ] = False

    def given(self) -> dict[str, Any]:
        """What decides verdicts and figures, the target as a number."""
        target = self.target
        if target is not None and target != "all-to-all":
            if not target.lstrip("-").isdigit():
                raise CovaryError(f"--target is {target!r}", "a class number or all-to-all")
            target = int(target)
        if self.together and self.offline:
            raise CovaryError("--together and --offline", "one of them", "leave --offline away")
        asked = {"fdr": self.fdr, "truth": self.truth, "target": target, "offline": self.offline}
        return asked if self.together is None else {**asked, "together": self.together}


@dataclass(frozen=True)
class Texts:
    """A language model in place of a network of arrays, and what is asked of texts."""

    hf: Annotated[
        str | None,
        Option("--hf", help="Language model: a local folder in Hugging Face's format. --trusted and --inputs are then "
               ".jsonl, .parquet or .txt.", rich_help_panel=TEXTS),
    ] = None  # fmt: skip
    adapter: Annotated[
        str | None,
        Option("--adapter", help="Folder of a trained adapter, or fresh:R for new LoRA adapters of rank R.",
               rich_help_panel=TEXTS),
    ] = None  # fmt: skip
    dtype: Annotated[
        str, Option("--dtype", help="Of the weights: float32, bfloat16 or float16.", rich_help_panel=TEXTS)
    ] = "float32"
    pooling: Annotated[
        str, Option("--pooling", help="root, sum or mean over the answer's tokens.", rich_help_panel=TEXTS)
    ] = "root"
    groups: Annotated[
        str, Option("--groups", help="In place of classes: auto, none, label, nearest.", rich_help_panel=TEXTS)
    ] = "auto"
    max_new_tokens: Annotated[
        int, Option("--max-new-tokens", min=1, help="Length of answers the model is asked for.", rich_help_panel=TEXTS)
    ] = 64
    max_length: Annotated[
        int | None, Option("--max-length", min=2, help="Tokens a text may take.", rich_help_panel=TEXTS)
    ] = None

    def given(self, model: Any, weights: Any, preparation: Preparation, pile: Pile) -> dict[str, Any] | None:
        """What decides scores of texts; None without --hf."""
        if self.hf is None:
            return None
        others = {
            "--model": model, "--weights": weights, "--mean": preparation.mean, "--std": preparation.std,
            "--transform": preparation.transform, "--truth": pile.truth, "--target": pile.target,
        }  # fmt: skip
        for name, value in others.items():
            if value is not None:
                raise CovaryError(f"{name} beside --hf", "one or the other", f"leave {name} away")
        return {name: value for name, value in asdict(self).items() if name != "hf"}


def judge_together_by_default(names: dict[str, Any], given: dict[str, Any]) -> None:
    """A scan judges its pile together, with thorough evidence, unless told otherwise or where its score knows no piles.

    Thorough evidence needs a network's own classes, so not where the observable is a user's or the inputs are texts.
    """
    chosen = given["settings"]
    parts = chosen["estimator"] == "first-order" and chosen["score"] in (None, "combined")
    names.setdefault("together", parts and not names["offline"])
    own = ":" in (chosen["observable"] or "")
    if chosen["evidence"] is None and names["together"] and given["text"] is None and not own:
        chosen["evidence"] = "thorough"


def numbers(text: str | None, name: str) -> list[float] | None:
    """Numbers separated by commas or spaces."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise CovaryError(f"{name} is {text!r}", "numbers separated by commas", f"as in {name} 0.5,0.5,0.5") from None


def named_numbers(text: str | None, name: str) -> dict[str, float]:
    """Numbers by name, as in `a=1,b=2`."""
    pairs = [part.partition("=") for part in (text or "").replace(",", " ").split()]
    try:
        return {key: float(value) for key, _, value in pairs}
    except ValueError:
        raise CovaryError(f"{name} is {text!r}", "names with numbers", f"as in {name} step_size=1e-7,nbeta=0") from None


def settings(*groups: Any) -> dict[str, Any]:
    """Values of several groups as loose settings."""
    return {name: value for group in groups for name, value in asdict(group).items()}


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a command take groups: each parameter whose type is a dataclass gives way to the fields of that class."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    spread = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            spread.append(parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        group = groups[parameter.name]
        kinds = get_type_hints(group, include_extras=True)
        for field in fields(group):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            spread.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kinds[field.name]
                )
            )

    @functools.wraps(command)
    def spread_command(**values: Any) -> Any:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        return command(**values, **made)

    vars(spread_command)["__signature__"] = inspect.Signature(spread)
    spread_command.__annotations__ = {parameter.name: parameter.annotation for parameter in spread}
    return spread_command
