"""An adversarial attack that knows our detector: it moves the answer and keeps our own score small."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from covary_bench.images.attacks.own_profile import OwnProfile


def pgd_linf_evading(
    network: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    seed: int,
    radius: float = 8 / 255,
    step: float = 1 / 255,
    steps: int = 40,
    weight: float = 1.0,
) -> Float[Tensor, "n c h w"]:
    """Steps down max(lead + 1, 0) + `weight` * log(our score) by gradient signs, the lead being z_y - the largest of
    the others; while the answer is still the true class, of the lead alone.

    The score is `OwnProfile` of the input under the answer it gets; its reference are the clean images handed over,
    which an attacker has as well as we do. An image's lowest-scoring fooled version of all steps is kept, else its last
    one. Adaptive as in Tramèr et al. (arXiv 2002.08347).
    """
    with torch.no_grad():
        profile = OwnProfile(network, x, network(x).argmax(1), seed)
    start = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    adversarial = (x + radius * start).clamp(0, 1)
    best, lowest = adversarial.clone(), torch.full((len(x),), float("inf"))
    for turn in range(steps + 1):
        adversarial = adversarial.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = network(adversarial)
            answers = logits.detach().argmax(1)
            others = logits.scatter(1, y[:, None], float("-inf")).amax(1)
            lead = functional.relu(logits.gather(1, y[:, None])[:, 0] - others + 1)
            score = profile.score(adversarial, answers)
            fooled = answers != y
            (gradient,) = torch.autograd.grad((lead + fooled * weight * score.log()).sum(), adversarial)
        better = fooled & (score.detach() < lowest) | ~fooled & lowest.isinf()
        best[better] = adversarial.detach()[better]
        lowest = torch.where(fooled & better, score.detach(), lowest)
        if turn < steps:
            moved = adversarial.detach() - step * gradient.sign()
            adversarial = (x + (moved - x).clamp(-radius, radius)).clamp(0, 1)
    return best
