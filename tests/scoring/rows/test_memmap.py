"""Rows too many for memory: mapped from files, with the same values and the same verdicts."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from covary.scoring.evidence import Explainer
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows, memmap
from covary.scoring.scores import explained


def rows(n: int, seed: int, prefix: str = "") -> Rows:
    rng = np.random.default_rng(seed)
    functional = {name: rng.standard_normal((n, 6)).astype(np.float32) for name in ("a", "b")}
    return Rows(
        ids=[f"{prefix}{seed}-{i}" for i in range(n)],
        predicted=rng.integers(0, 3, n),
        observable=rng.standard_normal(n),
        functional=functional,
        functional_norms=np.stack([np.linalg.norm(r, axis=1).astype(np.float64) for r in functional.values()], 1),
        latent={"a": rng.standard_normal((n, 4)).astype(np.float32)},
        confidence={"margin": rng.standard_normal(n), "energy": rng.standard_normal(n)},
    )


PARTS = [rows(150, seed) for seed in range(4)]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Rows:
    monkeypatch.setattr(memmap, "IN_MEMORY", 1000)
    monkeypatch.setattr(memmap, "STEP", 64)
    return Rows.gather(iter(PARTS), 600)


def same(a: Rows, b: Rows) -> None:
    assert list(a.ids) == list(b.ids)
    for kind in ("functional", "latent", "confidence"):
        for name, values in getattr(a, kind).items():
            np.testing.assert_array_equal(values, getattr(b, kind)[name])
    for name in ("predicted", "observable", "functional_norms"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_few_rows_stay_in_memory() -> None:
    few = Rows.gather(iter(PARTS), 600)
    assert not any(memmap.is_mapped(part) for part in few.functional.values())
    same(few, Rows.concatenate(PARTS))


def test_many_rows_are_mapped_with_the_same_values(large: Rows) -> None:
    assert all(memmap.is_mapped(part) for part in (*large.functional.values(), *large.latent.values()))
    same(large, Rows.concatenate(PARTS))


def test_rows_taken_from_mapped_ones_are_mapped_where_many(large: Rows) -> None:
    index = np.random.default_rng(0).permutation(600)[:300]
    many, few = large.take(index), large.take(index[:10])
    assert memmap.is_mapped(many.functional["a"])
    assert not memmap.is_mapped(few.functional["a"])
    same(many, Rows.concatenate(PARTS).take(index))
    same(few, Rows.concatenate(PARTS).take(index[:10]))


def test_verdicts_and_evidence_are_those_of_rows_in_memory(large: Rows) -> None:
    fresh = rows(20, 9, "q")
    judges = [Judge().fit(known) for known in (large, Rows.concatenate(PARTS))]
    verdicts = [judge.judge(fresh) for judge in judges]
    np.testing.assert_array_equal(verdicts[0].score, verdicts[1].score)
    np.testing.assert_array_equal(verdicts[0].p_value, verdicts[1].p_value)
    found, expected = (Explainer(judge).explain(fresh, v) for judge, v in zip(judges, verdicts, strict=True))
    for a, b in zip(found, expected, strict=True):
        assert [w.id for w in a.explained_by] == [w.id for w in b.explained_by]
        assert a.unexplained == pytest.approx(b.unexplained, abs=1e-5)


def test_the_file_is_gone_from_its_folder(large: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    array = memmap.mapped((1000, 3), np.dtype(np.float32))
    array[:] = 1
    assert os.listdir(tmp_path) == []
    assert array.sum() == 3000


def test_products_of_candidates_alone_explain_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    units = [u / np.linalg.norm(u, axis=1, keepdims=True) for u in (rng.random((40, 9)), rng.random((90, 9)))]
    full = explained.explain(*units, candidates=20)
    monkeypatch.setattr(explained, "FULL_GRAM", 10)
    few = explained.explain(*units, candidates=20)
    np.testing.assert_allclose(few.weights, full.weights, atol=1e-10)
    np.testing.assert_allclose(few.unexplained, full.unexplained, atol=1e-10)
