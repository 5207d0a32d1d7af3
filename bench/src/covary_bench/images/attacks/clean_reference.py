"""What clean inputs look like inside a network, to detectors that compare pooled activations with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from covary_bench.images.attacks.own_profile import activations_and_logits, margins_of

LEVELS, NEAREST, NEAREST_FEATURES, SHRINKAGE, SMALL = 24, 5, 10, 0.02, 1e-6
FEATURES = "last features"


def inside(network: nn.Module, x: Float[Tensor, "n c h w"]) -> tuple[dict[str, Tensor], Float[Tensor, "n classes"]]:
    """Pooled activations of every layer and what the last linear layer takes, each (n, d); the logits."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    taken: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].flatten(1)))
    try:
        rows, logits = activations_and_logits(network, x)
    finally:
        handle.remove()
    return {**rows, FEATURES: taken[0]}, logits


def quantile_gaps(odd: Float[Tensor, "a ..."], clean: Float[Tensor, "b ..."]) -> Float[Tensor, "..."]:
    """Mean squared difference of the quantiles of every column, in deviations of `clean`, which gets no gradient.

    A two-sided detector would see numbers that are all typical, so the mean or the median alone is no place to hide.
    """
    levels, clean = (torch.arange(LEVELS) + 0.5) / LEVELS, clean.detach()
    apart = torch.quantile(odd, levels, dim=0) - torch.quantile(clean, levels, dim=0)
    return (apart / clean.std(0).clamp_min(0.05)).square().mean(0)


def quantile_distance(odd: Float[Tensor, "a m"], clean: Float[Tensor, "b m"]) -> Float[Tensor, " m"]:
    """log(1 + D) of `quantile_gaps` D, so that one number does not drown the others."""
    return quantile_gaps(odd, clean).log1p()


def precision(centred: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """Inverse of the second moments, drawn to a multiple of the identity."""
    moments = centred.T @ centred / max(len(centred) - 1, 1)
    spread = moments.diagonal().mean() + SMALL
    return torch.linalg.inv((1 - SHRINKAGE) * moments + SHRINKAGE * spread * torch.eye(len(moments)))


def log_distance(centred: Float[Tensor, "*n d"], by: Float[Tensor, "d d"]) -> Float[Tensor, "*n"]:
    """Log of the squared Mahalanobis distance."""
    return ((centred @ by) * centred).sum(-1).clamp_min(SMALL).log()


@dataclass(frozen=True)
class CleanLayer:
    """One layer's clean activations, without gradient.

    Attributes:
        means, tied: of every class that was answered, and the inverse of their common covariance.
        mean, deviation, own: of inputs answered as the attacker wants; the inverse of their covariance.
        bank: those inputs' rows, standardised.
    """

    means: Float[Tensor, "k d"]
    tied: Float[Tensor, "d d"]
    mean: Float[Tensor, " d"]
    deviation: Float[Tensor, " d"]
    own: Float[Tensor, "d d"]
    bank: Float[Tensor, "m d"]

    @staticmethod
    def of(rows: Float[Tensor, "n d"], answers: Int[Tensor, " n"], mine: Float[Tensor, "m d"]) -> CleanLayer:
        """From rows of all classes with their answers, and rows answered as the attacker wants."""
        labels, place = answers.unique(return_inverse=True)
        means = torch.stack([rows[answers == label].mean(0) for label in labels])
        mean, spread = mine.mean(0), mine.std(0)
        deviation = spread + 0.1 * spread.mean() + SMALL
        own = precision(mine - mean)
        return CleanLayer(means, precision(rows - means[place]), mean, deviation, own, (mine - mean) / deviation)

    def standardised(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """In deviations of inputs answered as the attacker wants."""
        return (rows - self.mean) / self.deviation

    def numbers(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n 3"]:
        """Log distances: to the nearest class, to the attacker's class, to that class's nearest inputs."""
        nearest = log_distance(rows[:, None] - self.means[None], self.tied).amin(1)
        apart = torch.cdist(self.standardised(rows), self.bank)
        near = apart.topk(min(NEAREST, apart.shape[1]), largest=False).values.mean(1)
        return torch.stack((nearest, log_distance(rows - self.mean, self.own), near.clamp_min(SMALL).log()), dim=1)

    def moment_distance(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """log(1 + D) of the means and of the covariances, in the deviations of the attacker's class."""
        odd = self.standardised(rows)
        covariances = (torch.cov(odd.T) - torch.cov(self.bank.T)).square().sum() / odd.shape[1]
        return (odd.mean(0).square().mean().log1p() + (covariances / 4).log1p()) / 2


class CleanReference:
    """Every layer's clean activations as the network has them now.

    `x` are inputs of all classes, `mine` of the attacker's; of the latter those count that are answered so, unless
    they are too few.
    """

    def __init__(
        self, network: nn.Module, x: Float[Tensor, "n c h w"], mine: Float[Tensor, "m c h w"], target: int
    ) -> None:
        with torch.no_grad():
            (rows, logits), (own, said) = inside(network, x), inside(network, mine)
            right = answered(said, target)
            answers = logits.argmax(1)
            self.layers = {name: CleanLayer.of(part, answers, own[name][right]) for name, part in rows.items()}
            self.features = functional.normalize(rows[FEATURES], dim=1)

    def apart(self, odd: dict[str, Tensor], clean: dict[str, Tensor], own: dict[str, Tensor]) -> Float[Tensor, ""]:
        """How far triggered rows are from clean ones: mean over the layers + the worst layer once more; 0 = alike.

        Distances to the nearest class, and of the last features to their nearest neighbours of any class, are to be
        those of `clean` rows of all classes, the others those of `own` rows, of the attacker's class; the latter count
        the more the deeper a layer, because shallow ones see what is in an image and not what it is taken for.
        """
        parts = torch.stack([self._layer_distance(name, odd, clean, own) for name in self.layers])
        near = [self._nearest_features(rows[FEATURES]) for rows in (odd, clean)]
        return parts.mean() + parts.max() + quantile_distance(near[0], near[1]).mean() / 4

    def changed(self, rows: dict[str, Tensor], before: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Squared Mahalanobis length of the change of every input's rows, a column; mean over inputs and layers."""
        parts = []
        for name, layer in self.layers.items():
            change = rows[name] - before[name]
            parts.append(((change @ layer.tied) * change).mean())
        return torch.stack(parts).mean()

    def _layer_distance(self, name: str, *groups: dict[str, Tensor]) -> Float[Tensor, ""]:
        layer, depth = self.layers[name], (list(self.layers).index(name) + 1) / len(self.layers)
        odd, clean, own = (layer.numbers(rows[name]) for rows in groups)
        of_class = quantile_distance(odd[:, 1:], own[:, 1:]).mean() + layer.moment_distance(groups[0][name])
        return (quantile_distance(odd[:, :1], clean[:, :1]).mean() + depth * of_class) / 3

    def _nearest_features(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n 1"]:
        apart = torch.cdist(functional.normalize(rows, dim=1), self.features)
        return apart.kthvalue(min(NEAREST_FEATURES, apart.shape[1]), dim=1).values.clamp_min(SMALL).log()[:, None]


def confidence(logits: Float[Tensor, "n classes"], target: int) -> Float[Tensor, "n 2"]:
    """Margin of `target` and energy."""
    margin = margins_of(logits, torch.full((len(logits),), target))
    return torch.stack((margin, -logits.logsumexp(1)), dim=1)


def answered(logits: Float[Tensor, "n classes"], target: int, least: int = 8) -> Tensor:
    """Which inputs get the answer `target`; all of them where fewer than `least` do."""
    right = logits.argmax(1) == target
    return right if int(right.sum()) >= least else torch.ones(len(logits), dtype=torch.bool)
