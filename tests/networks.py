"""Networks drawn at random, and what their rows should be: one plain autograd and one pass for each sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from covary.features.activations import watched_layers
from covary.features.gradient import GradientExtractor
from covary.scoring.rows import Batch, Rows

CLASSES = 4
WIDTHS = (3, 6, 12)


# Blocks --------------------------------------------------------------------------------------------------------------


class Same(nn.Conv2d):
    """A convolution that pads its input itself, as ports of EfficientNet do."""

    def forward(self, input: Tensor) -> Tensor:
        pad = [k - 1 for k in self.kernel_size]
        x = F.pad(input, [pad[1] // 2, pad[1] - pad[1] // 2, pad[0] // 2, pad[0] - pad[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Doubled(nn.Linear):
    """A linear layer of another class that does something else afterwards."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * F.linear(input, self.weight, self.bias)


class ChannelNorm(nn.LayerNorm):
    """A layer normalisation over the channels of images."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Own(nn.Module):
    """Weights of a module of one's own, used functionally."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix, self.scale = nn.Parameter(torch.randn(width, width) / width**0.5), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.matrix)) * self.scale


class Positions(nn.Module):
    """A table of positions, given to a layer of its own beside what it is added to."""

    class Add(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.randn(width))

        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            return x + torch.tanh(table * self.gain)

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(length, width))
        self.add = self.Add(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.table)


class Looked(nn.Module):
    """Learned positions, looked up once for all samples."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.table, self.length = nn.Embedding(length, width), length

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.arange(self.length).unsqueeze(0))


class Learned(nn.Module):
    """Learned positions that are a parameter."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(length, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Twice(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.tanh(self.body(x)))


class Views(nn.Module):
    """Two views of every input in one batch, all samples' first view before all samples' second."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.body(torch.cat([x, x.flip(-1)])).chunk(2)
        return one + 0.5 * other


class Windows(nn.Module):
    """Quarters of every image as samples of their own."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.view(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).reshape(4 * n, c, h // 2, w // 2)
        x = self.body(x)
        c, h, w = x.shape[1:]
        return x.view(n, 2, 2, c, h, w).permute(0, 3, 1, 4, 2, 5).reshape(n, c, 2 * h, 2 * w)


class Folded(nn.Module):
    """Positions in the dimension of the samples, after or before them."""

    def __init__(self, body: nn.Module, first: bool) -> None:
        super().__init__()
        self.body, self.first = body, first

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        if self.first:
            return self.body(x.transpose(0, 1).reshape(n * t, c)).view(t, n, -1).transpose(0, 1)
        return self.body(x.reshape(n * t, c)).view(n, t, -1)


class Both(nn.Module):
    """The mean of a sequence's images under a two-dimensional body, frame by frame."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


class Attention(nn.Module):
    """Attention to itself, whose weights may be used further on."""

    def __init__(self, width: int, batch_first: bool, weights: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, 3, batch_first=batch_first)
        self.batch_first, self.weights = batch_first, weights

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.batch_first else x.transpose(0, 1)
        out, weights = self.inner(y, y, y, need_weights=self.weights)
        out = out if self.batch_first else out.transpose(0, 1)
        return x + out + (weights @ x if self.weights else 0.0)


class Recurrent(nn.Module):
    def __init__(self, kind: str, width: int, batch_first: bool, options: dict[str, Any]) -> None:
        super().__init__()
        self.inner = getattr(nn, kind)(width, width, batch_first=batch_first, **options)
        self.batch_first = batch_first
        self.out = nn.Linear(width * (2 if options.get("bidirectional") else 1), width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x if self.batch_first else x.transpose(0, 1))[0]
        return self.out(out if self.batch_first else out.transpose(0, 1))


class Routed(nn.Module):
    """Experts that see the positions sent to them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(width, 3), nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        shares = self.router(flat).softmax(-1)
        top, out = shares.argmax(-1), torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            own = (top == i).nonzero()[:, 0]
            if len(own):
                out = out.index_add(0, own, expert(flat[own]) * shares[own, i : i + 1])
        return x + out.view_as(x)


class Unused(nn.Module):
    """A head for training that the forward pass in evaluation leaves out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.used, self.auxiliary = nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.used(x)
        return x + self.auxiliary(x).mean() if self.training else x


class Grown(torch.autograd.Function):
    """A function that torch.func cannot follow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (d,), (x, w) = gradients, ctx.saved_tensors
        return d * w, (d * x).reshape(-1, w.shape[-1]).sum(0)


class OwnFunction(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return Grown.apply(x, self.weight)


class Mixing(nn.Module):
    """What a batch has in common is taken off: no sample is itself any more."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.3 * x.mean(0, keepdim=True)


class MeanOver(nn.Module):
    def __init__(self, *dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dimensions)


class Turn(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(*self.order)


class Tokens(nn.Module):
    """Token ids made of floats' ranks, so that every network of this file takes floats."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).abs() * 7).long() % self.vocabulary


# Draws ---------------------------------------------------------------------------------------------------------------

Draw = Callable[[st.SearchStrategy[Any]], Any]


def _parametrised(draw: Draw, layer: nn.Module) -> nn.Module:
    kind = draw(st.sampled_from(["none", "none", "weight", "spectral"]))
    if kind == "weight":
        return parametrizations.weight_norm(layer)
    return parametrizations.spectral_norm(layer, n_power_iterations=3) if kind == "spectral" else layer


def _bend(draw: Draw) -> nn.Module:
    return draw(st.sampled_from([nn.Tanh, nn.GELU, nn.SiLU, nn.ReLU]))()


def _image(draw: Draw, c: int, size: int, depth: int) -> nn.Module:
    """A block that keeps channels and size of images."""
    kinds = ["conv", "depthwise", "same", "norm", "bend", "channel-norm"]
    if depth:
        kinds += ["residual", "twice", "views", "windows"]
    kind = draw(st.sampled_from(kinds))
    if kind == "conv":
        mode = draw(st.sampled_from(["zeros", "reflect", "circular"]))
        bias = draw(st.booleans())
        layer = _parametrised(draw, nn.Conv2d(c, c, 3, padding=1, padding_mode=mode, bias=bias))
        # In place is allowed where nothing else needs what it changes.
        return nn.Sequential(layer, nn.ELU(inplace=True)) if draw(st.booleans()) else layer
    if kind == "depthwise":
        return nn.Conv2d(c, c, 3, padding="same", groups=c, dilation=draw(st.sampled_from([1, 2])))
    if kind == "same":
        return Same(c, c, draw(st.sampled_from([2, 3])))
    if kind == "norm":
        # No instance normalisation: of one sample PyTorch 2.13's own gradient is wrong where the gradient that comes
        # back is laid out with channels last.
        return draw(st.sampled_from([nn.BatchNorm2d, lambda c: nn.GroupNorm(3, c)]))(c)
    if kind == "channel-norm":
        return ChannelNorm(c)
    if kind == "bend":
        return _bend(draw)
    if kind == "windows" and size % 4:
        kind = "residual"
    inner = size // 2 if kind == "windows" else size
    body = nn.Sequential(_image(draw, c, inner, depth - 1), _bend(draw), _image(draw, c, inner, depth - 1))
    return {"residual": Residual, "twice": Twice, "views": Views, "windows": Windows}[kind](body)


def _sequence(draw: Draw, t: int, c: int, depth: int) -> nn.Module:
    """A block that keeps length and width of sequences."""
    kinds = ["linear", "norm", "bend", "attention", "recurrent", "own", "positions", "looked", "learned", "doubled",
             "routed", "unused", "function", "across"]  # fmt: skip
    if depth:
        kinds += ["residual", "twice", "folded"]
    kind = draw(st.sampled_from(kinds))
    if kind == "recurrent":
        options: dict[str, Any] = {"num_layers": draw(st.sampled_from([1, 2])), "bidirectional": draw(st.booleans())}
        return Recurrent(draw(st.sampled_from(["LSTM", "GRU", "RNN"])), c, draw(st.booleans()), options)
    if kind == "attention":
        return Attention(c, draw(st.booleans()), draw(st.booleans()))
    if kind == "norm":
        return draw(st.sampled_from([nn.LayerNorm, nn.RMSNorm]))(c)
    if kind == "across":
        return nn.Sequential(Turn(0, 2, 1), nn.Linear(t, t), Turn(0, 2, 1))
    if kind in ("residual", "twice", "folded"):
        if kind == "folded":
            body = nn.Sequential(nn.Linear(c, c), _bend(draw), Doubled(c, c), nn.LayerNorm(c))
            return Folded(body, draw(st.booleans()))
        body = nn.Sequential(_sequence(draw, t, c, depth - 1), _sequence(draw, t, c, depth - 1))
        return Residual(body) if kind == "residual" else Twice(body)
    return {
        "linear": lambda: _parametrised(draw, nn.Linear(c, c)), "bend": lambda: _bend(draw), "own": lambda: Own(c),
        "positions": lambda: Positions(t, c), "looked": lambda: Looked(t, c), "learned": lambda: Learned(t, c),
        "doubled": lambda: Doubled(c, c), "routed": lambda: Routed(c), "unused": lambda: Unused(c),
        "function": lambda: OwnFunction(c),
    }[kind]()  # fmt: skip


def _vector(draw: Draw, c: int) -> nn.Module:
    kinds = {
        "linear": lambda: _parametrised(draw, nn.Linear(c, c)), "norm": lambda: nn.BatchNorm1d(c),
        "own": lambda: Own(c), "unused": lambda: Unused(c), "doubled": lambda: Doubled(c, c),
        "mixing": Mixing, "bend": lambda: _bend(draw),
    }  # fmt: skip
    return kinds[draw(st.sampled_from(list(kinds)))]()


@st.composite
def networks(draw: Draw) -> tuple[nn.Module, tuple[int, ...]]:
    """A network in evaluation mode and the shape of one input."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    c = draw(st.sampled_from(WIDTHS))
    start = draw(st.sampled_from(["image", "image", "sequence", "sequence", "frames", "tokens", "bag"]))
    blocks: list[nn.Module] = []
    size, t = draw(st.sampled_from([6, 8])), draw(st.sampled_from([4, 7]))
    if start in ("image", "frames"):
        blocks = [nn.Conv2d(2, c, 3, padding=1), *(_image(draw, c, size, 2) for _ in range(draw(st.integers(1, 3))))]
        shape: tuple[int, ...] = (2, size, size)
        if start == "frames":
            blocks, shape = [Both(nn.Sequential(*blocks))], (3, *shape)
        if draw(st.booleans()):
            blocks += [nn.Conv2d(c, c, 2, stride=2), nn.Flatten(2), Turn(0, 2, 1)]
            blocks += [_sequence(draw, (size // 2) ** 2, c, 1), MeanOver(1)]
        else:
            blocks.append(MeanOver(2, 3))
    elif start == "bag":
        blocks, shape = [Tokens(11), nn.EmbeddingBag(11, c, mode=draw(st.sampled_from(["sum", "mean"])))], (t,)
    else:
        shape = (t, 5)
        first: list[nn.Module] = [nn.Linear(5, c)]
        if start == "tokens":
            shape, first = (t,), [Tokens(11), nn.Embedding(11, c, sparse=draw(st.booleans()))]
        blocks = [*first, *(_sequence(draw, t, c, 2) for _ in range(draw(st.integers(1, 3)))), MeanOver(1)]
    blocks += [_vector(draw, c) for _ in range(draw(st.integers(0, 2)))]
    network = nn.Sequential(*blocks, nn.Tanh(), nn.Linear(c, CLASSES))
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return network.eval(), shape


# What rows should be -------------------------------------------------------------------------------------------------


def extractor(network: nn.Module, choose: Callable[[Any], Tensor] = lambda out: out) -> GradientExtractor:
    return GradientExtractor(network, choose)


def rows_of(features: GradientExtractor, x: Tensor) -> Rows:
    return features.rows(Batch([str(i) for i in range(len(x))], x))


def alone(features: GradientExtractor, x: Tensor) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Compressed gradients and means of activations of each sample in a pass of its own: no vmap, no guess."""
    module, names = features.module, [name for own in features.layers.values() for name in own]
    every, watched = dict(module.named_parameters()), watched_layers(module)
    rows: dict[str, list[Tensor]] = {layer: [] for layer in features.layers}
    means: dict[str, list[Tensor]] = {layer: [] for layer in watched}
    for i in range(len(x)):
        seen: dict[str, list[Tensor]] = {layer: [] for layer in watched}

        handles = [layer.register_forward_hook(_keep(seen[name])) for name, layer in watched.items()]
        z = features.choose_logits(module(x[i : i + 1])).float()[0]
        for handle in handles:
            handle.remove()
        y = int(z.argmax())
        margin = z[y] - torch.logsumexp(torch.cat([z[:y], z[y + 1 :]]), 0)
        found = torch.autograd.grad(margin, [every[name] for name in names], allow_unused=True)
        dense = [torch.zeros_like(every[n]) if g is None else g.to_dense() for n, g in zip(names, found, strict=True)]
        gradient = dict(zip(names, dense, strict=True))
        for layer, own in features.layers.items():
            rows[layer].append(features.projections[layer]({name: gradient[name][None].float() for name in own})[0])
        for layer, calls in seen.items():
            means[layer].append(torch.stack(calls).mean(0) if calls else torch.zeros(0))
    stacked = {layer: torch.stack(own).detach().numpy() for layer, own in rows.items()}
    width = {layer: max(len(row) for row in own) for layer, own in means.items()}
    padded = {k: [row if len(row) else torch.zeros(width[k]) for row in own] for k, own in means.items() if width[k]}
    return stacked, {layer: torch.stack(own).detach().numpy() for layer, own in padded.items()}


def _keep(calls: list[Tensor]) -> Callable[..., None]:
    def hook(layer: nn.Module, _: Any, out: Any) -> None:
        calls.append(mean(layer, out[0] if isinstance(out, tuple) else out))

    return hook


def mean(layer: nn.Module, out: Tensor) -> Tensor:
    """Over everything but the channels of one sample's output."""
    second = isinstance(layer, nn.modules.conv._ConvNd | nn.modules.batchnorm._NormBase | nn.GroupNorm | ChannelNorm)
    second |= getattr(layer, "data_format", "") == "channels_first"
    out = out.detach().movedim(1, -1) if second else out.detach()
    return out.reshape(-1, out.shape[-1]).mean(0)


def far(found: np.ndarray, expected: np.ndarray, least: float = 0.0) -> float:
    """Largest distance over the largest number wanted, or over `least` where all are rounding."""
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), least, 1e-12))


def same(found: Rows, expected: Rows, limit: float = 1e-4) -> None:
    """Everything a verdict is made of, in two sets of rows of the same samples."""
    longest = max(np.abs(rows).max() for rows in expected.functional.values())
    for layer, rows in expected.functional.items():
        assert far(found.functional[layer], rows, 1e-3 * longest) < limit, f"gradient of {layer}"
    assert found.latent.keys() == expected.latent.keys()
    for layer, rows in expected.latent.items():
        assert far(found.latent[layer], rows, 1e-3) < limit, f"activation of {layer}"
    assert far(found.functional_norms, expected.functional_norms) < limit
    if expected.features is not None:
        assert far(found.features, expected.features, 1e-3) < limit
    assert (found.predicted == expected.predicted).all()
    assert far(found.observable, expected.observable, 1e-2) < limit


def check(network: nn.Module, x: Tensor, choose: Callable[[Any], Tensor] = lambda out: out) -> list[str]:
    """Rows of 64, 7 and 1 sample at a time agree, with each other and with autograd; neighbours do not move."""
    some = [0, 4, 6]
    features = extractor(network, choose)
    full = rows_of(features, x)
    gradients, means = alone(features, x[some])
    longest = max(np.abs(rows).max() for rows in gradients.values())
    for layer, rows in gradients.items():
        assert far(full.functional[layer][some], rows, 1e-3 * longest) < 1e-4, f"gradient of {layer}"
    for layer, rows in means.items():
        assert far(full.latent[layer][some], rows, 1e-3) < 1e-4, f"activation of {layer}"
    seven = rows_of(features, x[:7])
    same(full.take(np.arange(7)), seven)
    for i in some:
        same(rows_of(features, x[i : i + 1]), seven.take(np.array([i])))
    other = x[:7].clone()
    other[1] = x[9]
    still = np.array([0, 2, 3, 4, 5, 6])
    same(rows_of(features, other).take(still), seven.take(still))
    # Another extractor that meets a single sample first, as one that was loaded may.
    fresh = features.for_module(network, choose)  # the same projections
    same(rows_of(fresh, x[4:5]), seven.take(np.array([4])))
    same(rows_of(fresh, x[:7]), seven)
    return features.notes
