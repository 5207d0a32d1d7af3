"""A guard on disk: the same verdicts again, and a folder that is not this detector's guard is refused."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest

import texts
from covary.errors import CovaryError
from covary.serving.guard import Guard
from covary.storage import folders


@pytest.fixture(scope="module")
def kept(guard, tmp_path_factory):
    return guard.save(tmp_path_factory.mktemp("kept") / "guard")


@pytest.fixture
def folder(kept, tmp_path):
    """A copy of it to break."""
    return shutil.copytree(kept, tmp_path / "guard")


def said(one):
    watch = one.begin({"prompt": "sort : tower boat milk :"})
    watch.look()
    for token in (9, 12, 20, 33, 7):
        watch.add(token)
    watch.end()
    return watch.verdicts


def test_a_saved_guard_says_the_same(guard, of_texts, kept):
    again = Guard.load(kept, of_texts, policy="mark", fpr=0.3)
    assert (again.every, again.policy, again.fpr_in_force) == (guard.every, "mark", 0.3)
    assert np.array_equal(again.looks.highest_, guard.looks.highest_)
    pairs = zip(said(Guard.load(kept, of_texts)), said(guard), strict=True)
    assert all((a.score, a.p_value) == (b.score, b.p_value) for a, b in pairs)
    assert {file.suffix for file in kept.iterdir()} == {".json", ".safetensors"}


def test_it_is_replaced_by_a_guard_alone(guard, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CovaryError, match="not part of a guard"):
        guard.save(tmp_path)
    place = tmp_path / "guard"
    assert guard.save(guard.save(place)) == place


def rewritten(folder, **changes):
    record = json.loads((folder / "guard.json").read_text())
    kept = {name: value for name, value in record.items() if name not in ("files", "digest")}
    folders.seal(folder, {**kept, **changes}, "guard.json")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 2}, "format 2; expected format 1"),
        ({"every": 0}, "says every = '0'"),
        ({"looks": []}, "says looks = "),
        ({"detector": {"network": "another"}}, "of another detector"),
        ({"roles": {"reference 0": ["nobody"]}}, "not as covary writes it|trusted"),
    ],
)
def test_what_is_newer_or_foreign_is_refused(folder, of_texts, changes, sentence):
    rewritten(folder, **changes)
    with pytest.raises(CovaryError, match=sentence):
        Guard.load(folder, of_texts)


def test_damage_is_refused(folder, of_texts):
    raw = bytearray((folder / "rows.safetensors").read_bytes())
    raw[-5] ^= 1
    (folder / "rows.safetensors").write_bytes(raw)
    with pytest.raises(CovaryError, match="changed or damaged"):
        Guard.load(folder, of_texts)


def test_scores_that_another_installation_computes_are_refused(folder, of_texts):
    arrays = folders.read_arrays(folder / "rows.safetensors")
    arrays["highest"][0] += 1
    folders.write_arrays(folder / "rows.safetensors", arrays)
    rewritten(folder)
    with pytest.raises(CovaryError, match="computes other scores"):
        Guard.load(folder, of_texts)


def test_a_guard_of_other_trusted_texts_or_other_looks_is_refused(kept, of_texts, monkeypatch):
    with pytest.raises(CovaryError, match="looks every 3 tokens; expected every 4"):
        Guard.load(kept, of_texts, every=4)
    other = copy.copy(of_texts)
    monkeypatch.setattr(other.extractor, "trusted_tokens", texts.tokens(60))
    with pytest.raises(CovaryError, match=r"another detector \(trusted differ\)"):
        Guard.load(kept, other)
