"""A gate's findings as JUnit XML, the form in which continuous integration systems read test results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from covary.runs.report.run_folder import read_run
from covary.storage.locks import write_file

MOST_INPUTS = 20
# What XML 1.0 cannot hold, even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(found: dict[str, Any]) -> str:
    """JUnit XML of what `gate` returned: one test case a rule; a failed one names the inputs that stand out most."""
    rules, seconds = found["rules"], f"{found['seconds'] or 0:.3f}"
    failed = sum(not rule["passed"] for rule in rules)
    counts = {"tests": str(len(rules)), "failures": str(failed), "errors": "0", "time": seconds}
    root = Xml.Element("testsuites", {"name": "covary", **counts})
    suite = Xml.SubElement(root, "testsuite", {"name": _clean(f"covary gate {found['run']}"), "skipped": "0", **counts})
    properties = Xml.SubElement(suite, "properties")
    for name in ("n", "n_flagged"):
        Xml.SubElement(properties, "property", {"name": name, "value": str(found[name])})
    for rule in rules:
        case = Xml.SubElement(
            suite, "testcase", {"classname": "covary.runs.gate", "name": _clean(rule["rule"]), "time": "0.000"}
        )
        if rule["passed"]:
            Xml.SubElement(case, "system-out").text = _clean(rule["found"])
        else:
            failure = Xml.SubElement(case, "failure", {"message": _clean(rule["found"]), "type": "covary.runs.gate"})
            failure.text = _clean(_in_words(Path(found["run"])))
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def write_junit(found: dict[str, Any], path: Path) -> None:
    """Writes `junit` to a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, junit(found).encode())


def standing_out(run: Path) -> list[tuple[str, float, float]]:
    """Id, score and p-value of every flagged input of a RUN, the highest scores first."""
    results = read_run(run).results
    score, p = results.numbers["score"], results.numbers["p_value"]
    order = sorted((i for i in range(len(results)) if results.flagged[i]), key=lambda i: -score[i])
    return [(results.ids[i], float(score[i]), float(p[i])) for i in order]


def _in_words(run: Path) -> str:
    found = standing_out(run)
    lines = [f"{name}: p = {p:.3g}" for name, _, p in found[:MOST_INPUTS]]
    more = [f"and {len(found) - MOST_INPUTS} more"] if len(found) > MOST_INPUTS else []
    return "\n".join(["Flagged, highest scores first:", *lines, *more]) if lines else "Nothing is flagged."


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
