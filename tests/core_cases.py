"""Synthetic rows for the tests right of the waist: classes with directions of their own, and one foreign mechanism."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from covary.scoring.rows import Rows

MIX = (0.4, 0.3, 0.2, 0.1)
FUNCTIONAL = {"conv": 10, "block.fc": 16}
LATENT = {"conv": 6, "norm": 5, "block.fc": 8}
# The last dimensions of every layer belong to the foreign mechanism alone.
RESERVED = 3


def _directions(classes: int, layer: str, width: int, kind: str) -> np.ndarray:
    world = np.random.default_rng([classes, width, len(layer), len(kind)])
    shared, own = world.normal(size=width), world.normal(size=(classes, width))
    directions = 0.8 * shared + own
    directions[:, -RESERVED:] = 0
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def synthetic(
    n: int,
    seed: int,
    *,
    mix: tuple[float, ...] = MIX,
    wrong: float = 0.0,
    foreign: bool = False,
    prefix: str = "s",
) -> tuple[Rows, np.ndarray]:
    """Rows of n samples and their true classes.

    A share `wrong` is misclassified: an odd direction, a low margin. `foreign` samples use another mechanism: most of
    their direction lies where no class has any, whatever the network predicts.
    """
    rng = np.random.default_rng([seed, 77])
    classes = len(mix)
    labels = rng.choice(classes, size=n, p=mix)
    strange = rng.random(n) < wrong
    predicted = np.where(strange, (labels + 1) % classes, labels)
    strength = np.exp(0.3 * rng.normal(size=n)) * np.where(strange, 2.0, 1.0)

    def layers(widths: dict[str, int], kind: str, scale: float) -> dict[str, np.ndarray]:
        result = {}
        for layer, width in widths.items():
            directions = _directions(classes, layer, width, kind)
            rows = directions[predicted] + 0.15 * rng.normal(size=(n, width))
            rows[strange] += directions[labels[strange]] - 0.5 * directions[predicted[strange]]
            rows[strange, -RESERVED:] += 0.4 * rng.normal(size=(int(strange.sum()), RESERVED))
            if foreign:
                other = np.zeros(width)
                other[-RESERVED:] = 1.0
                rows = 0.1 * rows + other + 0.1 * rng.normal(size=rows.shape)
            result[layer] = (scale * strength[:, None] * rows).astype(np.float32)
        return result

    functional = layers(FUNCTIONAL, "functional", 3.0)
    latent = {layer: rows + 2.0 for layer, rows in layers(LATENT, "latent", 1.0).items()}
    exact = [np.linalg.norm(rows.astype(np.float64), axis=1) for rows in functional.values()]
    norms = np.stack(exact, 1) * np.exp(0.03 * rng.normal(size=(n, len(functional))))
    sure = np.where(strange, 0.5 + rng.random(n), 6.0 + 0.5 * predicted + rng.normal(size=n)) + (2.0 if foreign else 0)
    rows = Rows(
        ids=[f"{prefix}{i}" for i in range(n)],
        predicted=predicted.astype(np.int64),
        observable=sure,
        functional=functional,
        functional_norms=norms,
        latent=latent,
        confidence={"margin": sure, "energy": -sure - 2 + 0.2 * rng.normal(size=n)},
    )
    return rows, labels.astype(np.int64)


def pick(rows: Rows, *labels: int) -> Rows:
    """The rows predicted as one of these classes."""
    return rows.take(np.isin(rows.predicted, labels))


def with_more(rows: Rows, seed: int = 0) -> Rows:
    """The rows with features of their own class and with survival."""
    rng = np.random.default_rng([seed, len(rows)])
    features = rng.standard_normal((len(rows), 6)) + rows.predicted[:, None]
    return replace(rows, features=features.astype(np.float32), survival=rng.standard_normal((len(rows), 3)))
