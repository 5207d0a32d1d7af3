"""Clusters of flagged inputs: as many as there are ways to fail, told in the RUN and its report."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import tiny
from core_cases import synthetic
from covary.errors import CovaryError
from covary.runs import scan as scanning
from covary.runs.pile.mechanisms import find_mechanisms
from covary.runs.report.mechanism_section import headline, mechanisms
from covary.runs.report.run_folder import read_run
from covary.scoring.clusters import (
    adopted,
    by_size,
    cluster,
    mechanism_axis,
    uncertainty,
    unexplained_directions,
    with_activations,
)
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows
from covary.scoring.scores.layers import unit
from covary.storage import verify

REFERENCE = synthetic(300, 1, prefix="r")[0]


def foreign(n: int, seed: int, place: int, prefix: str) -> Rows:
    """Inputs of ordinary classes whose gradients all share one direction that no trusted input has."""
    rows, _ = synthetic(n, seed, prefix=prefix)
    rng = np.random.default_rng(seed)
    functional = {}
    for layer, own in rows.functional.items():
        moved = own + 0.3 * rng.standard_normal(own.shape).astype(np.float32)
        moved[:, own.shape[1] - 3 + place] += 15.0
        functional[layer] = moved.astype(np.float32)
    return replace(rows, functional=functional)


def test_directions_are_what_a_ridge_leaves_over():
    rows = foreign(4, 2, 0, "a")
    bare = unexplained_directions(rows, REFERENCE)
    found = with_activations(bare, rows, REFERENCE)

    def left_over(own, known):
        z, x = unit(known), unit(own)[1]
        weights = np.linalg.solve(z @ z.T + 0.1 * np.eye(len(z)), z @ x)
        return x - z.T @ weights

    gradients = np.concatenate([left_over(own, REFERENCE.functional[layer]) for layer, own in rows.functional.items()])
    activations = []
    for layer, own in rows.latent.items():
        centre = REFERENCE.latent[layer].astype(np.float64).mean(0)
        activations.append(left_over(own - centre, REFERENCE.latent[layer] - centre))
    activations = np.concatenate(activations)
    expected = np.concatenate([half / np.linalg.norm(half) for half in (gradients, activations)]) / np.sqrt(2)
    np.testing.assert_allclose(found[1], expected, atol=1e-7)
    np.testing.assert_allclose(bare[1], gradients / np.linalg.norm(gradients), atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_clusters_as_mechanisms(count):
    piles = [foreign(60 - 8 * i, 10 + i, i, f"m{i}-") for i in range(count)]
    truth = np.repeat(np.arange(count), [len(pile) for pile in piles])
    labels = cluster(Rows.concatenate(piles), REFERENCE)
    assert len(np.unique(labels[labels >= 0])) == count
    assert adjusted_rand_score(truth, labels) > 0.9
    sizes = [int((labels == k).sum()) for k in range(count)]
    assert sizes == sorted(sizes, reverse=True)


def test_stragglers_join_the_cluster_they_lie_near():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 0.1, (20, 2)), rng.normal(5, 0.1, (20, 2)), [[0.2, 0.0], [2.5, 2.5]]])
    labels = np.repeat([0, 1, -1], [20, 20, 2])
    np.testing.assert_array_equal(adopted(points, labels), [*labels[:40], 0, -1])
    np.testing.assert_array_equal(adopted(points[:40], labels[:40]), labels[:40])
    np.testing.assert_array_equal(adopted(points, np.full(42, -1)), np.full(42, -1))


@pytest.mark.parametrize("where", ["functional", "latent"])
def test_mechanisms_apart_in_gradients_or_in_activations_are_told_apart(where):
    piles = []
    for i in range(2):
        rows, _ = synthetic(40, 20 + i, prefix=f"m{i}-", foreign=True)
        layers = {name: own.copy() for name, own in getattr(rows, where).items()}
        for own in layers.values():
            own[:, own.shape[1] - 1 - i] += 30.0
        piles.append(replace(rows, **{where: layers}))
    labels = cluster(Rows.concatenate(piles), REFERENCE)
    assert adjusted_rand_score(np.repeat([0, 1], 40), labels) > 0.9


def test_order_has_no_part_in_it():
    pile = Rows.concatenate([foreign(30, 3, 0, "a"), foreign(30, 4, 1, "b")])
    order = np.random.default_rng(0).permutation(len(pile))
    assert adjusted_rand_score(cluster(pile, REFERENCE)[order], cluster(pile.take(order), REFERENCE)) == 1


def test_too_few_to_tell():
    assert (cluster(foreign(3, 3, 0, "a"), REFERENCE) == -1).all()
    assert (cluster(foreign(7, 3, 0, "a"), REFERENCE) == 0).all()
    assert len(cluster(foreign(5, 3, 0, "a").take([]), REFERENCE)) == 0


def test_numbered_by_size():
    np.testing.assert_array_equal(by_size(np.array([3, 3, -1, 0, 3, 0, 7])), [0, 0, -1, 1, 0, 1, 2])


def test_the_second_axis_tells_unsure_from_foreign():
    trusted, labels = synthetic(600, 1)
    judge = Judge(seed=0).fit(trusted, labels)
    odd = judge.judge(synthetic(60, 5, foreign=True)[0])
    rows, truth = synthetic(400, 6, wrong=0.5)
    unsure = judge.judge(rows.take(rows.predicted != truth))
    assert np.median(uncertainty(unsure)) > 2
    assert abs(np.median(uncertainty(judge.judge(synthetic(200, 8)[0])))) < 0.5
    assert np.median(mechanism_axis(odd)) > 3 * max(np.median(mechanism_axis(unsure)), 0.0)


@pytest.fixture(scope="module")
def run(tiny_files, tmp_path_factory):
    """A RUN of the tiny digits, of which the odd ones are flagged; changed by the tests below."""
    home = tmp_path_factory.mktemp("mechanisms")
    plan = scanning.ScanPlan.checked(
        model="tiny:network", weights=str(tiny_files / "weights.safetensors"), trusted=str(tiny_files / "trusted.npz"),
        inputs=str(tiny_files / "inputs.npz"), target=3, settings={"fpr": 0.05},
    )  # fmt: skip
    scanning.scan(plan, home / "run")
    return home / "run"


def test_a_run_and_its_report(run, run_cli):
    before = (run / "results.csv").read_bytes()
    code, out, _ = run_cli("mechanisms", run, "--trust-code", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["n_flagged"] == json.loads((run / "summary.json").read_text())["n_flagged"] > 10
    assert found["n_mechanisms"] == len(found["clusters"]) >= 1
    assert sum(c["n"] for c in found["clusters"]) + found["alone"] == found["n_flagged"]
    assert sorted(found["members"]) == sorted(i for i in found["members"] if i.startswith("input-"))
    first = found["clusters"][0]
    assert first["shown"][0]["thumbnail"].startswith("data:image/png;base64,")
    assert sum(first["predicted"].values()) == first["n"]
    assert json.loads((run / "mechanisms.json").read_text()) == {k: v for k, v in found.items() if k != "cards"}
    page = (run / "report.html").read_text()
    assert 'id="mechanisms"' in page
    assert headline(found) in page
    assert (run / "results.csv").read_bytes() == before
    assert not verify.verify_folder(run)["differences"]
    code, out, _ = run_cli("mechanisms", run, "--trust-code", "--least", 1000)
    assert out.startswith("1 mechanism behind")


def test_a_run_without_it_has_no_section(run):
    bare = replace(read_run(run), mechanisms={})
    assert mechanisms(bare) is None
    assert headline({"n_flagged": 0}) == "Nothing was flagged, so there is nothing to tell apart."
    message = {"n_flagged": 5, "n_mechanisms": 2, "alone": 1}
    assert headline(message) == "2 mechanisms behind 5 flagged inputs; 1 stand alone."


def test_only_pictures_reach_the_page(run):
    cluster_ = {"number": 1, "n": 1, "shown": [{"id": "a", "thumbnail": "javascript:alert(1)"}]}
    found = mechanisms(replace(read_run(run), mechanisms={"n_flagged": 1, "n_mechanisms": 1, "clusters": [cluster_]}))
    assert found["clusters"][0]["shown"] == [{"id": "a", "thumbnail": ""}]


def test_inputs_that_changed_are_refused(run, tmp_path):
    record = json.loads((run / "run.json").read_text())
    x, y, _ = tiny.inputs()
    np.savez(tmp_path / "other.npz", x=255 - x, y=y)
    record["plan"]["inputs"] = str(tmp_path / "other.npz")
    full = (run / "run.json").read_bytes()
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(CovaryError, match="has changed since the RUN; expected the same inputs"):
        find_mechanisms(run, trust_code=True)
    (run / "run.json").write_bytes(full)
    with pytest.raises(CovaryError, match=r"has no run\.json"):
        find_mechanisms(tmp_path)
