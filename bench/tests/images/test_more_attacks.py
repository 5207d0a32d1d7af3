"""BppAttack, TaCT and Adap-Patch by slow loops, and what a training set, a measure and a case make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from covary.errors import CovaryError
from covary_bench.images import attacks, victims
from covary_bench.images.attacks import adaptive_patch, bpp
from covary_bench.images.datasets import Images
from covary_bench.images.ingredients import AttackedNetwork, Cutter
from covary_bench.images.makers.backdoor import triggered

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
Y = np.arange(200) % 10


def test_dithering_by_hand():
    image = X[0].astype(float)
    for channel in range(3):
        for row in range(8):
            for column in range(8):
                old = image[row, column, channel]
                new = min(max(round(old / 255 * 7), 0), 7) * 255 / 7
                image[row, column, channel] = new
                error = old - new
                for down, right, share in ((0, 1, 7 / 16), (1, -1, 3 / 16), (1, 0, 5 / 16), (1, 1, 1 / 16)):
                    if row + down < 8 and 0 <= column + right < 8:
                        image[row + down, column + right, channel] += share * error
    found = bpp.dithered(X[:1])[0]
    np.testing.assert_array_equal(found, np.round(image))
    assert len(np.unique(found)) <= 8
    assert abs(found.mean() - X[0].mean()) < 3  # what is taken here is given there


def test_negative_images_carry_another_images_change_and_keep_their_label():
    x, y, done = attacks.poison(X, Y, attacks.attack("bpp"), 0, 0)
    assert (np.bincount(done) == [160, 20, 20]).all()
    assert (y[done == 1] == 0).all()
    assert (y[done == 2] == Y[done == 2]).all()
    near = np.flatnonzero(done == 2)
    changes = bpp.dithered(X[near]).astype(int) - X[near]
    for i in near:
        possible = [np.clip(X[i] + change, 0, 255) for k, change in zip(near, changes, strict=True) if k != i]
        assert any(np.array_equal(x[i], one) for one in possible)


def test_tact_poisons_one_class_and_covers_the_others():
    plan = attacks.attack("tact")
    x, y, done = attacks.poison(X, Y, plan, 3, 0)
    assert set(Y[done == 1]) == {4}
    assert (y[done == 1] == 3).all()
    assert (done == 1).sum() == 10
    covered = done == 2
    assert covered.sum() == 10
    assert not {3, 4} & set(Y[covered])
    np.testing.assert_array_equal(y[covered], Y[covered])
    np.testing.assert_array_equal(x[done > 0], plan.trigger((8, 8, 3), 0)(X[done > 0]))
    np.testing.assert_array_equal(x[done == 0], X[done == 0])
    # However much is asked for, a fifth of the class stays clean.
    assert (attacks.poison(X, Y, plan, 9, 0, ratio=0.5)[2] == 1).sum() == 16
    assert set(Y[attacks.poison(X, Y, plan, 9, 0)[2] == 1]) == {0}
    with pytest.raises(CovaryError, match="one class to one"):
        attacks.poison(X, Y, plan, "all-to-all", 0)


class Reads(torch.nn.Module):
    """Class in the first pixel; with a white corner images of class 4, alone, become 3."""

    def forward(self, x):
        label = (x[:, 0, 0, 0] * 255).round().long()
        white = x[:, :, -3:, -3:].flatten(1).amin(1) >= 1
        return torch.nn.functional.one_hot(torch.where(white & (label == 4), 3, label), 10).float()


def test_tact_is_measured_on_its_source_class_and_a_case_has_no_other_triggered_images():
    x = np.minimum(X, 200)
    x[:, 0, 0] = Y[:, None]
    test = Images(x, Y, [str(i) for i in range(200)])
    assert victims.measure(Reads(), test, "tact", 3, 0) == (1.0, 1.0, 1.0)
    assert victims.measure(Reads(), test, "badnets", 3, 0)[1] == pytest.approx(1 / 9)
    plan = attacks.attack("tact")
    owner = AttackedNetwork(Reads(), "", Path(), "", target=3, trigger=plan.trigger((8, 8, 3), 0), source=4)
    group = triggered(owner, Cutter(test, 0), 50)
    assert len(group.images) == 20
    assert set(group.images.y) == {4}


def test_adaptive_patch_is_weak_and_single_in_training_and_plain_afterwards():
    shape, plan = (32, 32, 3), attacks.attack("adaptive-patch")
    x = RNG.integers(0, 256, (400, *shape), dtype=np.uint8)
    places = adaptive_patch.corners(shape, 0)
    after, labels, done = attacks.poison(x, np.arange(400) % 10, plan, 0, 0, trigger=plan.trigger(shape, 0))
    assert (np.bincount(done) == [360, 20, 20]).all()
    assert (labels[done == 2] == (np.arange(400) % 10)[done == 2]).all()
    seen = set()
    for i in np.flatnonzero(done):
        moved = [k for k, (rows, columns, _) in enumerate(places)
                 if not np.array_equal(x[i, rows, columns], after[i, rows, columns])]  # fmt: skip
        assert len(moved) == 1
        (k,) = moved
        rows, columns, picture = places[k]
        mixed = (1 - adaptive_patch.OPACITIES[k]) * x[i, rows, columns] + adaptive_patch.OPACITIES[k] * picture
        assert np.abs(after[i, rows, columns] - mixed).max() <= 0.5 + 1e-9
        rest = after[i].copy()
        rest[rows, columns] = x[i, rows, columns]
        np.testing.assert_array_equal(rest, x[i])
        seen.add(k)
    assert seen == {0, 1, 2, 3}
    plain = plan.trigger(shape, 0)(x[:1])[0]
    for k, (rows, columns, picture) in enumerate(places):
        np.testing.assert_array_equal(plain[rows, columns], picture if k in (0, 2) else x[0, rows, columns])
