"""Trusted data against inputs and calibration data: shape, range, overlap, and the false-alarm rate they allow."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from covary.data.source import Source
from covary.errors import CovaryError
from covary.runs.check.findings import Finding, listed, refusal
from covary.scoring.calibration.conformal import needed, rank_of_threshold, rate_interval, smallest_p
from covary.scoring.calibration.splits import FOLDS, SHARES, Conformal, calibrating, kind_for
from covary.scoring.judge import LEAST_TRUSTED


def described(source: Source, role: str) -> tuple[Finding, dict[str, Any] | None]:
    """What a set of inputs looks like to the network, or why it cannot be read."""
    try:
        about = source.describe()
    except CovaryError as error:
        return refusal(role, error), None
    low, high = about["min"], about["max"]
    text = f"{about['n']:,} of shape {shape_of(about)}, {about['dtype']}, from {low:.4g} to {high:.4g}."
    if low == high:
        return Finding("warning", role, f"{text} They are all constant.", "Check how the file was written."), about
    if about["dtype"] == "float32" and low >= 0 and high > 16 and len(about["shape"]) == 3:
        change = "Scale pixels to [0, 1] (uint8 is scaled for you), unless the network was trained on 0 to 255."
        return Finding("note", role, text, change), about
    return Finding("ok", role, text), about


def left_out(source: Source, role: str) -> list[Finding]:
    """What a set holds and nobody looks at, and what is read in a way that somebody may not expect."""
    change = "Take them away, or convert them to what is read."
    found = []
    for left in source.reader.left_out:
        hidden = left.kind.startswith("hidden")
        level, what = ("note", "") if hidden else ("warning", change)
        found.append(Finding(level, f"{role} left out", f"{left} of {source.name} left out.", what))
    return found + [Finding("note", role, text) for text in source.notes]


def repeatable(source: Source, role: str) -> list[Finding]:
    """Whether reading an input twice gives the same values; a random transform left on does not."""
    first = source.take([0])
    once, again = (tree_leaves(next(first.batches(1)).x) for _ in range(2))
    if all(torch.equal(one, other) for one, other in zip(once, again, strict=True)):
        return []
    text = f"Input {first.ids[0]!r} is another one each time it is read: a random transform is on."
    return [Finding("error", role, text, "Switch off augmentation in the dataset and in --transform.")]


def enough(trusted: Source) -> list[Finding]:
    """Whether there are as many trusted inputs as a detector takes."""
    if len(trusted) >= LEAST_TRUSTED:
        return []
    text = f"The trusted set has {len(trusted)} inputs, and a detector takes at least {LEAST_TRUSTED}."
    return [Finding("error", "Too few trusted inputs", text, "Trust some more.")]


def shape_of(about: dict[str, Any]) -> str:
    """A shape in words, as in 3x32x32."""
    return "x".join(map(str, about["shape"]))


def alike(trusted: dict[str, Any], inputs: dict[str, Any], what: str = "Inputs") -> list[Finding]:
    """Whether two sets of inputs could go through one network prepared one way: shape, dtype, range, mean."""
    same = "Prepare both in the same way."
    if trusted["shape"] != inputs["shape"] or trusted["dtype"] != inputs["dtype"]:
        text = (
            f"{what} are {shape_of(inputs)} {inputs['dtype']}, trusted inputs {shape_of(trusted)} {trusted['dtype']}."
        )
        return [Finding("error", f"{what} and trusted data differ", text, same)]
    if trusted["dtype"] != "float32":
        return []
    one, other = trusted["max"] - trusted["min"], inputs["max"] - inputs["min"]
    ratio = max(one, other) / max(min(one, other), 1e-12)
    spread = max(float(np.mean(trusted["std"])), 1e-12)
    shift = abs(float(np.mean(inputs["mean"])) - float(np.mean(trusted["mean"]))) / spread
    if ratio > 4 or shift > 2:
        text = (
            f"{what} run from {inputs['min']:.4g} to {inputs['max']:.4g} (mean {np.mean(inputs['mean']):.3g}), trusted "
            f"inputs from {trusted['min']:.4g} to {trusted['max']:.4g} (mean {np.mean(trusted['mean']):.3g}); scaled "
            "or stored in two ways, all of one set looks anomalous."
        )
        return [Finding("warning", f"{what} and trusted data differ", text, same)]
    return []


def class_names(trusted: Source, inputs: Source) -> list[Finding]:
    """Class folders that number the classes in two ways."""
    one, other = trusted.class_names, inputs.class_names
    if one is None or other is None or one == other:
        return []
    text = f"Trusted data name the classes {listed(one, 4)}, inputs {listed(other, 4)}: their numbers do not agree."
    return [Finding("warning", "Class names", text, "Give both the same class folders, empty ones included.")]


def overlap(trusted: Source, inputs: Source | None, calibration: Source | None) -> list[Finding]:
    """Identical inputs where there should be none; only for data that are cheap to read again."""
    found = []
    if not trusted.reader.cheap:
        text = "Duplicates are looked for in arrays and .npz files alone."
        return [Finding("note", "Duplicates", text)]
    counts = Counter(trusted.digests())
    twice = sum(n - 1 for n in counts.values())
    if twice:
        text = f"{twice:,} of {len(trusted):,} trusted inputs repeat another one, so some explain their own copies."
        found.append(Finding("warning", "Duplicates", text, "Keep one of each."))
    for other, what, harm, change in (
        (inputs, "inputs", "they will look perfectly explained", "Take them out of either set, unless this is a test."),
        (calibration, "calibration inputs", "p-values are not valid with them", "Take them out of either set."),
    ):
        if other is None or not other.reader.cheap:
            continue
        same = [name for name, digest in zip(other.ids, other.digests(), strict=True) if digest in counts]
        if same:
            text = f"{len(same):,} {what} ({listed(same, 3)}) are identical to trusted ones: {harm}."
            found.append(Finding("warning", "Duplicates", text, change))
    return found


def rounded_up(rate: float) -> float:
    """A rate with two digits that is not smaller than it.

    >>> rounded_up(1 / 41)
    0.025
    """
    step = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return float(f"{math.ceil(rate / step - 1e-9) * step:.2g}")


def resolution(
    n_trusted: int, n_calibration: int | None, fpr: float, conformal: Conformal = "auto", *, chosen: bool = False
) -> tuple[Finding, dict[str, Any]]:
    """The smallest false-alarm rate that calibration can reach, 1 / (n + 1) with n calibration inputs.

    `chosen`: some trusted inputs are set apart, since what is amplified for survival is chosen on them.
    """
    n = calibrating(n_trusted, conformal, chosen=chosen) if n_calibration is None else n_calibration
    if n_calibration is not None:
        how = f"{n_calibration:,} calibration inputs"
    elif kind_for(n_trusted, conformal) == "cross":
        who = f"{n:,} trusted inputs, all of them"
        if chosen:
            who = f"{n:,} of {n_trusted:,} trusted inputs (the others choose which layers are amplified),"
        how = f"{who} ranked in {FOLDS}-fold cross-conformal fashion"
    else:
        how = f"{n:,} calibration inputs ({SHARES['calibration']:.0%} of {n_trusted:,} trusted ones)"
    p_min = smallest_p(n)
    figures = {"fpr_target": fpr, "p_min": p_min, "n_calibration": n}
    text = f"{how[0].upper()}{how[1:]} allow false-alarm rates down to {p_min:.3g}"
    if p_min <= fpr * (1 + 1e-9):
        held, (low, high), (less, more) = rank_of_threshold(fpr, n), rate_interval(fpr, n), rate_interval(fpr, 4 * n)
        text += (
            f". The {held} with the highest scores will hold the threshold (a RUN names them): one detector's rate "
            f"lies between {low:.2%} and {high:.2%} by chance, with four times the inputs between {less:.2%} and "
            f"{more:.2%}"
        )
        return Finding("ok", "False-alarm rate", f"{text}; {fpr:g} is asked for."), figures
    kind, enough = "calibration", needed(fpr)
    if n_calibration is None:
        kind = "trusted"
        if kind_for(enough, conformal) == "split":
            enough = math.ceil(enough / SHARES["calibration"])
        while calibrating(enough, conformal, chosen=chosen) < needed(fpr):
            enough += 1
    change = f"Give at least {enough:,} {kind} inputs, or ask for --fpr {rounded_up(p_min):g}."
    text = f"{text}, not to the {fpr:g} asked for: the smallest is used instead."
    return Finding("warning", "False-alarm rate", text, change), figures
