"""Tables: the columns of an input, their values, and which of them matter to what trusted samples explain."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from covary.data.source import Source
from covary.detector import Detector
from covary.features.gradient import GradientExtractor
from covary.features.sampled.extractor import SampledExtractor
from covary.scoring.rows import Rows

MAX_COLUMNS = 12


def column_cards(detector: Detector, inputs: Source) -> list[dict[str, Any]] | None:
    """Per input its most influential columns, (name, value, influence), and how many there are; None for no table."""
    if not isinstance(detector.extractor, GradientExtractor | SampledExtractor) or not len(inputs):
        return None
    columns = inputs.columns
    if columns is None:
        return None
    cards = []
    for batch in inputs.batches(detector.settings.batch_size):
        share = influence(detector, batch.x, detector.extractor.rows(batch))
        for i, name in enumerate(batch.ids):
            values = inputs.raw(name)
            own = None if share is None else share[i]
            order = np.arange(len(values)) if own is None else np.argsort(-np.abs(own), kind="stable")
            rows = [[columns[c], float(values[c]), None if own is None else float(own[c])] for c in order[:MAX_COLUMNS]]
            cards.append({"columns": rows, "n_columns": len(values)})
    return cards


def influence(detector: Detector, x: Any, rows: Rows) -> Float[np.ndarray, "n d"] | None:
    """x_c ds/dx_c for every column c: gradient x input of the part of an input that trusted samples explain.

    s = <g/|g|, sum_i a_i z_i> with g the input's compressed gradient and a the weights of the trusted directions z that
    explain it best. Positive: the column's value makes the input more like the trusted ones; negative: less.
    None where the network, the estimator or the observable gives no second derivative.
    """
    extractor = detector.extractor
    if not isinstance(extractor, GradientExtractor) or extractor.observable is None or not isinstance(x, Tensor):
        return None
    if extractor.latent:
        return None
    explanation, _ = detector.explainer.reconstruct(rows)
    directions = np.einsum("nc,ncd->nd", explanation.weights, detector.explainer.units[explanation.candidates])
    try:
        found = [
            _of_one(extractor, detector.network.inputs(x[i : i + 1]), int(rows.predicted[i]), directions[i])
            for i in range(len(x))
        ]
    except (RuntimeError, NotImplementedError):
        return None
    return np.stack(found)


def _of_one(
    extractor: GradientExtractor, x: Float[Tensor, "1 d"], label: int, direction: np.ndarray
) -> Float[np.ndarray, " d"]:
    assert extractor.observable is not None
    moving = {name for names in extractor.layers.values() for name in names}
    weights = {n: p.detach().requires_grad_(n in moving) for n, p in extractor.module.named_parameters()}
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = extractor.choose_logits(functional_call(extractor.module, weights, (x,))).float()
        value = extractor.observable(logits, torch.tensor([label], device=logits.device))[0]
        leaves = [weights[name] for name in weights if name in moving]
        gradients = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        by_name = dict(zip([name for name in weights if name in moving], gradients, strict=True))
        parts = [
            extractor.projections[layer]({name: by_name[name][None].float() for name in names})[0]
            for layer, names in extractor.layers.items()
        ]
        vector = torch.cat(parts).double()
        share = vector @ torch.from_numpy(direction).to(vector) / vector.norm().clamp_min(1e-12)
        (gradient,) = torch.autograd.grad(share, x)
    return (gradient * x).detach()[0].double().cpu().numpy()
