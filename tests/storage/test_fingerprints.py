"""Fingerprints change with what they stand for, and with nothing else."""

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covary.storage.fingerprints import (
    canonical_json,
    digest_arrays,
    digest_file,
    digest_json,
    digest_tensors,
    versions,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_canonical_json_is_json_and_does_not_depend_on_the_order_of_keys(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    turned = dict(reversed(value.items())) if isinstance(value, dict) else value
    assert canonical_json(turned) == text


def test_canonical_json_has_no_spaces_and_keeps_unicode():
    assert canonical_json({"b": "ü", "a": [1, 2.5]}) == '{"a":[1,2.5],"b":"ü"}'
    assert digest_json({"b": "ü"}) == hashlib.sha256('{"b":"ü"}'.encode()).hexdigest()


def test_canonical_json_refuses_what_is_no_json():
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


def test_digest_of_a_file_is_its_sha256(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(content)
    assert digest_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.arange(6.0).reshape(3, 2)},
        {"a": torch.arange(6.0).reshape(2, 3).double()},
        {"b": torch.arange(6.0).reshape(2, 3)},
        {"a": torch.arange(6.0).reshape(2, 3) + 1e-6},
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0)},
    ],
    ids=["shape", "dtype", "name", "value", "one more"],
)
def test_digest_of_tensors_changes_with_each_part(other):
    assert digest_tensors(other) != digest_tensors({"a": torch.arange(6.0).reshape(2, 3)})


def test_digest_of_tensors_depends_on_neither_order_nor_memory_layout_nor_gradients():
    a, b = torch.randn(2, 3, 4, 5), torch.randn(3).to(torch.bfloat16)
    laid_out = a.to(memory_format=torch.channels_last).requires_grad_()
    assert digest_tensors({"a": a, "b": b}) == digest_tensors({"b": b, "a": laid_out})
    assert digest_tensors({"step": torch.tensor(3)}) != digest_tensors({"step": torch.tensor(4)})


def test_digest_of_arrays_tells_shape_dtype_and_text():
    x = np.arange(4, dtype=np.uint8)
    digests = {digest_arrays({"x": v}) for v in (x, x.reshape(2, 2), x.astype(np.int8), x[::-1], np.array(["a", "b"]))}
    assert len(digests) == 5
    assert digest_arrays({"x": x[::2]}) == digest_arrays({"x": x[::2].copy()})
    assert digest_arrays({"x": x.astype(">i4")}) == digest_arrays({"x": x.astype("<i4")})


def test_versions_name_what_a_result_depends_on():
    found = versions()
    assert {"covary", "python", "torch", "numpy", "scipy", "scikit-learn", "platform"} <= set(found)
    assert found["numpy"] == np.__version__
