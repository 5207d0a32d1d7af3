"""Exports: a graph in another runtime and its judge without torch give the detector's verdicts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import covary
import networks
import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.serving.exported.runtimes import OUTPUTS
from covary.serving.exported.scorer import ExportedDetector
from covary.serving.exported.write import export
from covary.storage.exported import GRAPHS, describe
from covary.storage.verify import verify_folder


def few() -> tuple[np.ndarray, np.ndarray]:
    """As many trusted digits as a detector needs."""
    x, y = tiny.trusted()
    return x[:60], y[:60]


def same(found, expected) -> None:
    """Verdicts to 1e-4 in the score, and nothing else different."""
    np.testing.assert_allclose(found.score, expected.score, atol=1e-4)
    np.testing.assert_array_equal(found.p_value, expected.p_value)
    np.testing.assert_array_equal(found.flagged, expected.flagged)
    np.testing.assert_array_equal(found.predicted, expected.predicted)
    assert list(found.parts) == ["latent", "confidence"]
    assert found.copy_of == expected.copy_of
    assert found.kind == expected.kind


def test_onnxruntime_gives_the_detectors_verdicts_in_batches_of_any_size(latent, onnx):
    x = np.concatenate([tiny.inputs()[0], tiny.trusted()[0][:3]])
    expected = latent.score(x)
    exported = ExportedDetector.load(onnx)
    for size in (1, 7, 1000):
        same(exported.score(x, batch_size=size), expected)
    assert expected.flagged.any()
    assert not expected.flagged.all()
    floats = next(latent.open(x).preprocessed().batches(1000)).x.numpy()  # mean and std are in the graph
    same(exported.score(floats), expected)
    assert exported.score(x[:2], ids=["a", "b"]).ids == ["a", "b"]


def test_batch_mates_do_not_matter(onnx):
    x = tiny.inputs()[0]
    exported = ExportedDetector.load(onnx)
    one = exported.run(x[:8])
    other = exported.run(np.concatenate([x[:4], x[-4:]]))
    for name in OUTPUTS:
        np.testing.assert_allclose(one[name][:4], other[name][:4], rtol=1e-5, atol=1e-5)
    assert {array.dtype.name for name, array in one.items() if name != "predicted"} == {"float32"}
    with torch.no_grad():
        inputs = (torch.from_numpy(x[:8]).float()[:, None] / 255 - 0.3) / 0.5
        np.testing.assert_allclose(one["logits"], tiny.trained()(inputs).numpy(), rtol=1e-4, atol=1e-4)


def test_it_judges_without_torch(latent, onnx, tmp_path):
    x = tiny.inputs()[0]
    np.save(tmp_path / "x.npy", x)
    code = f"""
import sys

class NoTorch:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "torch":
            raise ImportError(name)

sys.meta_path.insert(0, NoTorch())
import numpy as np
from covary.serving.exported.scorer import ExportedDetector
np.save("scores.npy", ExportedDetector.load({str(onnx)!r}).score(np.load("x.npy")).score)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), latent.score(x).score, atol=1e-4)


def test_whoever_runs_the_graph_has_its_numbers_judged(latent, onnx):
    x = tiny.inputs()[0]
    outputs = ExportedDetector.load(onnx).run(x)
    exported = ExportedDetector.load(onnx, graph=False)
    same(exported.judge(outputs), latent.score(x))
    with pytest.raises(CovaryError, match="loaded without its graph"):
        exported.run(x)
    with pytest.raises(CovaryError, match="no output 'latent'"):
        exported.judge({name: values for name, values in outputs.items() if name != "latent"})
    with pytest.raises(CovaryError, match="the output 'confidence' of shape"):
        exported.judge({**outputs, "confidence": outputs["confidence"][:, :1]})
    with pytest.raises(CovaryError, match="outputs of input '1' that are not finite"):
        exported.judge({**outputs, "latent": np.where(np.arange(len(x))[:, None] == 1, np.nan, outputs["latent"])})


def test_the_graph_names_no_folder_of_this_machine(onnx):
    assert str(Path(covary.__file__).parent).encode() not in (onnx / "network.onnx").read_bytes()
    assert describe(onnx)["before_the_graph"] == "pixels of uint8 divided by 255, channels first"


def test_a_folder_that_was_changed_or_is_another_is_refused(latent, onnx, tmp_path):
    assert verify_folder(onnx)["differences"] == []
    for name in ("network.onnx", "rows.safetensors", "exported.json"):
        copy = tmp_path / name
        copy.mkdir()
        for file in onnx.iterdir():
            content = bytearray(file.read_bytes())
            if file.name == name:
                content[len(content) // 2] ^= 1
            (copy / file.name).write_bytes(bytes(content))
        with pytest.raises(CovaryError, match=r"damaged"):
            ExportedDetector.load(copy)
    with pytest.raises(CovaryError, match=r"has no exported\.json"):
        ExportedDetector.load(latent.save(tmp_path / "detector"))
    with pytest.raises(CovaryError, match="not part of a"):
        export(latent, tmp_path / "detector", format="torchscript")


@pytest.mark.parametrize("format", [name for name in GRAPHS if name != "onnx"])
@pytest.mark.parametrize("pixels", [False, True])
def test_graphs_of_torch_do_the_same_once_somebody_agrees(format, pixels, latent, tmp_path):
    x = tiny.inputs()[0]
    export(latent, tmp_path / "e", format=format, pixels=pixels)
    with pytest.raises(CovaryError, match="holds a graph of torch"):
        ExportedDetector.load(tmp_path / "e")
    exported = ExportedDetector.load(tmp_path / "e", trust_code=True)
    same(exported.score(x, batch_size=9), latent.score(x))
    if pixels:
        with pytest.raises(CovaryError, match="expected uint8"):
            exported.score(x / 255)


@pytest.mark.parametrize(
    "settings",
    [
        {"per_class": True, "fpr": 0.1}, {"false_alarms": "right"}, {"conformal": "split"},
        {"score": "equal-confidence"}, {"half_rows": True}, {"observable": "nll"},
    ],
    ids=str,
)  # fmt: skip
def test_every_way_of_judging_goes_with_it(settings, tmp_path):
    x, y = tiny.trusted()
    detector = Detector(tiny.trained(), evidence="latent", **settings).fit((x[:200], y[:200]))
    export(detector, tmp_path / "e", format="torchscript")
    x = tiny.inputs()[0]
    same(ExportedDetector.load(tmp_path / "e", trust_code=True).score(x), detector.score(x))


def test_a_calibration_set_apart_goes_with_it(tmp_path):
    x, y = tiny.trusted()
    detector = Detector(tiny.trained(), evidence="latent").fit((x[:250], y[:250]), calibration=(x[250:], y[250:]))
    export(detector, tmp_path / "e", format="torchscript")
    new = tiny.inputs()[0]
    same(ExportedDetector.load(tmp_path / "e", trust_code=True).score(new), detector.score(new))


def test_networks_that_fold_and_attend(tmp_path):
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
    tokens = [nn.Conv2d(5, 6, 4, 4), nn.Flatten(2), Transposed(), networks.Attention(6, True, False), nn.LayerNorm(6)]
    folding = nn.Sequential(networks.Windows(body), *tokens, nn.Flatten(), nn.Linear(24, 4))
    x = np.random.default_rng(0).normal(size=(60, 2, 8, 8)).astype(np.float32)
    for format, module in (("pt2", folding), ("torchscript", networks.Views(folding))):
        detector = Detector(module.eval(), evidence="latent").fit(x[:40])
        export(detector, tmp_path / format, format=format)
        exported = ExportedDetector.load(tmp_path / format, trust_code=True)
        same(exported.score(x[40:], batch_size=6), detector.score(x[40:]))


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


class ByValue(nn.Module):
    """Does something else with bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny.trained()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) if float(x.sum()) < 1e9 else -self.body(x)


class Strange(nn.Module):
    """What no tracer follows: numpy in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny.trained()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(torch.from_numpy(np.sqrt(x.numpy())))


@pytest.mark.parametrize(
    ("module", "settings", "said"),
    [
        (tiny.trained, {}, "a detector of fast evidence.*expected evidence latent; fit again with evidence=latent"),
        (tiny.trained, {"evidence": "thorough"}, "a detector of thorough evidence"),
        (tiny.trained, {"estimator": "gaussian", "draws": 8, "sigma": 0.05}, "a detector of sampled evidence"),
        (tiny.trained, {"evidence": "latent", "amp": "bf16"}, "a detector in bf16; expected float32"),
        (lambda: tiny.trained().double(), {"evidence": "latent"}, "a detector in float64"),
        (ByValue, {"evidence": "latent"}, "samples cannot go in one batch"),
        (Strange, {"evidence": "latent"}, "cannot be traced into pt2"),
    ],
)
def test_what_no_graph_can_give_is_told(module, settings, said, tmp_path):
    detector = Detector(module(), **settings).fit(few())
    with pytest.raises(CovaryError, match=said):
        export(detector, tmp_path / "e", format="pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_gives_other_numbers_is_not_kept(tmp_path):
    """Traced with numpy in the middle, torchscript would take the example's numbers for constants."""
    detector = Detector(Strange(), evidence="latent").fit(few())
    with pytest.raises(CovaryError, match=r"does not run on a batch of 1|gives other numbers"):
        export(detector, tmp_path / "e", format="torchscript")
    assert list(tmp_path.iterdir()) == []


def test_other_inputs_than_the_trusted_ones_and_unknown_formats_are_told(latent, tmp_path):
    with pytest.raises(CovaryError, match="format"):
        export(latent, tmp_path / "e", format="tflite")
    rows = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    table = Detector(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), evidence="latent").fit(rows)
    with pytest.raises(CovaryError, match="pixels of inputs of shape"):
        export(table, tmp_path / "e", format="pt2", pixels=True)
    export(table, tmp_path / "e", format="torchscript")
    exported = ExportedDetector.load(tmp_path / "e", trust_code=True)
    same(exported.score(rows[:9]), table.score(rows[:9]))
    with pytest.raises(CovaryError, match="inputs of shape"):
        exported.score(rows[:, :4])
    with pytest.raises(CovaryError, match="NaN or infinity"):
        exported.score(np.full((2, 5), np.nan, np.float32))
    with pytest.raises(CovaryError, match="no input to judge"):
        exported.score(rows[:0])
