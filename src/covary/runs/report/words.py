"""What the report says in words: numbers as people read them, the answer, and what it does and does not mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from covary.runs.report.run_folder import RunFolder, number, section

SPACE = "\u00a0"
MEANING = (
    "A flag means that the network reached this answer in a way the trusted samples do not account for. It does not "
    "mean that the answer is wrong or the input an attack, and the lack of a flag is no proof of safety."
)


def count(value: float | int | None) -> str:
    """1600 → '1,600'; a dash for None."""
    return "–" if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share of 1 as a percentage with up to two decimals; never rounds up to 100 % or down to 0 %."""
    if value is None:
        return "–"
    text = f"{100 * value:.2f}".rstrip("0").rstrip(".")
    if text == "100" and value < 1:
        return f">{SPACE}99.99{SPACE}%"
    if text in ("0", "-0") and value != 0:
        return f"<{SPACE}0.01{SPACE}%"
    return f"{text}{SPACE}%"


def whole_percent(value: float | None) -> str:
    """A share of 1 as a whole percentage; never rounds up to 100 % or down to 0 %."""
    if value is None:
        return "–"
    rounded = round(100 * value)
    if rounded == 0 and value > 0:
        return f"<{SPACE}1{SPACE}%"
    return f">{SPACE}99{SPACE}%" if rounded == 100 and value < 1 else f"{rounded}{SPACE}%"


def quality(value: float | None) -> str:
    """An area or rate between 0 and 1 with four decimals; never rounds up to 1."""
    if value is None:
        return "–"
    text = f"{value:.4f}"
    return f">{SPACE}0.9999" if text == "1.0000" and value < 1 else text


def signed(value: float | None) -> str:
    """A score or standardised number with a true minus sign."""
    if value is None:
        return "–"
    text = f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return "0.00" if text == "-0.00" else text.replace("-", "\u2212")


def layer(name: str, kinds: Mapping[str, Any] | None = None) -> str:
    """A layer's name that reads as one in a sentence, with what it is: `features.0 (Conv2d)`, `layer 3 (Linear)`."""
    text = name if any(character.isalpha() for character in name) else f"layer {name}"
    kind = (kinds or {}).get(name)
    return f"{text} ({kind})" if isinstance(kind, str) else text


def p_value(value: float | None) -> str:
    """A p-value with two significant digits."""
    if value is None:
        return "–"
    return f"{value:.2g}" if value >= 1e-4 or value == 0 else f"{value:.1e}".replace("e-0", "e-")


def answer(run: RunFolder) -> dict[str, Any]:
    """The answer and its one-line readings: headline, rate, what chance alone would give, what a flag means."""
    n = len(run.results)
    flagged = int(run.results.flagged.sum())
    fdr = number(run.summary.get("fdr"))
    rate = effective_rate(run)
    if n == 0:
        headline = "No inputs were scored"
    elif flagged == 0:
        headline = f"None of {count(n)} inputs flagged"
    else:
        headline = f"{'All' if flagged == n and n > 1 else count(flagged) + ' of'} {count(n)} inputs flagged"
    if fdr is not None:
        at = f"at a false-discovery rate of {percent(fdr)}"
    else:
        at = "" if rate is None else f"at a false-alarm rate of {percent(rate)}"
    return {"headline": headline, "at": at, "chance": _chance(run, n, flagged, fdr, rate), "meaning": MEANING}


def effective_rate(run: RunFolder) -> float | None:
    """The false-alarm rate in force: the target, or the smallest that the calibration set can resolve if larger."""
    recorded = number(run.summary.get("fpr_in_force"))
    target, smallest = number(run.summary.get("fpr_target")), number(run.summary.get("p_min"))
    if recorded is not None or target is None:
        return recorded
    return max(target, smallest or 0.0)


def _chance(run: RunFolder, n: int, flagged: int, fdr: float | None, rate: float | None) -> str:
    if n == 0:
        return ""
    if fdr is not None:
        return "" if flagged == 0 else f"About {percent(fdr)} of the flagged inputs, at most, are expected to be clean."
    if rate is None:
        return ""
    expected = n * rate
    about = f"about {count(expected)}" if expected >= 1 else "fewer than one"
    first = f"If every input were like the trusted ones, {about} would be flagged by chance"
    if flagged == n and n > 1:
        return f"{first}. Before reading anything into it, check that inputs and trusted data were prepared alike."
    if flagged > _most_by_chance(run, n, rate):
        return f"{first}; there are {count(flagged)}."
    return f"{first}: their number alone says nothing, so look at each." if flagged else f"{first}."


def _most_by_chance(run: RunFolder, n: int, rate: float) -> float:
    """99.5 % quantile of the number of false alarms among n clean inputs: beta-binomial in the calibration size."""
    from scipy.stats import betabinom, binom

    calibration = number(run.summary.get("n_calibration"))
    if not calibration:
        return float(binom.ppf(0.995, n, min(rate, 1.0)))
    rank = int(rate * (calibration + 1) + 1e-9)
    return float(betabinom.ppf(0.995, n, rank, calibration + 1 - rank)) if 0 < rank <= calibration else float(n)


def key_figures(run: RunFolder) -> list[tuple[str, str]]:
    """The few figures under the headline, (label, value); those that this run cannot tell are left out."""
    summary = run.summary
    rows: list[tuple[str, str]] = []
    if len(run.results):
        rows.append(("Share flagged", percent(float(run.results.flagged.mean()))))
    if run.results.has_truth:
        masked = number(summary.get("auroc_masked"))
        area = masked if masked is not None else number(summary.get("auroc"))
        rows += [("AUROC, masked" if masked is not None else "AUROC", quality(area))] if area is not None else []
        for key, label in (
            ("tpr", "Anomalous inputs caught"),
            ("fpr", "Clean inputs flagged"),
            ("fpr_right", "… of those answered right"),
        ):
            value = number(summary.get(key))
            rows += [(label, percent(value))] if value is not None else []
    smallest = number(summary.get("p_min"))
    rows += [("Smallest p-value possible", p_value(smallest))] if smallest is not None else []
    sizes = [number(summary.get(f"n_{role}")) for role in ("reference", "fit", "calibration")]
    if any(size is not None for size in sizes):
        rows.append(("Trusted: reference / fit / calibration", " / ".join(count(size) for size in sizes)))
    return rows


def duration(seconds: float | int) -> str:
    """Seconds as people say them: '42 s', '3 min 20 s', '2 h 05 min'."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{seconds:.1f}{SPACE}s" if seconds < 10 else f"{rounded}{SPACE}s"
    if rounded < 3600:
        return f"{rounded // 60}{SPACE}min {rounded % 60:02d}{SPACE}s"
    return f"{rounded // 3600}{SPACE}h {rounded % 3600 // 60:02d}{SPACE}min"


def measures(run: RunFolder) -> list[tuple[str, str, str]]:
    """Quality where truth is known, (name, value, what it says); what cannot be told is left out."""
    if not run.results.has_truth:
        return []
    summary = run.summary
    get = {key: number(summary.get(key)) for key in summary}
    interval = summary.get("fpr_interval")
    low, high = (number(v) for v in interval) if isinstance(interval, list) and len(interval) == 2 else (None, None)
    law = "" if low is None or high is None else f" Expected by chance: {percent(low)} to {percent(high)}."
    areas = {name: number(section(summary, "auroc_parts").get(name)) for name in run.parts}
    known = [f"{name} {quality(area)}" for name, area in areas.items() if area is not None]
    ceiling = get.get("der_ceiling")
    limit = "" if ceiling is None else f" Its ceiling here is {quality(ceiling)}."
    table = (
        ("AUROC, masked", quality(get.get("auroc_masked")), "Clean inputs classified right against attacks that work."),
        ("AUROC, all inputs", quality(get.get("auroc")), "Every clean input against every anomalous one."),
        (f"TPR at 1{SPACE}% FPR", percent(get.get("tpr_at_1")), f"Caught when 1{SPACE}% of clean inputs are flagged."),
        (f"TPR at 5{SPACE}% FPR", percent(get.get("tpr_at_5")), f"Caught when 5{SPACE}% of clean inputs are flagged."),
        ("TPR as run", percent(get.get("tpr")), "Of all anomalous inputs, those flagged in this run."),
        ("FPR as run", percent(get.get("fpr")), "Of all clean inputs, those flagged in this run." + law),
        (
            "FPR as run, answered right",
            percent(get.get("fpr_right")),
            "The same over clean inputs that the network answers right.",
        ),
        ("AUROC of the parts", "" if known else "–", ", ".join(known)),
        ("DER", quality(get.get("der")), "Defence effectiveness of rejecting what is flagged." + limit),
        ("DER, masked", quality(get.get("der_masked")), "The mean of TPR and 1 − FPR on the masked inputs."),
    )
    return [row for row in table if row[1] != "–"]
