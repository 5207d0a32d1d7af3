"""The command line: `covary demo`, `check`, `fit`, `score`, `scan`, `report`, `inspect`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from covary import __version__
from covary.console import print_error, print_json
from covary.errors import CovaryError

app = typer.Typer(
    name="covary",
    help="Was this output produced by the mechanism that produces the outputs you trust?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Option("--model", help="Factory of the network, `package.module:factory`.")]
MaybeModel = Annotated[Optional[str], typer.Option("--model", help="Factory of the network, `package.module:factory`.")]
Weights = Annotated[Optional[Path], typer.Option("--weights", help="safetensors or torch file; state dict or checkpoint.")]
Trusted = Annotated[str, typer.Option("--trusted", help="Trusted inputs: .npz, folder, or `package.module:dataset`.")]
Calibration = Annotated[Optional[str], typer.Option("--calibration", help="Calibrate on these instead of a split.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Fpr = Annotated[float, typer.Option("--fpr", help="False-alarm rate.")]
Fdr = Annotated[Optional[float], typer.Option("--fdr", help="Benjamini-Hochberg over the pile at this rate.")]
ScoreName = Annotated[str, typer.Option("--score", help="combined, profile, explained, class-max, mean, own-class, top-k.")]
CouplingName = Annotated[str, typer.Option("--coupling", help="cosine, covariance or ccc, for the coupling scores.")]
Observable = Annotated[str, typer.Option("--observable", help="margin, nll or `package.module:function`.")]
Space = Annotated[str, typer.Option("--space", help="all, last-layer, modules:A,B or pattern:GLOB.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of roles and projections.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Inputs a pass; changes speed, not scores.")]
Output = Annotated[Optional[str], typer.Option("--output", help="Key or index of the logits in the network's output.")]
Mean = Annotated[Optional[str], typer.Option("--mean", help="Per channel, comma-separated; after scaling to [0, 1].")]
Std = Annotated[Optional[str], typer.Option("--std", help="Per channel, comma-separated.")]
Transform = Annotated[Optional[str], typer.Option("--transform", help="`package.module:function` of one input tensor.")]
Truth = Annotated[Optional[str], typer.Option("--truth", help="0/1 per input: a file, or an array of the inputs' .npz.")]
Target = Annotated[Optional[str], typer.Option("--target", help="The attacker's label, or all-to-all; for figures only.")]
Amp = Annotated[Optional[str], typer.Option("--amp", help="bf16 or fp16 autocast.")]
ChannelsLast = Annotated[bool, typer.Option("--channels-last", help="Memory format of images.")]
PerClass = Annotated[bool, typer.Option("--per-class", help="Rank p-values within predicted classes where possible.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]
FailOnFlag = Annotated[bool, typer.Option("--fail-on-flag", help="Exit with 1 when anything is flagged.")]


def _numbers(text: str | None, name: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise CovaryError(f"{name} is {text!r}", "numbers separated by commas", f"as in {name} 0.5,0.5,0.5") from None


def _target(text: str | None) -> int | str | None:
    if text is None or text == "all-to-all":
        return text
    if not text.lstrip("-").isdigit():
        raise CovaryError(f"--target is {text!r}", "a class number or all-to-all")
    return int(text)


@app.command()
def scan(
    inputs: Annotated[Optional[str], typer.Option("--inputs", help="Inputs to judge.")] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="RUN folder to write.")] = None,
    model: MaybeModel = None,
    weights: Weights = None,
    trusted: Annotated[Optional[str], typer.Option("--trusted", help="Inputs you trust.")] = None,
    calibration: Calibration = None,
    fpr: Fpr = 0.01,
    fdr: Fdr = None,
    score: ScoreName = "combined",
    coupling: CouplingName = "cosine",
    observable: Observable = "margin",
    space: Space = "all",
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = 64,
    output: Output = None,
    mean: Mean = None,
    std: Std = None,
    transform: Transform = None,
    truth: Truth = None,
    target: Target = None,
    amp: Amp = None,
    channels_last: ChannelsLast = False,
    per_class: PerClass = False,
    json: Json = False,
    fail_on_flag: FailOnFlag = False,
    replay: Annotated[Optional[Path], typer.Option("--replay", help="Do again what an earlier RUN did.")] = None,
) -> None:
    """Check, fit and score in one go; writes a RUN with results.csv, summary.json and report.html.

    **Examples**

    `covary scan --model nets:resnet --weights w.safetensors --trusted trusted.npz --inputs new.npz --out runs/a`

    `covary scan --model nets:resnet --weights w.pt --trusted good/ --inputs pile/ --out runs/b --fdr 0.1 --fail-on-flag`

    `covary scan --replay runs/a --out runs/a-again`
    """
    from covary import scan as scanning

    if replay is not None:
        summary, verdict = scanning.replay(replay, out)
        _show(summary | {"replay": verdict}, out or scanning.replay_folder(replay), json)
        raise typer.Exit(0 if verdict["identical"] else 1)
    for name, value in (("--model", model), ("--trusted", trusted), ("--inputs", inputs), ("--out", out)):
        if value is None:
            raise CovaryError(f"{name} is missing", "--model, --trusted, --inputs and --out (or --replay RUN)")
    assert out is not None
    plan = scanning.Plan.checked(
        model=model, weights=weights and str(weights), trusted=trusted, calibration=calibration, inputs=inputs, fdr=fdr,
        mean=_numbers(mean, "--mean"), std=_numbers(std, "--std"), transform=transform, truth=truth,
        target=_target(target),
        settings={
            "fpr": fpr, "score": score, "coupling": coupling, "observable": observable, "space": space, "seed": seed,
            "device": device, "batch_size": batch_size, "output": output, "amp": amp, "channels_last": channels_last,
            "per_class": per_class,
        },
    )  # fmt: skip
    summary = scanning.scan(plan, out, quiet=json)
    _show(summary, out, json)
    raise typer.Exit(int(fail_on_flag and summary["n_flagged"] > 0))


@app.command()
def fit(
    model: Model,
    trusted: Trusted,
    out: Out,
    weights: Weights = None,
    calibration: Calibration = None,
    fpr: Fpr = 0.01,
    score: ScoreName = "combined",
    coupling: CouplingName = "cosine",
    observable: Observable = "margin",
    space: Space = "all",
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = 64,
    output: Output = None,
    mean: Mean = None,
    std: Std = None,
    transform: Transform = None,
    amp: Amp = None,
    channels_last: ChannelsLast = False,
    per_class: PerClass = False,
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Keep only the network's fingerprint.")] = False,
    json: Json = False,
) -> None:
    """Learn from trusted inputs and save a detector for inputs that do not exist yet.

    **Example**

    `covary fit --model nets:resnet --weights w.safetensors --trusted trusted.npz --out detectors/resnet`
    """
    from covary import scan as scanning

    plan = scanning.Plan.checked(
        model=model, weights=weights and str(weights), trusted=trusted, calibration=calibration,
        mean=_numbers(mean, "--mean"), std=_numbers(std, "--std"), transform=transform,
        settings={
            "fpr": fpr, "score": score, "coupling": coupling, "observable": observable, "space": space, "seed": seed,
            "device": device, "batch_size": batch_size, "output": output, "amp": amp, "channels_last": channels_last,
            "per_class": per_class,
        },
    )  # fmt: skip
    record = scanning.fit(plan, out, weights=not no_weights, quiet=json)
    _show_record(record, json)


@app.command()
def score(
    detector: Annotated[Path, typer.Argument(help="Folder written by `covary fit`.")],
    data: Annotated[str, typer.Argument(help="Inputs to judge.")],
    out: Out,
    model: MaybeModel = None,
    weights: Weights = None,
    fdr: Fdr = None,
    truth: Truth = None,
    target: Target = None,
    device: Device = "cpu",
    batch_size: BatchSize = 64,
    json: Json = False,
    fail_on_flag: FailOnFlag = False,
) -> None:
    """Judge inputs by a saved detector.

    **Example**

    `covary score detectors/resnet today.npz --out runs/today --fail-on-flag`
    """
    from covary import scan as scanning

    summary = scanning.score(
        detector, data, out, model=model, weights=weights, fdr=fdr, truth=truth, target=_target(target), device=device,
        batch_size=batch_size, quiet=json,
    )  # fmt: skip
    _show(summary, out, json)
    raise typer.Exit(int(fail_on_flag and summary["n_flagged"] > 0))


@app.command()
def check(
    model: Model,
    trusted: Trusted,
    weights: Weights = None,
    inputs: Annotated[Optional[str], typer.Option("--inputs", help="Inputs to judge later.")] = None,
    calibration: Calibration = None,
    fpr: Fpr = 0.01,
    device: Device = "cpu",
    batch_size: BatchSize = 64,
    output: Output = None,
    mean: Mean = None,
    std: Std = None,
    transform: Transform = None,
    json: Json = False,
) -> None:
    """Look at network and data before any long work, and say what was found and what to change.

    **Example**

    `covary check --model nets:resnet --weights w.safetensors --trusted trusted.npz --inputs new.npz`
    """
    from covary import scan as scanning
    from covary.console import print_findings

    plan = scanning.Plan.checked(
        model=model, weights=weights and str(weights), trusted=trusted, calibration=calibration, inputs=inputs,
        mean=_numbers(mean, "--mean"), std=_numbers(std, "--std"), transform=transform,
        settings={"fpr": fpr, "device": device, "batch_size": batch_size, "output": output},
    )  # fmt: skip
    report = scanning.check_plan(plan)
    if json:
        print_json(report.to_json())
    else:
        print_findings(report.to_json()["findings"], everything=True)
    raise typer.Exit(0 if report.ok else 2)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="RUN folder.")], json: Json = False
) -> None:
    """Write a RUN's report.html again.

    **Example**

    `covary report runs/a`
    """
    from covary.report import write_report

    path = write_report(run)
    print_json({"report": str(path)}) if json else print(path)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Detector or RUN folder.")], json: Json = False
) -> None:
    """Say what a detector or a RUN holds, after checking that it is intact.

    **Example**

    `covary inspect detectors/resnet`
    """
    from covary import scan as scanning

    _show_record(scanning.describe(folder), json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="RUN folder to write.")] = Path("runs/demo"),
    seed: Seed = 0,
    amp: Amp = None,
    channels_last: ChannelsLast = False,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Train a small backdoored digit classifier, scan clean and triggered digits, write the report.

    **Example**

    `covary demo --out runs/demo`
    """
    from covary.demo import run_demo

    summary = run_demo(out, seed=seed, amp=amp, channels_last=channels_last, device=device, quiet=json)
    _show(summary, out, json)


def _show(summary: dict[str, Any], out: Path, json: bool) -> None:
    if json:
        print_json(summary)
        return
    from covary.console import print_summary

    print_summary(summary, out / "report.html")


def _show_record(record: dict[str, Any], json: bool) -> None:
    if json:
        print_json(record)
        return
    from rich.markup import escape

    from covary.console import stdout

    for key, value in record.items():
        stdout.print(f"[dim]{key}[/] {escape(str(value))}")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"covary {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: bad input is one sentence on stderr and exit code 2."""
    try:
        app()
    except CovaryError as problem:
        print_error(str(problem))
        sys.exit(2)
    except OSError as problem:
        print_error(f"{problem.filename or 'a file'} cannot be used: {problem.strerror or problem}")
        sys.exit(2)
    except KeyboardInterrupt:
        print_error("interrupted; nothing half-written was left behind")
        sys.exit(130)
