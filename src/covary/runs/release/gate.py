"""Rules that a RUN must keep before a model is released, and what each of them found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covary.errors import CovaryError, unknown_name
from covary.runs.compare import compare
from covary.runs.report.run_folder import RunFolder, number, read_run
from covary.storage.verify import differences, receipt_state


@dataclass(frozen=True)
class Rule:
    """A figure of a RUN and the side of a limit on which it must lie.

    Attributes:
        figure: how people call it.
        value: the figure of a RUN's summary; None where the RUN has none.
        at_most: whether the limit is an upper one.
        share: whether it lies between 0 and 1; a number of inputs otherwise.
    """

    figure: str
    value: Callable[[dict[str, Any]], float | None]
    at_most: bool
    share: bool = True


def _share(summary: dict[str, Any]) -> float | None:
    flagged, n = number(summary.get("n_flagged")), number(summary.get("n"))
    return None if flagged is None or not n else flagged / n


RULES: dict[str, Rule] = {
    "max_flag_rate": Rule("share of inputs flagged", _share, True),
    "max_flagged": Rule("inputs flagged", lambda s: number(s.get("n_flagged")), True, share=False),
    "max_fpr": Rule("false alarms among clean inputs", lambda s: number(s.get("fpr")), True),
    "min_tpr": Rule("share of anomalous inputs caught", lambda s: number(s.get("tpr")), False),
    "min_auroc": Rule("AUROC", lambda s: number(s.get("auroc")), False),
    "min_accuracy": Rule("accuracy on clean inputs", lambda s: number(s.get("accuracy")), False),
}


def gate(
    run: Path,
    limits: Mapping[str, int | float],
    *,
    against: Path | None = None,
    level: float = 0.01,
    by_id: bool = False,
    public_key: str | None = None,
    no_warnings: bool = False,
) -> dict[str, Any]:
    """Whether a RUN keeps every rule asked for; that it is what its receipt says is always one.

    Args:
        run: the RUN.
        limits: by name in `RULES`.
        against: an earlier RUN, than which this one must not flag significantly more.
        level: of that test, one-sided; the chance of failing where nothing changed is at most this.
        by_id: inputs with the same id are the same input in both RUNs.
        public_key: base64 of the key that must have signed the RUN.
        no_warnings: what the check warned of fails, too.

    Returns:
        `passed`, and for each rule its name, whether it `passed`, and what was found in words.

    Raises:
        CovaryError: no RUN, no rule or an unknown one, a limit that nothing could break, a figure that the RUN does
            not have, warnings of a RUN that no check preceded, or two RUNs that flag by different rates.
    """
    if not 0 < level < 1:
        raise CovaryError(f"level is {level:g}", "a number between 0 and 1")
    if not limits and against is None and public_key is None and not no_warnings:
        rules = ", ".join(f"{name}=" for name in RULES)
        raise CovaryError("no rule to decide by", f"one of {rules}, against=, no_warnings= or public_key=")
    for name, limit in limits.items():
        _check_limit(name, limit)
    opened = read_run(run)
    rules = [_receipt(run, public_key)]
    for name, limit in limits.items():
        rules.append(_kept(opened, RULES[name], limit))
    if against is not None:
        _check_same_rate(read_run(against), opened)
        rules.append(_no_more_flags(against, run, level, by_id))
    if no_warnings:
        if not opened.summary.get("checked", opened.run.get("plan") is not None):
            found = f"no check was run before {run}, so nobody knows of warnings"
            raise CovaryError(found, "a RUN of `covary scan`", "run `covary check`, or leave no_warnings= away")
        warnings = opened.summary.get("warnings") or []
        rules.append(_rule("no warnings of the check", not warnings, "; ".join(map(str, warnings)) or "none"))
    return {
        "run": str(run),
        "passed": all(rule["passed"] for rule in rules),
        "rules": rules,
        "n": opened.summary.get("n"),
        "n_flagged": opened.summary.get("n_flagged"),
        "seconds": opened.summary.get("seconds"),
    }


def _rule(name: str, passed: bool, found: str) -> dict[str, Any]:
    return {"rule": name, "passed": passed, "found": found}


def _check_limit(name: str, limit: int | float) -> None:
    if name not in RULES:
        raise unknown_name("rule", name, RULES)
    most = 1.0 if RULES[name].share else float("inf")
    if not 0 <= limit <= most:
        remedy = f"for {limit:g} % write {limit / 100:g}" if RULES[name].share and 1 < limit <= 100 else ""
        raise CovaryError(f"{name}={limit:g}", "a share from 0 to 1" if RULES[name].share else "0 or more", remedy)


# How a RUN flags; two that differ in one of these differ in flags where nothing else changed.
RATES = {"fpr_in_force": "a false-alarm rate of", "fdr": "a false-discovery rate of", "together": "together ="}


def _check_same_rate(before: RunFolder, after: RunFolder) -> None:
    for name, words in RATES.items():
        was, now = before.summary.get(name), after.summary.get(name)
        if was != now:
            found = f"{before.path} was flagged at {words} {was}, {after.path} at {now}"
            raise CovaryError(found, "two RUNs flagged by one rule", "score one of them again at the other's rate")


def _receipt(run: Path, public_key: str | None) -> dict[str, Any]:
    if public_key is None:
        state = receipt_state(run)
        return _rule("the RUN is what its receipt says", state == "intact", "no receipt" if state == "none" else state)
    try:
        wrong = [f"{name} {what}" for name, what in differences(run, public_key)]
    except CovaryError as problem:
        wrong = [str(problem)]
    return _rule("the RUN is what its signed receipt says", not wrong, wrong[0] if wrong else "intact, signed")


def _kept(run: RunFolder, rule: Rule, limit: int | float) -> dict[str, Any]:
    value = rule.value(run.summary)
    if value is None:
        raise CovaryError(f"{run.path} has no figure for {rule.figure}", "a RUN with known truth (truth=)", "")
    kept = value <= limit if rule.at_most else value >= limit
    return _rule(f"{rule.figure} at {'most' if rule.at_most else 'least'} {limit:g}", kept, f"{value:.6g}")


def _no_more_flags(before: Path, after: Path, level: float, by_id: bool) -> dict[str, Any]:
    found = compare(before, after, by_id=by_id)["flag_rate"]
    # The tests are two-sided: half of p where the rate rose.
    one_sided = found["p_value"] / 2 if found["difference"] > 0 else 1.0
    was, now = found["values"]
    words = f"{100 * was:.3g} % before, {100 * now:.3g} % now (p = {one_sided:.3g}, {found['test']} test, one-sided)"
    return _rule(f"not more flags than {before.name}, tested at {level:g}", one_sided >= level, words)
