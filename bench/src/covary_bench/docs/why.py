"""docs/why-not-simply.md: what each detector sees, misses and costs, and where covary loses, from four records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covary_bench.docs.images import markdown, number
from covary_bench.scoring import BOTH, EVERY_WAY, OURS, TOGETHER
from covary_bench.style import GREY, STYLE
from covary_bench.summary import FIGURES, mark_of, value

Records = Mapping[str, Mapping[str, Any] | None]
Cells = Mapping[str, Mapping[str, Any]]

# detector -> what it does, in the words of somebody who asks; those without a figure are left out of the table
ASKED = {
    "energy": "look at the logits",
    "KNN on features": "look for near neighbours",
    "Mahalanobis": "measure the distance to the class",
    "Spectral Signatures": "look at the pile's first direction",
    "QUE": "look at all of the pile's directions",
    "AdaDetect": "train a classifier against the pile",
    "TED": "follow neighbours layer by layer",
    "NAC": "ask which neurons are in a usual state",
    "IBD-PSC": "amplify the weights",
    "STRIP": "blend with other images",
    "published (Class CCC)": "sample the weights, as published",
    OURS: "covary, each input alone",
    BOTH: "covary as `scan` runs it",
}  # fmt: skip
VISION = {
    "badnets": "patch", "blended": "blend", "sig": "sinusoid", "lf": "waves", "ssba": "string",
    "wanet": "warp", "input-aware": "own trigger",
}  # fmt: skip
RECORDS = ("vision-small", "ood-small", "adversarial-small", "adaptive-small")
LINKS = {
    "backdoors": "benchmark.md#backdoors", "foreign images": "benchmark.md#out-of-distribution",
    "adversarial images": "benchmark.md#adversarial-inputs",
    "attackers who hide": "benchmark.md#attackers-who-know-the-detector",
}  # fmt: skip
SEES, MISSES, LOST, ASKED_RATE = 0.95, 0.8, 0.005, 0.05
ENOUGH = 0.5  # of a kind's cells, for a detector's mean over those it was measured in to speak for the kind
AUROC, TPR, ALARMS = FIGURES["mean_auroc_masked"], FIGURES["mean_tpr_at_1"], ("masked", "fpr")
DER = FIGURES["mean_der_calibrated"]
ALONE, SCANNED = "alone", "as scanned"
NAMES = {BOTH: "covary as scanned", TOGETHER: "covary, default evidence, together"}


def counted(record: Mapping[str, Any] | None) -> Cells:
    """Cells whose attack works, but for those that settings were chosen on."""
    cells = {} if record is None else record["cells"]
    tuning = () if record is None else record["tuning"]["cells"]
    return {name: cell for name, cell in cells.items() if name not in tuning and not mark_of(cell)}


def kinds(records: Records) -> dict[str, Cells]:
    """Kind of anomaly -> its cells."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {word: {} for word in VISION.values()}
    for name, cell in counted(records["vision-small"]).items():
        word = VISION.get(name.split("/")[0].split(":")[0])
        if word is not None and ":" not in name:
            found[word][name] = cell
    found["foreign"] = dict(counted(records["ood-small"]))
    found["adversarial"] = dict(counted(records["adversarial-small"]))
    for name, cell in counted(records["adaptive-small"]).items():
        found.setdefault(f"hiders ({name.split('hidden=')[1].split('/')[0]})", {})[name] = cell
    return {word: cells for word, cells in found.items() if cells}


def mean(cells: Cells, detector: str, place: tuple[str, str]) -> float | None:
    """Mean over the cells in which the detector has that figure; None where it has none."""
    found = [v for cell in cells.values() if (v := value(cell, detector, place)) is not None]
    return float(np.mean(found)) if found else None


def enough(cells: Cells, detector: str, place: tuple[str, str]) -> bool:
    """Whether a detector has that figure in half of the cells at least: few cells are not the kind."""
    known = sum(value(cell, detector, place) is not None for cell in cells.values())
    return bool(cells) and known >= ENOUGH * len(cells)


def passes(cells: Cells, detector: str) -> float | None:
    """Median over cells of its seconds an input in units of one forward pass of the same network."""
    found = [cell["detectors"][detector]["seconds_a_query"] / cell["detectors"]["max softmax"]["seconds_a_query"]
             for cell in cells.values() if detector in cell.get("detectors", {})]  # fmt: skip
    return float(np.median(found)) if found else None


def measured(records: Records) -> Iterator[tuple[str, Cells]]:
    """Detectors of the table with the cells of backdoors that they have figures in."""
    every = counted(records["vision-small"])
    for name in ASKED:
        own = {cell: found for cell, found in every.items() if value(found, name, TPR) is not None}
        if own:
            yield name, own


def label(name: str) -> str:
    """How a line of the table begins; covary's own in bold."""
    return f"**{ASKED[name]}**" if name in EVERY_WAY else f"{ASKED[name]} ({name})"


def together(words: list[str]) -> str:
    """Kinds in a list; all seven triggers by one word."""
    triggers = [word for word in words if word in VISION.values()]
    if len(triggers) == len(VISION):
        words = ["every trigger", *(word for word in words if word not in triggers)]
    return ", ".join(words)


def rivals(records: Records) -> str:
    """One line a detector: what it sees and misses, what it catches, costs, and whether its rate holds."""
    if records["vision-small"] is None:
        return ""
    by_kind, rows = kinds(records), []
    for name, cells in measured(records):
        found = {word: mean(own, name, AUROC) if enough(own, name, AUROC) else None for word, own in by_kind.items()}
        sees = [word for word, v in found.items() if v is not None and v >= SEES]
        misses = [word for word, v in found.items() if v is not None and v < MISSES]
        unknown = [word for word, v in found.items() if v is None]
        alarms = [v for cell in cells.values() if (v := value(cell, name, ALARMS)) is not None]
        holds = "" if np.mean(alarms) <= ASKED_RATE else "**not**: "
        aside = f"; few figures or none: {together(unknown)}" if unknown else ""
        rows.append([
            label(name), together(sees) or "none", (together(misses) or "none") + aside,
            f"{number(mean(cells, name, TPR))} ({number(mean(cells, OURS, TPR))}, {len(cells)})",
            number(passes(cells, name), 1), f"{holds}{number(float(np.mean(alarms)))} ({number(max(alarms))})",
        ])  # fmt: skip
    heads = ["why not simply …", f"sees (AUROC from {SEES})", f"misses (below {MISSES})",
             "caught at 1 % (covary alone, cells)", "forward passes", "false alarms (worst)"]  # fmt: skip
    links = "; ".join(f"[{word}]({link})" for word, link in LINKS.items())
    return markdown(heads, rows) + f"\nEvery cell behind these figures: {links}.\n"


def losses(records: Records) -> str:
    """One line a kind in which the best other detector is ahead by more than a trifle, the largest loss first."""
    if records["vision-small"] is None:
        return ""
    rows = []
    sets = [(word, cells, AUROC, "AUROC") for word, cells in kinds(records).items()]
    both = {name: cell for name, cell in counted(records["vision-small"]).items() if value(cell, BOTH, DER) is not None}
    sets.append(("all backdoors", both or counted(records["vision-small"]), DER, "DER, calibrated"))
    for word, cells, place, figure in sets:
        # On the cells where covary was measured as it scans, if these are enough; everybody on the same ones.
        scanned = {name: cell for name, cell in cells.items() if value(cell, BOTH, place) is not None}
        ours, kept = (BOTH, scanned) if enough(cells, BOTH, place) else (OURS, cells)
        mine = mean(kept, ours, place)
        if mine is None:
            continue
        others = {name for cell in kept.values() for name in cell["detectors"]} - set(EVERY_WAY)
        full = {name: mean(kept, name, place) or 0.0 for name in others
                if all(value(cell, name, place) is not None for cell in kept.values())}  # fmt: skip
        best = max(sorted(full), key=lambda name: full[name], default="")
        if best and full[best] > mine + LOST:
            rows.append((full[best] - mine, [
                word, figure, f"{number(mine)} ({ALONE if ours == OURS else SCANNED})", f"{best} {number(full[best])}",
                number(full[best] - mine), str(len(kept)),
            ]))  # fmt: skip
    if not rows:
        return f"Nothing by more than {LOST}.\n"
    heads = ["lost on", "figure", "covary", "best other", "lost by", "cells"]
    return markdown(heads, [row for _, row in sorted(rows, key=lambda pair: -pair[0])])


def chart(records: Records, out: Path) -> None:
    """What is caught at 1 % false positives against cost in forward passes, the latter logarithmic, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    placed: list[tuple[float, float]] = []
    for name, cells in measured(records):
        cost, caught = passes(cells, name), mean(cells, name, TPR)
        if cost is None or caught is None:
            continue
        own = name in EVERY_WAY
        axes.plot([cost], [caught], marker="D" if own else "o", color="#5c7cfa" if own else GREY, linestyle="none")
        # A label that would lie on one before it goes below its point.
        near = sum(abs(np.log(cost / x)) < 1.2 and abs(caught - y) < 0.05 for x, y in placed)
        placed.append((cost, caught))
        axes.annotate(NAMES.get(name, name), (cost, caught), xytext=(6, 4 - 11 * near), textcoords="offset points",
                      fontsize=8, color="#5c7cfa" if own else GREY)  # fmt: skip
    axes.set(xscale="log", xlabel="cost an input, in forward passes of the network",
             ylabel="backdoored inputs caught at 1 %", ylim=(-0.04, 1.06))  # fmt: skip
    axes.set_xlim(None, axes.get_xlim()[1] * 6)  # room for the rightmost label
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}")
    axes.grid(alpha=0.3)
    figure.savefig(out, metadata={"Date": None})
    plt.close(figure)


MARKS: Mapping[str, Callable[[Records], str]] = {"rivals": rivals, "losses": losses}
