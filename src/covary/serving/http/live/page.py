"""The live page: one HTML document without data, which asks this service for them every other second."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources


def _text(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# The report's own style sheet, so that both read alike.
CSS = _text("covary.runs.report", "report.css") + _text("covary.serving.http.live", "live.css")
JS = _text("covary.serving.http.live", "live.js")
POLICY = (
    f"default-src 'none'; img-src data:; connect-src 'self'; style-src {_hash(CSS)}; script-src {_hash(JS)}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@functools.cache
def live_page() -> str:
    """The page."""
    return _text("covary.serving.http.live", "live.html").replace("/*CSS*/", CSS).replace("/*JS*/", JS)
