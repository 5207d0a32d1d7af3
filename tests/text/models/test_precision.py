"""Precision left to the machine, and what is said of texts before the long work."""

from __future__ import annotations

import json

import pytest
import torch

import texts
from covary.detector import Detector
from covary.runs.check.texts import check_texts, refusals
from covary.text.extractor import TextExtractor
from covary.text.models.pretrained import dtype_for, load_language_model

TEXT = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return texts.saved(tmp_path_factory.mktemp("models") / "words")


@pytest.mark.parametrize(
    ("able", "expected"),
    [({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({"avx512_f": True}, "float32")],
)
def test_half_precision_where_the_processor_computes_in_it(monkeypatch, able, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert dtype_for("cpu") == expected


def test_what_auto_came_to_is_kept_with_the_detector(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    detector = Detector(folder, dtype="auto", **TEXT).fit(texts.records(24))
    assert (detector.settings.extractor.dtype, detector.extractor.model.dtype) == ("bfloat16", "bfloat16")
    detector.save(tmp_path / "detector")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert Detector.load(tmp_path / "detector").extractor.model.dtype == "bfloat16"
    assert load_language_model(folder, dtype="auto").dtype == "float32"


def test_rows_in_half_precision_are_near_those_in_full(folder):
    some = texts.tokens(6)
    full, half = (
        TextExtractor(load_language_model(folder, dtype=dtype)).rows(texts.batch(some))
        for dtype in ("float32", "bfloat16")
    )
    texts.assert_same(full, half, tolerance=0.1, norms=False, confidence=0.1)


def test_a_check_says_lengths_cuts_refusals_time_and_memory():
    model = texts.causal()
    detector = Detector(model, max_new_tokens=4, max_length=24)
    trusted = detector.extractor.open_trusted(texts.records(30))
    long = [{"id": f"long-{i}", "prompt": "sort : " + "wolf " * 30, "completion": " Sorry, no"} for i in range(4)]
    inputs = detector.open([*long, {"id": "x", "prompt": "sort : wolf :", "completion": " wolf"}])
    report = check_texts(trusted, inputs, model=model)
    said = {finding.title: finding.text for finding in report.findings}
    assert "refused, `prompt` is read" in said["Chat template"]
    assert "80% of the answers refuse" in said["Texts"]
    assert said["Texts cut"].startswith("4 of 5 are too long")
    assert "Lengths apart" in said
    assert "in float32: about" in said["Time and memory"]
    assert report.figures["Texts"]["cut"] == 4
    assert refusals(inputs) == 0.8


def test_the_check_of_the_command_line_says_it_too(run_cli, folder, tmp_path):
    path = tmp_path / "trusted.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in texts.records(24)))
    code, out, _ = run_cli("check", "--hf", folder, "--trusted", path, "--max-new-tokens", 4)
    assert code == 0
    assert "Chat template" in out
    assert "Time and memory" in out
