"""Per-sample gradients against a loop of autograd, one sample at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from covary.features.exact import exact_gradients
from covary.features.observables import OBSERVABLES

# torch says that attention runs slower under vmap; it is right either way.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
N = 4


class SharedWeights(nn.Module):
    """One linear map applied twice, and an output layer that shares its weights with the input layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.body = nn.Linear(6, 6)
        self.out = nn.Linear(5, 6)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(torch.tanh(self.body(self.embed(x)))))
        return h @ self.out.weight + self.out.bias[:5]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = x + self.attention(x, x, x, need_weights=False)[0]
        return {"features": h, "logits": self.head(self.norm(h).mean(1))}


def cnn() -> tuple[nn.Module, Tensor]:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )
    # Running statistics far from 0 and 1, so that train mode would show.
    module.train()
    for _ in range(5):
        module(torch.randn(16, 2, 7, 7) * 2 + 1)
    return module, torch.randn(N, 2, 7, 7)


def layer_norm_mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4)), torch.randn(N, 6)


def shared() -> tuple[nn.Module, Tensor]:
    return SharedWeights(), torch.randn(N, 5)


def attention() -> tuple[nn.Module, Tensor]:
    return Attention(), torch.randn(N, 5, 6)


NETWORKS = [cnn, layer_norm_mlp, shared, attention]


def logits_of(output: Tensor | dict[str, Tensor]) -> Tensor:
    return output["logits"] if isinstance(output, dict) else output


def slow_observable(name: str, z: Tensor, y: int) -> Tensor:
    """From softmax in double precision, not from the package's own formula."""
    log_p = torch.log_softmax(z.double(), 0)
    if name == "nll":
        return -log_p[y]
    return log_p[y] - torch.log1p(-log_p[y].exp())


def build(make, seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    module, x = make()
    return module.eval(), x


@pytest.mark.parametrize("vectorised", [True, False])
@pytest.mark.parametrize("name", ["margin", "nll"])
@pytest.mark.parametrize("make", NETWORKS)
def test_gradients_are_those_of_a_loop_of_autograd(make, name, vectorised):
    module, x = build(make)
    parameters = dict(module.named_parameters())
    before = {key: value.clone() for key, value in module.state_dict().items()}
    found = exact_gradients(
        module, list(parameters), x, observable=OBSERVABLES[name], choose_logits=logits_of, vectorised=vectorised
    )
    assert set(found.parameters) == set(parameters)
    for i in range(N):
        z = logits_of(module(x[i : i + 1]))[0]
        y = int(z.argmax())
        value = slow_observable(name, z, y)
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        assert int(found.predicted[i]) == y
        assert found.observable[i].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6)
        assert found.logits is not None
        torch.testing.assert_close(found.logits[i], z.detach(), rtol=1e-4, atol=1e-5)
        for key, gradient in zip(parameters, gradients, strict=True):
            expected = torch.zeros_like(parameters[key]) if gradient is None else gradient
            scale = max(float(expected.abs().max()), 1e-3)
            difference = float((found.parameters[key][i] - expected).abs().max())
            assert difference < 1e-4 * scale, f"{key}: off by {difference:.2e} of {scale:.2e}"
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} moved: BatchNorm statistics or weights were written to"


def test_shared_weights_collect_both_paths():
    module, x = build(shared)
    assert isinstance(module, SharedWeights)
    found = exact_gradients(
        module, ["embed.weight"], x, observable=OBSERVABLES["margin"], choose_logits=logits_of
    ).parameters["embed.weight"]
    alone = SharedWeights()
    alone.load_state_dict(module.state_dict())
    alone.out.weight = nn.Parameter(module.embed.weight.detach().clone())
    one_path = exact_gradients(
        alone.eval(), ["embed.weight"], x, observable=OBSERVABLES["margin"], choose_logits=logits_of
    ).parameters["embed.weight"]
    assert (found - one_path).abs().max() > 0.01, "the second use of the shared weight counts too"


def test_a_subset_of_parameters_gives_the_same_gradients():
    module, x = build(cnn)
    every = exact_gradients(
        module, [n for n, _ in module.named_parameters()], x, observable=OBSERVABLES["margin"], choose_logits=logits_of
    )
    some = exact_gradients(module, ["8.weight"], x, observable=OBSERVABLES["margin"], choose_logits=logits_of)
    assert set(some.parameters) == {"8.weight"}
    torch.testing.assert_close(some.parameters["8.weight"], every.parameters["8.weight"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vectorised", [True, False])
def test_a_users_own_observable(vectorised):
    module, x = build(layer_norm_mlp)

    def mean_square(parameters, buffers, batch):
        return torch.func.functional_call(module, ({**parameters}, {**buffers}), (batch,)).square().mean(-1)

    found = exact_gradients(module, ["0.weight", "3.bias"], x, user_observable=mean_square, vectorised=vectorised)
    assert found.logits is None
    assert found.predicted.tolist() == [0] * N
    for i in range(N):
        value = module(x[i]).square().mean()
        for key in ("0.weight", "3.bias"):
            expected = torch.autograd.grad(value, module.get_parameter(key), retain_graph=True)[0]
            torch.testing.assert_close(found.parameters[key][i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", NETWORKS)
def test_activations_come_from_the_same_pass(make):
    module, x = build(make)
    names = [name for name, _ in module.named_parameters()]
    found = exact_gradients(module, names, x, observable=OBSERVABLES["margin"], choose_logits=logits_of).activations
    single = [
        exact_gradients(
            module, names, x[i : i + 1], observable=OBSERVABLES["margin"], choose_logits=logits_of, vectorised=False
        ).activations
        for i in range(N)
    ]
    assert found
    for layer, rows in found.items():
        torch.testing.assert_close(rows, torch.cat([s[layer] for s in single]), rtol=1e-4, atol=1e-5)
    if make is cnn:
        first = module[0](x).detach().mean((2, 3))
        torch.testing.assert_close(found["0"], first, rtol=1e-4, atol=1e-5)
