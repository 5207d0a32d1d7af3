"""Rows are those of the sample, whatever the network does with its batch: one network for every way found so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import networks as n
from covary.detector import Detector
from covary.errors import CovaryError
from covary.features.gradient import GradientExtractor
from covary.scoring.rows import Batch
from networks import check


class Ends(nn.Module):
    """A body, the mean over positions before the last dimension, a head."""

    def __init__(self, body: nn.Module, width: int, images: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.images = body, nn.Linear(width, 4), images

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = x.flatten(2).mean(-1) if self.images else x.flatten(1, -2).mean(1) if x.ndim > 2 else x
        return self.head(torch.tanh(x))


class Last(nn.Module):
    """A recurrent layer read by its last state."""

    def __init__(self, kind: str, batch_first: bool) -> None:
        super().__init__()
        self.inner, self.batch_first = getattr(nn, kind)(5, 6, batch_first=batch_first), batch_first

    def forward(self, x: Tensor) -> Tensor:
        states = self.inner(x if self.batch_first else x.transpose(0, 1))[1]
        return (states[0] if isinstance(states, tuple) else states)[-1]


class Outputs(Last):
    """The same read by its outputs."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x if self.batch_first else x.transpose(0, 1))[0]
        return out[:, -1] if self.batch_first else out[-1]


class EarlyExit(nn.Module):
    """Sure answers leave before the second layer, each sample by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        z = self.out(x)
        late = z.softmax(-1).max(-1).values < 0.4
        if late.any():
            z = z.index_put((late.nonzero()[:, 0],), self.out(torch.tanh(self.second(x[late]))))
        return z


class ExitTogether(nn.Module):
    """The whole batch leaves early where it is sure on average: what others are decides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        z = self.out(x)
        return z if z.softmax(-1).max(-1).values.mean() > 0.4 else self.out(torch.tanh(self.second(x)))


class Fused(nn.Module):
    """Experts whose weights are one tensor, for the positions routed to each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(width, 3), nn.Parameter(torch.randn(3, width, width) / width)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        shares = self.router(flat).softmax(-1)
        top, out = shares.argmax(-1), torch.zeros_like(flat)
        for i in range(3):
            own = (top == i).nonzero()[:, 0]
            out = out.index_add(0, own, F.linear(flat[own], self.experts[i]) * shares[own, i : i + 1])
        return x + out.view_as(x)


class Plain(nn.Module):
    """One of the two layers' weights is used functionally."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.second(x) + 0.01 * F.linear(x, self.second.weight)


IMAGE, SEQUENCE, VECTOR = (2, 8, 8), (7, 6), (5,)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "windows": (lambda: Ends(n.Windows(nn.Sequential(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6))), 6, True), IMAGE),
    "views": (lambda: Ends(n.Views(nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.GroupNorm(2, 6))), 6, True), IMAGE),
    "windows of views": (lambda: Ends(n.Views(n.Windows(nn.Conv2d(2, 6, 3, padding=1))), 6, True), IMAGE),
    "frames": (lambda: Ends(n.Both(nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6))), 6, True), (3, *IMAGE)),
    "a table as long as the batch": (lambda: Ends(n.Positions(7, 6), 6), SEQUENCE),
    "looked up for all": (lambda: Ends(n.Looked(7, 6), 6), SEQUENCE),
    "weight norm": (lambda: Ends(parametrizations.weight_norm(nn.Linear(5, 6)), 6), VECTOR),
    "weight norm of a convolution": (lambda: Ends(parametrizations.weight_norm(nn.Conv2d(2, 6, 3)), 6, True), IMAGE),
    "spectral norm": (lambda: Ends(parametrizations.spectral_norm(nn.Linear(5, 6)), 6), VECTOR),
    "early exits": (EarlyExit, VECTOR),
    "exit together": (ExitTogether, VECTOR),
    "experts": (lambda: Ends(n.Routed(6), 6), SEQUENCE),
    "fused experts": (lambda: Ends(Fused(6), 6), SEQUENCE),
    "an unused head": (lambda: Ends(n.Unused(5), 5), VECTOR),
    "sparse embedding": (lambda: Ends(nn.Sequential(n.Tokens(11), nn.Embedding(11, 6, sparse=True)), 6), (7,)),
    "sparse bag": (lambda: Ends(nn.Sequential(n.Tokens(11), nn.EmbeddingBag(11, 6, sparse=True)), 6), (7,)),
    "a function of one's own": (lambda: Ends(n.OwnFunction(6), 6), SEQUENCE),
    "attention weights": (lambda: Ends(n.Attention(6, True, True), 6), SEQUENCE),
    "attention weights, positions first": (lambda: Ends(n.Attention(6, False, True), 6), SEQUENCE),
    "same padding": (lambda: Ends(n.Same(2, 6, 3, stride=2), 6, True), IMAGE),
    "a linear subclass": (lambda: Ends(n.Doubled(5, 6), 6), VECTOR),
    "a norm over channels": (lambda: Ends(nn.Sequential(nn.Conv2d(2, 8, 1), n.ChannelNorm(8)), 8, True), IMAGE),
    "a little of a weight used functionally": (lambda: Ends(Plain(), 6), VECTOR),
    "samples that meet": (lambda: Ends(nn.Sequential(nn.Linear(5, 6), n.Mixing()), 6), VECTOR),
}  # fmt: skip
for kind in ("LSTM", "GRU", "RNN"):
    for first in (True, False):
        CASES[f"{kind} {first} outputs"] = (lambda k=kind, f=first: Ends(Outputs(k, f), 6), (7, 5))
        CASES[f"{kind} {first} state"] = (lambda k=kind, f=first: Ends(Last(k, f), 6), (7, 5))
ALONE = {"early exits", "exit together", "experts", "fused experts", "samples that meet"}
FAST = {"windows", "views", "frames", "same padding", "a linear subclass", "a norm over channels", "attention weights",
        "looked up for all", "LSTM True outputs", "GRU False state", "weight norm", "spectral norm"}  # fmt: skip


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = make().eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
    return network


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_the_sample(case: str) -> None:
    make, shape = CASES[case]
    network, x = made(make), torch.randn(64, *shape)
    notes = " ".join(check(network, x))
    assert ("samples go one by one" in notes) == (case in ALONE), notes
    assert case not in FAST or not notes
    assert ("Rows of zeros" in notes) == (case == "an unused head") or case in ALONE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["windows", "an unused head", "experts", "early exits", "LSTM False outputs"])
def test_scores_are_those_of_the_sample(case: str) -> None:
    make, shape = CASES[case]
    network, x = made(make), torch.randn(120, *shape)
    detector = Detector(network, fpr=0.05, allow_missing_classes=True).fit(x)
    fresh = torch.randn(64, *shape)
    together = detector.score(fresh).score
    assert np.isfinite(together).all()
    alone = [float(detector.score(fresh[i : i + 1]).score[0]) for i in (0, 7, 63)]
    np.testing.assert_allclose(together[[0, 7, 63]], alone, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(detector.score(fresh[:7]).score, together[:7], rtol=1e-3, atol=1e-3)


class Sure(nn.Module):
    """A forward that autograd does not see, or that draws random numbers."""

    def __init__(self, chance: bool) -> None:
        super().__init__()
        self.inner, self.chance = nn.Linear(5, 4), chance

    def forward(self, x: Tensor) -> Tensor:
        if self.chance:
            return self.inner(F.dropout(x))
        with torch.no_grad():
            return self.inner(x)


@pytest.mark.parametrize(("chance", "words"), [(True, "differently from pass to pass"), (False, "no gradient reaches")])
def test_what_cannot_be_is_refused_in_one_sentence(chance: bool, words: str) -> None:
    features = GradientExtractor(Sure(chance).eval(), lambda out: out)
    with pytest.raises(CovaryError, match=words):
        features.rows(Batch(["a", "b", "c"], torch.randn(3, 5)))


def test_complex_parameters_are_told() -> None:
    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.phase = nn.Linear(5, 4), nn.Parameter(torch.randn(4, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return (self.inner(x) * self.phase).real

    features = GradientExtractor(Wave().eval(), lambda out: out)
    assert any("complex numbers take no part: phase" in note for note in features.notes)
    assert list(features.layers) == ["inner"]


def test_batches_of_one_and_the_same_sample_are_read_too() -> None:
    network = made(CASES["windows"][0])
    x = torch.randn(1, *IMAGE)
    features: Any = n.extractor(network)
    twice = n.rows_of(features, x.expand(6, -1, -1, -1))
    once = n.rows_of(n.extractor(network), x)
    for layer, rows in once.functional.items():
        np.testing.assert_allclose(twice.functional[layer], np.repeat(rows, 6, 0), rtol=1e-4, atol=1e-5)
