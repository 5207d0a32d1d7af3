"""The hooks engine against the exact one, layer type by layer type."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from covary.errors import CovaryError
from covary.features.gradient import GradientExtractor
from covary.scoring.rows import Batch, Rows

N = 5


def batch(x: Tensor) -> Batch:
    return Batch([str(i) for i in range(len(x))], x)


def extractor(module: nn.Module, engine: str = "hooks", **options: object) -> GradientExtractor:
    return GradientExtractor(module, lambda out: out, engine=engine, **options)  # type: ignore[arg-type]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))


def agree(
    found: Rows, expected: Rows, norm_kinds: dict[str, str], tolerance: float = 1e-4, latent: bool = True
) -> None:
    for layer, rows in expected.functional.items():
        assert np.abs(rows).max() > 0, f"{layer}: a test that compares zeros"
        assert relative(found.functional[layer], rows) < tolerance, f"compressed gradient of {layer}"
    for layer, rows in expected.latent.items() if latent else ():
        assert relative(found.latent[layer], rows) < tolerance, f"pooled activation of {layer}"
    assert relative(found.observable, expected.observable) < tolerance
    for name, values in expected.confidence.items():
        assert relative(found.confidence[name], values) < tolerance, name
    assert (found.predicted == expected.predicted).all()
    for position, layer in enumerate(expected.functional):
        compressed = np.linalg.norm(expected.functional[layer].astype(np.float64), axis=1)
        norms = expected.functional_norms[:, position] if norm_kinds[layer] == "exact" else compressed
        assert relative(found.functional_norms[:, position], norms) < tolerance, f"{norm_kinds[layer]} norm of {layer}"


def compare(module: nn.Module, x: Tensor, notes: int = 0, latent: bool = True, **options: object) -> GradientExtractor:
    module.eval()
    fast = extractor(module, **options)
    found = fast.rows(batch(x))
    agree(found, extractor(module, "exact", **options).rows(batch(x)), fast.norm_kinds, latent=latent)
    assert len(fast.notes) == notes, fast.notes
    return fast


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    module = make()
    for layer in module.modules():
        # Statistics and scales that are not 0 and 1, so that leaving them out shows.
        if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
            for own in layer.parameters():
                nn.init.uniform_(own, 0.5, 1.5)
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(layer.running_mean, -1.0, 1.0)
                nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return module


class Head(nn.Module):
    """A body, the mean over positions, a linear layer."""

    def __init__(self, body: nn.Module, width: int, channels: int = 1) -> None:
        super().__init__()
        self.body, self.channels, self.head = body, channels, nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = x.flatten(2).mean(-1) if self.channels == 1 else x.flatten(1, -2).mean(1)
        return self.head(torch.tanh(x))


IMAGES = {
    "conv": lambda: nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 20, 3, padding=1)),
    "no-bias": lambda: nn.Sequential(nn.Conv2d(3, 24, 3, bias=False), nn.Tanh(), nn.Conv2d(24, 20, 3, bias=False)),
    "stride-dilation": lambda: nn.Sequential(
        nn.Conv2d(3, 30, 1), nn.Conv2d(30, 20, (5, 3), stride=(2, 3), padding=(4, 1), dilation=(2, 1))
    ),
    "groups": lambda: nn.Sequential(nn.Conv2d(3, 36, 3), nn.Tanh(), nn.Conv2d(36, 20, 3, groups=2, dilation=2)),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(3, 40, 1), nn.Tanh(), nn.Conv2d(40, 40, 5, groups=40)),
    "same": lambda: nn.Conv2d(3, 20, 5, padding="same", dilation=2),
    "reflect": lambda: nn.Conv2d(3, 20, 5, padding=2, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(3, 20, 5, padding=(2, 1), padding_mode="circular"),
    "batch-norm": lambda: nn.Sequential(nn.Conv2d(3, 160, 3), nn.BatchNorm2d(160), nn.ReLU(), nn.Conv2d(160, 20, 1)),
    "group-norm": lambda: nn.Sequential(nn.Conv2d(3, 20, 3), nn.GroupNorm(4, 20), nn.ReLU(), nn.Conv2d(20, 20, 3)),
    "layer-norm": lambda: nn.Sequential(nn.Conv2d(3, 20, 3), nn.LayerNorm((10, 10)), nn.Conv2d(20, 20, 3)),
    "in-place": lambda: nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(inplace=True), nn.Conv2d(24, 24, 3), nn.BatchNorm2d(24), nn.ELU(inplace=True),
        nn.Conv2d(24, 20, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_images(name: str, channels_last: bool) -> None:
    module = seeded(lambda: Head(IMAGES[name](), 40 if name == "depthwise" else 20))
    compare(module, torch.randn(N, 3, 12, 12), channels_last=channels_last)


def test_one_and_three_dimensions() -> None:
    compare(
        seeded(
            lambda: Head(nn.Sequential(nn.Conv1d(3, 40, 5, stride=2), nn.BatchNorm1d(40), nn.Conv1d(40, 20, 3)), 20)
        ),
        torch.randn(N, 3, 30),
    )
    compare(
        seeded(
            lambda: Head(nn.Sequential(nn.Conv3d(2, 12, 3, padding=1), nn.BatchNorm3d(12), nn.Conv3d(12, 20, 3)), 20)
        ),
        torch.randn(N, 2, 6, 6, 6),
    )


def test_positions() -> None:
    layers = nn.Linear(7, 40), nn.LayerNorm(40), nn.GELU(), nn.Linear(40, 300), nn.RMSNorm(300), nn.Tanh()
    compare(seeded(lambda: Head(nn.Sequential(*layers), 300, channels=-1)), torch.randn(N, 6, 7))


def test_vectors_have_exact_norms() -> None:
    module = seeded(
        lambda: nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40), nn.ReLU(inplace=True), nn.Linear(40, 5))
    )
    assert set(compare(module, torch.randn(N, 30)).norm_kinds.values()) == {"exact"}


@pytest.mark.parametrize("vocabulary", [50, 400])
def test_tokens(vocabulary: int) -> None:
    module = seeded(
        lambda: Head(nn.Sequential(nn.Embedding(vocabulary, 30, padding_idx=0), nn.Linear(30, 30), nn.Tanh()), 30, -1)
    )
    compare(module, torch.randint(0, vocabulary, (N, 9)) * torch.tensor([0, 1, 1, 1, 1, 1, 1, 1, 1]))


class TiedTwice(nn.Module):
    """An embedding whose weight also gives the logits, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(400, 40), nn.Linear(40, 40)
        self.logits = nn.Linear(40, 400, bias=False)
        self.logits.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = torch.tanh(self.mix(torch.tanh(self.mix(x))))
        return self.logits(x.mean(1))


def test_shared_weights_and_repeated_calls() -> None:
    compare(seeded(TiedTwice), torch.randint(0, 400, (N, 9)))


class Functional(nn.Module):
    """A layer whose weight is used once more behind the hooks' back, and a parameter of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.token, self.head = nn.Parameter(torch.randn(12)), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x)) + F.linear(x, self.first.weight) + self.token
        return self.head(torch.tanh(self.second(x)))


def test_what_hooks_cannot_see_is_noticed_and_exact() -> None:
    fast = compare(seeded(Functional), torch.randn(N, 12), notes=2)
    assert "token" in fast.notes[0]
    assert "first.weight" in fast.notes[1]
    assert "second" not in " ".join(fast.notes)


class PositionsFirst(nn.Module):
    """As many positions as samples, positions first: a layer that takes dimension 0 for the sample mixes samples up."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 30), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).mean(0))


def test_positions_before_samples() -> None:
    compare(seeded(PositionsFirst), torch.randn(N, N, 6))
    compare(seeded(PositionsFirst), torch.randn(N, 4, 6))


class Folded(nn.Module):
    """Positions folded into the first dimension, samples outermost or innermost."""

    def __init__(self, outermost: bool) -> None:
        super().__init__()
        self.outermost, self.inner, self.head = outermost, nn.Linear(6, 30), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        if self.outermost:
            return self.head(torch.tanh(self.inner(x.reshape(n * t, -1))).view(n, t, -1).mean(1))
        return self.head(torch.tanh(self.inner(x.transpose(0, 1).reshape(n * t, -1))).view(t, n, -1).mean(0))


def test_folded_positions() -> None:
    compare(seeded(lambda: Folded(True)), torch.randn(N, 6, 6))
    compare(seeded(lambda: Folded(False)), torch.randn(N, 6, 6))


class Attention(nn.Module):
    """Self-attention with both masks, then attention to other positions, batch first or positions first."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.itself = nn.MultiheadAttention(24, 4, batch_first=batch_first)
        self.other = nn.MultiheadAttention(24, 3, batch_first=batch_first, bias=False)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        causal = torch.triu(torch.ones(7, 7, dtype=torch.bool, device=x.device), 1)
        padding = torch.zeros(len(x), 7, dtype=torch.bool, device=x.device)
        padding[:, -1] = True
        x = x if self.batch_first else x.transpose(0, 1)
        x = x + self.itself(x, x, x, key_padding_mask=padding, attn_mask=causal)[0]
        values = torch.tanh(x)
        x = self.other(x, values, 2 * values, need_weights=False)[0]
        return self.head(torch.tanh(x.mean(1 if self.batch_first else 0)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of the exact engine
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention(batch_first: bool) -> None:
    module = seeded(lambda: Attention(batch_first))
    for attention in (module.itself, module.other):
        for name, own in attention.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(own)
    compare(module, torch.randn(N, 7, 24))
    compare(module, torch.randn(7, 7, 24))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transformer_encoder() -> None:
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, norm_first=True)
    module = seeded(lambda: Head(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 24, -1))
    compare(module, torch.randn(N, 6, 24))


class Scale(nn.Module):
    """A layer that no table knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor, shift: float = 0.0) -> Tensor:
        return torch.sigmoid(x * self.scale + shift)


class Unknown(nn.Module):
    """Layers without a rule: one of ours, a transposed convolution, a rectifier with a slope."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.slope, self.scale = nn.ConvTranspose1d(3, 8, 3), nn.PReLU(8), Scale(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.up(x))
        n, t, _ = x.shape
        return self.head(self.scale(x.reshape(n * t, -1), shift=0.3).view(n, t, -1).mean(1))


def test_layers_without_a_rule() -> None:
    compare(seeded(Unknown), torch.randn(N, 3, 10))


class Checkpointed(nn.Module):
    """The same blocks with and without activation checkpointing."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.head = nn.Linear(10, 20), nn.Linear(20, 4)
        self.block = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20), nn.ReLU(inplace=True), nn.Linear(20, 20))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        if self.reentrant is None:
            return self.head(self.block(x))
        return self.head(checkpoint(self.block, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    plain = seeded(lambda: Checkpointed(None)).eval()
    other = Checkpointed(reentrant).eval()
    other.load_state_dict(plain.state_dict())
    x, fast = torch.randn(N, 10), extractor(other)
    agree(fast.rows(batch(x)), extractor(plain, "exact").rows(batch(x)), fast.norm_kinds)
    assert not fast.notes


def test_autocast_and_half_precision() -> None:
    module = seeded(lambda: Head(IMAGES["batch-norm"](), 20)).eval()
    x = torch.randn(N, 3, 12, 12)
    expected = extractor(module, "exact").rows(batch(x))
    half = copy.deepcopy(module).to(torch.bfloat16)
    for fast, inputs in ((extractor(module, amp="bf16"), x), (extractor(half), x.bfloat16())):
        found = fast.rows(batch(inputs))
        assert not fast.notes
        for layer, rows in expected.functional.items():
            flat = (found.functional[layer] * rows).sum(1)
            lengths = np.linalg.norm(found.functional[layer], axis=1) * np.linalg.norm(rows, axis=1)
            assert (flat > 0.98 * lengths).all(), f"{layer}: directions differ beyond reduced precision"


class ChangesItsInput(nn.Module):
    """A layer's input is changed in place after the layer has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 20), nn.Linear(20, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * 1.0
        y = self.second(x)
        return self.head(y.tanh() + x.add_(1.0))


def test_an_input_changed_in_place_later_is_an_error_as_in_training() -> None:
    with pytest.raises(RuntimeError, match="inplace operation"):
        extractor(seeded(ChangesItsInput).eval()).rows(batch(torch.randn(N, 12)))


def test_the_module_is_left_as_it_was() -> None:
    module = seeded(lambda: Head(IMAGES["in-place"](), 20)).eval()
    module.body[0].weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    module.head.bias.grad = torch.ones(4)
    extractor(module).rows(batch(torch.randn(N, 3, 12, 12)))
    assert torch.equal(module.head.bias.grad, torch.ones(4))
    module.head.bias.grad = None
    assert {name: p.requires_grad for name, p in module.named_parameters()} == flags
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert not any(layer._forward_hooks for layer in module.modules())
    assert not module.training


def test_spaces_nll_and_inference_mode() -> None:
    module = seeded(lambda: Head(IMAGES["conv"](), 20))
    x = torch.randn(N, 3, 12, 12)
    compare(module, x, space="pattern:*bias", observable="nll")
    compare(module, x, space="last-layer")
    fast, expected = extractor(module), extractor(module, "exact").rows(batch(x))
    with torch.inference_mode():
        agree(fast.rows(batch(x.clone())), expected, fast.norm_kinds)
        frozen = copy.deepcopy(module)
        assert next(frozen.parameters()).is_inference()
    fast = extractor(frozen)
    agree(fast.rows(batch(x)), expected, fast.norm_kinds)


def test_grouping_into_batches_does_not_matter() -> None:
    module = seeded(lambda: Head(IMAGES["batch-norm"](), 20)).eval()
    x, fast = torch.randn(11, 3, 12, 12), extractor(module)
    together = fast.rows(batch(x))
    parts = Rows.concatenate([fast.rows(batch(x[:3])), fast.rows(batch(x[3:4])), fast.rows(batch(x[4:]))])
    agree(parts, together, dict.fromkeys(together.functional, "exact"))


def test_little_memory_means_small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = seeded(Functional).eval()
    x = torch.randn(9, 12)
    expected, roomy = extractor(module, "exact").rows(batch(x)), extractor(module)
    roomy.rows(batch(x))
    monkeypatch.setattr("covary.features.engine.fast.PASS_BYTES", {"cpu": 2000, "gpu": 0})
    fast = extractor(module)
    assert 1 <= fast._fast.samples_at_once(x) < 9
    agree(fast.rows(batch(x)), expected, fast.norm_kinds)
    monkeypatch.undo()
    # Parameters left to exact gradients come a few samples at a time too; their norms are then those of the rows.
    monkeypatch.setattr("covary.features.engine.fast.FULL_GRADIENT_BYTES", 2000)
    fast = extractor(module)
    agree(fast.rows(batch(x)), expected, fast.norm_kinds)
    assert fast.norm_kinds["first"] == "projected" != roomy.norm_kinds["first"]


def test_weights_that_come_from_disk_layer_by_layer(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    module = seeded(
        lambda: Head(nn.Sequential(nn.Linear(7, 40), nn.LayerNorm(40), nn.GELU(), nn.Linear(40, 30)), 30, -1)
    )
    module.eval()
    x = torch.randn(N, 6, 7)
    expected = extractor(module).rows(batch(x))
    places = {"body.0": "cpu", "body.1": "disk", "body.2": "cpu", "body.3": "disk", "head": "cpu"}
    away = accelerate.dispatch_model(module, places, offload_dir=str(tmp_path), main_device="cpu")
    assert away.body[3].weight.is_meta
    fast = extractor(away)
    agree(fast.rows(batch(x)), expected, fast.norm_kinds)
    assert len(fast.notes) == 1
    assert "offloaded: body.1.weight and 3 more" in fast.notes[0]


class Sloped(nn.Module):
    """A weight that no layer with a rule owns."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.slope = nn.Linear(12, 4), nn.ParameterList([nn.Parameter(torch.rand(12))])

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x * self.slope[0])


def test_offloaded_weights_without_a_rule_are_refused() -> None:
    fast = extractor(seeded(Sloped).eval())
    fast.module.slope[0] = nn.Parameter(torch.rand(12, device="meta"))
    fast._fast.hooked.forget(["slope.0"])
    with pytest.raises(CovaryError, match=r"no fast rule knows slope\.0, and its weights are offloaded"):
        fast._fast._add_unknown(torch.randn(N, 12), N, nullcontext, fast.observable)


SEVERAL = {
    "conv": (IMAGES["conv"], lambda: torch.randn(N, 3, 8, 8), 20, 1),
    "attention": (
        lambda: nn.TransformerEncoderLayer(24, 4, 48, batch_first=True),
        lambda: torch.randn(N, 5, 24),
        24,
        -1,
    ),
    "unknown": (lambda: nn.Sequential(nn.Linear(7, 12), Scale(12)), lambda: torch.randn(N, 6, 7), 12, -1),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("kind", SEVERAL)
def test_several_observables_come_out_of_one_forward_pass(kind: str) -> None:
    make, inputs, width, channels = SEVERAL[kind]
    module, x = seeded(lambda: Head(make(), width, channels)).eval(), inputs()
    fast = extractor(module)
    fast.rows(batch(x))
    passes = []
    module.head.register_forward_pre_hook(lambda *_: passes.append(1))
    found = fast.several(batch(x), ["margin", "nll"])
    assert kind == "unknown" or len(passes) == 1
    for name in ("margin", "nll"):
        expected = extractor(module, observable=name)
        agree(found[name], expected.rows(batch(x)), fast.norm_kinds)
        exact = extractor(module, "exact").several(batch(x), [name])[name]
        agree(found[name], exact, fast.norm_kinds)
    assert not np.allclose(found["margin"].observable, found["nll"].observable)
