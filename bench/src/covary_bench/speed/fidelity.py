"""How close compressed couplings and verdicts are to exact ones, and the curve over k."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covary.features.exact import exact_gradients
from covary.features.gradient import GradientExtractor
from covary.features.observables import margin
from covary.features.projections import LayerProjection
from covary.runs.figures.quality import auroc
from covary.scoring.judge import Judge
from covary.scoring.rows import Batch, Rows
from covary_bench.cached import read_cached
from covary_bench.images.public import load_public

# One case a network; adversarial inputs beside backdoors.
CASES = {
    "grid": "cifar10_wrn16_1_grid_t5",
    "trojan": "cifar10_vggsmall_trojan_sq_t2",
    "signs-badnets": "gtsrb_vggsmall_badnets_t8",
    "mnist-badnets-public": "mnist_badnet_white5_t1",
    "pgd-l2": "cifar10_resnet20_clean",
}
TRUSTED, QUERIES, PAIRS, CHUNK = 400, 150, 200, 50
CURVE = (16, 32, 64, 128, 256)


def all_cases(cases: Path) -> dict[str, Any]:
    """Every case that is there; `python -m covary_bench.studies.cases build held-out` makes them."""
    return {name: one_case(cases / name, network) for name, network in CASES.items() if (cases / name).is_dir()}


def load_images(file: Path, about: dict[str, Any]) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """Images as the network wants them, and what the file says of them."""
    with np.load(file) as stored:
        said = {key: stored[key] for key in stored.files if key != "x"}
        x = torch.from_numpy(stored["x"])
    x = x.permute(0, 3, 1, 2).float().div(255) if x.dtype == torch.uint8 else x
    if about["mean"] is not None:
        x = (x - torch.tensor(about["mean"]).view(-1, 1, 1)) / torch.tensor(about["std"]).view(-1, 1, 1)
    return x.contiguous(), said


def one_case(folder: Path, network: str) -> dict[str, Any]:
    """Exact and compressed side by side on 400 trusted images and 150 queries of each kind, labels masked."""
    about = read_cached(folder / "case.json")
    module = load_public(network).requires_grad_(True)
    trusted, known = load_images(folder / "trusted.npz", about)
    inputs, said = load_images(folder / "inputs.npz", about)
    fast = GradientExtractor(module, lambda out: out)
    scored = fast.rows(Batch([str(i) for i in range(len(inputs))], inputs))
    right = masked(scored.predicted, said, about)
    chosen = np.concatenate([np.flatnonzero(right & (said["truth"] == t))[:QUERIES] for t in (0, 1)])
    truth = said["truth"][chosen]
    x = torch.cat([trusted[:TRUSTED], inputs[chosen]])
    compressed = fast.rows(Batch([str(i) for i in range(len(x))], x))
    grams = exact_grams(fast, x)
    exact = exactly(compressed, grams)
    found: dict[str, Any] = {"network": network, "trusted": TRUSTED, "queries": len(truth), "k": fast.k}
    found |= correlations(compressed.functional, grams)
    found["unstructured"] = correlations(unstructured(compressed.functional, grams), grams)
    verdicts = {}
    for name, rows in (("exact", exact), ("compressed", compressed)):
        judge = Judge().fit(rows.take(np.arange(TRUSTED)), known["y"][:TRUSTED])
        verdicts[name] = auroc(judge.judge(rows.take(np.arange(TRUSTED, len(x)))).score, truth)
        found[f"masked_auroc_{name}"] = round(float(verdicts[name]), 5)
    found["auroc_loss"] = round(float(verdicts["exact"] - verdicts["compressed"]), 5)
    found["curve"] = {str(k): correlations(recompressed(fast, x[:PAIRS], k), grams) for k in CURVE}
    return found


def masked(predicted: np.ndarray, said: dict[str, np.ndarray], about: dict[str, Any]) -> np.ndarray:
    """Clean queries the network gets right; anomalous ones that reach the target, or leave their class without one."""
    wrong = predicted != said["y"]
    reached = wrong if about["target"] is None else predicted == about["target"]
    return np.where(said["truth"] == 1, reached, ~wrong)


def gradients(fast: GradientExtractor, x: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
    """Exact gradients of a few images at a time, by parameter."""
    names = [name for own in fast.layers.values() for name in own]
    for part in x.split(CHUNK):
        yield exact_gradients(fast.module, names, part, observable=margin, choose_logits=lambda out: out).parameters


def exact_grams(fast: GradientExtractor, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Inner products of all images' exact gradients, layer by layer."""
    parts: dict[str, list[torch.Tensor]] = {layer: [] for layer in fast.layers}
    for got in gradients(fast, x):
        for layer, names in fast.layers.items():
            parts[layer].append(torch.cat([got[name].flatten(1) for name in names], 1))
    grams = {}
    for layer in list(parts):
        rows = torch.cat(parts.pop(layer))
        grams[layer] = (rows @ rows.T).double().numpy()
    return grams


def exactly(compressed: Rows, grams: dict[str, np.ndarray]) -> Rows:
    """Rows of as many numbers as samples whose inner products are the exact ones."""
    functional, norms = {}, []
    for layer, gram in grams.items():
        values, basis = np.linalg.eigh(gram)
        kept = values > values.max() * 1e-9
        functional[layer] = (basis[:, kept] * np.sqrt(values[kept])).astype(np.float32)
        norms.append(np.sqrt(np.diag(gram)))
    return replace(compressed, functional=functional, functional_norms=np.stack(norms, 1))


def unstructured(rows: Mapping[str, np.ndarray], grams: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What as many dense Gaussian numbers a layer would keep: the most that random numbers can be asked for.

    A Gaussian projection sees nothing of gradients but their inner products, so a factor of the Gram matrix will do.
    """
    rng, found = np.random.default_rng(0), {}
    for layer, gram in grams.items():
        values, basis = np.linalg.eigh(gram[:PAIRS, :PAIRS])
        factor, k = basis * np.sqrt(np.maximum(values, 0)), rows[layer].shape[1]
        found[layer] = factor @ rng.standard_normal((PAIRS, k)) / np.sqrt(k)
    return found


def recompressed(fast: GradientExtractor, x: torch.Tensor, k: int) -> dict[str, np.ndarray]:
    """Compressed rows at another k."""
    shapes = {name: tuple(p.shape) for name, p in fast.module.named_parameters()}
    projections = {
        layer: LayerProjection(layer, {name: shapes[name] for name in names}, k, fast.seed)
        for layer, names in fast.layers.items()
    }
    parts: dict[str, list[np.ndarray]] = {layer: [] for layer in fast.layers}
    for got in gradients(fast, x):
        for layer, names in fast.layers.items():
            parts[layer].append(projections[layer]({name: got[name] for name in names}).numpy())
    return {layer: np.concatenate(rows) for layer, rows in parts.items()}


def correlations(rows: Mapping[str, np.ndarray], grams: dict[str, np.ndarray]) -> dict[str, Any]:
    """Pearson correlation over pairs of different images of compressed with exact couplings, cosine and covariance."""
    upper = np.triu_indices(PAIRS, 1)
    layers, sums = {}, {"found": np.zeros((PAIRS, PAIRS)), "exact": np.zeros((PAIRS, PAIRS))}
    cosines = {}
    for layer, own in rows.items():
        own = own[:PAIRS].astype(np.float64)
        found, exact = own @ own.T, grams[layer][:PAIRS, :PAIRS]
        layers[layer] = np.corrcoef(found[upper], exact[upper])[0, 1]
        pair = [g / np.sqrt(np.outer(np.diag(g), np.diag(g))) for g in (found, exact)]
        cosines[layer] = np.corrcoef(pair[0][upper], pair[1][upper])[0, 1]
        sums = {"found": sums["found"] + found, "exact": sums["exact"] + exact}
    total = np.corrcoef(sums["found"][upper], sums["exact"][upper])[0, 1]
    return {
        "numbers": int(sum(r.shape[1] for r in rows.values())),
        "covariance_all_layers": round(float(total), 4),
        "covariance_layer_mean": round(float(np.mean(list(layers.values()))), 4),
        "covariance_layer_least": round(float(min(layers.values())), 4),
        "cosine_layer_mean": round(float(np.mean(list(cosines.values()))), 4),
        "cosine_layer_least": round(float(min(cosines.values())), 4),
    }
