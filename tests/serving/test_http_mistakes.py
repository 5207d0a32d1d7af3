"""Clients' mistakes that once were the service's: each is a 400 and a sentence."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from covary.serving.http import tensors
from covary.serving.http.refusals import Refused
from served import INFER, X, body, client_of, sentence

HEADER = "inference-header-content-length"


@pytest.fixture(scope="module")
def client(fitted):
    with client_of(fitted) as client:
        yield client


@pytest.mark.parametrize("datatype", ["UINT8", "FP32", "INT64", "BOOL"])
@pytest.mark.parametrize("shape", [[0, 2**39, 2**39, 2**39], [1, 0, 2**39, 2**39, 2**39], [0] + [2**39] * 7])
def test_giant_shapes_of_nothing(client, shape, datatype):
    tensor = {"name": "input", "datatype": datatype, "shape": shape}
    message = sentence(client.post(INFER, json={"inputs": [{**tensor, "data": []}]}), 400)
    assert "multiply to at most" in message
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 0}}]}).encode()
    assert sentence(client.post(INFER, content=head, headers={HEADER: str(len(head))}), 400) == message


@pytest.mark.parametrize("digits", ["9" * 5000, "0" * 12 + "9" * 5000, "0" * 5000, "1" * 19, "-1", "+5", "٣", "", " "])
def test_lengths_that_are_none(client, digits):
    answer = client.post(INFER, json=body(X[:1]), headers={HEADER: digits.encode()})
    message = sentence(answer, 400)
    assert HEADER in message.lower()
    assert len(message) < 200


@pytest.mark.parametrize("name", ["\ud800", "a\udfffb"])
def test_half_characters_are_no_id(client, name):
    assert "half a character" in sentence(client.post(INFER, content=json.dumps(body(X[-1:], id=name))), 400)
    assert client.get("/live.json").status_code == 200
    assert client.post(INFER, json=body(X[-1:], id="\U0001f600")).status_code == 200
    assert client.get("/live.json").status_code == 200


def test_a_long_text_among_numbers_takes_no_more_memory_than_itself(client):
    """numpy would make every number as long as it: 100,000 times 400,000 bytes."""
    data = ["x" * 100_000, *[1] * 100_000]
    tracemalloc.start()
    with pytest.raises(Refused, match="other values"):
        tensors.from_json(data, "UINT8", [len(data)])
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "datatype", "message"),
    [
        ([10**30], "INT64", "beyond INT64"), ([10**400], "FP32", "beyond FP32"), ([True], "FP32", "other values"),
        ([1], "BOOL", "other values"), ([1.0], "UINT8", "other values"), ([[1], 2], "UINT8", "ragged"),
        ([2, [1]], "UINT8", "ragged"), ([[1], [2, 3]], "UINT8", "ragged"), ([[[[[[[[[[1]]]]]]]]]], "UINT8", "too deep"),
        ([2**64 - 1], "UINT64", None), ([-(2**63)], "INT64", None), ([[1, 2], [3, 4]], "FP16", None),
        ([True, False], "BOOL", None), ([1, 2.5], "FP64", None), ([], "FP32", None), ([[], []], "UINT8", None),
    ],
)  # fmt: skip
def test_numbers_as_json_has_them(data, datatype, message):
    if message is None:
        found = tensors.from_json(data, datatype, [np.array(data).size])
        np.testing.assert_array_equal(found, np.array(data, found.dtype).ravel())
    else:
        with pytest.raises(Refused, match=message):
            tensors.from_json(data, datatype, [1])
