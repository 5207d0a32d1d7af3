"""What an auditor files of a RUN: a bill of materials (CycloneDX 1.6) and a section for a model card."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from covary.errors import CovaryError
from covary.runs.report.run_folder import RunFolder, items, number, read_run, section
from covary.scoring.calibration.conformal import rate_interval
from covary.storage.fingerprints import digest_file, digest_json, versions
from covary.storage.locks import write_file
from covary.storage.verify import in_words, receipt_state

# What a verdict cannot say, for every card; the threat model has the reasons.
GAPS = (
    "Trusted inputs are taken to be clean: triggered ones among them teach that the trigger is normal.",
    "Inputs that are merely unusual are flagged too; a flag does not tell malice from novelty.",
    "An attacker who trains the network against this detector, or sees its scores, can hide from it.",
    "A wrong answer given by the mechanism of right ones, such as a bias learned from everyone, is not flagged.",
    "The false-alarm rate holds for clean inputs from the source of the trusted ones, not after it has drifted.",
)
# Figures of a summary that a RUN with known truth has: name -> what an auditor reads.
FIGURES = {
    "fpr": "false-alarm rate measured on clean inputs", "tpr": "share of anomalous inputs flagged",
    "auroc": "AUROC", "accuracy": "accuracy on clean inputs",
}  # fmt: skip


def bill_of_materials(run: Path) -> dict[str, Any]:
    """Network, trusted data, inputs and verdicts of a RUN as a CycloneDX 1.6 machine-learning bill of materials.

    covary's fingerprints cover tensors and inputs in their order, not files, so they are properties; a `hash` is that
    of a file in the RUN. The serial number follows from the contents: the same RUN gives the same bill.

    Raises:
        CovaryError: no RUN there, or one in which something was changed since.
    """
    opened = _intact(run)
    prints, config = section(opened.run, "fingerprints"), section(opened.run, "config")
    results = run / "results.csv"
    files = [{"alg": "SHA-256", "content": digest_file(results)}] if results.is_file() else []
    model = {
        "type": "machine-learning-model", "bom-ref": "network", "name": _name(config.get("model"), "network"),
        "properties": _properties({"fingerprint:tensors:sha256": prints.get("network")}),
        "modelCard": {
            "modelParameters": {"datasets": [{"ref": "trusted"}, {"ref": "inputs"}]},
            "quantitativeAnalysis": {"performanceMetrics": _metrics(opened)},
            "considerations": {"technicalLimitations": list(GAPS)},
        },
    }  # fmt: skip
    detector = {
        "type": "application", "bom-ref": "detector", "name": "covary detector", "version": _version(opened),
        "description": "Judges inputs by whether trusted inputs account for the network's answers.",
        "properties": _properties({
            name: config.get(name) for name in ("detector", "score", "coupling", "observable", "fpr", "seed")
        }),
    }  # fmt: skip
    data = [
        {"type": "data", "bom-ref": role, "name": _name(config.get(role), role), "data": [{"type": "dataset"}],
         "properties": _properties({"fingerprint:inputs:sha256": prints.get(role)})}
        for role in ("trusted", "inputs")
    ]  # fmt: skip
    verdict = {
        "type": "data", "bom-ref": "verdicts", "name": "results.csv", "data": [{"type": "dataset"}],
        **({"hashes": files} if files else {}),
        "properties": _properties({
            name: opened.summary.get(name) for name in ("n", "n_flagged", "fpr_in_force", "fdr")
        }),
    }  # fmt: skip
    parts, installed = ["network", "trusted", "inputs"], versions()["covary"] or "unknown"
    body = {
        "metadata": {
            **({"timestamp": opened.run["started"]} if opened.run.get("started") else {}),
            "tools": {"components": [{"type": "application", "name": "covary", "version": installed}]},
            "component": model,
        },
        "components": [detector, *data, verdict],
        "dependencies": [
            {"ref": "detector", "dependsOn": ["network", "trusted"]},
            {"ref": "verdicts", "dependsOn": ["detector", "inputs"]},
            *({"ref": part} for part in parts),
        ],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, digest_json(body))
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1, **body}


def model_card(run: Path) -> str:
    """A section for a model card, in Markdown: what was checked, at which false-alarm rate, and what nobody checked.

    Raises:
        CovaryError: as of `bill_of_materials`.
    """
    opened = _intact(run)
    summary, prints = opened.summary, section(opened.run, "fingerprints")
    n, flagged = number(summary.get("n")) or 0, number(summary.get("n_flagged")) or 0
    rows = [
        ("inputs judged", f"{n:,.0f}"),
        ("inputs flagged", f"{flagged:,.0f} ({flagged / n:.2%})" if n else "0"),
        ("rule", _rule(opened)),
        ("false-alarm rate of this detector, 99 %", _interval(opened)),
        *((text, f"{number(summary.get(name)):.4g}") for name, text in FIGURES.items()
          if number(summary.get(name)) is not None),
        ("trusted inputs", f"{summary.get('n_reference')} reference, {summary.get('n_fit')} fit, "
                           f"{summary.get('n_calibration')} calibration ({summary.get('calibration')})"),
        ("network", f"`{str(prints.get('network'))[:16]}…`"),
        ("trusted data", f"`{str(prints.get('trusted'))[:16]}…`"),
        ("judged data", f"`{str(prints.get('inputs'))[:16]}…`"),
        ("made by", f"covary {_version(opened)}, {opened.run.get('started', 'on an unknown day')}"),
    ]  # fmt: skip
    said = [str(text) for text in [*items(summary, "warnings"), *items(summary, "statements")]]
    return "\n".join([
        "## Mechanistic anomalies", "",
        "Inputs were judged by whether the network's answers on trusted inputs account for its answers on them.", "",
        "| | |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in rows), "",
        "### What was found while judging", "", *(f"- {_cell(text)}" for text in said or ["Nothing to add."]), "",
        "### What this does not show", "", *(f"- {gap}" for gap in GAPS), "",
    ])  # fmt: skip


def write_audit(run: Path, bom: Path | None = None, card: Path | None = None) -> list[Path]:
    """Writes what is asked for, each whole or not at all; returns the paths."""
    if bom is None and card is None:
        raise CovaryError("nothing to write", "bom= or card=, or both")
    texts = [] if bom is None else [(bom, json.dumps(bill_of_materials(run), indent=2, ensure_ascii=False) + "\n")]
    texts += [] if card is None else [(card, model_card(run))]
    for path, text in texts:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode("utf-8", "replace"))
    return [path for path, _ in texts]


def _intact(run: Path) -> RunFolder:
    opened, state = read_run(run), receipt_state(run)
    if state not in ("intact", "none"):
        raise CovaryError(f"{run} {in_words(state)}", "an intact RUN", "get it again, or scan again")
    return opened


def _version(run: RunFolder) -> str:
    return str(section(run.run, "versions").get("covary") or "unknown")


def _name(arguments: Any, otherwise: str) -> str:
    return str(arguments) if arguments else otherwise


def _properties(values: dict[str, Any]) -> list[dict[str, str]]:
    return [{"name": f"covary:{name}", "value": str(value)} for name, value in values.items() if value is not None]


def _metrics(run: RunFolder) -> list[dict[str, Any]]:
    summary = run.summary
    n, flagged = number(summary.get("n")), number(summary.get("n_flagged"))
    found: list[dict[str, Any]] = []
    if n and flagged is not None:
        found.append({"type": "flag rate", "value": f"{flagged / n:.6g}"})
    if (limits := _limits(run)) is not None:
        low, high = (f"{limit:.6g}" for limit in limits)
        rate = {"type": "false-alarm rate in force", "value": f"{number(summary.get('fpr_in_force')):.6g}"}
        found.append({**rate, "confidenceInterval": {"lowerBound": low, "upperBound": high}})
    found += [
        {"type": text, "value": f"{number(summary.get(name)):.6g}"}
        for name, text in FIGURES.items()
        if number(summary.get(name)) is not None
    ]
    return found


def _limits(run: RunFolder) -> tuple[float, float] | None:
    rate, n = number(run.summary.get("fpr_in_force")), number(run.summary.get("n_calibration"))
    return None if rate is None or not n else rate_interval(rate, int(n))


def _interval(run: RunFolder) -> str:
    limits = _limits(run)
    return "not known" if limits is None else f"between {limits[0]:.2%} and {limits[1]:.2%}"


def _rule(run: RunFolder) -> str:
    fdr, rate = number(run.summary.get("fdr")), number(run.summary.get("fpr_in_force"))
    if fdr is not None:
        return f"an expected share of false alarms among flags of {fdr:g}"
    return "not known" if rate is None else f"a false-alarm rate of {rate:.3%}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
