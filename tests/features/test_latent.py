"""Evidence latent: the activations and confidence of fast evidence, from a forward pass alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import networks
import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.features.gradient import GradientExtractor
from covary.scoring.copies import ALONE, Copies
from covary.scoring.rows import Batch
from covary.serving.monitor import Monitor


@pytest.fixture(scope="module")
def latent() -> Detector:
    return Detector(tiny.trained(), evidence="latent").fit(tiny.trusted())


def bodies() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Networks that fold, copy, attend and share."""
    torch.manual_seed(3)
    small = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU())
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)]
    text = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))
    return {
        "windows": (nn.Sequential(networks.Windows(small), *head), (2, 8, 8)),
        "views": (networks.Views(nn.Sequential(small, *head)), (2, 8, 8)),
        "positions first": (nn.Sequential(networks.Folded(text, True), nn.Flatten(), nn.Linear(30, 4)), (5, 6)),
        "attention": (
            nn.Sequential(networks.Attention(6, True, False), text, nn.Flatten(), nn.Linear(30, 4)), (5, 6)
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", bodies())
def test_rows_are_those_of_fast_evidence_without_gradients(kind):
    module, shape = bodies()[kind]
    x = torch.randn(9, *shape)
    ids = [str(i) for i in range(len(x))]
    one, other = (
        GradientExtractor(module.eval(), lambda out: out, latent=latent).rows(Batch(ids, x)) for latent in (False, True)
    )
    assert (other.functional, other.functional_norms.shape) == ({}, (9, 0))
    networks.same(replace(other, functional=one.functional, functional_norms=one.functional_norms), one)
    seven = GradientExtractor(module, lambda out: out, latent=True).rows(Batch(ids[2:], x[2:]))
    for layer, rows in seven.latent.items():
        assert networks.far(rows, other.latent[layer][2:], 1e-3) < 1e-5, layer


def test_no_backward_pass_is_made(latent, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.Tensor, "backward", never)
    monkeypatch.setattr(torch.autograd, "grad", never)
    verdicts = latent.score(tiny.inputs()[0])
    assert list(verdicts.parts) == ["latent", "confidence"]
    truth = tiny.inputs()[2]
    assert verdicts.flagged[truth == 1].mean() > 0.9
    assert verdicts.flagged[truth == 0].mean() < 0.1


def test_a_network_whose_answers_no_gradient_leads_back_from_will_do():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny.trained()

        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    with pytest.raises(CovaryError, match="no gradient reaches"):
        Detector(Frozen()).fit(tiny.trusted())
    detector = Detector(Frozen(), evidence="latent").fit(tiny.trusted())
    assert not [f for f in detector.check(tiny.inputs()[0], tiny.trusted()).findings if f.level == "error"]


def test_evidence_says_what_is_missing_and_explains_by_activations(latent):
    assert any("forward pass alone" in note for note in latent.extractor.notes)
    x = tiny.inputs()[0][-3:]
    for evidence in latent.explain(x):
        assert list(evidence.layers) == ["latent"]
        assert evidence.least_explained_layer in latent.trusted_rows.latent
        assert evidence.explained_by
    assert "pile latent" in latent.score(tiny.inputs()[0], together=True).parts
    with pytest.raises(CovaryError, match="couplings of rows without gradients"):
        Detector(tiny.trained(), score="class-max").fit_rows(latent.trusted_rows).judge.judge(latent.trusted_rows)


def test_a_saved_one_gives_the_same_verdicts(latent, tmp_path):
    x = tiny.inputs()[0]
    again = Detector.load(latent.save(tmp_path / "detector"), tiny.trained())
    np.testing.assert_array_equal(again.score(x).score, latent.score(x).score)
    assert again.settings == latent.settings


def test_a_monitor_takes_outputs_and_rows_from_one_pass(latent):
    x = next(latent.open(tiny.inputs()[0]).batches(40)).x
    monitor = Monitor(latent)
    monitor(x)
    calls: list[nn.Module] = []
    for module in (monitor._pass.extractor.module, latent.network.module):
        module.register_forward_hook(lambda m, *_: calls.append(m))
    outputs, verdicts = monitor(x)
    assert calls == [monitor._pass.extractor.module]
    with torch.no_grad():
        assert torch.equal(outputs, tiny.trained()(x))
    np.testing.assert_allclose(verdicts.score, latent.score(tiny.inputs()[0]).score[:40], rtol=1e-4)


def test_only_the_same_input_is_a_copy_without_gradients(latent):
    x = tiny.trusted()[0][:4]
    assert latent.score(x).copy_of == ["0", "1", "2", "3"]
    near = np.clip(x.astype(int) + np.indices((8, 8)).sum(0) % 2, 0, 255).astype(np.uint8)
    assert latent.score(near).copy_of == [""] * 4
    rows = latent.trusted_rows
    assert Copies().fit(rows).limits_["latent"] <= ALONE


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"preconditioner": "diagonal"}, "preconditioner diagonal beside evidence latent"),
        ({"engine": "exact"}, "engine exact beside evidence latent"),
        ({"score": "class-max"}, "the score class-max beside evidence latent"),
        ({"observable": "test_latent:own"}, "evidence latent without the network's own classes"),
        ({"estimator": "gaussian"}, "evidence says nothing to the estimator gaussian"),
    ],
)
def test_what_needs_gradients_is_refused(settings, said, monkeypatch):
    monkeypatch.setattr("covary.detector.load_object", lambda *_: own)
    with pytest.raises(CovaryError, match=said):
        Detector(tiny.trained(), evidence="latent", **settings)


def own(parameters, buffers, x):
    """Any number an input."""
    return x.flatten(1).sum(1)


def test_a_network_without_layers_to_read_is_told():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T

    with pytest.raises(CovaryError, match="without a convolution, normalisation"):
        Detector(Bare(), evidence="latent")
