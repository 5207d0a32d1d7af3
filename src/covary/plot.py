"""Figures for notebooks and papers, drawn with matplotlib (extra `plot`): scores, a profile, evidence cards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from covary.detector import Detector
from covary.errors import CovaryError, missing_extra
from covary.scoring.evidence import Evidence
from covary.scoring.judge import Verdicts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PASSED, FLAGGED = "#7f8ea3", "#e8710a"
PART_COLOURS = ("#1f6feb", "#8250df", "#1a7f37", "#bf3989")


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError:
        raise missing_extra("matplotlib", "plot") from None
    return pyplot


def _axes(size: tuple[float, float]) -> Axes:
    return _pyplot().subplots(figsize=size, layout="constrained")[1]


def scores(verdicts: Verdicts, *, threshold: float | None = None, ax: Axes | None = None, bins: int = 40) -> Axes:
    """A histogram of the scores, flagged inputs apart from those that pass; higher = more anomalous.

    Args:
        verdicts: of `Detector.score`.
        threshold: drawn as a line, such as `detector.judge.threshold`.
        ax: where to draw; None makes a new figure.
        bins: number of bars.

    Raises:
        CovaryError: no verdicts, or matplotlib is not installed.
    """
    if not len(verdicts):
        raise CovaryError("no verdicts to draw", "at least one")
    ax = _axes((6.0, 3.0)) if ax is None else ax
    finite = np.isfinite(verdicts.score)
    edges = np.histogram_bin_edges(verdicts.score[finite], bins)
    groups = [("passed", ~verdicts.flagged, PASSED), ("flagged", verdicts.flagged, FLAGGED)]
    ax.hist(
        [verdicts.score[finite & chosen] for _, chosen, _ in groups], edges.tolist(), stacked=True,
        color=[colour for _, _, colour in groups],
        label=[f"{name} ({int(chosen.sum()):,})" for name, chosen, _ in groups],
    )  # fmt: skip
    if threshold is not None:
        ax.axvline(threshold, color="black", linewidth=1, linestyle="--", label=f"threshold {threshold:.3g}")
    ax.set(xlabel="score (higher = more anomalous)", ylabel="inputs")
    ax.legend(frameon=False)
    return ax


def profile(evidence: Evidence, *, ax: Axes | None = None) -> Axes:
    """How far an input lies from trusted ones, layer by layer: about 1 is usual, more is odd.

    Raises:
        CovaryError: a score without layers, such as `class-max`, or matplotlib is not installed.
    """
    if not evidence.layers:
        raise CovaryError(f"no layers in the evidence on {evidence.id!r}", "a score with a profile, such as combined")
    names = list(dict.fromkeys(name for layers in evidence.layers.values() for name in layers))
    size = (6.0, 1 + 0.22 * len(names) * len(evidence.layers))
    ax = _axes(size) if ax is None else ax
    thick = 0.8 / len(evidence.layers)
    for k, (part, layers) in enumerate(evidence.layers.items()):
        places = [names.index(name) + (k - (len(evidence.layers) - 1) / 2) * thick for name in layers]
        ax.barh(places, list(layers.values()), thick, color=PART_COLOURS[k % len(PART_COLOURS)], label=part)
    ax.axvline(1, color="black", linewidth=1, linestyle="--")
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel="deviation (about 1 on trusted inputs)", title=f"{evidence.id}: p = {evidence.p_value:.2g}")
    ax.legend(frameon=False)
    return ax


def cards(detector: Detector, inputs: Any, *, ids: Sequence[str] | None = None, most: int = 6) -> Figure:
    """The inputs with the highest scores, one a row, each beside the trusted images that account for it.

    Args:
        detector: a fitted one, of images.
        inputs, ids: as of `Detector.score`.
        most: rows drawn.

    Raises:
        CovaryError: inputs that are no images, or matplotlib is not installed.
    """
    source = detector.open(inputs, ids=ids)
    order = np.argsort(-detector.score(source).score, kind="stable")[:most]
    pictures = [source.thumbnail(int(i)) for i in order]
    if not pictures or pictures[0] is None:
        raise CovaryError("inputs that cannot be shown as pictures", "images")
    found = detector.explain(source.take(order))
    columns = 1 + max(1, *(len(evidence.explained_by) for evidence in found))
    figure, axes = _pyplot().subplots(
        len(found), columns, figsize=(1.5 * columns, 1.7 * len(found)), squeeze=False, layout="constrained"
    )
    for row, evidence, picture in zip(axes, found, pictures, strict=True):
        for ax in row:
            ax.set_axis_off()
        row[0].imshow(picture)
        row[0].set_title(f"{evidence.id}\np = {evidence.p_value:.2g}", fontsize=7)
        for ax, witness in zip(row[1:], evidence.explained_by, strict=False):
            if witness.id in detector.thumbnails:
                ax.imshow(detector.thumbnails[witness.id])
            ax.set_title(f"{witness.id}\nweight {witness.weight:.2g}", fontsize=7)
    return figure
