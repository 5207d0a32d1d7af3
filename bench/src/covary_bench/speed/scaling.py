"""Cost against the number of trusted samples, classes and parameters; queries are `stream`'s."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from covary.features.gradient import GradientExtractor
from covary.features.projections import numbers_per_layer
from covary.scoring.judge import Judge
from covary.scoring.rows import Batch, Rows
from covary_bench.speed.cost import Transformer, forward, interleaved

TRUSTED, CLASSES = (50, 150, 500, 1500, 5000), (10, 100, 1000)
LAYERS, QUERIES = 30, 500


def random_rows(n: int, classes: int, seed: int, layers: int = LAYERS) -> Rows:
    """Rows of noise with every class equally often, as if from a network of so many layers."""
    rng, k = np.random.default_rng(seed), numbers_per_layer(layers)
    functional = {str(i): rng.standard_normal((n, k)).astype(np.float32) for i in range(layers)}
    return Rows(
        ids=[f"{seed} {i}" for i in range(n)],
        predicted=np.arange(n) % classes,
        observable=rng.standard_normal(n),
        functional=functional,
        functional_norms=np.stack([np.linalg.norm(r, axis=1).astype(np.float64) for r in functional.values()], 1),
        latent={str(i): rng.standard_normal((n, 64)).astype(np.float32) for i in range(layers)},
        confidence={"margin": rng.standard_normal(n), "energy": rng.standard_normal(n)},
    )


def judged(trusted: int, classes: int) -> dict[str, float]:
    """Processor seconds of fitting, and microseconds a query of judging, on rows that are there."""
    known, fresh = random_rows(trusted, classes, 0), random_rows(QUERIES, classes, 1)
    begin = time.process_time()
    judge = Judge().fit(known)
    fitted = time.process_time()
    judge.judge(fresh)
    return {
        "fit_seconds": round(fitted - begin, 2),
        "microseconds_a_query": round((time.process_time() - fitted) / QUERIES * 1e6, 1),
    }


def mlp(width: int) -> tuple[nn.Module, Callable[[int], torch.Tensor]]:
    """Two hidden layers and ten classes."""
    sizes = [(32, width), (width, width), (width, 10)]
    layers = [layer for a, b in sizes for layer in (nn.Linear(a, b), nn.ReLU())][:-1]
    return nn.Sequential(*layers), lambda n: torch.randn(n, 32)


def decoder(width: int, depth: int) -> tuple[nn.Module, Callable[[int], torch.Tensor]]:
    """A Llama-like decoder on 64 tokens."""
    return Transformer(width, depth, llama=True), lambda n: torch.randint(0, 512, (n, 64))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Callable[[int], torch.Tensor]]]] = {
    "MLP, 64 wide": lambda: mlp(64),
    "MLP, 512 wide": lambda: mlp(512),
    "decoder, 128 x 4": lambda: decoder(128, 4),
    "decoder, 256 x 6": lambda: decoder(256, 6),
    "decoder, 512 x 8": lambda: decoder(512, 8),
}


def features(name: str) -> dict[str, Any]:
    """Cost of features in forwards, at one number of parameters."""
    torch.manual_seed(0)
    network, draw = NETWORKS[name]()
    network.eval()
    n = 256 if name.startswith("MLP") else 16
    x = draw(n)
    fast = GradientExtractor(network, lambda out: out)
    batch = Batch([str(i) for i in range(n)], x)
    times = interleaved({"forward": forward(network, x, n), "hooks": lambda: fast.rows(batch)}, 5)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "samples": n,
        "milliseconds_a_sample": round(times["hooks"][1] / n * 1e3, 3),
        "in_forwards": round(times["hooks"][1] / times["forward"][1], 2),
    }


def everything() -> dict[str, Any]:
    """All three."""
    return {
        "layers": LAYERS,
        "trusted": {str(n): judged(n, 10) for n in TRUSTED},
        "classes": {str(c): judged(5000, c) for c in CLASSES},
        "parameters": {name: features(name) for name in NETWORKS},
    }
