"""Evidence by its definitions: witnesses, what is left over, classes, layers, and which part stands out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from core_cases import synthetic
from covary.scoring.evidence import LEAST_WEIGHT, WITNESSES, Evidence, Explainer
from covary.scoring.judge import Judge, Verdicts
from covary.scoring.rows import Rows
from covary.scoring.scores.explained import explain

QUERIES = 14


@pytest.fixture(scope="module")
def case() -> tuple[Judge, Rows, Verdicts, list[Evidence]]:
    trusted, labels = synthetic(400, 1, wrong=0.05)
    judge = Judge(fpr=0.05).fit(trusted, labels)
    queries = Rows.concatenate([synthetic(10, 2)[0], synthetic(4, 3, foreign=True, prefix="odd")[0]])
    verdicts = judge.judge(queries)
    return judge, queries, verdicts, Explainer(judge).explain(queries, verdicts)


def together(rows: Rows, i: int) -> np.ndarray:
    x = np.concatenate([part[i].astype(float) for part in rows.functional.values()])
    return x / np.linalg.norm(x)


def test_it_repeats_the_verdict(case):
    _, queries, verdicts, found = case
    assert [e.id for e in found] == list(queries.ids)
    for i, e in enumerate(found):
        assert e.score == verdicts.score[i]
        assert e.p_value == verdicts.p_value[i]
        assert e.flagged == verdicts.flagged[i]
        assert e.predicted == queries.predicted[i]
        assert e.parts == {kind: values[i] for kind, values in verdicts.parts.items()}
        assert e.raised_by == max(e.parts, key=lambda kind, e=e: e.parts[kind])


def test_witnesses_are_reference_samples_by_falling_weight(case):
    judge, queries, _, found = case
    by_id = {name: i for i, name in enumerate(judge.reference.ids)}
    trusted, labels = synthetic(400, 1, wrong=0.05)
    assert set(by_id) == {trusted.ids[k] for k in np.flatnonzero(trusted.predicted == labels)}
    explained = 0
    for i, e in enumerate(found):
        weights = [w.weight for w in e.explained_by]
        assert weights == sorted(weights, reverse=True)
        assert len(weights) <= WITNESSES
        assert all(weight > LEAST_WEIGHT for weight in weights)
        for w in e.explained_by:
            assert w.cosine == pytest.approx(together(queries, i) @ together(judge.reference, by_id[w.id]))
            assert w.predicted == judge.reference.predicted[by_id[w.id]]
        explained += bool(weights)
    assert explained >= 10


def test_unexplained_and_weights_are_those_of_the_reconstruction(case):
    judge, queries, _, found = case
    units = np.array([together(queries, i) for i in range(QUERIES)])
    reference = np.array([together(judge.reference, j) for j in range(len(judge.reference))])
    expected = explain(units, reference)
    for i, e in enumerate(found):
        assert e.unexplained == pytest.approx(expected.unexplained[i], abs=1e-6)
        top = int(expected.candidates[i, np.argmax(expected.weights[i])])
        if e.explained_by:
            assert e.explained_by[0].id == judge.reference.ids[top]
    clean, odd = [e.unexplained for e in found[:10]], [e.unexplained for e in found[10:]]
    assert min(odd) > max(clean)


def test_class_profile_is_the_mean_cosine_with_each_class(case):
    judge, queries, _, found = case
    for i, e in enumerate(found):
        for label in range(4):
            own = np.flatnonzero(judge.reference.predicted == label)
            mean = np.mean([together(queries, i) @ together(judge.reference, int(j)) for j in own])
            assert e.classes[label] == pytest.approx(mean)
    # A clean input moves together with its own class most.
    agree = [max(e.classes, key=lambda label, e=e: e.classes[label]) == e.predicted for e in found[:10]]
    assert np.mean(agree) > 0.7


def test_layer_profile_is_the_root_mean_square_of_each_layers_numbers(case):
    judge, _, verdicts, found = case
    for kind, names in (("functional", list(judge.reference.functional)), ("latent", list(judge.reference.latent))):
        for i, e in enumerate(found):
            assert list(e.layers[kind]) == names
            for position, name in enumerate(names):
                own = verdicts.residuals[kind][i, position :: len(names)]
                assert len(own) == 3
                assert e.layers[kind][name] == pytest.approx(math.sqrt(np.mean(own**2)))
    names = list(judge.reference.functional)
    for i, e in enumerate(found):
        shares = verdicts.residuals["functional"][i, len(names) : 2 * len(names)]
        assert e.least_explained_layer == names[int(np.argmax(shares))]


def test_an_oddity_planted_in_one_layer_is_named(case):
    judge, _, _, _ = case
    queries, _ = synthetic(12, 20)
    odd, _ = synthetic(12, 21, foreign=True)
    for layer in queries.functional:
        mixed = {name: (odd if name == layer else queries).functional[name] for name in queries.functional}
        rows = Rows(**{**vars(queries), "functional": mixed})
        named = [e.least_explained_layer for e in Explainer(judge).explain(rows, judge.judge(rows))]
        assert named.count(layer) >= 10


def test_it_survives_json_and_small_trusted_sets_and_other_scores():
    trusted, labels = synthetic(80, 1, wrong=0.05)
    queries, _ = synthetic(3, 2)
    for score in ("combined", "profile", "class-max"):
        judge = Judge(score, fpr=0.1).fit(trusted, labels)
        for e in Explainer(judge).explain(queries, judge.judge(queries)):
            record = json.loads(json.dumps(e.to_json()))
            assert record["id"] == e.id
            assert record["explained_by"] == [vars(w) for w in e.explained_by]
            if score == "class-max":
                assert (e.parts, e.raised_by, e.layers, e.least_explained_layer) == ({}, "", {}, "")


def test_a_query_without_gradient_has_no_witnesses(case):
    judge, queries, _, _ = case
    dead = Rows(**{**vars(queries), "functional": {n: np.zeros_like(p) for n, p in queries.functional.items()}})
    for e in Explainer(judge).explain(dead, judge.judge(dead)):
        assert e.explained_by == []
        assert e.unexplained == 1
