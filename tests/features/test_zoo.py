"""Tiny networks of well-known kinds, from local configurations: rows and scores are those of the sample alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from covary.detector import Detector
from covary.models.network import as_logits
from networks import check

transformers = pytest.importorskip("transformers")


class Inverted(nn.Module):
    """An inverted residual block with squeeze and excitation (MobileNetV3)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.up, self.one = nn.Conv2d(c, 3 * c, 1, bias=False), nn.BatchNorm2d(3 * c)
        self.deep, self.two = nn.Conv2d(3 * c, 3 * c, 3, padding=1, groups=3 * c, bias=False), nn.BatchNorm2d(3 * c)
        self.squeeze, self.excite = nn.Conv2d(3 * c, c, 1), nn.Conv2d(c, 3 * c, 1)
        self.down, self.three = nn.Conv2d(3 * c, c, 1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.one(self.up(x)))
        y = F.hardswish(self.two(self.deep(y)))
        gate = F.hardsigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.three(self.down(y * gate))


class Encoder(nn.Module):
    """The way down of a U-Net, with what it would hand across."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.InstanceNorm2d(o, affine=True), nn.GELU())
            for i, o in ((3, 6), (6, 8), (8, 12))
        )
        self.head = nn.Linear(6 + 8 + 12, 5)

    def forward(self, x: Tensor) -> Tensor:
        across = []
        for step in self.steps:
            x = step(x)
            across.append(x.mean((2, 3)))
            x = F.avg_pool2d(x, 2)
        return self.head(torch.cat(across, 1))


class Tagger(nn.Module):
    """Tags of a sentence, read at its end, from an LSTM in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.tags = nn.Embedding(60, 12), nn.Linear(16, 5)
        self.inner = nn.LSTM(12, 8, batch_first=True, bidirectional=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.tags(self.inner(self.words(ids))[0])[:, -1]


def mobile() -> nn.Module:
    start = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Hardswish())
    return nn.Sequential(start, Inverted(8), Inverted(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def images(size: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, 3, size, size)


def texts(n: int) -> Tensor:
    return torch.randint(1, 60, (n, 9))


TINY = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 5}
ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "Swin": (
        lambda: transformers.SwinForImageClassification(
            transformers.SwinConfig(
                image_size=32, patch_size=4, embed_dim=12, depths=[2, 1], num_heads=[2, 2], window_size=4, num_labels=5
            )
        ),
        images(32),
    ),
    "ViT": (
        lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(image_size=16, patch_size=4, intermediate_size=48, **TINY)
        ),
        images(16),
    ),
    "ConvNeXt": (
        lambda: transformers.ConvNextForImageClassification(
            transformers.ConvNextConfig(num_stages=2, hidden_sizes=[12, 16], depths=[1, 1], num_labels=5)
        ),
        images(32),
    ),
    "BERT": (
        lambda: transformers.BertForSequenceClassification(
            transformers.BertConfig(intermediate_size=48, max_position_embeddings=20, **TINY)
        ),
        texts,
    ),
    "GPT-2": (
        lambda: transformers.GPT2ForSequenceClassification(
            transformers.GPT2Config(
                vocab_size=60, n_embd=24, n_layer=2, n_head=2, n_positions=20, num_labels=5, pad_token_id=0,
                bos_token_id=1, eos_token_id=2,
            )
        ),
        texts,
    ),
    "Mixtral": (
        lambda: transformers.MixtralForSequenceClassification(
            transformers.MixtralConfig(
                num_key_value_heads=2, intermediate_size=32, num_local_experts=4, pad_token_id=0, **TINY
            )
        ),
        texts,
    ),
    "LSTM tagger": (Tagger, texts),
    "MobileNet": (mobile, images(16)),
    "U-Net encoder": (Encoder, images(16)),
}  # fmt: skip


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = ZOO[name][0]().eval()
    for p in network.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=(2.0 / p[0].numel()) ** 0.5)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
    return network


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ZOO)
def test_rows_are_those_of_the_sample(name: str) -> None:
    network = made(name)
    check(network, ZOO[name][1](64), as_logits)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ZOO)
def test_scores_are_those_of_the_sample(name: str) -> None:
    network = made(name)
    detector = Detector(network, fpr=0.05, allow_missing_classes=True).fit(ZOO[name][1](60).numpy())
    fresh = ZOO[name][1](24).numpy()
    together = detector.score(fresh).score
    assert np.isfinite(together).all()
    np.testing.assert_allclose(detector.score(fresh[:7]).score, together[:7], rtol=1e-3, atol=1e-3)
    for i in (0, 23):
        np.testing.assert_allclose(detector.score(fresh[i : i + 1]).score, together[i], rtol=1e-3, atol=1e-3)
    other = fresh[:7].copy()
    other[1] = fresh[9]
    still = [0, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(detector.score(other).score[still], together[:7][still], rtol=1e-3, atol=1e-3)
