"""The judge: roles kept apart, p-values by counting, false alarms under the null in every calibration mode."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest

import covary
import covary.scoring
from core_cases import synthetic
from covary.errors import CovaryError
from covary.scoring.calibration.conformal import cross_conformal_bound
from covary.scoring.calibration.splits import CROSS_UP_TO, LEAST_SPLIT, kind_for, split
from covary.scoring.judge import Judge, Verdicts
from covary.scoring.rows import Rows
from covary.scoring.scores import score_named

# Classes 3 to 5 are thin, and one sample in sixteen is misclassified and looks odd for it.
MIX, WRONG = (0.4, 0.3, 0.18, 0.04, 0.04, 0.04), 0.06
# A rate over repetitions may exceed its law by four of its own standard errors: a false failure once in 30,000.
SIGMAS = 4.0


def trusted_and_queries(n: int, q: int, seed: int) -> tuple[Rows, np.ndarray, Rows, np.ndarray]:
    rows, labels = synthetic(n + q, seed, mix=MIX, wrong=WRONG)
    inside = np.arange(n)
    return rows.take(inside), labels[:n], rows.take(np.arange(n, n + q)), labels[n:]


def slow_p(score: float, calibration: list[float]) -> float:
    return (1 + sum(c >= score for c in calibration)) / (1 + len(calibration))


def super_uniform(
    p_values: list[np.ndarray], alphas: tuple[float, ...], bound: Callable[[float], float] = lambda alpha: alpha
) -> dict[float, float]:
    """Asserts P(p <= alpha) <= bound(alpha) up to the tolerance; every repetition has data of its own."""
    found = {}
    for alpha in alphas:
        rates = np.array([(p <= alpha * (1 + 1e-9)).mean() for p in p_values])
        error = rates.std(ddof=1) / math.sqrt(len(rates))
        found[alpha] = float(rates.mean())
        assert found[alpha] <= bound(alpha) + SIGMAS * error, f"{found[alpha]:.3f} alarms at nominal {alpha}"
    return found


@pytest.mark.parametrize(("score", "repetitions"), [("class-max", 120), ("profile", 40), ("combined", 15)])
def test_null_with_one_split(score, repetitions):
    p_values = []
    for seed in range(repetitions):
        trusted, labels, queries, _ = trusted_and_queries(400, 150, 1000 + seed)
        p_values.append(Judge(score, conformal="split").fit(trusted, labels).judge(queries).p_value)
    found = super_uniform(p_values, (0.01, 0.05, 0.1, 0.3))
    assert found[0.1] > 0.07, "valid, and not by never alarming"


def test_null_with_a_separate_calibration_set():
    p_values = []
    for seed in range(80):
        trusted, labels, rest, _ = trusted_and_queries(100, 220, 2000 + seed)
        held, queries = rest.take(np.arange(100)), rest.take(np.arange(100, 220))
        judge = Judge("class-max").fit(trusted, labels, held)
        assert judge.roles["calibration"] == list(held.ids)
        p_values.append(judge.judge(queries).p_value)
    found = super_uniform(p_values, (0.01, 0.05, 0.1, 0.3))
    assert found[0.1] > 0.07


def test_null_per_class_within_every_group():
    by_group: dict[int, list[np.ndarray]] = {-1: [], 0: [], 1: [], 2: []}
    for seed in range(120):
        trusted, labels, queries, _ = trusted_and_queries(400, 150, 3000 + seed)
        judge = Judge("class-max", fpr=0.1, per_class=True, conformal="split").fit(trusted, labels)
        p = judge.judge(queries).p_value
        if judge.groups_ is None:
            continue
        groups = np.array([judge.groups_.get(int(c), -1) for c in queries.predicted])
        for group, found in by_group.items():
            if (groups == group).any():
                found.append(p[groups == group])
    for group, p_values in by_group.items():
        assert len(p_values) > 60, "most splits have a group of thin classes"
        rate = super_uniform(p_values, (0.1, 0.2))[0.1]
        assert rate > 0.06, f"group {group} is ranked among itself, neither harder nor softer: {rate:.3f}"


def test_null_cross_conformal_with_its_bound():
    p_values = []
    for seed in range(50):
        trusted, labels, queries, _ = trusted_and_queries(100, 150, 4000 + seed)
        judge = Judge("class-max").fit(trusted, labels)
        assert judge.mode == "cross-conformal 5-fold"
        p_values.append(judge.judge(queries).p_value)
    super_uniform(p_values, (0.05, 0.1, 0.3), lambda alpha: cross_conformal_bound(alpha, 100, 5))
    # Beyond the guarantee: with a score this stable the rate is the nominal one.
    found = super_uniform(p_values, (0.05, 0.1, 0.3))
    assert found[0.1] > 0.06


@pytest.mark.parametrize("n", [60, 400])
def test_wrong_samples_leave_reference_and_fit_but_never_calibration(n):
    trusted, labels, _, _ = trusted_and_queries(n, 1, 21)
    wrong = {trusted.ids[i] for i in np.flatnonzero(trusted.predicted != labels)}
    assert wrong
    kind = "split" if n == 400 else "cross"
    judge, blind = (Judge("class-max", conformal=kind).fit(trusted, known) for known in (labels, None))
    assert str(len(wrong)) in judge.statements[0]
    calibrating: list[str] = []
    for role, ids in judge.roles.items():
        if role.startswith("calibration"):
            calibrating += ids
            assert ids == blind.roles[role], "labels choose nothing about who calibrates"
        else:
            assert not wrong & set(ids)
            assert set(ids) == set(blind.roles[role]) - wrong
    assert wrong & set(calibrating)
    if n == 60:
        assert sorted(calibrating) == sorted(trusted.ids), "every trusted sample calibrates once"
    assert not wrong & set(judge.reference.ids)


def test_roles_are_disjoint_and_those_of_the_split():
    trusted, labels, _, _ = trusted_and_queries(400, 1, 6)
    judge = Judge("class-max", conformal="split").fit(trusted, labels)
    roles = [set(judge.roles[role]) for role in ("reference", "fit", "calibration")]
    assert len(set.union(*roles)) == sum(map(len, roles))
    split_roles = split(trusted.ids, trusted.predicted, 0)
    assert judge.roles["calibration"] == [trusted.ids[i] for i in split_roles.calibration]
    small = Judge("class-max").fit(*trusted_and_queries(100, 1, 6)[:2])
    for k in range(5):
        own = [set(small.roles[f"{role} {k}"]) for role in ("reference", "fit", "calibration")]
        assert len(set.union(*own)) == sum(map(len, own))


def test_p_values_and_flags_by_counting():
    trusted, labels, queries, _ = trusted_and_queries(400, 60, 7)
    judge = Judge("profile", fpr=0.05, conformal="split").fit(trusted, labels)
    reference, fit, calibration = (
        trusted.take([trusted.ids.index(name) for name in judge.roles[role]])
        for role in ("reference", "fit", "calibration")
    )
    score = score_named("profile").fit(reference, fit)
    held = score.measure(calibration).score.tolist()
    verdicts = judge.judge(queries)
    np.testing.assert_allclose(verdicts.score, score.measure(queries).score)
    for value, p, flagged in zip(verdicts.score, verdicts.p_value, verdicts.flagged, strict=True):
        assert p == pytest.approx(slow_p(value, held))
        assert flagged == (p <= 0.05)
        assert judge.threshold is not None
        assert flagged == (value > judge.threshold)
    assert verdicts.flagged.any()
    assert not verdicts.flagged.all()
    assert verdicts.ids == list(queries.ids)
    np.testing.assert_array_equal(verdicts.predicted, queries.predicted)


def test_cross_conformal_p_values_by_counting():
    trusted, labels, queries, _ = trusted_and_queries(80, 12, 8)
    judge = Judge("profile", fpr=0.1).fit(trusted, labels)
    beaten = np.zeros(12)
    for k in range(5):
        rows = [trusted.take([trusted.ids.index(i) for i in judge.roles[f"{r} {k}"]]) for r in ("reference", "fit")]
        score = score_named("profile").fit(rows[0], rows[1])
        held = trusted.take([trusted.ids.index(i) for i in judge.roles[f"calibration {k}"]])
        own, query_rows = score.measure(held).score, score.measure(queries).score
        beaten += [sum(o >= a for o in own) for a in query_rows]
    np.testing.assert_allclose(judge.judge(queries).p_value, (1 + beaten) / 81)


def test_a_foreign_mechanism_is_flagged():
    trusted, labels, _, _ = trusted_and_queries(1400, 1, 9)
    odd, _ = synthetic(100, 10, mix=MIX, foreign=True)
    for score in ("combined", "profile", "explained"):
        verdicts = Judge(score, fpr=0.1, conformal="split").fit(trusted, labels).judge(odd)
        assert verdicts.flagged.mean() > 0.8, score
    assert set(verdicts.raised_by) == {""}
    combined = Judge("combined", fpr=0.1, conformal="split").fit(trusted, labels).judge(odd)
    largest = [max(combined.parts, key=lambda kind, i=i: combined.parts[kind][i]) for i in range(100)]
    assert combined.raised_by == largest


@pytest.mark.parametrize("n", [100, 400])
def test_order_of_trusted_samples_changes_nothing(n):
    trusted, labels, queries, _ = trusted_and_queries(n, 30, 11)
    order = np.random.default_rng(0).permutation(n)
    kind = "split" if n == 400 else "cross"
    plain = Judge("combined", conformal=kind).fit(trusted, labels)
    moved = Judge("combined", conformal=kind).fit(trusted.take(order), labels[order])
    assert plain.roles.keys() == moved.roles.keys()
    for role, ids in plain.roles.items():
        assert set(ids) == set(moved.roles[role])
        if not role.startswith("calibration "):
            assert ids == moved.roles[role]
    np.testing.assert_allclose(moved.judge(queries).score, plain.judge(queries).score, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(moved.judge(queries).p_value, plain.judge(queries).p_value)


def test_the_seed_chooses_the_split():
    trusted, labels, _, _ = trusted_and_queries(400, 1, 12)
    roles = [
        set(Judge("class-max", seed=seed, conformal="split").fit(trusted, labels).roles["calibration"])
        for seed in (0, 0, 1)
    ]
    assert roles[0] == roles[1] != roles[2]


def test_what_a_small_calibration_set_cannot_resolve_is_said():
    trusted, labels, queries, _ = trusted_and_queries(100, 200, 13)
    held = queries.take(np.arange(40))
    judge = Judge("class-max", fpr=0.01).fit(trusted, labels, held)
    assert judge.fpr_in_force == judge.p_min == pytest.approx(1 / 41)
    assert any("cannot resolve" in statement for statement in judge.statements)
    fine = Judge("class-max", fpr=0.05).fit(trusted, labels, held)
    assert fine.fpr_in_force == 0.05
    assert not any("cannot resolve" in statement for statement in fine.statements)
    strictest = judge.judge(queries)
    assert strictest.p_value.min() >= judge.p_min
    np.testing.assert_array_equal(strictest.flagged, strictest.p_value <= judge.p_min * (1 + 1e-9))


def test_cross_conformal_says_what_is_guaranteed():
    trusted, labels, _, _ = trusted_and_queries(200, 1, 14)
    judge = Judge("class-max", fpr=0.05).fit(trusted, labels)
    bound = cross_conformal_bound(0.05, 200, 5)
    assert any(f"{bound:.3g}" in statement for statement in judge.statements)


def test_per_class_says_what_was_done():
    trusted, labels, queries, _ = trusted_and_queries(400, 50, 15)
    apart = Judge("class-max", fpr=0.1, per_class=True, conformal="split").fit(trusted, labels)
    assert apart.groups_ is not None
    assert any("ranked within 4 groups" in s for s in apart.statements), apart.statements
    pooled = Judge("class-max", fpr=0.05, per_class=True, conformal="split").fit(trusted, labels)
    assert pooled.groups_ is None
    assert any("ranked pooled" in s for s in pooled.statements)
    scores = apart.judge(queries)
    for i in range(50):
        group = apart.groups_[int(queries.predicted[i])]
        members = [c for c, g in apart.groups_.items() if g == group]
        own = [s for s, c in zip(apart.calibration_scores, apart.calibration_classes, strict=True) if c in members]
        assert scores.p_value[i] == pytest.approx(slow_p(scores.score[i], own))


@pytest.mark.parametrize("mix", [(1.0,), (0.5, 0.5), (0.25,) * 4, (0.1,) * 10], ids=len)
def test_every_trusted_set_that_is_large_enough_can_be_fitted(mix):
    for n in range(20, 40):
        Judge("class-max").fit(synthetic(n, n, mix=mix)[0])


def test_refusals():
    trusted, labels, _, _ = trusted_and_queries(60, 1, 16)
    with pytest.raises(CovaryError, match="trusted set has 19 inputs"):
        Judge().fit(trusted.take(np.arange(19)))
    with pytest.raises(CovaryError, match="calibration set is empty"):
        Judge().fit(trusted, labels, trusted.take(np.array([], dtype=int)))
    with pytest.raises(CovaryError, match="false-alarm rate"):
        Judge(fpr=0.0)
    with pytest.raises(CovaryError, match="false-alarm rate"):
        Judge(fpr=1.0)
    with pytest.raises(CovaryError, match="classified right"):
        Judge().fit(trusted, trusted.predicted + 1)
    with pytest.raises(CovaryError, match="unknown score"):
        Judge("best").fit(trusted)


def test_up_to_some_thousands_of_trusted_samples_every_one_calibrates():
    assert [kind_for(n, "auto") for n in (20, 500, CROSS_UP_TO, CROSS_UP_TO + 1)] == ["cross"] * 3 + ["split"]
    assert kind_for(500, "split") == "split"
    assert kind_for(10_000, "cross") == "cross"
    assert kind_for(500, "auto", calibration_apart=True) == "split"
    chosen = [kind_for(n, "auto", chosen_on_trusted=True) for n in (LEAST_SPLIT - 1, LEAST_SPLIT)]
    assert chosen == ["cross", "split"]
    trusted, labels, _, _ = trusted_and_queries(400, 1, 17)
    assert len(Judge("class-max").fit(trusted, labels).calibration_scores) == 400


@pytest.mark.parametrize("conformal", ["split", "cross"])
def test_what_holds_the_threshold_is_named(conformal):
    trusted, labels, _, _ = trusted_and_queries(400, 1, 18)
    judge = Judge("profile", fpr=0.02, conformal=conformal).fit(trusted, labels)
    n = 120 if conformal == "split" else 400
    scores = sorted(zip(judge.calibration_scores, judge.calibration_ids, strict=True), reverse=True)
    assert [(holder.score, holder.id) for holder in judge.holders] == scores[: int(0.02 * (n + 1))]
    assert judge.threshold == judge.holders[-1].score
    for holder in judge.holders:
        assert holder.predicted == trusted.predicted[list(trusted.ids).index(holder.id)]
    (said,) = judge.what_holds()
    assert repr(judge.holders[0].id) in said
    assert f"of {n} calibration inputs" in said
    # What the sentence says of a detector without the highest one.
    held = [score for score, _ in scores]
    assert f"it would be {held[len(judge.holders)]:.3g}" in said


def test_one_score_serves_a_stream():
    trusted, labels, queries, _ = trusted_and_queries(400, 60, 19)
    judge = Judge("profile").fit(trusted, labels)
    verdicts = judge.judge(queries)
    np.testing.assert_array_equal(verdicts.stream_score, judge.scores_[0].measure(queries).score)
    held = trusted.take([list(trusted.ids).index(name) for name in judge.roles["calibration 0"]])
    np.testing.assert_array_equal(judge.stream_calibration, judge.scores_[0].measure(held).score)


def test_fdr_flags_by_benjamini_hochberg():
    p = np.array([0.001, 0.002, 0.5, 0.9])
    verdicts = Verdicts(list("abcd"), -p, p, np.zeros(4, bool), np.zeros(4, np.int64))
    assert verdicts.with_fdr(0.05).flagged.tolist() == [True, True, False, False]
    assert not verdicts.flagged.any(), "the verdicts themselves stay as they were"


# Labels of anomalies have no way into what is learned from trusted data.

LEARNING = [
    "covary.scoring", *(module.name for module in pkgutil.walk_packages(covary.scoring.__path__, "covary.scoring.")),
    *(f"covary.features.{name}" for name in ("gradient", "exact", "observables", "projections", "activations")),
    "covary.models.spaces",
]  # fmt: skip
# What knows the truth lives in `runs`; extractors open inputs, whose labels only tell which answers are wrong.
FORBIDDEN = ("covary.runs", "covary.serving", "covary.cli", "covary_bench")


def imports_of(module: str) -> set[str]:
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return {name for name in found if name.startswith("covary.")}


def test_nothing_that_learns_imports_what_knows_the_truth():
    seen, waiting = set(), set(LEARNING)
    while waiting:
        module = waiting.pop()
        seen.add(module)
        try:
            waiting |= imports_of(module) - seen
        except ModuleNotFoundError:  # a name in a module, not a module
            continue
    reached = [name for name in seen if name.startswith(FORBIDDEN)]
    assert not reached, f"reachable from fit or calibration: {reached}"
    assert "covary.scoring.couplings" in seen


def parameters(module: str) -> dict[str, list[str]]:
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {f.name: [a.arg for a in f.args.args + f.args.kwonlyargs + f.args.posonlyargs] for f in functions}


def test_no_function_that_learns_takes_the_truth():
    for module in [*LEARNING, "covary.detector"]:
        for function, names in parameters(module).items():
            if module == "covary.detector" and not function.startswith("fit"):
                continue
            assert not {"truth", "anomalous", "is_anomaly", "poisoned"} & set(names), f"{module}.{function}"
    assert "truth" in parameters("covary.runs.figures.quality")["evaluate"], "the check sees such parameters"
    assert not {"truth", "y", "labels"} & {field.name for field in fields(Rows)}, "rows carry none either"
