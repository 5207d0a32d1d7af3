"""Plots of a table's record, as SVG: by case, cost against quality, ROC curves, wins and ranks over cells."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from covary_bench.figures import GRID
from covary_bench.scoring import OURS
from covary_bench.summary import FIGURES, value

Record = Mapping[str, Any]


def drawings(record: Record) -> list[tuple[str, str]]:
    """Captions and SVG drawings of whatever the record can show; none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "covary", "svg.fonttype": "none"}):
        found = [(caption, _svg(draw, record)) for caption, draw in PLOTS]
    return [(caption, drawing) for caption, drawing in found if drawing]


def _svg(draw: Callable[[Any, Record], bool], record: Record) -> str:
    from matplotlib import pyplot

    figure = pyplot.figure(layout="constrained")
    try:
        if not draw(figure, record):
            return ""
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        text = file.getvalue()
        return text[text.index("<svg") :]
    finally:
        pyplot.close(figure)


def _held_out(record: Record) -> dict[str, Any]:
    """The cells that the means are over; where all were tuned on, all of them."""
    held = {name: cell for name, cell in record["cells"].items() if name not in record["tuning"]["cells"]}
    return held or dict(record["cells"])


def by_case(figure: Any, record: Record) -> bool:
    """AUROC and DER of every detector in every case, ours on top; bars are t-intervals over seeds."""
    cases = record["by_case"]
    held = list(_held_out(record))
    figure.set_size_inches(11, 1.2 + 0.3 * len(cases))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, title in zip(axes, ("auroc_masked", "der_calibrated"), ("masked AUROC", "DER, calibrated"),
                                strict=True):  # fmt: skip
        for row, (case, own) in enumerate(cases.items()):
            for name in record["baselines"]:
                found = [value(record["cells"][n], name, FIGURES[f"mean_{key}"]) for n in held
                         if n.rsplit("/", 1)[0] == case]  # fmt: skip
                known = [v for v in found if v is not None]
                if known:
                    axis.plot(np.mean(known), row, ".", color="0.7", zorder=1)
            if own[key] is not None:
                width = own.get(f"{key}_half_width", 0.0)
                axis.errorbar(own[key], row, xerr=width or None, fmt="o", color="C1", zorder=3)
        axis.set_title(title)
        axis.set_xlim(left=max(0.0, axis.get_xlim()[0]), right=1.005)
    axes[0].set_yticks(range(len(cases)), list(cases))
    axes[0].invert_yaxis()
    return bool(cases)


def cost(figure: Any, record: Record) -> bool:
    """Mean DER against milliseconds a query."""
    figure.set_size_inches(8, 5)
    axis = figure.subplots()
    drawn = False
    for name, own in {**record["baselines"], OURS: record}.items():
        # Means without what counts 0.5: detectors with fewer cells would look worse by what others lack.
        rating = own.get("measured", {}).get("mean_der_calibrated")
        if own.get("seconds_a_query") is None or rating is None:
            continue
        x, y = 1000 * own["seconds_a_query"], rating
        axis.plot(x, y, "o", color="C1" if name == OURS else "0.6")
        axis.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
        drawn = True
    axis.set_xscale("log")
    axis.set_xlabel("milliseconds a query")
    axis.set_ylabel("mean DER, calibrated, masked, over measured cells")
    return drawn


def roc(figure: Any, record: Record) -> bool:
    """Mean true-positive rate over held-out cells, ours and the five best of the baselines that have all of them."""
    figure.set_size_inches(6.5, 5)
    axis = figure.subplots()
    cells = [cell["detectors"] for cell in _held_out(record).values() if "detectors" in cell]
    everywhere = [name for name in record["baselines"] if all(name in cell for cell in cells)]
    order = sorted(everywhere, key=lambda name: -(record["baselines"][name]["mean_auroc_masked"] or 0))
    drawn = False
    for name in [OURS, *order[:5]]:
        # A record from its file has no curves; the cells that were run here have.
        curves = [curve for cell in cells if (curve := cell[name].get("roc")) and None not in curve]
        if curves:
            axis.plot(GRID, np.mean(curves, axis=0), label=name, linewidth=2.2 if name == OURS else 1.2)
            drawn = True
    axis.set_xscale("symlog", linthresh=1e-3)
    axis.set_xlabel("false-positive rate")
    axis.set_ylabel("true-positive rate, mean over held-out cells")
    if drawn:
        axis.legend(fontsize=7)
    return drawn


def wins(figure: Any, record: Record) -> bool:
    """In how many cells ours is ahead of each baseline, level with it, or behind, by masked AUROC."""
    against = record["wins"]
    figure.set_size_inches(8, 1 + 0.22 * max(len(against), 1))
    axis = figure.subplots()
    left = np.zeros(len(against))
    for place, (label, colour) in enumerate((("ahead", "C0"), ("level", "0.8"), ("behind", "C3"))):
        counts = np.array([row[place] for row in against.values()], float)
        axis.barh(list(against), counts, left=left, color=colour, label=label)
        left += counts
    axis.invert_yaxis()
    axis.set_xlabel("cells")
    if against:
        axis.legend(fontsize=7)
    return bool(against) and bool(left.sum())


def ranks(figure: Any, record: Record) -> bool:
    """Mean ranks over cells; what lies within the critical difference of ours does not differ at 5 %."""
    found = record["ranks"]
    if not found:
        return False
    order = sorted(found["mean_ranks"], key=lambda name: found["mean_ranks"][name])
    figure.set_size_inches(8, 1 + 0.22 * len(order))
    axis = figure.subplots()
    mine = found["mean_ranks"][OURS]
    axis.axvspan(mine - found["critical_difference"], mine + found["critical_difference"], color="C1", alpha=0.15)
    axis.plot([found["mean_ranks"][name] for name in order], range(len(order)), "o", color="0.3")
    axis.set_yticks(range(len(order)), order)
    axis.invert_yaxis()
    axis.set_xlabel(f"mean rank over {found['cells']} cells")
    return True


PLOTS: list[tuple[str, Callable[[Any, Record], bool]]] = [
    ("By case: ours in colour with 95 % t-intervals over seeds, every baseline a grey dot.", by_case),
    ("Cost against quality: up and to the left is better.", cost),
    ("ROC, mean over held-out cells; the axis of false positives is logarithmic above 0.1 %.", roc),
    ("Ours against each baseline: cells won, level (within 0.001) and lost by masked AUROC.", wins),
    ("Mean ranks of detectors that nearly all cells have; the band is Nemenyi's critical difference at 5 %.", ranks),
]
