"""Receipts: one flipped byte anywhere has a name, keys sign and check, and merging knows no order."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess

import numpy as np
import pytest

import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.runs import scan as scanning
from covary.runs.folder.sources import source_differences
from covary.serving.pile.score import score_pile
from covary.storage import bundle, signatures, verify
from covary.storage.fingerprints import canonical_json, digest_json
from covary.storage.receipts import portable, read_receipt, strict_json, write_receipt

RECORD = {
    "source": {"version": 2, "kind": "arxiv", "id": "2604.18970"},
    "schema_version": "1.0",
    "metadata": {
        "title_canon_sha256": "56b7e575bff4e3ee2ccf1990fe2e81f631958aa86b9fc592e8c9c4aefe84045c",
        "primary_cat": "cs.LG",
        "submitted_at": "2026-04-21T01:39:57Z",
        "license": "http://creativecommons.org/licenses/by/4.0/",
        "abstract_canon_sha256": "6b94b944d469a720af3d789c59b1219d65cef2bbb7b5f2631fe28224c7ac6106",
        "cross_cats_sorted": ["cs.CR"],
    },
}
KNOWN = "178941b774d766c443b3a5f4a9b82ef73dbb0038b0af31a1b3d564e10ed3230f"


@pytest.fixture(scope="module")
def signed_run(tiny_files, tmp_path_factory):
    """A signed RUN with its private and public key; not to be changed."""
    home = tmp_path_factory.mktemp("signed")
    plan = scanning.ScanPlan.checked(
        model="tiny:network", weights=str(tiny_files / "weights.safetensors"), trusted=str(tiny_files / "trusted.npz"),
        inputs=str(tiny_files / "inputs.npz"), target=3, settings={},
    )  # fmt: skip
    scanning.scan(plan, home / "run")
    signatures.make_keys(home / "key.pem")
    verify.sign(home / "run", home / "key.pem")
    return home / "run", home / "key.pem", home / "key.pem.pub"


@pytest.fixture
def run(signed_run, tmp_path):
    """A copy of it to break."""
    return shutil.copytree(signed_run[0], tmp_path / "run")


def named(folder, key=None):
    return [name for name, _ in verify.differences(folder, key)]


# The record ----------------------------------------------------------------------------------------------------------


def test_the_known_answer_in_any_order_and_spacing(tmp_path, run_cli):
    assert digest_json(RECORD) == KNOWN
    for indent, sort in itertools.product((None, 1, 4), (False, True)):
        (tmp_path / "record.json").write_text(json.dumps(RECORD, indent=indent, sort_keys=sort))
        code, out, _ = run_cli("receipts", "hash", tmp_path / "record.json")
        assert (code, out) == (0, KNOWN + "\n")
    (tmp_path / "record.json").write_text('{"a":1,"a":2}')
    code, _, err = run_cli("receipts", "hash", tmp_path / "record.json")
    assert code == 2
    assert "a key comes twice" in err


def test_a_receipt_is_its_own_canonical_text(signed_run):
    record, content = read_receipt(signed_run[0])
    assert content.decode() == json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    line = (signed_run[0] / "receipt.sha256").read_text()
    assert line == f"{hashlib.sha256(content).hexdigest()}  receipt.json\n"
    assert set(record) == {
        "schema_version", "kind", "config", "versions", "seeds", "fingerprints", "outputs", "files"
    }  # fmt: skip
    assert set(record["fingerprints"]) == {"network", "trusted", "inputs"}
    results = hashlib.sha256((signed_run[0] / "results.csv").read_bytes()).hexdigest()
    assert record["outputs"]["results"] == record["files"]["results.csv"] == results
    assert record["outputs"]["n"] == 160


def test_no_folder_of_this_machine_in_a_receipt(signed_run, saved_folder, tmp_path):
    content = (signed_run[0] / "receipt.json").read_text()
    assert str(signed_run[0].parents[1]) not in content
    assert '"weights":"weights.safetensors"' in content
    assert str(saved_folder.parent) not in (saved_folder / "receipt.json").read_text()
    assert portable("C:\\models\\net.pt") == "net.pt"
    assert [portable(value) for value in ("package:factory", "../data/x.npz", 3, None)] == [
        "package:factory", "../data/x.npz", 3, None
    ]  # fmt: skip
    moved = shutil.copytree(signed_run[0], tmp_path / "elsewhere")
    assert named(moved) == []


# One flipped byte ----------------------------------------------------------------------------------------------------


def places(content, rng):
    """First, last, and twelve others."""
    return sorted({0, len(content) - 1, *rng.integers(0, len(content), 12).tolist()})


@pytest.mark.parametrize("kind", ["RUN", "detector"])
def test_one_flipped_byte_anywhere_is_named(kind, run, detector_folder, signed_run, monkeypatch):
    folder = run if kind == "RUN" else detector_folder
    if kind == "detector":
        verify.sign(folder, signed_run[1])
    assert named(folder) == []
    rng = np.random.default_rng(0)
    files = sorted(folder.iterdir())
    assert len(files) == 8 if kind == "RUN" else 7
    for file in files:
        full = file.read_bytes()
        for place in places(full, rng):
            bit = 1 << int(rng.integers(8))
            file.write_bytes(full[:place] + bytes([full[place] ^ bit]) + full[place + 1 :])
            assert file.name in named(folder), (file.name, place, bit)
        file.write_bytes(full)
    assert named(folder) == []


def test_a_byte_added_or_lost_and_files_added_lost_or_swapped_are_named(run):
    for name in ("results.csv", "receipt.json", "receipt.sha256", "signature.json", "report.html"):
        full = (run / name).read_bytes()
        for broken in (full[:-1], full + b" ", full + b"\n", b""):
            (run / name).write_bytes(broken)
            assert name in named(run)
        (run / name).unlink()
        if name == "receipt.json":
            with pytest.raises(CovaryError, match=r"has no receipt\.json"):
                named(run)
        else:
            # Without a signature a RUN is an unsigned one, as good as any unless a key is asked for.
            assert named(run) == ([] if name == "signature.json" else [name])
        (run / name).write_bytes(full)
    (run / "notes.txt").write_text("")
    assert named(run) == ["notes.txt"]
    (run / "notes.txt").unlink()
    a, b = (run / "summary.json").read_bytes(), (run / "report.json").read_bytes()
    (run / "summary.json").write_bytes(b)
    (run / "report.json").write_bytes(a)
    assert named(run) == ["report.json", "summary.json"]


def test_links_pipes_devices_and_empty_folders_are_named(run, tmp_path):
    os.mkfifo(run / "pipe")
    (run / "empty").mkdir()
    (run / "link").symlink_to("/nowhere")
    (run / "folder").mkdir()
    (run / "folder" / "copy.json").write_text("{}")
    (run / "summary.json").rename(tmp_path / "summary.json")
    (run / "summary.json").symlink_to(tmp_path / "summary.json")
    (tmp_path / "odd").mkdir()
    os.rename(tmp_path / "odd", os.fsencode(run) + b"/\xff")
    found = dict(verify.differences(run))
    assert found["pipe"] == "is a named pipe"
    assert found["empty"] == "is an empty folder"
    assert found["link"] == found["summary.json"] == "is a link"
    assert found["folder/copy.json"] == "was added"
    assert found["\\xff"] == "has a name that is not UTF-8"


def test_a_changed_setting_is_told_by_its_name_and_both_values(run, run_cli):
    record = json.loads((run / "run.json").read_text())
    record["config"]["fpr"] = 0.5
    (run / "run.json").write_text(json.dumps(record))
    found = dict(verify.differences(run))
    assert found["config.fpr"] == "the receipt says 0.01, the folder 0.5"
    assert "run.json" in found
    code, out, _ = run_cli("verify", run)
    assert code == 1
    assert "differs config.fpr the receipt says 0.01, the folder 0.5" in out


def test_a_forged_receipt_is_told_by_what_it_forgets(run, signed_run):
    """Results changed and a receipt made anew: without the key nobody can sign it."""
    text = (run / "results.csv").read_text().replace("true", "false")
    (run / "results.csv").write_text(text)
    write_receipt(run)
    assert sorted(named(run)) == ["run.json", "signature.json", "summary.json"]


def test_piles_have_receipts_too(saved_folder, tmp_path, run_cli):
    np.savez(tmp_path / "some.npz", x=tiny.inputs()[0][:10])
    for name in ("pile", "again"):
        sizes = {"partition_size": 4, "batch_size": 4}
        score_pile(saved_folder, str(tmp_path / "some.npz"), tmp_path / name, trust_code=True, **sizes)
    record, other = (read_receipt(tmp_path / name)[0] for name in ("pile", "again"))
    assert (record["kind"], record["outputs"]["n"], record["config"]["data"]) == ("pile", 10, "some.npz")
    assert {**record, "files": None} == {**other, "files": None}
    assert named(tmp_path / "pile") == []
    for file in sorted((tmp_path / "pile").iterdir()):
        full = file.read_bytes()
        file.write_bytes(full[:-1] + bytes([full[-1] ^ 1]))
        assert file.name in named(tmp_path / "pile")
        file.write_bytes(full)
    code, out, _ = run_cli("verify", tmp_path / "pile")
    assert (code, "nothing" in out) == (0, False)
    assert run_cli("verify", tmp_path / "pile", "--sources")[0] == 0


# Loading -------------------------------------------------------------------------------------------------------------


def test_a_detector_is_refused_where_its_receipt_does_not_fit(saved_folder, detector_folder, fitted, tmp_path):
    other = fitted.save(tmp_path / "bare", weights=False)
    for name in ("receipt.json", "receipt.sha256"):
        full = (detector_folder / name).read_bytes()
        for broken in ((other / name).read_bytes(), full[:-2], None):
            (detector_folder / name).unlink()
            if broken is not None:
                (detector_folder / name).write_bytes(broken)
            with pytest.raises(CovaryError, match=name.replace(".", r"\.")):
                Detector.load(detector_folder, trust_code=True)
            (detector_folder / name).write_bytes(full)
    Detector.load(detector_folder, trust_code=True)


def test_a_detector_can_be_asked_for_its_signature(detector_folder, signed_run, tmp_path):
    _, key, public = signed_run
    with pytest.raises(CovaryError, match=r"signature\.json is missing"):
        Detector.load(detector_folder, public_key=public)
    verify.sign(detector_folder, key)
    Detector.load(detector_folder, public_key=public)
    signatures.make_keys(tmp_path / "other.pem")
    with pytest.raises(CovaryError, match="it was made with the key"):
        Detector.load(detector_folder, public_key=tmp_path / "other.pem.pub")


def test_the_report_made_again_stays_in_the_receipt(run, run_cli):
    (run / "report.html").write_text("")
    assert named(run) == ["report.html"]
    assert run_cli("report", run)[0] == 2  # it is signed
    (run / "signature.json").unlink()
    assert run_cli("report", run)[0] == 0
    assert named(run) == []
    (run / "results.csv").write_text((run / "results.csv").read_text().replace("input-0", "input-x", 1))
    code, _, err = run_cli("report", run)
    assert (code, "is not what its receipt says: results.csv was changed" in err) == (0, True)
    assert "The receipt does not vouch for this RUN" in (run / "report.html").read_text()
    # What else was changed is not taken in.
    assert "results.csv" in named(run)


# Signatures ----------------------------------------------------------------------------------------------------------


def test_signing_and_checking(run_cli, run, signed_run, tmp_path):
    _, _, public = signed_run
    code, out, _ = run_cli("verify", run, "--public-key", public, "--json")
    found = json.loads(out)
    assert (code, found["intact"]) == (0, True)
    assert found["signed_by"] == signatures.short(signatures.read_public(public))
    code, out, _ = run_cli("keygen", tmp_path / "other.pem", "--json")
    other = json.loads(out)
    assert (tmp_path / "other.pem").stat().st_mode & 0o077 == 0
    code, out, _ = run_cli("verify", run, "--public-key", other["public"])
    assert code == 1
    assert "it was made with the key" in out
    (run / "signature.json").unlink()
    assert named(run, signatures.read_public(public)) == ["signature.json"]
    assert run_cli("verify", run)[0] == 0
    assert run_cli("sign", run, "--key", tmp_path / "other.pem")[0] == 0
    assert run_cli("verify", run, "--public-key", other["public"])[0] == 0
    code, _, err = run_cli("keygen", tmp_path / "other.pem")
    assert code == 2
    assert "keys are never overwritten" in err


def test_a_folder_that_differs_is_not_signed(run, signed_run):
    (run / "summary.json").write_text("{}")
    with pytest.raises(CovaryError, match=r"is not what its receipt says: summary\.json was changed"):
        verify.sign(run, signed_run[1])


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n", "rsa"])
def test_what_is_no_key_is_refused_in_one_sentence(content, run, tmp_path):
    if content == "rsa":
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        content = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(CovaryError, match="an Ed25519 private key"):
        verify.sign(run, tmp_path / "key")
    with pytest.raises(CovaryError, match="an Ed25519 public key"):
        signatures.read_public(tmp_path / "key")
    with pytest.raises(CovaryError, match="cannot be read"):
        signatures.read_public(tmp_path / "nothing")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_makes_keys_for_us(run, tmp_path):
    key, public = tmp_path / "key.pem", tmp_path / "key.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    verify.sign(run, key)
    assert named(run, signatures.read_public(public)) == []


def test_without_cryptography_the_form_is_still_checked(run, monkeypatch):
    def absent():
        raise signatures.missing_extra("cryptography", "sign")

    monkeypatch.setattr(signatures, "_cryptography", absent)
    assert named(run) == []
    (run / "signature.json").write_bytes((run / "signature.json").read_bytes().replace(b"Ed25519", b"Ed25518"))
    assert named(run) == ["signature.json"]
    with pytest.raises(CovaryError, match=r"pip install 'covary\[sign\]'"):
        signatures.read_public(run)


# Sources -------------------------------------------------------------------------------------------------------------


def test_network_and_data_are_looked_at_again(tiny_files, saved_folder, detector_folder, tmp_path, monkeypatch):
    shutil.copytree(tiny_files, tmp_path / "files")
    monkeypatch.chdir(tmp_path)
    plan = scanning.ScanPlan.checked(
        model="tiny:network", weights="files/weights.safetensors", trusted="files/trusted.npz",
        inputs="files/inputs.npz", settings={"batch_size": 128},
    )  # fmt: skip
    scanning.scan(plan, tmp_path / "run")
    scanning.score(detector_folder, "files/inputs.npz", tmp_path / "scored", trust_code=True)
    monkeypatch.chdir("/")
    for name in ("run", "scored"):
        assert list(source_differences(tmp_path / name, trust_code=True)) == []
    assert list(source_differences(detector_folder, trust_code=True)) == []
    x, y, _ = tiny.inputs()
    np.savez(tmp_path / "files" / "inputs.npz", x=255 - x, y=y)
    (tmp_path / "files" / "trusted.npz").unlink()
    found = dict(source_differences(tmp_path / "run", trust_code=True))
    assert list(found) == ["fingerprints.trusted", "fingerprints.inputs"]
    assert "cannot be taken again" in found["fingerprints.trusted"]
    assert list(dict(source_differences(tmp_path / "scored", trust_code=True))) == ["fingerprints.inputs"]
    shutil.rmtree(detector_folder)
    assert list(dict(source_differences(tmp_path / "scored", trust_code=True))) == ["config.detector"]


# Bundles -------------------------------------------------------------------------------------------------------------


def test_merging_knows_no_order_no_grouping_and_no_repetition(run, signed_run, saved_folder, tmp_path, run_cli):
    (run / "signature.json").unlink()
    verify.sign(run, signed_run[1])
    scored = tmp_path / "scored"
    np.savez(tmp_path / "some.npz", x=tiny.inputs()[0][:9])
    scanning.score(saved_folder, str(tmp_path / "some.npz"), scored, trust_code=True)
    paths = [run, saved_folder, scored]
    texts = set()
    for order in itertools.permutations(paths):
        bundle.merge(order, tmp_path / "bundle.json")
        texts.add((tmp_path / "bundle.json").read_bytes())
    bundle.merge(paths[:2], tmp_path / "two.json")
    bundle.merge([scored, tmp_path / "two.json", run], tmp_path / "bundle.json")
    texts.add((tmp_path / "bundle.json").read_bytes())
    assert len(texts) == 1
    code, out, _ = run_cli("receipts", "merge", *paths, "--out", tmp_path / "bundle.json", "--json")
    assert code == 0
    assert json.loads(out)["sha256"] == hashlib.sha256(texts.pop()).hexdigest()
    assert run_cli("verify", tmp_path / "bundle.json")[0] == 0
    code, out, _ = run_cli("verify", tmp_path / "bundle.json", "--public-key", signed_run[2], "--json")
    assert (code, len(json.loads(out)["differences"])) == (1, 3)  # two receipts and the whole


def test_signatures_of_several_keys_are_kept(run, signed_run, tmp_path):
    signatures.make_keys(tmp_path / "other.pem")
    first = bundle.bundle_of(run)
    verify.sign(run, tmp_path / "other.pem")
    second = bundle.bundle_of(run)
    both = bundle.merged([first, second])
    assert both == bundle.merged([second, first, both])
    assert [len(entry["signatures"]) for entry in both["receipts"]] == [2]
    (tmp_path / "both.json").write_bytes(canonical_json(both).encode())
    for public in (signed_run[2], tmp_path / "other.pem.pub"):
        found = list(bundle.bundle_differences(tmp_path / "both.json", signatures.read_public(public)))
        assert [name for name, _ in found] == ["signatures"]  # each receipt is, the whole is not


def test_a_bundle_that_lost_a_receipt_or_holds_none_does_not_pass(run, saved_folder, signed_run, tmp_path, run_cli):
    path, key, public = tmp_path / "bundle.json", signed_run[1], signed_run[2]
    bundle.merge([run, saved_folder], path)
    assert run_cli("sign", path, "--key", key)[0] == 0
    content = path.read_bytes()
    assert run_cli("verify", path, "--public-key", public)[0] == 0
    full = json.loads(content)

    def differing(changed, *more):
        path.write_bytes(canonical_json(changed).encode())
        code, out, _ = run_cli("verify", path, "--json", *more)
        assert code == 1
        return {difference["name"] for difference in json.loads(out)["differences"]}

    fewer = {**full, "receipts": full["receipts"][:1]}
    assert "names" in differing(fewer)
    # Whoever makes the list fit breaks the signature, and whoever leaves that out has not the key.
    fitting = {**fewer, "count": 1, "names": full["names"][:1]}
    assert differing(fitting) == {"signatures"}
    assert "signatures" in differing({**fitting, "signatures": []}, "--public-key", public)
    empty = {**full, "receipts": [], "count": 0, "names": [], "signatures": []}
    assert differing(empty) == {"receipts"}
    path.write_bytes(b'{"kind":"bundle","receipts":[],"schema_version":"1.0"}')
    assert run_cli("verify", path)[0] == 2


def test_the_signature_of_a_whole_stays_while_it_is_the_whole(run, saved_folder, signed_run, tmp_path):
    small, large = tmp_path / "small.json", tmp_path / "large.json"
    bundle.merge([run], small)
    bundle.sign_bundle(small, signed_run[1])
    assert bundle.merged([bundle.read_bundle(small), bundle.bundle_of(run)])["signatures"] != []
    bundle.merge([small, saved_folder], large)
    assert bundle.read_bundle(large)["signatures"] == []
    assert list(bundle.bundle_differences(large)) == []


def test_a_changed_bundle_is_refused(run, tmp_path):
    bundle.merge([run], tmp_path / "bundle.json")
    full = (tmp_path / "bundle.json").read_bytes()
    rng = np.random.default_rng(0)
    for place in places(full, rng):
        (tmp_path / "bundle.json").write_bytes(full[:place] + bytes([full[place] ^ 1]) + full[place + 1 :])
        with pytest.raises(CovaryError):
            bundle.read_bundle(tmp_path / "bundle.json")
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(CovaryError, match="no bundle of receipts"):
        bundle.merge([run], tmp_path / "bundle.json")


def test_a_folder_that_differs_is_not_merged(run, tmp_path):
    (run / "report.html").write_text("")
    with pytest.raises(CovaryError, match=r"report\.html was changed"):
        bundle.merge([run], tmp_path / "bundle.json")
    assert not (tmp_path / "bundle.json").exists()


def test_json_with_a_key_twice_has_no_meaning():
    with pytest.raises(ValueError, match="twice"):
        strict_json(b'{"a":{"b":1,"b":2}}')
