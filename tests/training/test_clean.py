"""A poisoned training set cleaned: who goes, who stays, who is told apart, and the files that say so."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.storage.verify import verify_folder
from covary.training import Cleaned, clean
from covary.training.cleaned import contradiction, label_p_values

N, POISONED, SEEN = 600, 60, 300
FLIPPED = np.arange(500, 512)
RATE = 0.02


@pytest.fixture(scope="module")
def poisoned() -> tuple[np.ndarray, np.ndarray, nn.Module]:
    """Digits of which the first tenth carry a white corner and the label 0, and a network trained on them."""
    x, y = (array[:N].copy() for array in tiny.images())
    x[:POISONED, 6:, 6:], y[:POISONED] = 255, 0
    torch.manual_seed(0)
    model = tiny.network().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    inputs, targets = torch.from_numpy(x).float().div(255).unsqueeze(1), torch.from_numpy(y)
    for _ in range(15):
        for some in torch.randperm(N).split(32):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(inputs[some]), targets[some]).backward()
            optimiser.step()
    return x, y, model.eval()


@pytest.fixture(scope="module")
def names() -> list[str]:
    return [f"train/{i:03}" for i in range(N)]


@pytest.fixture(scope="module")
def detector(poisoned, names) -> Detector:
    """Fitted on clean training samples that somebody has looked at."""
    x, y, model = poisoned
    seen = slice(POISONED, POISONED + SEEN)
    return Detector(model, conformal="split").fit((x[seen], y[seen]), ids=names[seen])


@pytest.fixture(scope="module")
def cleaned(detector, poisoned, names) -> Cleaned:
    """Some labels are wrong that were right in training."""
    x, y, _ = poisoned
    y = y.copy()
    y[FLIPPED] = (y[FLIPPED] + 1) % 10
    return clean(detector, (x, y), ids=names, remove_at=RATE)


def test_poison_goes_and_clean_samples_stay(cleaned):
    assert cleaned.remove[:POISONED].mean() >= 0.95
    assert not cleaned.remove[POISONED : POISONED + SEEN].any(), "trusted samples are copies of themselves"
    assert cleaned.remove[POISONED + SEEN :].mean() <= 0.04
    assert np.array_equal(cleaned.keep, ~cleaned.remove)


def test_a_label_that_the_network_contradicts_is_told_apart_and_kept(cleaned):
    found = np.flatnonzero(cleaned.mislabelled)
    assert len(np.intersect1d(found, FLIPPED)) >= 10
    assert len(found) <= 14
    assert not (cleaned.mislabelled & cleaned.remove).any()


def test_labels_change_no_score(detector, poisoned, names, cleaned):
    x, _, _ = poisoned
    without = clean(detector, x, ids=names, remove_at=RATE)
    assert np.array_equal(without.score, cleaned.score)
    assert np.array_equal(without.remove, cleaned.remove)
    assert not without.mislabelled.any()
    assert without.label is None


def test_a_run_holds_the_same_decisions_whole(detector, poisoned, names, cleaned, tmp_path):
    x, y, _ = poisoned
    y = y.copy()
    y[FLIPPED] = (y[FLIPPED] + 1) % 10
    written = clean(detector, (x, y), ids=names, remove_at=RATE, drop_mislabelled=True, out=tmp_path / "run")
    assert np.array_equal(written.odd, cleaned.odd)
    assert np.array_equal(written.mislabelled, cleaned.mislabelled)
    assert np.array_equal(written.card, cleaned.card)
    keep, remove, mislabelled = (
        (tmp_path / "run" / f"{name}.txt").read_text().splitlines() for name in ("keep", "remove", "mislabelled")
    )
    assert sorted(keep + remove) == names
    assert set(mislabelled) <= set(remove)
    assert remove == [name for name, gone in zip(names, written.remove, strict=True) if gone]
    with open(tmp_path / "run" / "clean.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == names
    assert {row["reason"] for row in rows if row["decision"] == "remove"} == {"odd mechanism", "mislabelled"}
    assert rows[FLIPPED[0]]["label"] == str(y[FLIPPED[0]])
    record = json.loads((tmp_path / "run" / "clean.json").read_text())
    assert (record["n_keep"], record["n_remove"]) == (len(keep), len(remove))
    assert verify_folder(tmp_path / "run")["differences"] == []


def test_nothing_half_written_stays(detector, poisoned, tmp_path, monkeypatch):
    def broken(self, folder):
        (folder / "keep.txt").write_text("half")
        raise RuntimeError("power went out")

    monkeypatch.setattr(Cleaned, "write", broken)
    with pytest.raises(RuntimeError, match="power"):
        clean(detector, poisoned[0][:30], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cards_decide_where_that_is_asked_for(cleaned):
    by_cards = replace(cleaned, by_cards=True)
    assert np.array_equal(by_cards.remove, np.isin(by_cards.card, by_cards.attack_cards))
    assert by_cards.remove[:POISONED].mean() >= 0.9


def test_a_score_that_knows_no_piles_judges_samples_alone(poisoned):
    x, y, model = poisoned
    seen = slice(POISONED, POISONED + SEEN)
    alone = Detector(model, score="class-max", conformal="split").fit((x[seen], y[seen]))
    verdicts = alone.score(x)
    assert np.array_equal(clean(alone, x, remove_at=0.05).remove, verdicts.p_value <= 0.05)
    with pytest.raises(CovaryError, match="cards of the score 'class-max'"):
        clean(alone, x, cards=True)


def test_trusted_samples_without_labels_test_none(poisoned):
    x, y, model = poisoned
    found = clean(Detector(model, conformal="split").fit(x[POISONED : POISONED + 60]), (x[:90], y[:90]))
    assert found.label_p is None
    assert found.statements == [
        "18 calibration samples cannot resolve a false-alarm rate of 0.01: the smallest is 0.05263, which is used. "
        "For 0.01, calibrate on at least 99 samples.",
        "Labels are not tested: trusted samples have none.",
    ]


def test_refusals(detector, poisoned):
    x, _, model = poisoned
    with pytest.raises(CovaryError, match=r"remove_at is 1\.0"):
        clean(detector, x, remove_at=1.0)
    with pytest.raises(CovaryError, match=r"labels of .* run from 0 to 12"):
        clean(detector, (x[:20], np.r_[np.zeros(19, int), 12]))
    with pytest.raises(CovaryError, match="has not seen trusted data"):
        clean(Detector(model), x)


def slow_contradiction(logits: np.ndarray, label: int) -> float:
    """From probabilities, one sample at a time."""
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    left = -math.log(1 - p.max())
    return left if int(p.argmax()) != label else -left


def test_contradiction_is_what_is_left_for_all_other_classes():
    rng = np.random.default_rng(0)
    logits, labels = 2 * rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    predicted = logits.argmax(1)
    margin = np.array([z[k] - np.log(np.exp(np.delete(z, k)).sum()) for z, k in zip(logits, predicted, strict=True)])
    found = contradiction(margin, predicted, labels)
    assert found == pytest.approx([slow_contradiction(z, y) for z, y in zip(logits, labels, strict=True)])
    loss = -np.array([z[y] - np.log(np.exp(z).sum()) for z, y in zip(logits, labels, strict=True)])
    differs = predicted != labels
    assert (found[differs] <= loss[differs] + 1e-12).all(), "a lower bound of the label's own loss"
    assert found[differs].min() > 0 > found[~differs].max()


def test_label_p_values_are_ranks_among_trusted_ones():
    trusted, values = np.array([-3.0, -1.0, 2.0]), np.array([-5.0, 0.0, 2.0, 9.0, 9.0])
    labels = np.array([0, 1, 2, 3, -1])
    slow = [(1 + sum(t >= v for t in trusted)) / 4 for v in values[:4]]
    found = label_p_values(values, labels, trusted)
    assert found[:4] == pytest.approx(slow)
    assert np.isnan(found[4])


def test_an_id_with_a_line_break_stays_on_one_line(tmp_path):
    one = Cleaned(["a\nb", "c"], np.zeros(2), np.array([0.001, 1.0]), np.zeros(2, int), np.zeros(2, int), 0.01)
    one.write(tmp_path)
    assert (tmp_path / "remove.txt").read_text() == "a\\nb\n"
    assert (tmp_path / "keep.txt").read_text() == "c\n"
    with open(tmp_path / "clean.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["a\nb", "c"]


def test_what_is_odd_is_no_mislabelled_sample_whatever_its_label():
    """Four samples: odd, contradicted, both, and one whose label nobody knows."""
    one = Cleaned(
        list("abcd"), np.zeros(4), np.array([0.001, 1.0, 0.001, 1.0]), np.zeros(4, int), np.zeros(4, int), 0.01,
        label=np.array([0, 1, 1, -1]), label_p=np.array([1.0, 0.001, 0.001, np.nan]),
    )  # fmt: skip
    assert one.odd.tolist() == one.remove.tolist() == [True, False, True, False]
    assert one.mislabelled.tolist() == [False, True, False, False]
    assert replace(one, drop_mislabelled=True).remove.tolist() == [True, True, True, False]
