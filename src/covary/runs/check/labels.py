"""How right and how sure a network is on trusted inputs, and what a bad figure probably means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from covary.data.source import Source
from covary.models.network import Network
from covary.runs.check.findings import Finding, listed
from covary.runs.check.suspects import Suspect, best_fits, closest_to_training, trial

TRIED = 256
# Accuracy this far under mean confidence is more than the overconfidence networks usually have.
GAP = 0.15
THIN = 10

Labels = Int[np.ndarray, " n"]


def label_range(labels: np.ndarray, n_classes: int, source: Source) -> list[Finding]:
    """Labels that the network has no output for; -1 marks an input that shows none of the classes."""
    bad = np.flatnonzero((labels >= n_classes) | (labels < -1))
    if not len(bad):
        return []
    i = int(bad[0])
    text = (
        f"Label {labels[i]} of input {source.ids[i]!r} in {source.name} is out of range: the network has {n_classes} "
        f"outputs, 0 to {n_classes - 1}; {len(bad):,} labels are."
    )
    return [Finding("error", "Labels", text, "Count classes from 0, in the order of the network's outputs.")]


def accuracy(
    labels: np.ndarray | None, predicted: Labels, confidence: Float[np.ndarray, " n"], weights: bool = True
) -> tuple[list[Finding], dict[str, Any]]:
    """Accuracy and mean confidence (largest softmax) on trusted inputs, and a warning where they do not agree.

    `weights`: whether a weights file was loaded; without one, untrained weights are the first thing to think of.
    """
    figures: dict[str, Any] = {"confidence": float(confidence.mean()), "accuracy": None, "n_labelled": 0}
    known = np.zeros(len(predicted), bool) if labels is None else labels >= 0
    if labels is None or not known.any():
        text = f"Mean confidence {confidence.mean():.1%}; without labels nobody can tell how many answers are right."
        return [Finding("note", "Accuracy", text, "Add `y` to the trusted data if you know the classes.")], figures
    right = (predicted == labels)[known]
    n, rate, sure = len(right), float(right.mean()), float(confidence[known].mean())
    figures |= {"accuracy": rate, "n_labelled": n}
    text = f"{rate:.1%} of {n:,} labelled trusted inputs are classified right, with mean confidence {sure:.1%}."
    noise = 3 * math.sqrt(max(rate * (1 - rate), 0.25 / n) / n)
    if sure - rate > max(GAP, noise):
        text += " A network is seldom that sure and that wrong on data it was made for."
        return [Finding("warning", "Accuracy", text, suspects_of(weights))], figures
    k = len(np.unique(labels[known]))
    if k > 1 and rate <= 1 / k + 3 * math.sqrt((1 - 1 / k) / (k * n)):
        text += f" Guessing among {k} classes is right {1 / k:.1%} of the time."
        return [Finding("warning", "Accuracy", text, suspects_of(weights))], figures
    if n >= 200 and rate > 0.995:
        change = "If the network was trained on them, they look too well explained: take data it has not seen."
        return [Finding("note", "Accuracy", text, change)], figures
    return [Finding("ok", "Accuracy", text)], figures


def suspects_of(weights: bool) -> str:
    """What to look at where a network is wrong more often than it should be."""
    change = "Check scaling, --mean and --std, channel order, {} and the order of the classes."
    if weights:
        return change.format("the weights file")
    return "Pass --weights, unless the factory loads trained ones. " + change.format("the weights")


def preprocessing(network: Network, trusted: Source, labels: np.ndarray | None, seed: int) -> list[Finding]:
    """Tries the usual suspects on at most 256 labelled inputs, or without labels against stored statistics."""
    known = np.arange(0) if labels is None else np.flatnonzero(labels >= 0)
    pool = known if len(known) else np.arange(len(trusted))
    chosen = np.sort(np.random.default_rng(seed).permutation(pool)[:TRIED])
    some = trusted.take(chosen)
    if labels is None or not len(known):
        found = _by_statistics(network, some)
        return [] if found is None else [found[1]]
    now = trial(network, some, labels[chosen])
    fits = best_fits(network, some, labels[chosen], now)
    if not fits:
        found = _by_statistics(network, some)
        if found is None or trial(network, found[0].applied(some), labels[chosen]).right.sum() < now.right.sum():
            return []
        return [found[1]]
    (best, rate), equal = fits[0], fits[1:]
    text = (
        f"With {best.name}, {rate:.0%} of {len(chosen)} labelled trusted inputs are classified right instead of "
        f"{now.right.mean():.0%}: the network was most probably trained on inputs prepared that way."
    )
    if equal:
        others = listed([f"{suspect.name} ({suspect.flags}, {r:.0%})" for suspect, r in equal], 3)
        text += f" Nothing here tells it apart from {others}; the training code knows."
    return [Finding("warning", "Preprocessing", text, _advice(trusted, best))]


def _by_statistics(network: Network, source: Source) -> tuple[Suspect, Finding] | None:
    found = closest_to_training(network, source)
    if found is None:
        return None
    best, gap, present = found
    text = (
        f"Inputs do not look like what the network's first BatchNorm layer remembers of its training data "
        f"({present:.2g} nats apart); with {best.name} they are {gap:.2g} apart."
    )
    return best, Finding("warning", "Preprocessing", text, _advice(source, best))


def _advice(source: Source, best: Suspect) -> str:
    present = [f"--{key}" for key in ("mean", "std") if source.preprocessing[key] is not None]
    if best.mean is None and best.std is None and present:
        added = f" and pass --transform {best.transform}" if best.transform else ""
        return f"Leave out {' and '.join(present)}{added}, for trusted data and inputs alike."
    return f"Pass {best.flags}{' instead' if present else ''}, for trusted data and inputs alike."


def order_of_classes(labels: Labels, predicted: Labels, names: list[str] | None) -> list[Finding]:
    """Whether labels are right but for another numbering of the classes."""
    known = labels >= 0
    if not known.any():
        return []
    # Of the classes seen alone: a table of all classes by all classes grows past any memory.
    seen_labels, own = np.unique(labels[known], return_inverse=True)
    seen_answers, answered = np.unique(predicted[known], return_inverse=True)
    confusion = np.zeros((len(seen_labels), len(seen_answers)))
    np.add.at(confusion, (own, answered), 1)
    rows, columns = linear_sum_assignment(-confusion)
    matched, now = confusion[rows, columns].sum() / known.sum(), (labels[known] == predicted[known]).mean()
    if matched < 0.6 or matched - now < 0.3:
        return []
    pairs_of = [(seen_labels[r], seen_answers[c], confusion[r, c]) for r, c in zip(rows, columns, strict=True)]
    moved = [(r, c) for r, c, n in pairs_of if r != c and n > 0]
    pairs = [f"{names[r] if names and r < len(names) else r} is output {c}" for r, c in moved]
    text = f"{matched:.0%} of the labels would agree if classes were numbered another way: {listed(pairs)}."
    change = "Number classes as in training; folders of classes are numbered in sorted order ('10' before '2')."
    return [Finding("warning", "Order of classes", text, change)]


def classes(labels: np.ndarray | None, predicted: Labels, n_classes: int) -> tuple[list[Finding], dict[str, Any]]:
    """Thin classes: few or no trusted samples that the network predicts as, or that are labelled as, a class."""
    counts = np.bincount(predicted, minlength=n_classes)
    figures = {"predicted_per_class": counts.tolist()}
    if n_classes > 1 and (counts > 0).sum() == 1:
        text = f"The network answers class {int(counts.argmax())} for every trusted input."
        change = "Check scaling (--mean, --std), the weights file, and that trusted data show more than one class."
        return [Finding("warning", "One class only", text, change)], figures
    found = []
    absent = np.flatnonzero(counts == 0).tolist()
    if absent:
        text = f"No trusted input is predicted as class {listed(absent, 8)} ({len(absent)} of {n_classes} classes): "
        text += "answers of these are judged by what all classes have in common."
        change = "Add trusted inputs of these classes if you have some."
        found.append(Finding("note", "Classes without trusted inputs", text, change))
    thin = [f"{c} ({counts[c]})" for c in np.flatnonzero((counts > 0) & (counts < THIN))]
    if thin:
        text = f"Fewer than {THIN} trusted inputs are predicted as class {listed(thin, 8)}."
        change = "Add trusted inputs; until then such classes lean on all the others."
        found.append(Finding("note", "Thin classes", text, change))
    if labels is not None and (labels >= 0).any():
        own = np.bincount(labels[labels >= 0], minlength=n_classes)
        few = [f"{c} ({own[c]})" for c in np.flatnonzero((own < THIN) & (counts >= THIN))]
        if few:
            text = f"Fewer than {THIN} trusted inputs are labelled as class {listed(few, 8)}."
            found.append(Finding("note", "Thin labels", text, "Add trusted inputs of these classes."))
    if not found:
        text = f"Every one of {n_classes} classes is predicted for at least {THIN} trusted inputs."
        found.append(Finding("ok", "Classes", text))
    return found, figures
