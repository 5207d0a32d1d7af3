"""Detectors that several test modules share: of texts with a guard, and of latent evidence with its ONNX export."""

from __future__ import annotations

import pytest

LONGEST, EVERY, RATE = 6, 3, 0.2


@pytest.fixture(scope="session")
def of_texts():
    """A detector of a tiny language model's answers; not to be changed."""
    import texts
    from covary.detector import Detector

    return Detector(texts.causal(), max_new_tokens=LONGEST, judge="answer", fpr=RATE).fit(texts.records(60))


@pytest.fixture(scope="session")
def guard(of_texts):
    """A guard by it; not to be changed."""
    from covary.serving.guard import Guard

    return Guard(of_texts, every=EVERY)


@pytest.fixture(scope="session")
def latent():
    """A detector of latent evidence; not to be changed."""
    import tiny
    from covary.detector import Detector

    return Detector(tiny.trained(), evidence="latent").fit(tiny.trusted(), mean=[0.3], std=[0.5])


@pytest.fixture(scope="session")
def onnx(latent, tmp_path_factory):
    """Its folder for onnxruntime, made once: torch's exporter takes seconds to start."""
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    from covary.serving.exported.write import export

    folder = tmp_path_factory.mktemp("onnx") / "exported"
    export(latent, folder)
    return folder
