"""`covary-bench speed`: resumable, honest about what is missing, and right where an answer is known."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from covary.errors import CovaryError
from covary_bench import speed
from covary_bench.speed import Options, run
from covary_bench.speed.cost import Transformer, interleaved, ratios
from covary_bench.speed.fidelity import correlations, unstructured
from covary_bench.speed.page import chart, curve, markdown, points, scales
from covary_bench.speed.scaling import judged
from covary_bench.speed.stream import megabytes

NETWORK = "cifar10_wrn16_1_grid_t5"
RECORD = {
    "gpu": "not measured",
    "first_order_speedup": {
        NETWORK: {
            "by_counted_forwards": 750,
            "queries_alone_by_counted_forwards": 700,
            "measured_against_devinterp": 900,
            "feature_seconds_a_sample": 0.002,
            "draw": {
                "devinterp 1.3.2, batches of 64": 2.8,
                "covary paper": 1.4,
                "covary gaussian": 0.7,
                "images": 2800,
            },
        },
        "auroc": {"combined": 0.99},
    },
}
SAMPLED = {
    NETWORK: {
        "rows": [
            {"source": "paper", "observable": "margin", "images": "all", "steps": 2000, "draws": 175,
             "class_max_ccc": 0.95},
            {"source": "paper", "observable": "nll", "images": "all", "steps": 2000, "draws": 175, "class_max_ccc": 0},
            {"source": "gaussian 0.01", "observable": "margin", "images": "all", "draws": 10, "class_max_ccc": 0.9},
        ]
    }
}  # fmt: skip


def test_sections_are_kept_unless_asked_for_again(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(speed, "SECTIONS", {name: lambda _, name=name: calls.append(name) or {} for name in "ab"})
    out = tmp_path / "deep" / "speed.json"
    run(["a"], out, Options())
    run([], out, Options())
    assert calls == ["a", "b"]
    run(["a"], out, Options(), again=True)
    assert calls == ["a", "b", "a"]
    assert {"a", "b", "versions", "gpu", "threads"} <= json.loads(out.read_text()).keys()
    with pytest.raises(CovaryError, match="section 'c'"):
        run(["c"], out, Options())


def test_a_peer_that_is_not_there_is_refused_before_any_work(tmp_path):
    with pytest.raises(CovaryError, match="is not a file"):
        run([], tmp_path / "speed.json", Options(peer=tmp_path / "python"))
    assert not (tmp_path / "speed.json").exists()


def test_ratios_are_over_the_fastest_forward():
    found = ratios({"forward 64": (2.0, 1.0), "forward 128": (1.0, 2.0), "hooks": (3.0, 3.0)})
    assert found["ratio_wall"] == found["ratio_processor"] == 3.0


def test_repeats_are_interleaved_and_the_first_call_is_not_timed():
    order = []
    interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3


def test_couplings_of_uncompressed_rows_correlate_fully(monkeypatch):
    monkeypatch.setattr("covary_bench.speed.fidelity.PAIRS", 20)
    rows = {name: np.random.default_rng(i).standard_normal((20, 9)) for i, name in enumerate("ab")}
    grams = {name: r @ r.T for name, r in rows.items()}
    found = correlations(rows, grams)
    assert found["covariance_all_layers"] == found["covariance_layer_least"] == found["cosine_layer_least"] == 1.0
    other = correlations({name: r[:, :3] for name, r in rows.items()}, grams)
    assert other["covariance_all_layers"] < 0.9


def test_dense_numbers_keep_inner_products_on_average(monkeypatch):
    monkeypatch.setattr("covary_bench.speed.fidelity.PAIRS", 12)
    rows = np.random.default_rng(3).standard_normal((12, 40))
    grams = {"a": rows @ rows.T}
    wide = unstructured({"a": np.zeros((12, 20000))}, grams)["a"]
    np.testing.assert_allclose(wide @ wide.T, grams["a"], atol=1.5)
    assert unstructured({"a": np.zeros((12, 5))}, grams)["a"].shape == (12, 5)


def test_the_page_says_what_was_not_measured():
    page = markdown({"gpu": "not measured"})
    assert page.count("\n") == 3
    assert "not measured" in page
    assert "| 900 |" in markdown(RECORD)
    assert scales({}) == curve({}) == "not measured\n"
    figures = {"covariance_all_layers": 0.99, "covariance_layer_mean": 0.9, "covariance_layer_least": 0.5}
    assert "| a | 0.990, 0.900, 0.500 |" in curve({"fidelity": {"a": {"curve": {"16": figures}}, "load_average": 1.0}})


def test_points_of_the_chart_cost_what_their_draws_cost(tmp_path):
    found = points(RECORD, SAMPLED, NETWORK)
    assert found["first order, combined"] == [(2.0, 0.99)]
    assert found["covary, preset paper, class-max CCC"] == [(2000 * 1.4 / 2800 * 1e3, 0.95)]
    assert found["covary, independent draws, class-max CCC"] == [(10 * 0.7 / 2800 * 1e3, 0.9)]
    chart(RECORD, SAMPLED, tmp_path / "speed.svg")
    assert (
        "milliseconds a query" in (tmp_path / "speed.svg").read_text() or (tmp_path / "speed.svg").stat().st_size > 9000
    )


def test_judging_noise_runs_at_any_size():
    assert set(judged(60, 3)) == {"fit_seconds", "microseconds_a_query"}


@pytest.mark.parametrize("llama", [False, True])
def test_the_transformers_run(llama):
    torch.manual_seed(0)
    network: nn.Module = Transformer(32, 1, llama).eval()
    x = torch.randint(0, 512, (2, 5)) if llama else torch.rand(2, 3, 32, 32)
    assert network(x).shape == (2, 64)


def test_the_command_measures_a_section_and_prints_it(tmp_path, monkeypatch, capsys):
    from covary_bench.speed.page import measure

    monkeypatch.setattr(speed, "SECTIONS", {"stream": lambda _: {"marks": [], "second_half_over_first": 1.01,
                                                                 "growth_after_a_tenth_mb": 3}})  # fmt: skip
    measure(["stream"], tmp_path, tmp_path, None, 1, False, quiet=False)
    assert "| 1.01 |" in capsys.readouterr().out
    assert len(list(tmp_path.glob("speed-*.json"))) == 1


def test_memory_of_a_process_is_its_own():
    held = np.ones(60 * 2**17)  # which a child process must not count
    code = (
        "import numpy as np; from covary_bench.speed.stream import megabytes; a = megabytes('VmRSS');"
        "held = np.ones(30 * 2**17); b = megabytes('VmRSS'); del held; print(a, b, megabytes('VmHWM'))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, during, peak = map(float, done.stdout.split())
    assert 20 < during - before < 60
    assert during - 1 <= peak < during + 20
    assert held.size
    assert np.isnan(megabytes("VmNothing"))
