"""The combined score against a slow transcription, and its two traps: held-out distances, no ties at the top."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import slow
from core_cases import synthetic
from covary.scoring.conditional.lengths import AtEqualLengths
from covary.scoring.rows import Rows
from covary.scoring.scores.combined import Combined
from covary.scoring.scores.distances import FullDistance
from covary.scoring.scores.layers import LayerProfile, functional_numbers
from covary.scoring.scores.parts import PARTS, EvidencePart, Part, confidence_numbers
from covary.scoring.scores.standardise import ClassStandardiser

KINDS = ("functional", "latent", "confidence")


def slow_log_p(value: float, seen: np.ndarray) -> float:
    """log of the share of `seen` at least as large, interpolated between values, going on beyond the ends."""
    knots = sorted(set(seen.tolist()))
    log_p = [math.log((sum(s >= knot for s in seen) - 0.5) / (len(seen) + 1)) for knot in knots]
    sd = float(np.std(seen))
    if value >= knots[-1]:
        return log_p[-1] - (value - knots[-1]) / sd
    if value <= knots[0]:
        return log_p[0] * math.exp(-(knots[0] - value) / sd)
    right = next(i for i, knot in enumerate(knots) if knot > value)
    part = (value - knots[right - 1]) / (knots[right] - knots[right - 1])
    return log_p[right - 1] + part * (log_p[right] - log_p[right - 1])


def log_distances(fit: np.ndarray, fit_classes: list[int], queries: np.ndarray, classes: list[int]) -> list[np.ndarray]:
    """Standardised log distances of held-out fit samples and of queries, and the residuals of both."""
    residuals, distances = slow.held_out(fit, np.array(fit_classes))
    logs = np.array([math.log(d) for d in distances])
    full = slow.Standardised(fit, np.array(fit_classes))
    query_rows = np.array([math.log(full.distance(row, c)) for row, c in zip(queries, classes, strict=True)])
    query_residuals = np.array([full.residual(row, c) for row, c in zip(queries, classes, strict=True)])
    return [(logs - logs.mean()) / logs.std(), (query_rows - logs.mean()) / logs.std(), residuals, query_residuals]


def striking_layers(
    fit: np.ndarray, fit_classes: list[int], queries: np.ndarray, classes: list[int]
) -> list[np.ndarray]:
    """Sum of the five largest of the layers' own standardised log distances, standardised on held-out fit samples."""
    layers = fit.shape[1] // 3
    of_fit, of_queries = [], []
    for layer in range(layers):
        own = [layer, layers + layer, 2 * layers + layer]  # its n, v and o
        found = log_distances(fit[:, own], fit_classes, queries[:, own], classes)
        of_fit.append(found[0])
        of_queries.append(found[1])
    top_fit = np.array([sum(sorted(column)[-5:]) for column in np.array(of_fit).T])
    top_queries = np.array([sum(sorted(column)[-5:]) for column in np.array(of_queries).T])
    return [(top_fit - top_fit.mean()) / top_fit.std(), (top_queries - top_fit.mean()) / top_fit.std()]


class SlowEvidence:
    """One kind of evidence by the docstring of `Part`: standardised log distances and residuals of fit and queries."""

    def __init__(self, kind: str, reference: Rows, fit: Rows, queries: Rows) -> None:
        def numbers(rows: Rows) -> np.ndarray:
            if kind == "functional":
                return slow.functional_profile(reference, rows)
            if kind == "latent":
                return slow.latent_profile(reference, rows)
            return np.array([[rows.confidence[name][i] for name in ("margin", "energy")] for i in range(len(rows))])

        case = numbers(fit), fit.predicted.tolist(), numbers(queries), queries.predicted.tolist()
        self.fit, self.query, self.fit_residuals, self.query_residuals = log_distances(*case)
        if kind == "latent":
            top_fit, top_query = striking_layers(*case)
            both = self.fit + top_fit
            self.query = (self.query + top_query - both.mean()) / both.std()
            self.fit = (both - both.mean()) / both.std()


def slow_join(evidence: dict[str, SlowEvidence]) -> np.ndarray:
    """The rule of the docstring of `Combined`: score = -log min(p(z), p(F2), p(F4)).

    z adds the three standardised log distances; F2 = -2 sum log p over the functional and latent distances, F4 the
    same with low margin and high energy. Change this function where the rule changes.
    """
    confidence = evidence["confidence"]
    seen = [evidence["functional"].fit, evidence["latent"].fit]
    seen += [-confidence.fit_residuals[:, 0], confidence.fit_residuals[:, 1]]
    query_rows = [evidence["functional"].query, evidence["latent"].query]
    query_rows += [-confidence.query_residuals[:, 0], confidence.query_residuals[:, 1]]

    def fisher(values: list[np.ndarray], terms: int) -> np.ndarray:
        logs = [[slow_log_p(v, own) for v in some] for some, own in zip(values[:terms], seen[:terms], strict=True)]
        return -2 * np.sum(logs, axis=0)

    of_fit = [sum(evidence[kind].fit for kind in KINDS), fisher(seen, 2), fisher(seen, 4)]
    of_queries = [sum(evidence[kind].query for kind in KINDS), fisher(query_rows, 2), fisher(query_rows, 4)]
    log_p = [[slow_log_p(v, own) for v in some] for some, own in zip(of_queries, of_fit, strict=True)]
    return -np.min(log_p, axis=0)


@pytest.fixture(scope="module")
def case() -> tuple[Rows, Rows, Rows]:
    reference, _ = synthetic(24, 1)
    fit, _ = synthetic(35, 2)
    clean, _ = synthetic(6, 3)
    unsure, _ = synthetic(6, 4, wrong=1.0)
    foreign, _ = synthetic(4, 5, foreign=True)
    return reference, fit, Rows.concatenate([clean, unsure, foreign])


def test_parts_and_score_against_the_transcription(case):
    reference, fit, queries = case
    evidence = {kind: SlowEvidence(kind, reference, fit, queries) for kind in KINDS}
    found = Combined().fit(reference, fit).measure(queries)
    assert set(found.parts) == set(KINDS)
    for kind in KINDS:
        np.testing.assert_allclose(found.parts[kind], evidence[kind].query, rtol=1e-4, atol=1e-5, err_msg=kind)
        np.testing.assert_allclose(
            found.residuals[kind], evidence[kind].query_residuals, rtol=1e-4, atol=1e-4, err_msg=kind
        )
    np.testing.assert_allclose(found.score, slow_join(evidence), rtol=1e-4, atol=1e-4)


def many_numbers(n: int, seed: int) -> Rows:
    """Rows of 12 independent layers: 36 numbers a part, few samples to fit them on."""
    rng = np.random.default_rng(seed)
    layers = {f"layer {i}": rng.normal(size=(n, 6)).astype(np.float32) + 1 for i in range(12)}
    return Rows(
        ids=[f"{seed}-{i}" for i in range(n)],
        predicted=np.zeros(n, np.int64),
        observable=np.zeros(n),
        functional=layers,
        functional_norms=np.exp(rng.normal(size=(n, 12))),
        latent=layers,
        confidence={"margin": rng.normal(size=n), "energy": rng.normal(size=n)},
    )


def test_trap_one_fresh_clean_samples_look_like_held_out_fit_samples():
    reference, fit, fresh = many_numbers(60, 1), many_numbers(80, 2), many_numbers(300, 3)
    for kind in KINDS:
        distance, _ = Part(kind).fit(reference, fit).measure(fresh)
        # Held-out folds are fitted on four fifths of the fit set, so fresh samples sit a little below, never far above.
        assert abs(distance.mean()) < 0.45, f"{kind}: fit samples must be ranked by distances to a fit without them"
    profile = LayerProfile().fit(reference.functional, reference.predicted)
    own = functional_numbers(profile, fit)
    naive = ClassStandardiser().fit(own, fit.predicted)
    inside = np.log(naive.distance(own, fit.predicted))
    outside = np.log(naive.distance(functional_numbers(profile, fresh), fresh.predicted))
    assert (outside.mean() - inside.mean()) / inside.std() > 0.9, "the case shows the trap at all"
    # The same in the joined score: few fresh inputs lie beyond every fit sample.
    combined = Combined().fit(reference, fit)
    beyond = combined.measure(fresh).score > -math.log(0.5 / 81)
    assert beyond.mean() < 0.1


def test_trap_two_scores_go_on_beyond_the_fit_maximum_without_ties():
    reference, _ = synthetic(60, 1)
    fit, _ = synthetic(80, 2)
    combined = Combined().fit(reference, fit)
    foreign, _ = synthetic(1, 9, foreign=True)
    # The same odd direction at ever larger norms: beyond everything seen, and further each time.
    scores = []
    for factor in (1.0, 10.0, 1e2, 1e3, 1e4, 1e5):
        louder = replace(foreign, functional_norms=foreign.functional_norms * factor)
        scores.append(float(combined.measure(louder).score[0]))
    assert scores[1] > -math.log(0.5 / 81), "beyond the largest of the fit samples"
    assert (np.diff(scores[1:]) > 1e-3).all(), "strictly rising: neither clipped nor tied"
    many, _ = synthetic(200, 10, foreign=True)
    measured = combined.measure(many).score
    assert len(np.unique(measured)) == 200


def test_being_unsure_alone_raises_the_score():
    reference, _ = synthetic(60, 1)
    fit, _ = synthetic(120, 2)
    combined = Combined().fit(reference, fit)
    clean, _ = synthetic(100, 3)
    margin = clean.confidence["margin"] - 9
    unsure = replace(clean, confidence={"margin": margin, "energy": clean.confidence["energy"] + 9})
    plain, doubtful = combined.measure(clean), combined.measure(unsure)
    np.testing.assert_array_equal(plain.parts["functional"], doubtful.parts["functional"])
    assert (doubtful.score > plain.score).mean() > 0.95
    assert np.median(doubtful.score) > np.quantile(plain.score, 0.95)


def test_too_sure_is_odd_too():
    reference, _ = synthetic(60, 1)
    fit, _ = synthetic(120, 2)
    combined = Combined().fit(reference, fit)
    clean, _ = synthetic(100, 3)
    surer = replace(
        clean, confidence={"margin": clean.confidence["margin"] + 9, "energy": clean.confidence["energy"] - 9}
    )
    assert (combined.measure(surer).parts["confidence"] > combined.measure(clean).parts["confidence"]).mean() > 0.95


def test_without_latent_rows_or_classes_what_is_there_is_joined():
    def bare(rows: Rows) -> Rows:
        return replace(
            rows, predicted=np.zeros_like(rows.predicted), latent={}, confidence={"observable": rows.observable}
        )

    reference, fit, queries = (bare(synthetic(n, seed)[0]) for n, seed in ((40, 1), (60, 2), (30, 3)))
    found = Combined().fit(reference, fit).measure(queries)
    assert list(found.parts) == ["functional", "confidence"]
    assert np.isfinite(found.score).all()
    odd = bare(synthetic(30, 4, foreign=True)[0])
    assert Combined().fit(reference, fit).measure(odd).score.mean() > found.score.mean()


def test_confidence_numbers_keep_their_columns():
    rows, _ = synthetic(3, 1)
    np.testing.assert_array_equal(confidence_numbers(rows)[:, 0], rows.confidence["margin"])
    np.testing.assert_array_equal(confidence_numbers(rows)[:, 1], rows.confidence["energy"])


@pytest.mark.parametrize(("sides", "odd_at"), [("one", (9.0,)), ("two", (9.0, -9.0))])
def test_a_part_added_to_the_table_joins_the_score(sides, odd_at, monkeypatch):
    """`one`: odd where it is high alone. `two`: odd on either side."""
    entry = EvidencePart("Length", "the length", numbers=lambda rows: rows.confidence["length"][:, None], sides=sides)
    monkeypatch.setitem(PARTS, "length", entry)

    def with_length(rows: Rows, shift: float = 0.0) -> Rows:
        length = np.random.default_rng(len(rows)).normal(size=len(rows)) + shift
        return replace(rows, confidence={**rows.confidence, "length": length})

    reference, fit, queries = (synthetic(n, seed)[0] for n, seed in ((60, 1), (120, 2), (100, 3)))
    combined = Combined().fit(with_length(reference), with_length(fit))
    plain = combined.measure(with_length(queries))
    assert list(plain.parts) == [*KINDS, "length"]
    for shift in (9.0, -9.0):
        found = combined.measure(with_length(queries, shift))
        odd = shift in odd_at
        assert (np.median(found.parts["length"]) > 2) == odd
        if sides == "one":
            np.testing.assert_array_equal(found.parts["latent"], plain.parts["latent"])


@pytest.mark.parametrize("with_lengths", [False, True])
def test_last_token_by_layer_and_at_equal_length_from_reference_and_fit_samples(with_lengths):
    def at_anchor(n: int, seed: int, shift: float = 0.0) -> Rows:
        rng = np.random.default_rng(seed)
        states = {"one @ anchor": rng.normal(size=(n, 4)) + shift, "two @ anchor": 5 * rng.normal(size=(n, 70)) + shift}
        lengths = rng.integers(3, 30, (n, 2)).astype(np.float64) if with_lengths else None
        latent = {"one @ answer": states["one @ anchor"], **states}
        return replace(synthetic(n, seed)[0], latent=latent, lengths=lengths)

    reference, fit, queries = at_anchor(30, 1), at_anchor(20, 2), at_anchor(10, 3)
    part = Part("last token").fit(reference, fit)
    found, residuals = part.measure(queries)
    both = Rows.concatenate([fit, reference])
    layers = []
    for name in ("one @ anchor", "two @ anchor"):
        known, asked = (np.asarray(rows.latent[name], np.float64) for rows in (both, queries))
        if with_lengths:
            equal = AtEqualLengths().fit(known, both.lengths)
            known, asked = equal.fit_, equal(asked, queries.lengths)
        distance = FullDistance().fit(known, both.predicted)
        layers.append((distance.fit_, distance(asked, queries.predicted)))
    np.testing.assert_allclose(residuals, np.stack([asked for _, asked in layers], axis=1))
    known, asked = (sum(layer[i] for layer in layers) for i in (0, 1))
    if with_lengths:
        equal = AtEqualLengths().fit(known[:, None], both.lengths)
        known, asked = equal.fit_[:, 0], equal(asked[:, None], queries.lengths)[:, 0]
    np.testing.assert_allclose(found, (asked - known.mean()) / known.std())
    np.testing.assert_allclose(part.fit_, ((known - known.mean()) / known.std())[:20])
    assert (part.measure(at_anchor(10, 3, shift=4.0))[0] > found).all()
    assert "last token" not in Combined().fit(synthetic(30, 1)[0], synthetic(20, 2)[0]).parts_
