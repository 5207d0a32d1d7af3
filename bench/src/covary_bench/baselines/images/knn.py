"""Distance to the k-th nearest trusted sample in the last features (Sun et al. 2022, arXiv 2204.06507)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from covary.scoring.rows import Batch

# Chosen on the tuning cells among 1, 5, 10, 20, 50 (see `covary_bench.studies.core`); the paper takes 50 on CIFAR-10.
K = 10


def nearest_neighbours(
    trusted: Float[np.ndarray, "n d"], queries: Float[np.ndarray, "q d"], k: int = K
) -> Float[np.ndarray, " q"]:
    """Distance to the k-th nearest trusted sample among features scaled to length one; higher = more anomalous."""
    found = NearestNeighbors(n_neighbors=min(k, len(trusted))).fit(_unit(trusted))
    return found.kneighbors(_unit(queries))[0][:, -1]


def _unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def last_features(module: nn.Module, batches: Iterable[Batch]) -> Float[np.ndarray, "n d"]:
    """What the last linear layer takes, (n, d)."""
    last = [child for child in module.modules() if isinstance(child, nn.Linear)][-1]
    taken: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].detach().flatten(1)))
    try:
        with torch.inference_mode():
            for batch in batches:
                module(batch.x)
    finally:
        handle.remove()
    return torch.cat(taken).float().cpu().numpy()
