"""Numbers that a pile is looked at by beyond evidence parts: which states are taken, held-out ones, equal length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from covary.scoring.pile.raw_numbers import RAW, RawNumbers, states
from covary.scoring.rows import Rows


def rows_of(n: int = 60, seed: int = 0, blocks: int = 30, at: str = "answer") -> Rows:
    rng = np.random.default_rng(seed)
    names = ["embed", *(f"blocks.{i}" for i in range(blocks))]
    kept = [f"{name} @ {where}" for name in names for where in (at, "anchor")]
    latent = {name: rng.normal(size=(n, 3)).astype(np.float32) for name in kept}
    lengths = rng.integers(5, 50, (n, 1)).astype(np.float64)
    return Rows(
        ids=[str(i) for i in range(n)], predicted=np.zeros(n, np.int64), observable=np.zeros(n), functional={},
        functional_norms=np.zeros((n, 0)), latent=latent, confidence={}, lengths=lengths,
    )  # fmt: skip


@pytest.mark.parametrize("at", ["answer", "prompt"])
@pytest.mark.parametrize(("blocks", "chosen"), [(30, "blocks.19"), (3, "blocks.1"), (1, "blocks.0")])
def test_states_are_those_at_two_thirds_of_the_depth(at, blocks, chosen):
    rows = rows_of(blocks=blocks, at=at)
    expected = np.concatenate([rows.latent[f"{chosen} @ {at}"], rows.latent[f"{chosen} @ anchor"]], axis=1)
    np.testing.assert_array_equal(states(rows), expected)


def test_what_is_no_language_model_has_no_states():
    assert states(replace(rows_of(), latent={"layer1": np.zeros((60, 3), np.float32)})) is None


def test_prompts_are_looked_at_apart():
    rows = rows_of()
    assert RAW["prompt states"](rows) is None
    asked = rows_of(seed=1, at="prompt")
    np.testing.assert_array_equal(RAW["prompt states"](replace(rows, prompt=asked)), states(asked))


def test_numbers_are_in_standard_deviations_at_equal_length():
    rows, fresh = rows_of(400), rows_of(400, seed=1)
    for part in (rows, fresh):
        longer = np.log1p(part.lengths).astype(np.float32)
        part.latent.update({name: own + 3 * longer for name, own in part.latent.items()})
    raw = RawNumbers("states").fit(rows)
    for numbers, part in ((raw(fresh), fresh), (raw.held_, rows)):
        assert np.abs(numbers.std(0) - 1).max() < 0.25
        assert max(abs(np.corrcoef(own, part.lengths[:, 0])[0, 1]) for own in numbers.T) < 0.35
    apart = RawNumbers("states").fit(replace(rows, lengths=None))(replace(fresh, lengths=None))
    assert min(abs(np.corrcoef(own, fresh.lengths[:, 0])[0, 1]) for own in apart.T) > 0.7
