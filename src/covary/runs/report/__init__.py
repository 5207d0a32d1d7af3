"""The report of a run: one HTML file that holds everything it needs and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import os
from importlib import resources
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from covary.errors import CovaryError
from covary.runs.report import words
from covary.runs.report.page import page
from covary.runs.report.run_folder import read_run

__all__ = ["write_report"]


def write_report(run: Path) -> Path:
    """Writes `report.html` into a RUN folder from its `results.csv`, `summary.json`, `run.json` and `report.json`.

    Only `results.csv` with the columns `id` and `score` must be there; a section without data is left out. At most
    10,000 rows, those with the highest scores, go into the page's table. The page never shows an id unescaped, and its
    content security policy admits no script or style but its own, and no address but `data:` images.

    Returns:
        the path of the report.

    Raises:
        CovaryError: the folder has no `results.csv`, a file in it cannot be read, or the report cannot be written.
    """
    target = run / "report.html"
    text = _html(run)
    part = target.with_name("report.html.part")
    try:
        part.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        os.replace(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        reason = f"cannot write {target} ({error.strerror or error})"
        raise CovaryError(reason, "", "free some space or mend the rights of the folder") from error
    return target


def _html(run: Path) -> str:
    folder = resources.files(__package__ or "covary.runs.report")
    css, js, template = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "report.html.jinja")
    )
    environment = Environment(
        loader=DictLoader({"report": template}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(signed=words.signed, p_value=words.p_value, count=words.count, percent=words.percent)
    policy = f"default-src 'none'; img-src data:; style-src {_hash(css)}; script-src {_hash(js)}; "
    policy += "base-uri 'none'; form-action 'none'"
    return environment.get_template("report").render(
        css=Markup(css), js=Markup(js), policy=Markup(policy), **page(read_run(run))
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
