"""The command line of the benchmark: `covary-bench run TABLE` and `covary-bench scan RECORD`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option

from covary.cli.console import print_json, print_summary, terminal
from covary.cli.main import run_app
from covary.cli.options import (
    Calibration,
    Device,
    Fpr,
    Json,
    Machine,
    MaybeInputs,
    Method,
    Output,
    Pile,
    Preparation,
    Sampled,
    Sampling,
    grouped,
    settings,
)
from covary.cli.verbosity import App

SPEED = "Of speed, whose cells are its sections"
Cells = Annotated[list[str] | None, Option("--cell", help="Only this cell, as in badnets/cifar10/0; may be repeated.")]
Cache = Annotated[Path, Option("--cache", help="Victims, features and unfinished results.")]


app = App(name="covary-bench", help="The benchmark of covary.", no_args_is_help=True, add_completion=False,
            rich_markup_mode="markdown", pretty_exceptions_enable=False)  # fmt: skip


@app.command()
def run(
    what: Annotated[
        str,
        Argument(
            help="vision, adaptive, adversarial, ood, mechanisms, hard, sensitivity, language, all; speed; tune; pack."
        ),
    ],
    scale: Annotated[str, Option("--scale", help="ci (two minutes), small (two cores) or paper (a GPU).")] = "ci",
    cell: Cells = None,
    cache: Cache = Path("cache"),
    out: Annotated[Path, Option("--out", help="Folder of the records, tables and pages.")] = Path("bench/results"),
    chains: Annotated[
        bool, Option("--chains", help="Also the baselines that take hours, such as the published sampler.")
    ] = False,
    again: Annotated[bool, Option("--again", help="Score anew, from cached victims and cases.")] = False,
    device: Device = "cpu",
    dataset: Annotated[str, Option("--dataset", help="What to pack.")] = "cifar10",
    limit: Annotated[float, Option("--limit", help="Largest size of a pack, in MB.")] = 60.0,
    peer: Annotated[
        Path | None,
        Option("--peer", help="Python of an environment with devinterp 1.3.2.", rich_help_panel=SPEED),
    ] = None,
    threads: Annotated[
        int, Option("--threads", min=1, help="Of the network; figures are the same for the same number.")
    ] = 1,
    docs: Annotated[
        Path | None, Option("--docs", help="Page and chart to fill, such as docs/speed.md.", rich_help_panel=SPEED)
    ] = None,
    json: Json = False,
) -> None:
    """Run a table of the benchmark, or go on with it; choose the baselines' settings; pack a data set.

    **Examples**

    `covary-bench run all --scale ci`

    `covary-bench run vision --scale small`

    `covary-bench run vision --scale small --cell badnets/cifar10/0 --again`

    `covary-bench run tune --scale small`

    `covary-bench run pack --dataset cifar10 --out packs --limit 60`

    `covary-bench run speed --cell score_only --peer peer/bin/python`
    """
    if what == "speed":
        from covary_bench.speed.told import measure

        record = measure(cell or [], out, cache / "cases", peer, threads, again, docs, quiet=json)
        if json:
            print_json(record)
        return
    from covary_bench import runner, whole

    made = whole.run(
        what, scale, cache=cache, out=out, only=cell or [], chains=chains, again=again, device=device,
        dataset=dataset, limit=limit, threads=threads, say=runner.silent if json else whole.aloud,
    )  # fmt: skip
    if json:
        print_json(made)


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
    fpr: Fpr = 0.01,
    pile: Pile,
    method: Method,
    sampled: Sampled,
    preparation: Preparation,
    output: Output,
    machine: Machine,
    json: Json = False,
) -> None:
    """Scan the network of a BackdoorBench record, which brings network, weights, inputs and truth itself.

    **Example**

    `covary-bench scan record/cifar10_badnet_0_1 --out runs/e`
    """
    from covary.runs import scan as scanning
    from covary_bench.backdoorbench.material import names_of_record

    names: dict[str, Any] = {"trusted": trusted, "inputs": inputs, **preparation.given(), **pile.given()}
    given: dict[str, Any] = {
        "calibration": calibration, "sampling": sampling,
        "settings": {"fpr": fpr, **settings(method, output, machine), **sampled.given()},
    }  # fmt: skip
    # Wrong settings are told before any of the record's material is written.
    scanning.Plan.checked(**names | {"model": "", "trusted": ""}, **given)
    names = names_of_record(record, out, names, method.seed)
    summary = scanning.scan(scanning.Plan.checked(**names, **given), out, display=terminal(json))
    print_json(summary) if json else print_summary(summary, out / "report.html")
    raise Exit(int(pile.fail_on_flag and summary["n_flagged"] > 0))


def main() -> None:
    """Entry point; errors are told as `covary` tells them."""
    run_app(app)
