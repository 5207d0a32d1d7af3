"""What changed between two RUNs: verdicts, scores, rates of flags, and everything the RUNs were made with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from covary.errors import CovaryError
from covary.runs.figures import rate_tests
from covary.runs.report.run_folder import Results, RunFolder, read_run, section
from covary.settings import FORMER, Settings, own_names
from covary.storage.receipts import portable
from covary.storage.verify import changed, receipt_state

# Settings in which two RUNs may differ and still give scores on one scale.
HARMLESS = {
    "inputs", "truth", "target", "fdr", "fpr", "device", "batch_size", "detector", "model", "weights", "trusted",
    "calibration", "sampling", "offline", "together", "evidence", "per_class",
}  # fmt: skip
FIGURES = ("auroc", "auroc_masked", "tpr", "tpr_at_1", "fpr", "accuracy")
MOST_FLIPS = 1000


def compare(before: Path, after: Path, *, by_id: bool = False, level: float = 0.95) -> dict[str, Any]:
    """What changed from one RUN to another, as plain values.

    Verdicts are compared input by input where both RUNs judged the same inputs (equal fingerprints), or, with `by_id`,
    on the inputs whose ids are in both; else as two samples. Scores are compared where both come from the same network,
    trusted inputs and settings; else -log10 of the p-values, which mean the same in every RUN. Higher = more anomalous.

    Args:
        before, after: RUN folders.
        by_id: inputs with the same id are the same input.
        level: of all intervals.

    Raises:
        CovaryError: no RUN, no inputs in it, or no id in both.
    """
    runs = read_run(before), read_run(after)
    for run in runs:
        if not len(run.results):
            raise CovaryError(f"{run.path} holds no verdicts", "a RUN with inputs", "scan again")
    pairs = _matched(*runs, by_id)
    flags = [run.results.flagged for run in runs]
    result: dict[str, Any] = {
        "runs": [str(before), str(after)],
        "receipts": [receipt_state(run.path) for run in runs],
        "n": [len(run.results) for run in runs],
        "n_flagged": [int(flag.sum()) for flag in flags],
        "paired": pairs is not None,
        "matched": None if pairs is None else len(pairs[0]),
        "level": level,
    }
    if pairs is not None:
        flags = [flag[index] for flag, index in zip(flags, pairs, strict=True)]
        result["flips"] = _flips(runs[0].results, runs[1].results, *pairs)
    result["flag_rate"] = {
        "values": [float(flag.mean()) for flag in flags],
        "intervals": [list(rate_tests.exact_interval(int(flag.sum()), len(flag), level)) for flag in flags],
        "difference": float(flags[1].mean() - flags[0].mean()),
        "interval": list(rate_tests.difference_interval(flags[0], flags[1], pairs is not None, level)),
        "p_value": rate_tests.rate_test(flags[0], flags[1], pairs is not None),
        "test": "exact McNemar" if pairs is not None else "Fisher exact",
    }
    result["scores"] = _scores(runs, pairs, level)
    result["raised_by"] = _raised_by(runs)
    result["classes"] = _classes(runs)
    figures = {name: [run.summary.get(name) for run in runs] for name in FIGURES}
    result["figures"] = {name: values for name, values in figures.items() if values != [None, None]}
    result["differs"] = {part: _changed(runs, part) for part in ("config", "versions", "fingerprints")}
    return result


def _matched(a: RunFolder, b: RunFolder, by_id: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Places of the same inputs in both RUNs; None where they are different inputs."""
    if by_id:
        for run in (a, b):
            if len(set(run.results.ids)) < len(run.results):
                raise CovaryError(f"ids repeat in {run.path}", "one id an input", "leave by_id= away")
        place = {name: i for i, name in enumerate(b.results.ids)}
        both = [(i, place[name]) for i, name in enumerate(a.results.ids) if name in place]
        if not both:
            raise CovaryError("no id is in both RUNs", "inputs in common", "leave by_id= away")
        return tuple(np.array(both).T)  # type: ignore[return-value]
    mine, other = (section(run.run, "fingerprints").get("inputs") for run in (a, b))
    if mine is None or mine != other or len(a.results) != len(b.results):
        return None
    every = np.arange(len(a.results))
    return every, every


def _flips(a: Results, b: Results, i: np.ndarray, j: np.ndarray) -> dict[str, Any]:
    up, down = ~a.flagged[i] & b.flagged[j], a.flagged[i] & ~b.flagged[j]
    change = np.abs(_evidence(b)[j] - _evidence(a)[i])
    order = [int(k) for k in np.argsort(-change, kind="stable") if up[k] or down[k]]
    return {
        "newly_flagged": int(up.sum()),
        "no_longer_flagged": int(down.sum()),
        "predictions_changed": int((a.numbers["predicted"][i] != b.numbers["predicted"][j]).sum()),
        "inputs": [
            {"id": a.ids[i[k]], "before": _row(a, int(i[k])), "after": _row(b, int(j[k]))} for k in order[:MOST_FLIPS]
        ],
    }  # fmt: skip


def _row(results: Results, k: int) -> dict[str, Any]:
    numbers = {name: float(results.numbers[name][k]) for name in ("score", "p_value", "predicted")}
    numbers = {name: value if np.isfinite(value) else None for name, value in numbers.items()}
    return {"flagged": bool(results.flagged[k]), **numbers, "raised_by": results.words["raised_by"][k] or None}


def _evidence(results: Results) -> np.ndarray:
    p = results.numbers["p_value"]
    return -np.log10(np.where(np.isfinite(p) & (p > 0), p, 1.0))


def _scores(runs: tuple[RunFolder, RunFolder], pairs: Any, level: float) -> dict[str, Any] | None:
    same = {
        name: [section(run.run, "fingerprints").get(name) for run in runs] for name in ("network", "trusted")
    }.values()
    one_scale = all(a is not None and a == b for a, b in same)
    one_scale &= all(entry["name"].split(".")[0] in HARMLESS for entry in _changed(runs, "config"))
    values = [run.results.numbers["score"] if one_scale else _evidence(run.results) for run in runs]
    if pairs is not None:
        values = [value[index] for value, index in zip(values, pairs, strict=True)]
        known = np.isfinite(values[0]) & np.isfinite(values[1])
        before, after = values[0][known], values[1][known]
    else:
        before, after = (value[np.isfinite(value)] for value in values)
    if not len(before) or not len(after):
        return None
    share, interval = rate_tests.superiority(before, after, pairs is not None, level)
    return {
        "measure": "score" if one_scale else "-log10(p_value)",
        "medians": [float(np.median(before)), float(np.median(after))],
        "higher_after": share,
        "interval": list(interval),
        "p_value": rate_tests.shift_test(before, after, pairs is not None),
        "test": "Wilcoxon signed-rank" if pairs is not None else "Mann-Whitney U",
    }


def _raised_by(runs: tuple[RunFolder, RunFolder]) -> dict[str, list[int]]:
    counts = [
        Counter(word for word, flag in zip(run.results.words["raised_by"], run.results.flagged, strict=True) if flag)
        for run in runs
    ]
    return {name: [count[name] for count in counts] for name in sorted({*counts[0], *counts[1]} - {""})}


def _classes(runs: tuple[RunFolder, RunFolder]) -> list[dict[str, Any]]:
    """Inputs and flags of each predicted class, those whose share of flags changed most first."""
    predicted = [run.results.numbers["predicted"] for run in runs]
    known = np.unique(np.concatenate([p[np.isfinite(p)] for p in predicted]))
    rows = []
    for label in known if len(known) <= MOST_FLIPS else []:
        inside = [p == label for p in predicted]
        n = [int(mask.sum()) for mask in inside]
        flagged = [int((run.results.flagged & mask).sum()) for run, mask in zip(runs, inside, strict=True)]
        rows.append({"class": runs[1].class_name(label), "n": n, "flagged": flagged})
    return sorted(rows, key=lambda row: -abs(_share(row, 1) - _share(row, 0)))


def _share(row: dict[str, Any], k: int) -> float:
    return row["flagged"][k] / max(1, row["n"][k])


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """A RUN's configuration with the extractor's settings by their names alone.

    A RUN of before they were apart holds every setting there was; those its extractor made no use of are left out.
    """
    if "extractor" not in config:
        known = {*Settings.model_fields, *own_names(), *FORMER}
        try:
            settings = Settings(**{name: value for name, value in config.items() if name in known}).model_dump()
        except (CovaryError, ValueError):
            return config
        own = {name: value for name, value in settings.items() if name in config or name == "extractor"}
        config = {**{name: value for name, value in config.items() if name not in known}, **own}
    return {**{name: value for name, value in config.items() if name != "extractor"}, **section(config, "extractor")}


def _changed(runs: tuple[RunFolder, RunFolder], part: str) -> list[dict[str, Any]]:
    sides = [{name: portable(value) for name, value in section(run.run, part).items()} for run in runs]
    if part == "fingerprints":
        sides = [{name: value for name, value in one.items() if name != "results"} for one in sides]
    if part == "config":
        sides = [_flat(one) for one in sides]
    return [{"name": name, "before": old, "after": new} for name, old, new in changed(sides[0], sides[1])]
