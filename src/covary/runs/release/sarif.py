"""A gate's findings as SARIF 2.1.0, the form in which code hosts show what security tools found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from covary.runs.release.junit import MOST_INPUTS, standing_out
from covary.storage.fingerprints import versions
from covary.storage.locks import write_file

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
FLAGGED = "flagged-input"


def sarif(found: dict[str, Any]) -> dict[str, Any]:
    """What `gate` returned as a SARIF log: a result for each rule, and where one failed for what stands out most.

    A rule that is kept is a result of the kind `pass`; one that is broken is an error. Flagged inputs are warnings with
    a logical location, since an input's id names no line of any file.
    """
    where = {"artifactLocation": {"uri": _uri(Path(found["run"]) / "results.csv")}}
    rules: dict[str, dict[str, Any]] = {}
    results = []
    for rule in found["rules"]:
        name = rule["rule"]
        index = _known(rules, _identifier(name), name)
        kept = {"kind": "pass", "level": "none"} if rule["passed"] else {"kind": "fail", "level": "error"}
        results.append(
            {"ruleId": _identifier(name), "ruleIndex": index, **kept, "locations": [{"physicalLocation": where}],
             "message": {"text": f"{name}: {rule['found']}"}}
        )  # fmt: skip
    if not found["passed"]:
        for name, score, p in standing_out(Path(found["run"]))[:MOST_INPUTS]:
            location = {"physicalLocation": where, "logicalLocations": [{"name": name, "kind": "element"}]}
            index = _known(rules, FLAGGED, "An input whose answer trusted inputs do not account for")
            results.append(
                {"ruleId": FLAGGED, "ruleIndex": index, "kind": "fail", "level": "warning", "locations": [location],
                 "message": {"text": f"{name}: flagged, p = {p:.3g}"}, "properties": {"score": score, "p_value": p}}
            )  # fmt: skip
    driver = {"name": "covary", "version": versions()["covary"] or "unknown", "rules": list(rules.values())}
    invocation = {"executionSuccessful": True, "exitCode": int(not found["passed"])}
    counts = {name: found[name] for name in ("n", "n_flagged")}
    run = {"tool": {"driver": driver}, "invocations": [invocation], "results": results, "properties": counts}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def write_sarif(found: dict[str, Any], path: Path) -> None:
    """Writes `sarif` to a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (json.dumps(sarif(found), indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def _known(rules: dict[str, dict[str, Any]], identifier: str, text: str) -> int:
    rules.setdefault(identifier, {"id": identifier, "shortDescription": {"text": text}})
    return list(rules).index(identifier)


def _identifier(name: str) -> str:
    """A rule's name without its figures, which change from day to day.

    >>> _identifier("share of inputs flagged at most 0.02")
    'share-of-inputs-flagged'
    """
    words = re.sub(r" at (most|least) .*|, tested at .*", "", name)
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _uri(path: Path) -> str:
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())
