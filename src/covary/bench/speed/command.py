"""`covary bench speed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

SECTIONS_HELP = (
    "feature_cost_in_forwards, first_order_speedup, score_only, fidelity, memory, scaling or stream; "
    "all when none is named."
)


def speed(
    sections: Annotated[list[str] | None, Argument(help=SECTIONS_HELP)] = None,
    out: Annotated[Path | None, Option("--out", help="Result file; benchmarks/results/speed-MACHINE.json.")] = None,
    cases: Annotated[Path, Option("--cases", help="Folder of built cases.")] = Path("cache/cases"),
    peer: Annotated[
        Path | None, Option("--peer", help="Python of an environment with devinterp 1.3.2, for the published pipeline.")
    ] = None,
    threads: Annotated[int, Option("--threads", min=1, help="Threads of a network's passes.")] = 1,
    again: Annotated[bool, Option("--again", help="Measure sections anew that are in the result file.")] = False,
    docs: Annotated[Path | None, Option("--docs", help="Page and chart to fill, such as docs/speed.md.")] = None,
) -> None:
    """Time the first-order engine against the published pipeline, exact gradients and plain forwards, in one run.

    **Examples**

    `covary bench speed score_only`

    `covary bench speed --peer peer/bin/python --docs docs/speed.md`
    """
    from covary.bench.core import fill
    from covary.bench.speed import Options, machine, run
    from covary.bench.speed.cost import TARGETS
    from covary.bench.speed.told import chart, markdown, scales

    path = out or Path("benchmarks/results") / f"speed-{machine()}.json"
    options = Options(cases=cases, peer=peer)
    record = run(sections or [], path, options, threads=threads, again=again)
    print(markdown(record))
    if docs is not None:
        fill(docs, "speed", markdown(record))
        fill(docs, "scales", scales(record))
        if "first_order_speedup" in record:
            chart(record, options.sampled, TARGETS[1], docs.with_suffix(".svg"))
