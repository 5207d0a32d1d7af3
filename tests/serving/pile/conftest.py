"""Fixtures of tests of piles."""

from __future__ import annotations

from pathlib import Path

import pytest

import pile_cases


@pytest.fixture(scope="module")
def pile(tmp_path_factory) -> str:
    """A pile of a few partitions in one .npz."""
    return pile_cases.write_npz(tmp_path_factory.mktemp("pile"))


@pytest.fixture(scope="module")
def finished(saved_folder, pile, tmp_path_factory) -> Path:
    """That pile scored without interruption; not to be changed."""
    from covary.serving.pile.score import score_pile

    out = tmp_path_factory.mktemp("whole") / "out"
    score_pile(saved_folder, pile, out, **pile_cases.SIZES)
    return out
