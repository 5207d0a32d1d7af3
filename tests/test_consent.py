"""Code that a folder names runs only where somebody has agreed to that: a flag, a network named again, a known key."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys

import numpy as np
import pytest

import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.objects import OWN, NotTrusted, check_consent, load_object
from covary.runs import scan as scanning
from covary.runs.folder.sources import source_differences
from covary.runs.pile.mechanisms import find_mechanisms
from covary.serving.pile.score import score_pile
from covary.storage import folders, signatures, verify
from covary.storage.receipts import write_receipt

CODE = """
from pathlib import Path
Path({mark!r}).touch()
def network():
    raise RuntimeError
def function(x):
    return x
"""
PLACES = {"network": ["factory"], "transform": ["preprocessing", "transform"], "observable": ["settings", "observable"]}


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that is there once the foreign module `foreign_code` has run."""
    (tmp_path / "foreign_code.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "ran"
    sys.modules.pop("foreign_code", None)


def reseal(folder, change):
    """Changes a saved detector's record as somebody would who means harm: seal and receipt are made again."""
    record = json.loads((folder / "detector.json").read_text())
    record.pop("digest")
    change(record)
    folders.write_json(folder / "detector.json", {**record, "digest": folders.digest_json(record)})
    write_receipt(folder)


def name_code(folder, what, name):
    def change(record):
        *way, last = PLACES[what]
        for key in way:
            record = record[key]
        record[last] = name

    reseal(folder, change)


@pytest.mark.parametrize("what", PLACES)
def test_code_that_a_folder_names_is_not_run_and_named(what, mark, detector_folder, run_cli, tiny_files, tmp_path):
    name = "foreign_code:" + ("network" if what == "network" else "function")
    name_code(detector_folder, what, name)
    model = {} if what == "network" else {"model": "tiny:trained"}
    with pytest.raises(NotTrusted, match=rf"wants to run code: {name} as its {what}; expected your consent"):
        Detector.load(detector_folder, **model)
    more = ["--model", "tiny:trained"] if model else []
    data, out = tiny_files / "inputs.npz", tmp_path / "out"
    for rest in ([], ["--partition-size", 32]):
        code, _, err = run_cli("score", detector_folder, data, "--out", out, *more, *rest)
        assert (code, f"{name} as its {what}" in err.replace("\n", "")) == (2, True)
    code, _, err = run_cli("serve", detector_folder, *more)
    assert (code, f"{name} as its {what}" in err.replace("\n", "")) == (2, True)
    assert not mark.exists()
    assert not out.exists()
    # With consent it does run, which is what the refusals above have kept from happening.
    with contextlib.suppress(CovaryError, TypeError):
        Detector.load(detector_folder, **model, trust_code=True).score(tiny.inputs()[0][:2])
    assert mark.exists()


def test_commands_of_the_standard_library_are_code_too(detector_folder):
    for name in ("http.server:test", "os:abort", "covary.storage.folders:shutil.rmtree", "covary.cli.main:main"):
        name_code(detector_folder, "network", name)
        with pytest.raises(NotTrusted, match=name):
            Detector.load(detector_folder)


def test_whoever_names_the_network_again_has_agreed_to_it(mark, detector_folder):
    name_code(detector_folder, "network", "foreign_code:network")
    detector = Detector.load(detector_folder, tiny.trained())
    assert len(detector.score(tiny.inputs()[0][:3])) == 3
    assert not mark.exists()


def test_a_known_key_is_consent_and_another_is_none(detector_folder, tmp_path, run_cli, tiny_files):
    pytest.importorskip("cryptography")
    key, other = tmp_path / "key", tmp_path / "other"
    for path in (key, other):
        signatures.make_keys(path)
    verify.sign(detector_folder, key)
    with pytest.raises(NotTrusted):
        Detector.load(detector_folder)  # a signature by nobody knows whom
    with pytest.raises(CovaryError, match="it was made with the key"):
        Detector.load(detector_folder, public_key=f"{other}.pub")
    assert Detector.load(detector_folder, public_key=f"{key}.pub").judge is not None
    score = ["score", detector_folder, tiny_files / "inputs.npz", "--out", tmp_path / "run", "--public-key"]
    assert [run_cli(*score, f"{name}.pub")[0] for name in (other, key)] == [2, 0]


def test_what_is_covary_s_own_needs_no_consent():
    check_consent("x", {"network": "covary.runs.demo:network", "observable": "margin", "transform": None}, False)
    assert all(callable(load_object(name, "network")) for name in OWN)


# RUNs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scanned(tiny_files, tmp_path_factory):
    """A RUN of a scan with flags; not to be changed."""
    plan = scanning.ScanPlan.checked(
        model="tiny:network", weights=str(tiny_files / "weights.safetensors"), trusted=str(tiny_files / "trusted.npz"),
        inputs=str(tiny_files / "inputs.npz"), settings={},
    )  # fmt: skip
    scanning.scan(plan, tmp_path_factory.mktemp("scanned") / "run")
    return tmp_path_factory.getbasetemp() / "scanned0" / "run"


@pytest.mark.parametrize("field", ["model", "trusted", "inputs", "calibration", "transform"])
def test_a_run_that_names_code_is_not_done_again_unasked(field, scanned, mark, tmp_path, run_cli):
    run = shutil.copytree(scanned, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["plan"] |= {"model": "covary.runs.demo:network", field: "foreign_code:function"}
    (run / "run.json").write_text(json.dumps(record))
    write_receipt(run)
    for work in (scanning.replay, find_mechanisms, lambda run: list(source_differences(run))):
        with pytest.raises(NotTrusted, match=r"foreign_code:function as its"):
            work(run)
    for command in (["scan", "--replay", run], ["mechanisms", run], ["verify", run, "--sources"]):
        code, _, err = run_cli(*command)
        assert (code, "foreign_code:function" in err.replace("\n", "")) == (2, True), command
    assert not mark.exists()


def test_a_run_of_a_foreign_detector_does_not_run_its_code(detector_folder, tiny_files, mark, tmp_path):
    scanning.score(detector_folder, str(tiny_files / "inputs.npz"), tmp_path / "run", trust_code=True)
    name_code(detector_folder, "network", "foreign_code:network")
    for work in (find_mechanisms, lambda run: list(source_differences(run))):
        with pytest.raises(NotTrusted, match=r"foreign_code:network as its network"):
            work(tmp_path / "run")
    assert not mark.exists()


def test_modules_are_not_looked_for_where_a_run_says_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "late_module.py").write_text("raise SystemExit")
    with scanning.working_in(tmp_path):
        assert "" not in sys.path
        with pytest.raises(ModuleNotFoundError):
            __import__("late_module")
    assert sys.path[0] == ""


def test_piles_ask_too(detector_folder, mark, tmp_path):
    pytest.importorskip("pyarrow")
    np.savez(tmp_path / "some.npz", x=tiny.inputs()[0][:10])
    name_code(detector_folder, "network", "foreign_code:network")
    with pytest.raises(NotTrusted, match="foreign_code:network"):
        score_pile(detector_folder, str(tmp_path / "some.npz"), tmp_path / "out")
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
