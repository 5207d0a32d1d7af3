"""Open Inference Protocol V2 over REST: a request's body to one array, verdicts to an answer's body.

https://github.com/kserve/open-inference-protocol, with the binary tensor data extension
(https://github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from covary.serving.http import tensors
from covary.serving.http.refusals import Refused

INPUT = "input"
# Computed only when a request names it.
EVIDENCE = "evidence"
OUTPUTS = ("logits", "predicted", "score", "p_value", "flagged", EVIDENCE)
# What the network itself says; all that clients get where verdicts are hidden.
NETWORK_OUTPUTS = ("logits", "predicted")
LONGEST_ID = 128
MOST_DIGITS = 18


@dataclass(frozen=True)
class InferRequest:
    """What a client asks.

    Attributes:
        id: the client's name for the request, or one made here.
        x: the inputs, (n, ...), as sent.
        outputs: names wanted, each with whether its bytes go behind the JSON; None = all but the evidence.
        binary: whether outputs that are not named one by one come as bytes.
    """

    id: str
    x: np.ndarray
    outputs: dict[str, bool] | None
    binary: bool


def parse(body: bytes, header_length: str | None, known: tuple[str, ...]) -> InferRequest:
    """A request from its body; `header_length` is the header `Inference-Header-Content-Length`, `known` the outputs.

    Raises:
        Refused: with status 400, whatever is wrong with it.
    """
    head, tail = _split(body, header_length)
    try:
        request = json.loads(head)
    except (ValueError, RecursionError) as problem:
        reason = str(problem).splitlines()[0][:120] if isinstance(problem, ValueError) else "nested too deeply"
        raise Refused(400, f"the body is no JSON ({reason})", "a V2 inference request") from None
    if not isinstance(request, dict):
        raise Refused(400, "the body is no JSON object", "a V2 inference request with `inputs`")
    name = request.get("id") or uuid.uuid4().hex
    if not isinstance(name, str) or len(name) > LONGEST_ID:
        raise Refused(400, "the id is no short string", f"at most {LONGEST_ID} characters")
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise Refused(400, "the id holds half a character", "Unicode text")
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refused(400, "`inputs` is not a list of one tensor", f"the tensor `{INPUT}`")
    outputs = _outputs(request.get("outputs"), known)
    binary = _flag(_parameters(request), "binary_data_output")
    return InferRequest(name, _input(inputs[0], tail), outputs, binary)


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    digits = header_length.isascii() and header_length.isdigit() and len(header_length) <= MOST_DIGITS
    cut = int(header_length) if digits else -1
    if not 0 <= cut <= len(body):
        raise Refused(
            400, f"Inference-Header-Content-Length is {header_length[:40]!r} for {len(body)} bytes", "the JSON's length"
        )
    return body[:cut], body[cut:]


def _input(tensor: Mapping[str, Any], tail: bytes) -> np.ndarray:
    if tensor.get("name") != INPUT:
        raise Refused(400, "the input tensor has another name", f"`{INPUT}`")
    datatype, shape = tensor.get("datatype"), tensors.shape_of(tensor.get("shape"))
    tensors.dtype_of(datatype)
    assert isinstance(datatype, str)
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        if tail:
            raise Refused(400, f"{len(tail)} bytes behind the JSON that belong to no tensor", "none")
        return tensors.from_json(tensor.get("data"), datatype, shape)
    if "data" in tensor:
        raise Refused(400, "a tensor with both `data` and `binary_data_size`", "one of them")
    if type(size) is not int or size != len(tail):
        raise Refused(400, f"{len(tail)} bytes behind the JSON", "as many as `binary_data_size` says")
    return tensors.from_bytes(tail, datatype, shape)


def _outputs(requested: Any, known: tuple[str, ...]) -> dict[str, bool] | None:
    if requested is None:
        return None
    if not isinstance(requested, list) or not all(isinstance(item, dict) for item in requested):
        raise Refused(400, "`outputs` is no list of objects", "such as [{'name': 'flagged'}]")
    found: dict[str, bool] = {}
    for item in requested:
        name = item.get("name")
        if not isinstance(name, str) or name not in known:
            raise Refused(400, f"unknown output {str(name)[:40]!r}", f"one of: {', '.join(known)}")
        parameters = _parameters(item)
        if parameters.get("classification"):
            raise Refused(400, "the classification extension is not served", "outputs without it")
        found[name] = _flag(parameters, "binary_data")
    return found


def _parameters(value: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = value.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise Refused(400, "`parameters` is no object", "names and values")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise Refused(400, f"{name} is no boolean", "true or false")
    return value


def answer(
    request: InferRequest, model: str, found: Mapping[str, np.ndarray | list[str]], parameters: Mapping[str, Any]
) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of the answer to a request; `found` holds every output that may be asked for."""
    requested = request.outputs or {name: request.binary for name in found if name != EVIDENCE}
    outputs, tail = [], []
    for name, binary in requested.items():
        values = found[name]
        shape = [len(values)] if isinstance(values, list) else list(values.shape)
        output: dict[str, Any] = {"name": name, "datatype": tensors.datatype_of(values), "shape": shape}
        if binary:
            raw = tensors.to_bytes(values)
            output["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            output["data"] = tensors.to_json(values)
        outputs.append(output)
    head = json.dumps(
        {"model_name": model, "model_version": "1", "id": request.id, "parameters": parameters, "outputs": outputs},
        separators=(",", ":"),
        allow_nan=False,
    ).encode()
    if not tail:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return b"".join([head, *tail]), headers


def model_metadata(
    name: str, input_shape: tuple[int, ...] | None, classes: int, known: tuple[str, ...]
) -> dict[str, Any]:
    """What `GET /v2/models/NAME` answers; `known` the outputs that clients may ask for."""
    inputs = [{"name": INPUT, "datatype": "INT64", "shape": [-1, -1]}]
    if input_shape is not None:
        inputs = [{"name": INPUT, "datatype": "FP32", "shape": [-1, *input_shape]}]
    outputs = [
        {"name": "logits", "datatype": "FP32", "shape": [-1, classes or -1]},
        {"name": "predicted", "datatype": "INT64", "shape": [-1]},
        {"name": "score", "datatype": "FP64", "shape": [-1]},
        {"name": "p_value", "datatype": "FP64", "shape": [-1]},
        {"name": "flagged", "datatype": "BOOL", "shape": [-1]},
        {"name": EVIDENCE, "datatype": "BYTES", "shape": [-1]},
    ]
    return {"name": name, "versions": ["1"], "platform": "covary", "inputs": inputs,
            "outputs": [output for output in outputs if output["name"] in known]}  # fmt: skip
