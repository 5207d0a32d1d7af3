"""The report of a run: one HTML file that holds everything it needs and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from importlib import resources
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from covary.errors import CovaryError
from covary.runs.report import words
from covary.runs.report.page import page
from covary.runs.report.run_folder import RunFolder, items, read_run
from covary.storage.folders import check_unsigned
from covary.storage.locks import one_writer, write_file
from covary.storage.receipts import renew
from covary.storage.verify import in_words, receipt_state

__all__ = ["renew_report", "write_report"]

REPORT = "report.html"


def renew_report(run: Path, *, force: bool = False) -> tuple[Path, str]:
    """Writes the report of a finished RUN again and into its receipt; returns its path and the receipt's state.

    Raises:
        CovaryError: the RUN is signed (unless `force` is given), or whatever `write_report` raises.
    """
    with one_writer(run):
        check_unsigned(run, "changed", force)
        state = receipt_state(run, ignoring=(REPORT,))
        path = write_report(run, state)
        renew(run, path.name)
    return path, state


def write_report(run: Path, receipt: str = "intact") -> Path:
    """Writes `report.html` into a RUN folder from its `results.csv`, `summary.json`, `run.json` and `report.json`.

    Only `results.csv` with the columns `id` and `score` must be there; a section without data is left out. At most
    10,000 rows, those with the highest scores, go into the page's table. The page never shows an id unescaped, and its
    content security policy admits no script or style but its own, and no address but `data:` images.

    Args:
        run: the folder.
        receipt: its `receipt_state`; the page says so where it is not intact.

    Returns:
        the path of the report.

    Raises:
        CovaryError: the folder has no `results.csv`, a file in it cannot be read, or the report cannot be written.
    """
    target = run / REPORT
    text = _html(run, receipt)
    try:
        write_file(target, text.encode("utf-8", "replace"))
    except OSError as error:
        reason = f"cannot write {target} ({error.strerror or error})"
        raise CovaryError(reason, "", "free some space or mend the rights of the folder") from error
    return target


def _html(run: Path, receipt: str) -> str:
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
        css=Markup(css), js=Markup(js), policy=Markup(policy), **page(_warned(read_run(run), receipt))
    )


def _warned(run: RunFolder, receipt: str) -> RunFolder:
    if receipt == "intact":
        return run
    warning = {
        "level": "warning", "title": "The receipt does not vouch for this RUN", "text": f"It {in_words(receipt)}.",
        "change": "Get the RUN again from whoever made it.",
    }  # fmt: skip
    return replace(run, evidence={**run.evidence, "diagnostics": [warning, *items(run.evidence, "diagnostics")]})


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
