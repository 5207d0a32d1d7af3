"""Networks: weights in every wrapping, logits out of every output, and one clear sentence where they do not fit."""

import pickle
import sys
import warnings
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call, grad, vmap

from covary.errors import CovaryError
from covary.models.network import as_logits, load_network, select_output


class Small(nn.Sequential):
    """A network with every kind of tensor: weights, running statistics, a counter."""

    def __init__(self, channels=3):
        super().__init__(
            nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5)
        )


def trained():
    torch.manual_seed(1)
    network = Small()
    network(torch.randn(16, 3, 6, 6))  # moves the running statistics
    return network.eval()


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    (tmp_path / "their_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self): super().__init__(3, 2)\n"
        "def make(): return Net()\n"
        "ready = Net()\n"
        "def needs(width): return nn.Linear(width, 2)\n"
        "def wrong(): return 'weights'\n"
        "size = 7\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    yield tmp_path
    sys.modules.pop("their_net", None)


# Weights -------------------------------------------------------------------------------------------------------------


def prefixed(state, prefix):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


WRAPPINGS = {
    "bare": lambda s: s,
    "DataParallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "both": lambda s: prefixed(s, "module._orig_mod."),
    "checkpoint": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "nested checkpoint": lambda s: {"a": {"b": {"net": prefixed(s, "module.")}}, "best_acc": 0.9},
    "Lightning": lambda s: {"state_dict": {**prefixed(s, "model."), "loss.weight": torch.ones(5)}},
    "with EMA": lambda s: {"ema": {n: t + 1 for n, t in s.items()}, "model": s},
    "without counters": lambda s: {n: t for n, t in s.items() if not n.endswith("num_batches_tracked")},
    "with tensors of its own": lambda s: {"class_weights": torch.ones(5), "model_state_dict": s},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_in_every_wrapping(tmp_path, wrapping):
    original = trained()
    torch.save(WRAPPINGS[wrapping](original.state_dict()), tmp_path / "w.pt")
    network = load_network(Small(), tmp_path / "w.pt")
    x = torch.randn(4, 3, 6, 6)
    assert torch.equal(network.logits(x), original(x))
    assert not network.module.training
    assert str(tmp_path / "w.pt") in (network.weights_from or "")
    if wrapping != "without counters":
        assert network.fingerprint == load_network(original).fingerprint


def test_safetensors_and_the_legacy_torch_format(tmp_path):
    original = trained()
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    torch.save(original.state_dict(), tmp_path / "w.th", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "w.th"):
        assert load_network(Small(), tmp_path / name).fingerprint == load_network(original).fingerprint


def test_tied_weights_saved_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
            self.head.weight = self.embed.weight

    weight = torch.randn(7, 3)
    save_file({"embed.weight": weight}, tmp_path / "w.safetensors")
    assert torch.equal(load_network(Tied(), tmp_path / "w.safetensors").module.head.weight, weight)


def test_dtype_is_kept_and_inputs_follow(tmp_path):
    save_file({n: t.double() for n, t in trained().state_dict().items()}, tmp_path / "w.safetensors")
    assert load_network(Small(), tmp_path / "w.safetensors").dtype == torch.float32
    double = load_network(Small().double(), tmp_path / "w.safetensors")
    assert double.dtype == torch.float64
    assert double.logits(torch.randn(2, 3, 6, 6)).dtype == torch.float32


def test_wrappers_are_taken_off():
    network = trained()
    for wrapped in (nn.DataParallel(network), torch.compile(network, backend="eager")):
        found = load_network(wrapped).module
        assert type(found) is type(network)
        memory = [p.data_ptr() for p in network.parameters()]
        assert [p.data_ptr() for p in found.parameters()] == memory


def state(module: nn.Module) -> list[object]:
    """Mode and hooks of every part."""
    return [(m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in module.modules()]


def with_old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2)),
        with_old_weight_norm,
    ],
)
def test_a_module_passed_in_stays_as_it_was(make):
    module = make()
    module[1].eval()
    module[0].requires_grad_(False)
    seen = []
    module[1].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        module(torch.randn(5, 4))
    before = state(module)
    flags = [p.requires_grad for p in module.parameters()]
    network = load_network(module)
    network.module.requires_grad_(True)
    network.module[1].register_forward_hook(lambda *_: None)
    assert state(module) == before
    assert [p.requires_grad for p in module.parameters()] == flags
    assert not any(layer.training for layer in network.module.modules())
    x = torch.randn(3, 4)
    with torch.no_grad():
        module[-1].bias += 1.0  # one memory
        torch.testing.assert_close(network.logits(x), module.eval()(x))


def test_lazy_modules_get_their_shape_from_the_weights(tmp_path):
    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "w.safetensors")
    assert load_network(nn.LazyLinear(2), tmp_path / "w.safetensors").logits(torch.ones(1, 3)).shape == (1, 2)
    with pytest.raises(CovaryError, match="no shape yet"):
        load_network(nn.LazyLinear(2))


class Elsewhere:
    """An object only its own code can unpickle, and that would act if somebody did."""

    unpickled = False

    def __reduce__(self):
        return (setattr, (Elsewhere, "unpickled", True))


@pytest.mark.parametrize("how", ["module", "object in a checkpoint", "raw pickle"])
def test_foreign_pickles_are_never_executed(tmp_path, how):
    path = tmp_path / "w.pt"
    if how == "raw pickle":
        path.write_bytes(pickle.dumps({"state_dict": {}, "args": Elsewhere()}))
    else:
        torch.save(trained() if how == "module" else {"net": trained().state_dict(), "args": Elsewhere()}, path)
    with pytest.raises(CovaryError, match="Python objects besides tensors"):
        load_network(Small(), path)
    assert not Elsewhere.unpickled


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda s: {n: t for n, t in s.items() if not n.startswith("5")}, r"2 missing \(5.weight, 5.bias\)"),
        (lambda s: {**s, "head.w": torch.ones(2)}, r"1 unexpected \(head.w\); expected 9 tensors such as 0.weight"),
        (lambda s: Small(1).state_dict(), r"0.weight \(4, 1, 3, 3\) instead of \(4, 3, 3, 3\)"),
        (lambda s: {"head.0.w": torch.ones(2), "b": torch.ones(2)}, r"2 unexpected \(head.0.w, b\)"),
        (lambda s: {"a": torch.ones(2)}, r"8 missing \(0.weight, 0.bias, 1.weight and 5 more\), 1 unexpected"),
        (lambda s: {"epoch": 3}, r"no named tensors \(epoch\)"),
        (lambda s: torch.ones(3), r"no named tensors \(Tensor\)"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, state, message):
    torch.save(state(trained().state_dict()), tmp_path / "w.pt")
    module = Small()
    before = load_network(module).fingerprint
    with pytest.raises(CovaryError, match=message) as caught:
        load_network(module, tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    assert load_network(module).fingerprint == before


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_broken_weights_files(tmp_path, name, damage):
    path = tmp_path / name
    (save_file if name.endswith("tensors") else torch.save)(trained().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "text": b"not weights\n", "empty": b""}[damage])
    with pytest.raises(CovaryError, match=r"cannot be read as|is no weights file") as caught:
        load_network(Small(), path)
    assert "\n" not in str(caught.value)


def test_missing_weights_file(tmp_path):
    with pytest.raises(CovaryError, match="no weights file at"):
        load_network(Small(), tmp_path / "nowhere.pt")


# Factories -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["make", "Net", "ready"])
def test_factories(theirs, name):
    network = load_network(f"their_net:{name}")
    assert network.factory == f"their_net:{name}"
    assert network.logits(torch.ones(4, 3)).shape == (4, 2)
    assert load_network(nn.Linear(3, 2)).factory is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("their_net:needs", "failed with TypeError.*without arguments"),
        ("their_net:wrong", "returned a str; expected a torch.nn.Module"),
        ("their_net:size", "is a int; expected a function"),
        ("their_net:mak", "did you mean make"),
        ("their_net", "is not a Python name; expected package.module:attribute"),
        ("nowhere_at_all:make", "no Python module 'nowhere_at_all'"),
    ],
)
def test_bad_factories(theirs, name, message):
    with pytest.raises(CovaryError, match=message):
        load_network(name)


def test_a_module_that_fails_to_import_says_why(theirs):
    (theirs / "broken_net.py").write_text("import no_such_dependency\n")
    (theirs / "failing_net.py").write_text("1 / 0\n")
    with pytest.raises(CovaryError, match="imports 'no_such_dependency', which is not installed"):
        load_network("broken_net:make")
    with pytest.raises(CovaryError, match="importing failing_net failed with ZeroDivisionError"):
        load_network("failing_net:make")


def test_unusable_device():
    with pytest.raises(CovaryError, match="device 'nonsense' cannot be used"):
        load_network(nn.Linear(3, 2), device="nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(CovaryError, match=r"device 'cuda' cannot be used.*device=cpu"):
            load_network(nn.Linear(3, 2), device="cuda")


# Fingerprint ---------------------------------------------------------------------------------------------------------


def test_fingerprint_sees_parameters_and_buffers_and_nothing_else():
    network = trained()
    base = load_network(network).fingerprint
    assert load_network(trained()).fingerprint == base
    network.train()
    assert load_network(network).fingerprint == base
    network[1].running_var += 1e-3
    changed = load_network(network).fingerprint
    with torch.no_grad():
        network[0].bias[2] += 1e-6
    assert len({base, changed, load_network(network).fingerprint}) == 3


# Outputs -------------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([[0.5, 2.0, -1.0], [0.0, 0.0, 3.0]])
OTHER = torch.zeros(2, 8)
Pair = namedtuple("Pair", ["logits", "aux"])


@pytest.mark.parametrize(
    ("output", "selector"),
    [
        (LOGITS, None),
        ((LOGITS,), None),
        ((OTHER, LOGITS), 1),
        ([LOGITS, OTHER], 0),
        ((OTHER, LOGITS), -1),
        ({"logits": LOGITS, "hidden": OTHER}, None),
        ({"only": LOGITS}, None),
        ({"hidden": OTHER, "class": LOGITS}, "class"),
        (Pair(LOGITS, OTHER), None),
        (Pair(OTHER, LOGITS), "aux"),
        (SimpleNamespace(logits=LOGITS), None),
        (SimpleNamespace(scores=LOGITS), "scores"),
        (LOGITS[:, :, None, None], None),
        (LOGITS.half(), None),
    ],
)
def test_logits_out_of_every_output(output, selector):
    logits = as_logits(output, selector)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1)])
def test_a_single_logit_becomes_two(shape):
    z = torch.tensor([1.5, -2.0])
    assert torch.equal(as_logits(z.reshape(shape)), torch.tensor([[0, 1.5], [0, -2.0]]))


@pytest.mark.parametrize(
    ("output", "selector", "message"),
    [
        ((LOGITS, OTHER), None, r"a tuple of 2: \(2, 3\), \(2, 8\); expected a tensor of logits; name it"),
        ((LOGITS, OTHER), 2, "not 2"),
        ({"a": LOGITS, "b": OTHER}, None, "the keys a, b"),
        ({"a": LOGITS}, "b", "the keys a, not 'b'"),
        (SimpleNamespace(scores=LOGITS), None, "a SimpleNamespace"),
        ("text", None, "a str"),
        (torch.zeros(2, 3, 4), None, r"shape \(2, 3, 4\)"),
        (torch.zeros(2, 0), None, r"shape \(2, 0\)"),
    ],
)
def test_outputs_that_hold_no_logits(output, selector, message):
    with pytest.raises(CovaryError, match=message):
        as_logits(output, selector)


def test_an_index_may_come_as_text():
    class Two(nn.Module):
        def forward(self, x):
            return OTHER, LOGITS

    assert torch.equal(load_network(Two(), output="1").logits(torch.ones(2, 3)), LOGITS)
    assert torch.equal(select_output((OTHER, LOGITS), 1), LOGITS)


def test_logits_under_vmap_and_grad_agree_with_a_loop():
    module = nn.Linear(4, 1).double()
    parameters, x = dict(module.named_parameters()), torch.randn(5, 4).double()

    def observable(parameters, sample):
        logits = as_logits({"logits": functional_call(module, parameters, sample.unsqueeze(0))}, "logits")
        return logits.log_softmax(1)[0, 1]

    rows = vmap(grad(observable), in_dims=(None, 0))(parameters, x)
    for i in range(5):
        z = module(x[i : i + 1])[0, 0]
        (slow,) = torch.autograd.grad(nn.functional.logsigmoid(z), module.weight)
        torch.testing.assert_close(rows["weight"][i], slow)


def test_offloaded_weights_have_the_fingerprint_of_the_same_weights_in_memory(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    expected = load_network(module).fingerprint
    places = {"0": "disk", "1": "cpu", "2": "cpu"}
    away = accelerate.dispatch_model(module, places, offload_dir=str(tmp_path), main_device="cpu")
    assert away[0].weight.is_meta
    network = load_network(away)
    assert network.fingerprint == expected
    assert network.logits(torch.zeros(2, 4)).shape == (2, 3)
