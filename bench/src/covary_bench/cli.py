"""The command line of the benchmark: `covary-bench run TABLE` and `covary-bench scan RECORD`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option

from covary.cli.console import print_json, print_summary, terminal
from covary.cli.main import run_app
from covary.cli.options import (
    Calibration,
    Chosen,
    Json,
    MaybeInputs,
    PileOptions,
    Preparation,
    Sampling,
    grouped,
)
from covary.cli.verbosity import App
from covary_bench.table import TABLES

Cells = Annotated[list[str] | None, Option("--cell", help="Only this cell, as in badnets/cifar10/0; may be repeated.")]
Cache = Annotated[Path, Option("--cache", help="Victims, features and unfinished results.")]
Out = Annotated[Path, Option("--out", help="Folder of the records, tables and pages.")]
Scale = Annotated[str, Option("--scale", help="ci (two minutes), small (two cores) or paper (a GPU).")]
Device = Annotated[str, Option("--device", help="Where networks run: cpu, cuda or mps.")]
Threads = Annotated[int, Option("--threads", min=1, help="Of the network; figures are the same for the same number.")]
Tables = Annotated[str, Argument(help=f"{', '.join(TABLES)}, or all.")]
RESULTS = Path("bench/results")

app = App(name="covary-bench", help="The benchmark of covary.", no_args_is_help=True, add_completion=False,
            rich_markup_mode="markdown", pretty_exceptions_enable=False)  # fmt: skip


@app.command()
def run(
    what: Tables,
    scale: Scale = "ci",
    cell: Cells = None,
    cache: Cache = Path("cache"),
    out: Out = RESULTS,
    chains: Annotated[
        bool, Option("--chains", help="Also the baselines that take hours, such as the published sampler.")
    ] = False,
    again: Annotated[bool, Option("--again", help="Score anew, from cached victims and cases.")] = False,
    skip: Annotated[
        list[str] | None,
        Option("--skip", help="Leave this baseline out; earlier figures of it stay. May be repeated."),
    ] = None,
    device: Device = "cpu",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Run a table of the benchmark, or go on with it.

    **Examples**

    `covary-bench run all --scale ci`

    `covary-bench run vision --scale small`

    `covary-bench run vision --scale small --cell badnets/cifar10/0 --again`
    """
    from covary_bench import commands

    made = commands.run(
        what, scale, cache=cache, out=out, only=cell or [], chains=chains, again=again, skip=skip or [], device=device,
        threads=threads, say=_say(json),
    )  # fmt: skip
    if json:
        print_json(made)


@app.command()
def cases(
    what: Tables, scale: Scale = "ci", cell: Cells = None, cache: Cache = Path("cache"), device: Device = "cpu",
    json: Json = False,
) -> None:  # fmt: skip
    """Make the cases of a table and score nothing."""
    from covary_bench import commands

    made = commands.make_cases(what, scale, cache=cache, only=cell or [], device=device, say=_say(json))
    if json:
        print_json(made)


@app.command()
def victims(
    kind: Annotated[list[str] | None, Option("--kind", help="Kind of victim; may be repeated.")] = None,
    attack: Annotated[list[str] | None, Option("--attack", help="An attack, or none; may be repeated.")] = None,
    seed: Annotated[list[int] | None, Option("--seed", help="May be repeated.")] = None,
    target: Annotated[str, Option("--target", help="A class number, or all-to-all.")] = "0",
    ratio: Annotated[float | None, Option("--ratio", help="Poisoned fraction instead of the attack's own.")] = None,
    device: Device = "cpu",
    threads: Threads = 1,
    out: Annotated[Path, Option("--out", help="Folder of the victims.")] = Path("cache/victims"),
) -> None:
    """Train the victims that are missing, cheap attacks first; killed, the same command goes on where it was.

    **Example**

    `covary-bench victims --kind cifar10 --kind gtsrb --seed 0 --seed 1`
    """
    from covary_bench.images import victim_queue

    print(victim_queue.run(kind or ["cifar10", "gtsrb"], attack or [], seed or [0, 1], out, target=target, ratio=ratio,
                           device=device, threads=threads))  # fmt: skip


@app.command()
def tune(
    scale: Scale = "small", cache: Cache = Path("cache"), out: Out = RESULTS, device: Device = "cpu", json: Json = False
) -> None:  # fmt: skip
    """Choose the baselines' settings on the tuning cells; covary's own are not touched."""
    from covary_bench import tune

    made = tune.run(scale, cache, out, device=device, say=_say(json))
    if json:
        print_json(made)


@app.command()
def pack(
    dataset: Annotated[str, Option("--dataset", help="What to pack.")] = "cifar10",
    limit: Annotated[float, Option("--limit", help="Largest size of a pack, in MB.")] = 60.0,
    out: Annotated[Path, Option("--out", help="Folder of the packs; COVARY_PACKS names it to who reads them.")] = Path(
        "packs"
    ),
) -> None:
    """Make one data set small enough to carry to a machine without a network."""
    from covary_bench.images.pack import write_pack

    print_json(write_pack(dataset, out, limit))


@app.command()
def speed(
    cell: Annotated[list[str] | None, Option("--cell", help="Only this section; may be repeated.")] = None,
    peer: Annotated[Path | None, Option("--peer", help="Python of an environment with devinterp 1.3.2.")] = None,
    cache: Cache = Path("cache"),
    out: Out = RESULTS,
    again: Annotated[bool, Option("--again", help="Measure anew.")] = False,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Measure what it all costs; what is there already is not measured again."""
    from covary_bench.speed.page import measure

    record = measure(cell or [], out, cache / "cases", peer, threads, again, quiet=json)
    if json:
        print_json(record)


@app.command()
def docs(
    results: Annotated[Path, Option("--results", help="Folder of the records.")] = RESULTS,
    pages: Annotated[Path, Option("--docs", help="Folder of the pages.")] = Path("docs"),
    check: Annotated[bool, Option("--check", help="Change nothing; exit with 1 where a figure differs.")] = False,
) -> None:
    """Put every figure of the documentation between its marks, from the records, and draw its plots."""
    from covary_bench import docs

    changed = docs.differences(results, pages) if check else docs.write(results, pages)
    print("\n".join(changed) or "every figure agrees with its record")
    raise Exit(int(check and bool(changed)))


def _say(json: bool) -> Any:
    from covary_bench import commands, runner

    return runner.silent if json else commands.print_line


@app.command()
@grouped
def scan(
    *,
    record: Annotated[Path, Argument(help="Unzipped record of BackdoorBench.")],
    trusted: Annotated[
        str | None, Option("--trusted", help="Clean images; by default of the test images at hand.")
    ] = None,
    inputs: MaybeInputs = None,
    out: Annotated[Path, Option("--out", help="RUN folder to write; the material goes beside it.")],
    calibration: Calibration = None,
    sampling: Sampling = None,
    pile: PileOptions,
    chosen: Chosen,
    preparation: Preparation,
    json: Json = False,
) -> None:
    """Scan the network of a BackdoorBench record, which brings network, weights, inputs and truth itself.

    **Example**

    `covary-bench scan record/cifar10_badnet_0_1 --out runs/e`
    """
    from covary.runs import scan as scanning
    from covary_bench.images.backdoorbench.material import names_of_record

    names: dict[str, Any] = {"trusted": trusted, "inputs": inputs, **preparation.arguments(), **pile.arguments()}
    arguments: dict[str, Any] = {
        "calibration": calibration, "sampling": sampling,
        "settings": chosen.to_settings(),
    }  # fmt: skip
    # Wrong settings are told before any of the record's material is written.
    scanning.ScanPlan.checked(**names | {"model": "", "trusted": ""}, **arguments)
    names = names_of_record(record, out, names, chosen.seed or 0)
    summary = scanning.scan(scanning.ScanPlan.checked(**names, **arguments), out, display=terminal(json))
    print_json(summary) if json else print_summary(summary, out / "report.html")
    raise Exit(int(pile.fail_on_flag and summary["n_flagged"] > 0))


def main() -> None:
    """Entry point; errors are told as `covary` tells them."""
    run_app(app)
