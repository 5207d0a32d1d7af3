"""Options of the command line that several commands share, each written once.

A command takes a group as one keyword-only parameter; `grouped` spreads it into the options Typer sees. Those of a
detector are the fields of `Settings` and of its extractors, with the help text and the panel that stand there.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args, get_type_hints

from pydantic import BaseModel
from typer import Option

from covary.errors import CovaryError
from covary.settings import FIRST_ORDER, FORMER, NETWORK, OF_PARTS, TEXT_PANEL, VERDICTS, Settings, settings_classes

DATA = "The data"


def of_setting(name: str) -> Any:
    """The type of one setting's option, None where it is left away; its words stand at the field."""
    owners = [Settings, *settings_classes().values()]
    field = next(own.model_fields[name] for own in owners if name in own.model_fields)
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    kinds = {kind for kind in (field.annotation, *get_args(field.annotation)) if kind in (bool, int, float)}
    kind = kinds.pop() if len(kinds) == 1 and str not in get_args(field.annotation) else str
    flag = extra["flag"] or "--" + name.replace("_", "-")
    return Annotated[kind | None, Option(flag, help=field.description, rich_help_panel=extra["panel"])]

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
Out = Annotated[Path, Option("--out", help="Folder to write.")]
Json = Annotated[bool, Option("--json", help="Print one JSON document and nothing else on stdout.")]
if TYPE_CHECKING:
    Seed = BatchSize = int | None
    Amp = Device = str | None
    ChannelsLast = bool | None
else:
    Seed, Amp, ChannelsLast, Device, BatchSize = map(
        of_setting, ("seed", "amp", "channels_last", "device", "batch_size")
    )


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

    device: Device = None
    batch_size: BatchSize = None


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

    def arguments(self) -> dict[str, Any]:
        """Mean and std as numbers, transform by name."""
        mean, std = numbers(self.mean, "--mean"), numbers(self.std, "--std")
        return {"mean": mean, "std": std, "transform": self.transform, "class_names": self.class_names}


class _Chosen:
    """What was asked of a detector, as loose settings: what was left away is not among them."""

    seed: int | None

    def to_settings(self) -> dict[str, Any]:
        """By the names of `Settings` and its extractors."""
        values = asdict(cast(Any, self))
        for former, name in FORMER.items():
            if (value := values.pop(former)) is not None:
                warn(f"--{former} is now called --{name}")
                values[name] = value
        values = {name: value for name, value in values.items() if value is not None}
        if "constants" in values:
            values["constants"] = named_numbers(values["constants"], "--constants")
        return values


def _names_of(*owners: type[BaseModel]) -> list[str]:
    return list(dict.fromkeys(name for own in owners for name, f in own.model_fields.items() if f.json_schema_extra))


def _hidden(name: str) -> Any:
    return Annotated[str | None, Option(f"--{name}", hidden=True)]


# Every setting of a detector and of all its extractors; which go together, `Settings` says.
if TYPE_CHECKING:
    Chosen = _Chosen
else:
    Chosen = make_dataclass(
        "Chosen",
        [(name, of_setting(name), None) for name in _names_of(Settings, *settings_classes().values())]
        + [(name, _hidden(name), None) for name in FORMER],
        bases=(_Chosen,),
        frozen=True,
    )


@dataclass(frozen=True)
class PileOptions:
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

    def arguments(self) -> dict[str, Any]:
        """What decides verdicts and figures, the target as a number."""
        target = self.target
        if target is not None and target != "all-to-all":
            if not target.lstrip("-").isdigit():
                raise CovaryError(f"--target is {target!r}", "a class number or all-to-all")
            target = int(target)
        if self.together and self.offline:
            raise CovaryError("--together and --offline", "one of them", "leave --offline away")
        requested = {"fdr": self.fdr, "truth": self.truth, "target": target, "offline": self.offline}
        return requested if self.together is None else {**requested, "together": self.together}


Hf = Annotated[
    str | None,
    Option("--hf", help="Language model: a local folder in Hugging Face's format, or a GGUF file. --trusted and "
           "--inputs are then .jsonl, .parquet or .txt.", rich_help_panel=TEXT_PANEL),
]  # fmt: skip


def of_texts(hf: str | None, **others: Any) -> dict[str, Any]:
    """The extractor of texts with --hf; nothing of a network beside it."""
    if hf is None:
        return {}
    for name, value in others.items():
        if value is not None:
            raise CovaryError(f"--{name} beside --hf", "one or the other", f"leave --{name} away")
    return {"extractor": "text"}


def judge_together_by_default(names: dict[str, Any], requested: dict[str, Any]) -> None:
    """A scan judges its pile together, with thorough evidence, unless told otherwise or where its score knows no piles.

    Thorough evidence needs a network's own classes, so not where the observable is a user's or the inputs are texts.
    """
    parts = requested.get("estimator", FIRST_ORDER) == FIRST_ORDER and requested.get("score", "combined") in OF_PARTS
    names.setdefault("together", parts and not names["offline"])
    own = ":" in requested.get("observable", "")
    if "evidence" not in requested and names["together"] and "extractor" not in requested and not own:
        requested["evidence"] = "thorough"


def numbers(text: str | None, name: str) -> list[float] | None:
    """Numbers separated by commas or spaces."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise CovaryError(f"{name} is {text!r}", "numbers separated by commas", f"as in {name} 0.5,0.5,0.5") from None


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"note: {message}", file=sys.stderr)


def named_numbers(text: str | None, name: str) -> dict[str, float]:
    """Numbers by name, as in `a=1,b=2`."""
    pairs = [part.partition("=") for part in (text or "").replace(",", " ").split()]
    try:
        return {key: float(value) for key, _, value in pairs}
    except ValueError:
        raise CovaryError(f"{name} is {text!r}", "names with numbers", f"as in {name} step_size=1e-7,nbeta=0") from None


def settings(*groups: Any) -> dict[str, Any]:
    """Values of several groups as loose settings; what was left away is not among them."""
    return {name: value for group in groups for name, value in asdict(group).items() if value is not None}


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
