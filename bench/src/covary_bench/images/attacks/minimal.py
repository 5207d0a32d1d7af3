"""DeepFool and Carlini-Wagner, the smallest change that moves the answer, by the Adversarial Robustness Toolbox."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from covary.errors import missing_extra


def _evasion(network: nn.Module, x: Float[Tensor, "n c h w"], name: str, **settings: Any) -> Float[Tensor, "n c h w"]:
    try:
        classification = importlib.import_module("art.estimators.classification")
        evasion = importlib.import_module("art.attacks.evasion")
    except ImportError:
        raise missing_extra("adversarial-robustness-toolbox", "bench") from None
    with torch.no_grad():
        classes = network(x[:1]).shape[1]
    wrapped = classification.PyTorchClassifier(
        network, nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, clip_values=(0.0, 1.0), device_type="cpu"
    )
    found = getattr(evasion, name)(wrapped, batch_size=len(x), verbose=False, **settings).generate(x.numpy())
    return torch.from_numpy(np.asarray(found, dtype=np.float32)).clamp(0, 1)


def deepfool(
    network: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], seed: int, steps: int = 30
) -> Float[Tensor, "n c h w"]:
    """Steps to the nearest of the linearised boundaries, 2 % beyond (arXiv 1511.04599); `y` and `seed` do nothing."""
    return _evasion(network, x, "DeepFool", max_iter=steps, epsilon=0.02, nb_grads=10)


def carlini_wagner(
    network: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], seed: int, steps: int = 20, searches: int = 4
) -> Float[Tensor, "n c h w"]:
    """Smallest Euclidean change with a margin of at least 0, untargeted (arXiv 1608.04644, section VI-A).

    `searches` halvings of the constant, `steps` of gradient descent each; `y` and `seed` have no effect.
    """
    settings = {"confidence": 0.0, "learning_rate": 0.02, "initial_const": 1.0}
    return _evasion(network, x, "CarliniL2Method", max_iter=steps, binary_search_steps=searches, **settings)
