"""The examples for other servers, driven as the servers do."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny

EXAMPLES = Path(__file__).parents[2] / "examples"


class Tensor:
    """As `pb_utils.Tensor`, which lives in the server alone."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values


class TritonError(Exception):
    """As `pb_utils.TritonError`."""

    def message(self) -> str:
        return str(self)


class InferenceResponse:
    """As `pb_utils.InferenceResponse`."""

    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self._tensors, self._error = output_tensors, error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Request:
    """As `pb_utils.InferenceRequest`."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors

    def inputs(self) -> tuple[Tensor, ...]:
        return self._tensors


def module_of(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tritons_python_backend_answers_and_judges(latent, onnx, monkeypatch):
    utils = types.ModuleType("triton_python_backend_utils")
    for stand_in in (Tensor, TritonError, InferenceResponse):
        setattr(utils, stand_in.__name__, stand_in)
    vars(utils)["get_input_tensor_by_name"] = lambda request, name: next(
        (tensor for tensor in request.inputs() if tensor.name() == name), None
    )
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    place = EXAMPLES / "triton" / "covary"
    model = module_of(place / "1" / "model.py", "triton_model").TritonPythonModel()
    model.initialize({"model_config": json.dumps({"parameters": {"exported": {"string_value": str(onnx)}}})})
    x = tiny.inputs()[0]
    floats = x[:, None].astype(np.float32) / 255
    requests = [floats[:3], floats[:2, :, :4], floats[3:4], floats[-5:]]
    responses = model.execute([Request(Tensor("inputs", own)) for own in requests])
    assert [response.has_error() for response in responses] == [False, True, False, False]
    assert "inputs of shape (2, 1, 4, 8)" in responses[1].error().message()
    named = re.findall(r'name: "(\w+)", data_type: TYPE_(\w+)', (place / "config.pbtxt").read_text())[1:]
    kinds = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_}
    for response, some in ((responses[0], slice(0, 3)), (responses[2], slice(3, 4)), (responses[3], slice(-5, None))):
        found = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        assert [(name, values.dtype) for name, values in found.items()] == [(n, np.dtype(kinds[k])) for n, k in named]
        expected = latent.score(x[some])
        np.testing.assert_allclose(found["score"][:, 0], expected.score, atol=1e-4)
        assert (found["flagged"][:, 0] == expected.flagged).all()
        assert found["logits"].shape == (len(expected), 10)


def test_kserves_model_answers_and_judges(latent, onnx):
    """By the real package where it is installed: it asks for older packages than covary's tests do."""
    kserve = pytest.importorskip("kserve", reason="kserve 0.21 and the versions in constraints.txt exclude each other")
    x = tiny.inputs()[0][-6:]
    floats = x[:, None].astype(np.float32) / 255
    asked = kserve.InferInput(name="inputs", shape=list(floats.shape), datatype="FP32")
    asked.set_data_from_numpy(floats, binary_data=False)
    model = module_of(EXAMPLES / "kserve" / "model.py", "kserve_model").Covary("covary", str(onnx))
    answer = model.predict(kserve.InferRequest(model_name="covary", infer_inputs=[asked]))
    found = {output.name: output.as_numpy() for output in answer.outputs}
    np.testing.assert_allclose(found["score"], latent.score(x).score, atol=1e-4)
    assert found["flagged"].any()
