"""From the command line: what is left out is told, odd names do no harm, a check and a scan agree."""

import csv
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

NETS = """
import torch
from torch import nn
class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.c, self.f = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
    def forward(self, x):
        return self.f(self.c(x).relu().mean((2, 3)) * 20)
class Wide(CNN):
    def __init__(self):
        super().__init__()
        self.double()
class NoGradient(CNN):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)
class Broken(CNN):
    def forward(self, x):
        return super().forward(x) + self.no_such_layer
def scripted():
    return torch.jit.script(CNN())
def frozen():
    return CNN().requires_grad_(False)
def counted():
    print("built")
    return CNN()
"""


def save(path, rng, grey=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (12, 12) if grey else (12, 12, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of trusted images, a pile with all kinds of files, and networks to look at them."""
    rng = np.random.default_rng(0)
    for i in range(30):
        save(tmp_path / "good" / f"{i}.png", rng)
    for name in ("a.png", "b.tif", "c.gif", "d.webp"):
        save(tmp_path / "pile" / name, rng)
    save(tmp_path / "pile" / ".hidden" / "e.png", rng)
    (tmp_path / "pile" / "notes.txt").write_text("")
    (tmp_path / "own_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    yield tmp_path
    sys.modules.pop("own_nets", None)


def scan(run_cli, *more, model="CNN", inputs="pile"):
    return run_cli(
        "scan",
        "--model",
        f"own_nets:{model}",
        "--trusted",
        "good",
        "--inputs",
        inputs,
        "--fpr",
        ".1",
        "--out",
        "run",
        *more,
    )


def checked(run_cli, *more, model="CNN", inputs="pile"):
    return run_cli(
        "check", "--model", f"own_nets:{model}", "--trusted", "good", "--inputs", inputs, "--fpr", ".1", *more
    )


def ids():
    with open("run/results.csv", encoding="utf-8") as file:
        return [row["id"] for row in csv.DictReader(file)]


def test_every_image_gets_a_verdict_and_what_is_left_out_is_told_everywhere(place, run_cli):
    code, out, err = scan(run_cli)
    assert code == 0, err
    assert ids() == ["a.png", "b.tif", "c.gif", "d.webp"]
    summary = json.loads((place / "run" / "summary.json").read_text())
    assert {left["kind"]: left["n"] for left in summary["left_out"]} == {
        "files that are no images": 1, "hidden files and folders": 1,
    }  # fmt: skip
    assert "notes.txt" in out
    assert "1 hidden files and folders" in out
    assert "notes.txt" in err, "the check warns of it"
    code, out, _ = checked(run_cli)
    assert (code, "notes.txt" in out, "1 hidden files and folders" in out) == (0, True, True)


def test_names_that_are_no_utf_8_come_out_as_escapes(place, run_cli):
    os.rename(place / "pile" / "a.png", os.fsencode(place) + b"/pile/caf\xe9.png")
    code, _, err = scan(run_cli, "--quiet")
    assert code == 0, err
    assert r"caf\xe9.png" in ids()


def test_a_folder_whose_own_name_is_no_utf_8(place, run_cli):
    os.rename(place / "pile", os.fsencode(place) + b"/p\xff")
    code, _, err = scan(run_cli, "--quiet", inputs=os.fsdecode(b"p\xff"))
    assert code == 0, err
    assert len(ids()) == 4
    assert run_cli("scan", "--trust-code", "--replay", "run", "--out", "again", "--quiet")[0] == 0


def test_grey_images_among_coloured_trusted_ones_are_read_in_colour(place, run_cli):
    save(place / "grey" / "a.png", np.random.default_rng(1), grey=True)
    code, _, err = scan(run_cli, "--quiet", inputs="grey")
    assert code == 0, err
    for path in (place / "good").iterdir():
        save(path, np.random.default_rng(2), grey=True)
    code, _, err = scan(run_cli, "--quiet", "--transform", "own_nets:torch.t", inputs="pile/a.png")
    assert code == 2
    assert "has colours; expected a grey image" in err


def test_a_glob_one_image_and_class_names(place, run_cli):
    (place / "names.txt").write_text("ant\nbee\n")
    code, _, err = scan(run_cli, "--quiet", "--class-names", "names.txt", inputs="pile/[bc].*")
    assert code == 0, err
    assert ids() == ["b.tif", "c.gif"]
    assert json.loads((place / "run" / "run.json").read_text())["class_names"] == ["ant", "bee"]
    (place / "names.txt").write_text("ant\nbee\ncat\n")
    code, _, err = scan(run_cli, "--quiet", "--class-names", "names.txt", inputs="pile/a.png")
    assert (code, "3 class names; expected 2" in err) == (2, True)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("scripted", "torch.jit.script"),
        ("NoGradient", "o gradient reaches the weights"),
        ("Broken", "own_nets.py, line 21, in forward"),
        ("frozen", ""),
        ("Wide", ""),
    ],
)
def test_a_check_and_a_scan_agree(place, run_cli, model, words):
    check_code, check_out, check_err = checked(run_cli, model=model)
    scan_code, scan_out, scan_err = scan(run_cli, "--quiet", model=model)
    assert check_code == scan_code == (2 if words else 0), scan_err
    assert words in check_out + check_err
    assert words in scan_out + scan_err
    assert "Traceback" not in check_err + scan_err


def test_findings_of_a_check_are_those_of_a_scan(place, run_cli):
    _, out, _ = checked(run_cli, "--json")
    scan(run_cli, "--quiet")
    report = json.loads((place / "run" / "report.json").read_text())

    def timeless(findings):
        return [finding for finding in findings if finding["title"] != "Time and memory"]

    assert timeless(report["diagnostics"]) == timeless(json.loads(out)["findings"])


def test_a_scan_builds_the_network_once_and_opens_its_data_once(place, run_cli, monkeypatch):
    from covary.data import source

    opened, open_reader = [], source.open_reader
    monkeypatch.setattr(source, "open_reader", lambda spec: opened.append(str(spec)) or open_reader(spec))
    code, out, err = scan(run_cli, model="counted")
    assert code == 0, err
    assert out.count("built") == 1
    assert sorted(opened) == ["good", "pile"]
