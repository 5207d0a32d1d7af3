"""Baselines: what a detector has to beat, each on the same trusted and query samples, higher = more anomalous.

By what they look at:
    the answer              max softmax, energy
    last features           KNN, Mahalanobis, Activation Clustering, Spectral Signatures; SCALE, NNGuide, fDBD
    activations by layer    Mahalanobis by layer, profile on activations, TED, TED++, Beatrix, NAC
    perturbed images        STRIP, TeCo, SCALE-UP
    perturbed weights       IBD-PSC, survival, PSBD, BaDExpert, own trace, the published method
    the pile together       pile on features, on activations, on gradients; Spectral Signatures in the pool, QUE,
                            AdaDetect
    gradients               gradient norm, class-max cosine, each part of the combined score alone
"""

from __future__ import annotations

from typing import Any

from covary.errors import unknown_name
from covary_bench.baselines.gradient_norm import gradient_norm
from covary_bench.baselines.images.activation_clustering import activation_clustering
from covary_bench.baselines.images.adadetect import adadetect
from covary_bench.baselines.images.badexpert import badexpert
from covary_bench.baselines.images.beatrix import beatrix
from covary_bench.baselines.images.class_max import class_max_cosine
from covary_bench.baselines.images.energy import energy
from covary_bench.baselines.images.fdbd import fdbd
from covary_bench.baselines.images.ibd_psc import ibd_psc
from covary_bench.baselines.images.knn import nearest_neighbours
from covary_bench.baselines.images.max_softmax import max_softmax
from covary_bench.baselines.images.nac import nac
from covary_bench.baselines.images.nnguide import nnguide
from covary_bench.baselines.images.own_trace import own_trace
from covary_bench.baselines.images.pile import pile_on_features, pile_on_part
from covary_bench.baselines.images.psbd import psbd
from covary_bench.baselines.images.published import published, published_offline
from covary_bench.baselines.images.quantum_entropy import quantum_entropy
from covary_bench.baselines.images.scale import scale
from covary_bench.baselines.images.scale_up import scale_up
from covary_bench.baselines.images.spectral_signatures import spectral_signatures
from covary_bench.baselines.images.strip import strip
from covary_bench.baselines.images.survival import survival_alone
from covary_bench.baselines.images.teco import teco
from covary_bench.baselines.images.ted import ted
from covary_bench.baselines.images.ted_plus import ted_plus
from covary_bench.baselines.mahalanobis import one_sided, two_sided
from covary_bench.baselines.mahalanobis_layers import by_layer
from covary_bench.baselines.material import Baseline, Material, Probe
from covary_bench.baselines.parts import part_alone
from covary_bench.baselines.profile_activations import profile_on_activations

# name -> score of the queries; adding one is one file and one line. The first value of a grid is its default and wins
# ties in tuning. It is the published one, except for KNN's k (50 on CIFAR-10 in its paper) and STRIP's number of
# blended images (100 in its paper, a pass over all queries each); the own trace is published nowhere.
BASELINES: dict[str, Baseline] = {
    "max softmax": Baseline(lambda m: max_softmax(m.queries)),
    "energy": Baseline(lambda m: energy(m.queries)),
    "gradient norm": Baseline(lambda m: gradient_norm(m.queries), "gradients"),
    "class-max cosine": Baseline(lambda m: class_max_cosine(m.trusted, m.queries), "gradients"),
    "functional part": Baseline(lambda m: part_alone(m, "functional"), "gradients"),
    "latent part": Baseline(lambda m: part_alone(m, "latent")),
    "confidence part": Baseline(lambda m: part_alone(m, "confidence")),
    "profile on activations": Baseline(profile_on_activations),
    "KNN on features": Baseline(
        lambda m, k: nearest_neighbours(m.trusted_features, m.query_features, k), "features", {"k": (10, 1, 5, 20, 50)}
    ),
    "Mahalanobis": Baseline(one_sided, "features"),
    "Mahalanobis two-sided": Baseline(two_sided, "features"),
    "Mahalanobis by layer": Baseline(lambda m: by_layer(m, 1)),
    "Mahalanobis by layer two-sided": Baseline(lambda m: by_layer(m, 2)),
    "TED": Baseline(ted, "forward", {"logarithm": (False, True)}),
    "TED++": Baseline(ted_plus),
    "NAC": Baseline(nac, "network"),
    "SCALE": Baseline(scale, "network"),
    "NNGuide": Baseline(nnguide, "network"),
    "fDBD": Baseline(fdbd, "network"),
    "Activation Clustering": Baseline(activation_clustering, "features", {"components": (10, 2)}),
    "Spectral Signatures": Baseline(
        spectral_signatures, "features", {"directions": (1, 5), "centre": ("pile", "trusted")}
    ),
    "Spectral Signatures in the pool": Baseline(lambda m: spectral_signatures(m, 1, "pile"), "features"),
    "QUE": Baseline(quantum_entropy, "features"),
    "AdaDetect": Baseline(adadetect, "gradients"),
    "pile on features": Baseline(pile_on_features, "features"),
    "pile on activations": Baseline(lambda m: pile_on_part(m, "latent")),
    "pile on gradients": Baseline(lambda m: pile_on_part(m, "functional"), "gradients"),
    "Beatrix": Baseline(beatrix, "network", {"orders": (9, 1, 4)}),
    "STRIP": Baseline(strip, "network", {"weight": (1.0, 0.5), "images": (16, 64)}),
    "TeCo": Baseline(teco, "network", {"strength": (1.0, 0.5)}),
    "SCALE-UP": Baseline(
        scale_up, "network", {"factors": ((3, 5, 7, 9, 11), (2, 3, 4)), "data_limited": (True, False)}
    ),
    "IBD-PSC": Baseline(ibd_psc, "network", {"omega": (1.5, 1.3, 2.0), "error": (0.6, 0.4)}),
    "survival": Baseline(survival_alone, "network"),
    "PSBD": Baseline(psbd, "network"),
    "BaDExpert": Baseline(badexpert, "network"),
    "own trace, mean": Baseline(lambda m, draws: own_trace(m, "mean", draws), "network", {"draws": (50, 25)}),
    "own trace, spread": Baseline(lambda m, draws: own_trace(m, "spread", draws), "network", {"draws": (50, 25)}),
    "published (CLC)": Baseline(lambda m: published(m, "pearson"), "chain"),
    "published (Class CCC)": Baseline(lambda m: published(m, "ccc"), "chain"),
    "published offline": Baseline(published_offline, "chain"),
}


CHEAP = ("forward", "features", "gradients")


def baseline(name: str) -> Baseline:
    """The baseline called `name` in `BASELINES`."""
    if name not in BASELINES:
        raise unknown_name("baseline", name, BASELINES)
    return BASELINES[name]


def cheap() -> dict[str, Any]:
    """Those that need no more than what one pass over the inputs has given already."""
    return {name: found for name, found in BASELINES.items() if found.needs in CHEAP}


__all__ = ["BASELINES", "Baseline", "Material", "Probe", "baseline", "cheap"]
