"""Before any long work: load network and data, and say in plain words what was found and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from covary.data.source import Source
from covary.models.network import Network
from covary.runs.check import labels as about_labels
from covary.runs.check import network as about_network
from covary.runs.check import sets
from covary.runs.check.findings import CheckReport, Finding, listed
from covary.runs.check.texts import check_texts
from covary.scoring.calibration.splits import Conformal

__all__ = ["CheckReport", "Finding", "check", "check_texts"]

# Trusted inputs that are looked at; all the labels are, in any case.
LIMIT = 2_000


def check(
    network: Network,
    trusted: Source,
    inputs: Source | None = None,
    *,
    fpr: float = 0.01,
    conformal: Conformal = "auto",
    chosen: bool = False,
    calibration: Source | None = None,
    batch_size: int = 64,
    seed: int = 0,
    forwards_per_input: float = 8.0,
    gradient_bytes: int | None = 512 * 2**20,
    draws: int = 0,
    own_observable: bool = False,
    evidence: Mapping[str, float] | None = None,
    by_gradients: bool = True,
    apart: bool = True,
    said_of_images: str = "",
) -> CheckReport:
    """What a network makes of trusted data and inputs, with what to change where something looks wrong.

    Args:
        network: the network to be looked at.
        trusted: inputs whose answers are trusted; labels, where there are any, are used to measure accuracy alone.
        inputs: inputs to be scored.
        fpr: the false-alarm rate asked for.
        conformal: how trusted inputs will calibrate (see `splits.kind_for`).
        chosen: whether some of them are set apart (see `splits.set_apart`).
        calibration: calibration data, where they come separately.
        batch_size: inputs a batch.
        seed: which inputs are looked at where there are many.
        forwards_per_input: cost of one input's features in forward passes, about 8 in the exact engine.
        gradient_bytes: memory that gradients of one slice of a batch may take.
        draws: of the weights, where a sampled estimator takes some in place of gradients.
        own_observable: whether the user's own observable is looked at, which may need no logits: then data alone are.
        evidence: forward passes an input of every kind of evidence that may be asked for.
        by_gradients: whether gradients are taken; without them none need reach the weights.
        apart: whether trusted inputs should not be among the others, as they are in a training set.
        said_of_images: what came of what the network says of its images.
    """
    trusted = _named(network, trusted)
    inputs, calibration = (None if source is None else _named(network, source) for source in (inputs, calibration))
    by_gradients = by_gradients and not draws
    findings, figures = _look(
        network, trusted, inputs, calibration, batch_size, seed, own_observable, by_gradients, apart
    )
    if said_of_images:
        change = "Pass mean=, std= or transform= where it was trained otherwise."
        findings.append(Finding("note", "Preparation of images", said_of_images, change))
    if "accuracy" not in figures:  # the network does not run: nothing further can be told
        return CheckReport(findings, figures)
    held = None if calibration is None else len(calibration)
    finding, more = sets.resolution(len(trusted), held, fpr, conformal, chosen=chosen)
    findings.append(finding)
    figures |= more
    n = sum(len(source) for source in (trusted, inputs, calibration) if source is not None)
    x = next(trusted.batches(min(batch_size, 32))).x
    finding, more = about_network.cost(
        network, x, n, batch_size, forwards_per_input, gradient_bytes, draws, evidence, by_gradients
    )
    return CheckReport([*findings, finding], {**figures, **more})


def _named(network: Network, source: Source) -> Source:
    """Inputs with those of their fields that the network's forward takes."""
    return source.named(network.names(source.reader.input_name, source.reader.fields))


def _look(
    network: Network,
    trusted: Source,
    inputs: Source | None,
    calibration: Source | None,
    batch_size: int,
    seed: int,
    own_observable: bool,
    by_gradients: bool,
    apart: bool,
) -> tuple[list[Finding], dict[str, Any]]:
    """All but calibration and cost; without `accuracy` among the figures where the network does not run."""
    findings: list[Finding] = []
    about: dict[str, dict[str, Any]] = {}
    for role, source in (("Trusted inputs", trusted), ("Inputs", inputs), ("Calibration inputs", calibration)):
        if source is not None:
            finding, seen = sets.described(source, role)
            findings.append(finding)
            findings += sets.left_out(source, role)
            if seen is not None:
                about[role] = seen
                findings += sets.repeatable(source, role)
    figures: dict[str, Any] = {"n_trusted": len(trusted), "n_inputs": None if inputs is None else len(inputs)}
    if "Trusted inputs" not in about:
        return findings, figures
    for role in about.keys() - {"Trusted inputs"}:
        findings += sets.alike(about["Trusted inputs"], about[role], role)
    findings += sets.enough(trusted)
    findings += about_network.modes(network)
    if own_observable:
        return findings, figures
    x = next(trusted.batches(min(batch_size, 16))).x
    logits, wrong = about_network.answer(network, x)
    findings += wrong
    if logits is None or any(finding.level == "error" for finding in wrong):
        return findings, figures
    findings += about_network.steadiness(network, x, logits)
    if by_gradients:
        findings += about_network.gradients(network, x)
    n_classes = logits.shape[1]
    figures["n_classes"] = n_classes
    y = trusted.y
    meaning = about_network.meaning(network, x, logits, y)
    if not wrong:
        findings.append(meaning)
    if meaning.level == "error":
        return findings, figures
    mislabelled = [] if y is None else about_labels.label_range(y, n_classes, trusted)
    if inputs is not None and inputs.reader.cheap and inputs.y is not None:
        mislabelled += about_labels.label_range(inputs.y, n_classes, inputs)
    findings += mislabelled
    y = None if y is None else np.where((y >= 0) & (y < n_classes), y, -1)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(trusted))[:LIMIT])
    predicted, confidence = answers(network, trusted.take(chosen), batch_size)
    known = None if y is None else y[chosen]
    more, numbers = about_labels.accuracy(known, predicted, confidence, network.weights_from is not None)
    findings, figures = findings + more, {**figures, **numbers}
    if known is not None and (order := about_labels.order_of_classes(known, predicted, trusted.class_names)):
        findings += order
        y = None  # accuracy on such labels would name the wrong suspect
    findings += about_labels.preprocessing(network, trusted, y, seed)
    more, numbers = about_labels.classes(known, predicted, n_classes)
    findings, figures = findings + more, {**figures, **numbers}
    if inputs is not None and "Inputs" in about and about["Inputs"]["shape"] == about["Trusted inputs"]["shape"]:
        findings += _unseen_classes(network, inputs, np.asarray(numbers["predicted_per_class"]), batch_size)
        findings += sets.class_names(trusted, inputs)
    return findings + sets.overlap(trusted, inputs if apart else None, calibration), figures


def _unseen_classes(network: Network, inputs: Source, trusted_counts: np.ndarray, batch_size: int) -> list[Finding]:
    """Inputs answered with a class that no trusted input is answered with."""
    chosen = np.unique(np.linspace(0, len(inputs) - 1, min(len(inputs), 256)).astype(int))
    predicted, _ = answers(network, inputs.take(chosen), batch_size)
    unseen = np.unique(predicted[trusted_counts[predicted] == 0]).tolist()
    if not unseen:
        return []
    share = float(np.isin(predicted, unseen).mean())
    text = f"{share:.0%} of the inputs looked at are answered with class {listed(unseen)}, no trusted input is."
    return [Finding("warning", "Unseen classes", text, "Add trusted inputs of these classes; nothing explains them.")]


def answers(network: Network, source: Source, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes (n,) int64 and confidence (n,), the largest softmax, of all inputs of a source."""
    predicted, confidence = [], []
    for batch in source.batches(batch_size):
        top = torch.softmax(network.logits(batch.x).double(), dim=1).max(1)
        predicted.append(top.indices.cpu().numpy())
        confidence.append(top.values.cpu().numpy())
    return np.concatenate(predicted).astype(np.int64), np.concatenate(confidence)
