"""A cell's case on disk, the form `cases` writes: trusted.npz, inputs.npz, case.json, and sampling.npz where needed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covary_bench.images.datasets import Images
from covary_bench.images.ingredients import AttackedNetwork
from covary_bench.images.victims import to_input


@dataclass(frozen=True)
class Group:
    """Inputs of one kind.

    Attributes:
        name: `clean`, or what makes them special.
        images: with ids and original classes.
        anomalous: whether a detector ought to flag them.
        pixels: float32 (n, c, h, w) in [0, 1] where 8 bits would undo what was done to them.
        targets: the attacker's label for each, where there is one.
    """

    name: str
    images: Images
    anomalous: bool
    pixels: np.ndarray | None = None
    targets: np.ndarray | None = None


NOBODY = -1  # no attacker wants a label


def write_case(
    folder: Path,
    attacked: AttackedNetwork,
    kind: str,
    trusted: Images,
    groups: list[Group],
    seed: int,
    sampling: Images | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a case, whole or not at all; inputs are shuffled, and `group` tells where each came from.

    `kind` is backdoor, adversarial, out-of-distribution, mechanisms or hard: how figures are to be taken.
    """
    as_float = any(group.pixels is not None for group in groups)
    x = [to_input(group.images.x).numpy() if as_float and group.pixels is None else
         (group.images.x if group.pixels is None else group.pixels) for group in groups]  # fmt: skip
    sizes = [len(group.images) for group in groups]
    order = np.random.default_rng([seed, 3]).permutation(sum(sizes))
    inputs: dict[str, Any] = {
        "x": np.concatenate(x)[order],
        "y": np.concatenate([group.images.y for group in groups])[order],
        "id": np.array([f"{group.name} {name}" for group in groups for name in group.images.id])[order],
        "truth": np.repeat([int(group.anomalous) for group in groups], sizes)[order],
        "wanted": np.concatenate([np.full(len(g.images), NOBODY) if g.targets is None else g.targets for g in groups])[
            order
        ],
        "group": np.repeat([group.name for group in groups], sizes)[order],
    }
    about = {
        "kind": kind, "seed": seed, "model": attacked.model, "weights": str(attacked.weights.resolve()),
        "mean": attacked.mean, "std": attacked.std, "target": attacked.target, "victim": attacked.facts,
        "n_trusted": len(trusted), **{f"n_{group.name}": size for group, size in zip(groups, sizes, strict=True)},
        **(facts or {}),
    }  # fmt: skip
    part = folder.with_name(f"{folder.name}-{os.getpid()}.part")
    part.mkdir(parents=True)
    np.savez(part / "inputs.npz", **inputs)
    _save(part / "trusted.npz", trusted, as_float)
    if sampling is not None and len(sampling):
        _save(part / "sampling.npz", sampling, as_float)
    (part / "case.json").write_text(json.dumps(about, indent=1) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)
    return folder


def _save(path: Path, images: Images, as_float: bool) -> None:
    x = to_input(images.x).numpy() if as_float else images.x
    np.savez(path, x=x, y=images.y, id=np.array(list(images.id)))
