"""Bodies of inference requests that are wrong in some way, for tests and for the load of bad ones."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-300, 300), st.floats(), st.text(max_size=8),
    st.sampled_from(["input", "UINT8", "FP32", "INT64", "BOOL", "BYTES", "NaN", "\ud800"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["name", "data", "shape", "x"]), inner, max_size=3)
    ),
    max_leaves=10,
)


def _maybe(good: Any, bad: st.SearchStrategy[Any] = VALUES) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(good), bad)


@st.composite
def tensors(draw: Any) -> dict[str, Any]:
    """An input tensor in which anything may be off."""
    shape = draw(_maybe([1, 8, 8], st.one_of(VALUES, st.lists(st.integers(-2, 2**45), max_size=10))))
    sizes = [s for s in shape if isinstance(s, int)] if isinstance(shape, list) else []
    count = 1
    for size in sizes:
        count = min(max(count * abs(size), 0), 200)
    numbers = st.lists(st.one_of(st.integers(-1, 300), st.floats()), min_size=count, max_size=count)
    tensor = {
        "name": draw(_maybe("input")),
        "datatype": draw(_maybe("UINT8", st.one_of(VALUES, st.sampled_from(["FP32", "FP16", "INT8", "UINT64"])))),
        "shape": shape,
        "data": draw(st.one_of(numbers, VALUES)),
        "parameters": draw(_maybe({}, st.one_of(VALUES, st.fixed_dictionaries({"binary_data_size": VALUES})))),
    }
    for name in draw(st.sets(st.sampled_from(sorted(tensor)), max_size=2)):
        del tensor[name]
    return tensor


@st.composite
def requests(draw: Any) -> tuple[bytes, dict[str, str]]:
    """(body, headers): bytes of any kind, JSON of any kind, or a request with something wrong in it."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        content = draw(st.binary(max_size=300))
    elif kind == 1:
        content = json.dumps(draw(VALUES)).encode()
    else:
        request: dict[str, Any] = {"inputs": draw(_maybe([draw(tensors())]))}
        if draw(st.booleans()):
            request["outputs"] = draw(_maybe([{"name": "flagged"}], st.one_of(VALUES, st.just([{"name": "evidence"}]))))
        if draw(st.booleans()):
            request["id"] = draw(VALUES)
        if draw(st.booleans()):
            request["parameters"] = draw(_maybe({"binary_data_output": True}))
        content = json.dumps(request).encode()
    headers: dict[str, str] = {}
    if draw(st.booleans()):
        cut = draw(st.one_of(st.just(len(content)), st.integers(-5, len(content) + 5)))
        headers["inference-header-content-length"] = draw(st.sampled_from([str(cut), "x", "", "1e3", "9" * 40]))
        content += draw(st.one_of(st.just(b"\x01" * 64), st.binary(max_size=80)))
    if draw(st.integers(0, 9)) == 0 and len(content) > 1:
        content = content[: draw(st.integers(0, len(content) - 1))]
    return content, headers
