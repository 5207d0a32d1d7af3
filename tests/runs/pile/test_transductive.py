"""A pile judged as a whole: what one embedding gives, and that nothing but the pile and trusted inputs is in it."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import tiny
from covary.detector import Detector
from covary.errors import CovaryError, missing_extra
from covary.runs.figures.quality import auroc
from covary.runs.folder.write import write_run
from covary.runs.pile import transductive
from covary.runs.pile.transductive import judged_together, offline_scores
from covary.scoring.couplings import couple
from covary.scoring.pile import embedding

X, Y, TRUTH = tiny.inputs()


def slow_distance(points, trusted, nearest):
    return [np.mean(sorted(np.linalg.norm(trusted - point, axis=1))[:nearest]) for point in points]


def test_distance_is_the_mean_over_the_nearest():
    rng = np.random.default_rng(0)
    points, trusted = rng.normal(size=(9, 2)), rng.normal(size=(30, 2))
    found = embedding.distance_to_nearest(points, trusted)
    np.testing.assert_allclose(found, slow_distance(points, trusted, 10))
    one = trusted[:1]
    np.testing.assert_allclose(embedding.distance_to_nearest(points, one), slow_distance(points, one, 1))


@pytest.fixture
def plain(monkeypatch):
    """The embedding replaced by a fixed linear picture, so that what goes in and comes out can be checked by hand."""
    seen = []

    def flat(couplings, seed):
        seen.append(couplings)
        return couplings[:, :3].copy()

    monkeypatch.setattr(transductive, "embedded", flat)
    return seen


def test_queries_and_calibration_go_through_one_embedding(fitted, plain):
    queries = fitted.rows(fitted.open(X))
    judge, trusted = fitted.judge, fitted.trusted_rows
    scores, calibration = offline_scores(judge, trusted, None, queries)
    place = {name: i for i, name in enumerate(trusted.ids)}
    roles = {role: trusted.take([place[name] for name in names]) for role, names in judge.roles.items()}
    flat = {name: couple("cosine", rows, roles["reference"])[:, :3] for name, rows in roles.items()}
    mine = couple("cosine", queries, roles["reference"])[:, :3]
    np.testing.assert_allclose(scores, slow_distance(mine, flat["fit"], 10))
    np.testing.assert_allclose(calibration, slow_distance(flat["calibration"], flat["fit"], 10))
    (couplings,) = plain
    assert len(couplings) == len(X) + len(roles["fit"]) + len(roles["calibration"])
    together = np.concatenate([mine, flat["fit"], flat["calibration"]])
    assert not np.allclose(couplings[:, :3], together), "the order tells roles apart"


def test_verdicts_of_a_pile_are_ranked_by_the_new_calibration_scores(fitted, plain):
    before = fitted.judge.calibration_scores.copy()
    together = judged_together(fitted, fitted.open(X))
    verdicts = together.score(X)
    ranks = [(1 + (together.judge.calibration_scores >= s).sum()) / (len(before) + 1) for s in verdicts.score]
    np.testing.assert_allclose(verdicts.p_value, ranks)
    np.testing.assert_array_equal(fitted.judge.calibration_scores, before)  # the detector itself is left alone
    assert len(fitted.judge.statements) + 1 == len(together.judge.statements)
    assert set(fitted.score(X[:2]).parts) == {"functional", "latent", "confidence"}
    assert [e.id for e in together.explain(X[:3])] == ["0", "1", "2"]


def test_an_offline_run(fitted, plain, tmp_path):
    summary = write_run(fitted, fitted.open(X, truth=TRUTH), tmp_path / "run", offline=True)
    assert summary["auroc"] is not None
    assert any("hold for this pile alone" in statement for statement in summary["statements"])
    with open(tmp_path / "run" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = judged_together(fitted, fitted.open(X)).score(X)
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected.score, rtol=1e-6)
    assert [row["flagged"] == "true" for row in rows] == expected.flagged.tolist()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["threshold"] == pytest.approx(together_threshold(expected, report))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["offline"] is True


def together_threshold(verdicts, report):
    # Flagged inputs, and they alone, lie above the threshold of the pile's own calibration scores.
    above = np.array(verdicts.score) > report["threshold"]
    np.testing.assert_array_equal(above, verdicts.flagged)
    return report["threshold"]


def test_too_few_trusted_inputs_or_no_umap_are_told(fitted, monkeypatch):
    x, y = tiny.trusted()
    few = Detector("tiny:trained").fit(x[:120], y[:120])
    with pytest.raises(CovaryError, match="offline run of a detector with cross-conformal"):
        judged_together(few, few.open(X))

    def missing():
        raise missing_extra("umap-learn", "offline")

    monkeypatch.setattr(embedding, "_umap", missing)
    with pytest.raises(CovaryError, match=r"pip install 'covary\[offline\]'"):
        judged_together(fitted, fitted.open(X))
    with pytest.raises(CovaryError, match="15 inputs to embed together"):
        embedding.embedded(np.zeros((15, 3)), 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:numba")
def test_umap_itself_keeps_what_moves_alike_together():
    pytest.importorskip("umap", reason="the extra `offline` is not installed")
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(3, 12))
    groups = np.arange(90) % 3
    couplings = centres[groups] + 0.3 * rng.normal(size=(90, 12))
    points = embedding.embedded(couplings, 0)
    assert points.shape == (90, 2)
    np.testing.assert_array_equal(embedding.embedded(couplings, 0), points)
    # Trusted samples know two of the groups; the third is far from both.
    trusted = (np.arange(90) < 45) & (groups < 2)
    found = embedding.distance_to_nearest(points[~trusted], points[trusted])
    value = auroc(found, (groups[~trusted] == 2).astype(np.int64))
    assert value == 1.0
