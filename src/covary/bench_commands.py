"""Commands of the benchmark: `bench`, and what it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from covary.console import print_json
from covary.options import Device, Json

SPEED = "Of speed, whose cells are its sections"
Cells = Annotated[list[str] | None, Option("--cell", help="Only this cell, as in badnets/cifar10/0; may be repeated.")]
Cache = Annotated[Path, Option("--cache", help="Victims, features and unfinished results.")]


def bench(
    what: Annotated[
        str,
        Argument(
            help="vision, adaptive, adversarial, ood, mechanisms, hard, sensitivity, language, all; speed; tune; pack."
        ),
    ],
    scale: Annotated[str, Option("--scale", help="ci (two minutes), small (two cores) or paper (a GPU).")] = "ci",
    cell: Cells = None,
    cache: Cache = Path("cache"),
    out: Annotated[Path, Option("--out", help="Folder of the records, tables and pages.")] = Path("benchmarks/results"),
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

    `covary bench all --scale ci`

    `covary bench vision --scale small`

    `covary bench vision --scale small --cell badnets/cifar10/0 --again`

    `covary bench tune --scale small`

    `covary bench pack --dataset cifar10 --out packs --limit 60`

    `covary bench speed --cell score_only --peer peer/bin/python`
    """
    if what == "speed":
        from covary.bench.speed.told import measure

        record = measure(cell or [], out, cache / "cases", peer, threads, again, docs, quiet=json)
        if json:
            print_json(record)
        return
    from covary.bench import runner, whole

    made = whole.run(
        what, scale, cache=cache, out=out, only=cell or [], chains=chains, again=again, device=device,
        dataset=dataset, limit=limit, threads=threads, say=runner.silent if json else whole.aloud,
    )  # fmt: skip
    if json:
        print_json(made)


def add_to(app: Typer) -> None:
    """Adds these commands to the command line."""
    app.command()(bench)
