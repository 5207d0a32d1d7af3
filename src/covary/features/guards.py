"""What a detector refuses to work with, each in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_leaves

from covary.errors import CovaryError
from covary.models.blame import first_line, is_their_own, line_of
from covary.scoring.judge import LEAST_TRUSTED
from covary.scoring.rows import Batch


def check_labels(labels: Int[np.ndarray, " n"], classes: int, where: str) -> None:
    """Refuses labels that the network has no output for; -1, for unknown, may stand among them."""
    if len(labels) and not (labels.min() >= -1 and labels.max() < classes):
        raise CovaryError(
            f"labels of {where} run from {labels.min()} to {labels.max()}",
            f"0 to {classes - 1}, as many as the network has outputs",
            "number the classes as in training",
        )


def check_target(target: int | str | None, classes: int) -> None:
    """Refuses an attacker's label that is no class of the network."""
    if isinstance(target, int) and not 0 <= target < classes:
        raise CovaryError(f"target= is {target}", f"a class from 0 to {classes - 1}, or all-to-all")


def check_missing_classes(counts: Int[np.ndarray, " classes"]) -> None:
    """Refuses trusted inputs of which none is answered with some of the classes; `counts` per class."""
    missing = np.flatnonzero(counts == 0)
    # Of fewer trusted inputs than a judge takes, their number is what there is to complain about.
    if len(missing) and counts.sum() >= LEAST_TRUSTED:
        some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise CovaryError(
            f"no trusted input is answered with class {some} ({len(missing)} of {len(counts)} classes)",
            "trusted inputs of every class",
            "trust inputs of these classes, or pass allow_missing_classes=True",
        )


def missing_classes(counts: Int[np.ndarray, " classes"]) -> list[str]:
    """What is weaker where no trusted input is answered with some of the classes, in a sentence; `counts` per class."""
    missing = np.flatnonzero(counts == 0)
    if not len(missing):
        return []
    some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return [
        f"No trusted input is answered with {len(missing):,} of {len(counts):,} classes ({some}): answers of these are "
        "compared with trusted ones of all classes, which sees less of what is particular to a class."
    ]


def shape_of_one(x: Any) -> tuple[int, ...] | None:
    """Shape of one input; None for token ids, whose lengths differ, and for what comes with fields."""
    return tuple(x.shape[1:]) if isinstance(x, Tensor) and x.is_floating_point() else None


def check_shape(x: Any, expected: tuple[int, ...] | None, where: str) -> None:
    """Refuses inputs of another shape than the trusted ones: a network may take them and see something else."""
    found = shape_of_one(x)
    if expected is not None and found is not None and found != expected:
        raise CovaryError(
            f"{where} holds inputs of shape {found}",
            f"{expected}, the shape of the trusted inputs",
            "prepare both in the same way",
        )


def no_gradient() -> CovaryError:
    """The error for a network whose answers no gradient leads back from."""
    return CovaryError(
        "no gradient reaches the weights: forward runs under torch.no_grad(), or detaches what it returns",
        "logits that depend on the weights",
        "take torch.no_grad() and .detach() out of forward, or choose evidence=latent",
    )


@contextmanager
def network_at_work(batch: Batch) -> Iterator[None]:
    """Whatever the network makes of a batch it was not built for, as one sentence, with the line of its own code."""
    try:
        yield
    except CovaryError:
        raise
    except Exception as problem:
        reason, line = first_line(problem), line_of(problem)
        if not line and not isinstance(problem, RuntimeError | IndexError | ValueError | NotImplementedError):
            raise  # nothing of the network's: a fault of ours
        if "out of memory" in reason.lower() or "can't allocate" in reason.lower():
            raise CovaryError(f"a batch of {len(batch)} does not fit ({reason})", "", "lower batch_size=") from problem
        if is_their_own(problem):
            raise CovaryError(f"the network's own code fails with {reason}; at {line}", "", "mend it") from problem
        leaf = tree_leaves(batch.x)[0]
        shape = tuple(leaf.shape[1:]) if isinstance(leaf, Tensor) else type(batch.x).__name__
        raise CovaryError(
            f"the network fails on inputs of shape {shape} ({reason})" + (f"; at {line}" if line else ""),
            "inputs like those it was trained on",
            "run `covary check`",
        ) from problem
