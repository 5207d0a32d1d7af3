"""Records in columns: whatever is written is read back as it was, and the kept ones are shorter for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covary.errors import CovaryError
from covary_bench.columns import KEY, packed, read_packed, unpacked, write_packed

RESULTS = Path(__file__).parents[2] / "bench" / "results"
LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "a", "b c"])
ROWS = st.lists(st.dictionaries(st.sampled_from("abc"), LEAVES, min_size=1), max_size=6)
FOUND = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcdef"), inner) | ROWS
)


@given(FOUND)
def test_what_is_packed_comes_back_in_its_order(found):
    again = unpacked(json.loads(json.dumps(packed(found))))
    assert json.dumps(again) == json.dumps(found)


def test_names_stand_once(tmp_path):
    rows = [{"name": "x", "value": k} for k in range(5)] + [{"name": "y"}]
    cells = {f"c{k}": {"a": {"mean": k, "least": 0}, "b": None} for k in range(4)}
    path = tmp_path / "r.json"
    write_packed(path, {"rows": rows, "cells": cells})
    text = path.read_text("utf-8")
    assert text.count("least") == text.count("value") == 1
    assert text.count("name") == 2, "once a run of rows alike"
    assert read_packed(path) == {"rows": rows, "cells": cells}
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(CovaryError, match="a record of the benchmark"):
        read_packed(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["vision-small-deals", "sampled-small", "language-tuning", "core"])
def test_kept_records_are_shorter_in_columns(name):
    path = RESULTS / f"{name}.json"
    assert KEY in path.read_text("utf-8")
    found = read_packed(path)
    assert path.stat().st_size < 0.7 * len(json.dumps(found, separators=(",", ":")))
