"""The cost model against its formula by hand, its limits, and what it refuses."""

from __future__ import annotations

import json

import pytest

from covary.errors import CovaryError
from covary.serving.pile.cost import estimate, measured

USUAL = {"seconds_per_input": 0.01, "actors": 100, "start_seconds": 30.0, "second_pass_seconds_per_input": 1e-6}


def test_the_formula_by_hand():
    found = estimate(1e9, **USUAL, efficiency=0.8, partition_size=10_000, failures_per_actor_hour=0.36)
    network = 1e9 * 0.01 / 80
    lost = network * 1e-4 * (100 / 2 + 30)
    assert found["seconds"] == pytest.approx(30 + network + lost + 100 + 10)
    assert found["seconds"] == pytest.approx(sum(found["parts"].values()))
    assert found["actor_hours"] == pytest.approx(found["hours"] * 100)
    assert found["limited_by"] == "the network"


def test_slow_storage_decides():
    found = estimate(1e9, **USUAL, bytes_per_input=3072.0, bandwidth=1e7)
    assert found["limited_by"] == "reading"
    assert found["parts"]["reading"] == pytest.approx(307_200)
    assert found["seconds"] > 307_200


def test_twice_the_actors_halve_what_can_be_halved():
    one, two = (estimate(1e9, **{**USUAL, "actors": actors})["parts"] for actors in (100, 200))
    assert two["network"] == pytest.approx(one["network"] / 2)
    assert two["last partition"] == one["last partition"]


@pytest.mark.parametrize(
    "wrong",
    [{"actors": 0}, {"seconds_per_input": 0.0}, {"efficiency": 1.5}, {"efficiency": 0.0}, {"bandwidth": 0.0},
     {"bytes_per_input": -1.0}, {"start_seconds": float("nan")}, {"bandwidth": float("inf")}],
)  # fmt: skip
def test_numbers_out_of_range(wrong):
    with pytest.raises(CovaryError, match=next(iter(wrong))):
        estimate(1e9, **{**USUAL, **wrong})


def test_numbers_of_a_pile_that_was_scored(tmp_path, run_cli):
    summary = {"seconds_per_input": 0.004, "stored_bytes": 3_000, "n": 100, "second_pass_seconds": 0.01}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    known = measured(str(tmp_path))
    assert known == {
        "seconds_per_input": 0.004, "bytes_per_input": 30.0, "second_pass_seconds_per_input": pytest.approx(1e-4),
    }  # fmt: skip
    code, out, _ = run_cli("cost", "--inputs", 1e6, "--actors", 4, "--measured", tmp_path, "--json")
    assert code == 0
    assert json.loads(out) == estimate(1e6, actors=4, **known)
    code, out, _ = run_cli("cost", "--inputs", 1e6, "--actors", 4, "--seconds-per-input", 1)
    assert "limited_by" in out
    code, _, err = run_cli("cost", "--inputs", 1e6, "--actors", 4)
    assert (code, "nothing says how long one input takes" in err) == (2, True)
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "seconds_per_input": None}))
    for place, said in ((tmp_path, "tells no seconds"), (tmp_path / "no", "no readable summary.json")):
        with pytest.raises(CovaryError, match=said):
            measured(str(place))
