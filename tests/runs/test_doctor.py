"""The doctor: a healthy installation passes, a broken one is told."""

from __future__ import annotations

import json
import re
from importlib import metadata

import numpy as np
import pytest

from covary.runs import doctor


@pytest.fixture(scope="module")
def tried():
    return doctor.self_test()


def test_the_self_test_flags_what_it_should(tried):
    findings, figures = tried
    assert [finding.level for finding in findings] == ["ok"] * 3
    assert figures["caught"] >= doctor.LEAST_CAUGHT


def test_the_command_prints_it_and_ends_with_0(run_cli, tried, monkeypatch):
    monkeypatch.setattr(doctor, "self_test", lambda device: tried)
    code, out, _ = run_cli("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert re.search(r"python 3\.\d+.*torch", found["findings"][0]["text"])
    assert found["figures"]["seconds"] >= 0
    code, out, _ = run_cli("doctor")
    assert code == 0
    assert "Self-test: odd inputs are flagged" in out


@pytest.mark.parametrize(
    ("shares", "wrong"), [((0.0, 0.0, 0.2, True), 0), ((1.0, 0.5, 0.2, True), 1), ((1.0, 0.0, 0.2, False), 2)]
)
def test_each_fault_fails(run_cli, monkeypatch, shares, wrong):
    found = doctor.findings(*shares)
    assert [finding.level == "error" for finding in found] == [i == wrong for i in range(3)]
    monkeypatch.setattr(doctor, "self_test", lambda device: (found, {}))
    assert run_cli("doctor")[0] == 1


def test_what_breaks_is_told_with_its_reason(monkeypatch):
    def broken(device):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(doctor, "self_test", broken)
    report = doctor.examine()
    assert not report.ok
    assert "RuntimeError: no kernel image" in report.findings[-1].text


def test_extras_are_those_of_the_package(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: [
        "numpy>=1", 'rich>=1; extra == "shown"', 'nothing-such>=1; extra == "absent"', "pytest; extra == 'dev'",
    ])  # fmt: skip
    there, missing = doctor._extras()
    assert there.text == "Installed: shown."
    assert missing.text == "Not installed: absent (nothing-such)."
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda name: (_ for _ in ()).throw(metadata.PackageNotFoundError(name))
    )
    assert "not installed by pip" in doctor._extras()[0].text


def test_the_toy_is_the_same_every_time():
    x, y = doctor._digits()
    assert x.dtype == np.uint8
    assert len(x) == len(y) > doctor.TRAINED + doctor.TRUSTED + doctor.CLEAN + doctor.ODD
