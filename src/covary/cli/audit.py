"""`covary audit`: what an auditor files of a RUN."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from covary.cli.console import print_json
from covary.cli.options import Json


def audit(
    run: Annotated[Path, Argument(help="RUN folder, or a finished pile.")],
    bom: Annotated[Path | None, Option("--bom", help="Bill of materials to write: CycloneDX 1.6 JSON.")] = None,
    card: Annotated[Path | None, Option("--card", help="Section of a model card to write: Markdown.")] = None,
    json: Json = False,
) -> None:
    """Write a RUN's bill of materials and its section of a model card.

    **Example**

    `covary audit runs/a --bom bom.json --card model-card.md`
    """
    from covary.runs.release.audit import write_audit

    paths = [str(path) for path in write_audit(run, bom, card)]
    print_json({"written": paths}) if json else print(*paths, sep="\n")
