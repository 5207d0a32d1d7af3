"""Every command on every kind of detector: it works, or refuses in a sentence that names why."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.main import get_command

import tiny
from covary.cli import main
from covary.detector import Detector
from covary.errors import CovaryError
from covary.objects import load_object
from covary.serving.monitor import Monitor
from covary.settings import EXTRACTORS, settings_classes
from served import INFER, body, client_of, outputs

KINDS = ("image", "latent", "sampled", "table", "text")
AGREED = "--trust-code"
FEW_DRAWS = ("--estimator", "gaussian", "--draws", 8, "--sigma", 0.05)


def table_network() -> nn.Module:
    """Three classes of five numbers: `test_every_command:table_network`."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)).eval()


def _arrays(folder: Path, x: np.ndarray, odd: np.ndarray) -> dict[str, Path]:
    for name, values in (("trusted", x[:60]), ("inputs", np.concatenate([x[60:70], odd[:5]]))):
        np.savez(folder / f"{name}.npz", x=values)
    return {"trusted": folder / "trusted.npz", "inputs": folder / "inputs.npz"}


@dataclass(frozen=True)
class Case:
    """A detector of one kind and its data, named as the command line does; what is made of it stays for the module.

    Attributes:
        kind: one of `KINDS`.
        folder: where everything of this kind lies.
        options: those that name the network.
        usual: those and what fitting is given.
        trusted, inputs: data; some of the inputs are odd.
    """

    kind: str
    folder: Path
    options: list[Any]
    usual: list[Any]
    trusted: Path
    inputs: Path


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory) -> Case:
    """A network and data of every kind."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "text":
        import texts

        def write(name: str, rows: list[dict[str, Any]]) -> Path:
            path = folder / name
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            return path

        model = texts.saved(folder / "model")
        odd = [{**one, "completion": " gold wood eagle now please"} for one in texts.records(4, 9, "odd")]
        inputs = write("i.jsonl", [*texts.records(8, 3, "new"), *odd])
        data = {"trusted": write("t.jsonl", texts.records(40)), "inputs": inputs}
        options: list[Any] = ["--hf", model, "--max-new-tokens", 4]
    elif request.param == "table":
        x = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)
        data, options = _arrays(folder, x, 9 * x), ["--model", "test_every_command:table_network"]
    else:
        x = tiny.trusted()[0]
        data, options = _arrays(folder, x, tiny.odd(x[70:75])), ["--model", "tiny:trained"]
    more: list[Any] = {"sampled": [*FEW_DRAWS], "latent": ["--evidence", "latent"]}.get(request.param, [])
    usual = [*options, *more, "--trusted", data["trusted"], "--fpr", 0.1, "--seed", 3]
    return Case(request.param, folder, options, usual, **data)


class Cli:
    """Commands on a case: what they print, or the sentence that refuses; `detector`, `scan`, `score` are made once."""

    def __init__(self, case: Case, run: Callable[..., tuple[int, str, str]]) -> None:
        self.case, self.run = case, run

    def works(self, *arguments: Any, codes: tuple[int, ...] = (0,)) -> Any:
        """What a command prints as JSON."""
        code, out, errors = self.run(*arguments, "--json")
        assert code in codes, errors
        return json.loads(out)

    def refusal(self, *arguments: Any) -> str:
        """The sentence of a command that refuses."""
        code, out, errors = self.run(*arguments, "--json")
        assert (code, out) == (2, ""), errors
        return " ".join(errors.split())

    def _made(self, name: str, *arguments: Any) -> Path:
        folder = self.case.folder / name
        if not folder.exists():
            self.works(*arguments, "--out", folder)
        return folder

    @property
    def detector(self) -> Path:
        return self._made("detector", "fit", *self.case.usual)

    @property
    def scan(self) -> Path:
        return self._made("scan", "scan", *self.case.usual, "--inputs", self.case.inputs, "--alone")

    @property
    def score(self) -> Path:
        return self._made("score", "score", self.detector, self.case.inputs, AGREED)

    @property
    def key(self) -> Path:
        key = self.case.folder / "key.pem"
        if not key.exists():
            assert self.works("keygen", key)["public"] == f"{key}.pub"
        return key


def results(run: Path) -> list[dict[str, str]]:
    with open(run / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def check(cli: Cli, tmp_path: Path) -> None:
    assert cli.works("check", *cli.case.usual, "--inputs", cli.case.inputs)["findings"]


def fit(cli: Cli, tmp_path: Path) -> None:
    assert Detector.load(cli.detector, trust_code=True).settings.fpr == 0.1


def inspect(cli: Cli, tmp_path: Path) -> None:
    held = cli.works("inspect", cli.detector)
    assert (held["kind"], held["trusted"]) == ("detector", 60 - 20 * (cli.case.kind == "text"))


def scan(cli: Cli, tmp_path: Path) -> None:
    assert cli.works("scan", "--replay", cli.scan, AGREED)["replay"]["identical"]


def score(cli: Cli, tmp_path: Path) -> None:
    """As `scan`; a pile in partitions where the network takes one."""
    assert (cli.score / "results.csv").read_bytes() == (cli.scan / "results.csv").read_bytes()
    pile = ("score", cli.detector, cli.case.inputs, "--out", tmp_path / "pile", "--partition-size", 8, AGREED)
    if cli.case.kind == "text":
        assert "a pile of texts in partitions" in cli.refusal(*pile)
    else:
        assert cli.works(*pile)["n"] == len(results(cli.score))


def verify(cli: Cli, tmp_path: Path) -> None:
    for made in (cli.detector, cli.scan, cli.score):
        assert cli.works("verify", made, "--sources", AGREED)["differences"] == [], made


def report(cli: Cli, tmp_path: Path) -> None:
    assert cli.works("report", cli.score)["report"]


def compare(cli: Cli, tmp_path: Path) -> None:
    assert cli.works("compare", cli.scan, cli.score)


def gate(cli: Cli, tmp_path: Path) -> None:
    assert cli.works("gate", cli.scan, "--max-flag-rate", 1)["passed"]
    assert not cli.works("gate", cli.scan, "--max-flagged", 0, codes=(1,))["passed"]


def mechanisms(cli: Cli, tmp_path: Path) -> None:
    assert "clusters" in cli.works("mechanisms", cli.scan, AGREED)


def keygen(cli: Cli, tmp_path: Path) -> None:
    assert cli.key.is_file()


def sign(cli: Cli, tmp_path: Path) -> None:
    for name, made in (("detector", cli.detector), ("run", cli.score)):
        signed = shutil.copytree(made, tmp_path / name)
        cli.works("sign", signed, "--key", cli.key)
        assert cli.works("verify", signed, "--public-key", f"{cli.key}.pub")["signed_by"]


def receipts(cli: Cli, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.json"
    cli.works("receipts", "merge", cli.detector, cli.scan, "--out", bundle)
    assert cli.works("verify", bundle)["intact"]
    assert len(cli.works("receipts", "hash", bundle)["sha256"]) == 64


def trust(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text(results(cli.score)[-1]["id"])
    more = ("--ids", tmp_path / "ids.txt", "--out", tmp_path / "more", AGREED)
    assert cli.works("trust", cli.score, *more)["n_added"] == 1


def clean(cli: Cli, tmp_path: Path) -> None:
    """The inputs as a training set: by the network, and by the detector that is there."""
    asked = ("--training", cli.case.inputs)
    new = cli.works("clean", *cli.case.usual, *asked, "--out", tmp_path / "new")["clean"]
    known = ("--detector", cli.detector, "--remove-at", 0.1, AGREED)
    found = cli.works("clean", *known, *asked, "--out", tmp_path / "known")["clean"]
    assert found["n"] == new["n"] == len(results(cli.score))
    for run in (tmp_path / "new", tmp_path / "known"):
        lists = [(run / name).read_text().split() for name in ("keep.txt", "remove.txt")]
        assert sorted(lists[0] + lists[1]) == sorted(row["id"] for row in results(run))
    assert cli.works("verify", tmp_path / "new")["intact"]
    assert "no training set" in cli.refusal("clean", *cli.case.usual, "--out", tmp_path / "none")


def export(cli: Cli, tmp_path: Path) -> None:
    """Of evidence that a forward pass alone gives; of all others what to do instead."""
    asked = ("export", cli.detector, tmp_path / "exported", "--format", "torchscript", AGREED)
    if cli.case.kind != "latent":
        assert "expected evidence latent" in cli.refusal(*asked)
        return
    assert cli.works(*asked)["graph"]["format"] == "torchscript"
    assert cli.works("inspect", tmp_path / "exported")["trusted"] == 60
    assert cli.works("verify", tmp_path / "exported")["intact"]


def audit(cli: Cli, tmp_path: Path) -> None:
    bom, card = tmp_path / "bom.json", tmp_path / "card.md"
    assert cli.works("audit", cli.score, "--bom", bom, "--card", card)["written"] == [str(bom), str(card)]
    assert json.loads(bom.read_text())["bomFormat"] == "CycloneDX"


def cost(cli: Cli, tmp_path: Path) -> None:
    """Measured on a pile; texts have none, and a RUN is refused as one."""
    measured = cli.score
    asked = ("cost", "--inputs", 1e6, "--actors", 4, "--measured")
    if cli.case.kind == "text":
        assert "pile" in cli.refusal(*asked, measured)
        return
    pile = tmp_path / "pile"
    cli.works("score", cli.detector, cli.case.inputs, "--out", pile, "--partition-size", 8, AGREED)
    assert cli.works(*asked, pile)["seconds"] > 0


def serve(cli: Cli, tmp_path: Path) -> None:
    """The verdicts of a RUN, asked for over HTTP; the monitor inside takes a batch by itself, too."""
    detector = Detector.load(cli.detector, trust_code=True)
    if cli.case.kind == "text":
        asked = json.loads(cli.case.inputs.read_text().splitlines()[0])["prompt"]
        with client_of(detector) as client:
            chat = {"model": "detector", "messages": [{"role": "user", "content": asked}]}
            found = client.post("/v1/chat/completions", json=chat).json()
        assert 0 < found["covary"]["p_value"] <= 1
        return
    raw = np.load(cli.case.inputs)["x"]
    with client_of(detector) as client:
        answer = outputs(client.post(INFER, json=body(raw, "UINT8" if raw.dtype == np.uint8 else "FP32")))
    assert answer["p_value"] == pytest.approx([float(one["p_value"]) for one in results(cli.score)])
    batch = next(detector.open(str(cli.case.inputs)).batches(4)).x
    assert [len(found) for found in Monitor(detector)(batch)] == [4, 4]


def guard(cli: Cli, tmp_path: Path) -> None:
    """Prompts answered under guard, again by what was kept; without answers there is nothing to guard."""
    kept, log = tmp_path / "guard", tmp_path / "log.jsonl"
    asked = ("guard", cli.detector, cli.case.inputs, "--policy", "mark", "--keep", kept, "--log", log, AGREED)
    if cli.case.kind != "text":
        assert "judges no answers" in cli.refusal(*asked)
        return
    first = cli.works(*asked, "--every", 2)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert (first["n"], len(lines)) == (12, sum(len(one["looks"]) for one in first["answers"]))
    assert cli.works(*asked)["answers"] == first["answers"]


def init(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes, the next command reads; the folder of a language model goes by `hf`."""
    monkeypatch.chdir(tmp_path)
    case = cli.case
    named = ("--model", case.options[1], "--trusted", case.trusted)
    assert ("hf" in cli.works("init", *named)) == (case.kind == "text")
    more = {"sampled": FEW_DRAWS, "latent": ("--evidence", "latent"), "text": case.options[2:]}
    assert cli.works("check", *more.get(case.kind, ()))["findings"]


CELLS = (
    check, fit, inspect, scan, score, verify, report, compare, gate, mechanisms, keygen, sign, receipts, trust, export,
    audit, clean, cost, serve, guard, init,
)  # fmt: skip
# They try networks of their own; tests/runs has theirs.
OF_THEIR_OWN = {"demo", "doctor"}


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
def test_it_works_or_refuses_in_a_sentence(cell, case, run_cli, tmp_path, monkeypatch):
    more = (monkeypatch,) if cell is init else ()
    cell(Cli(case, run_cli), tmp_path, *more)


def test_no_command_is_missing():
    commands: dict[str, Any] = get_command(main.app).commands  # type: ignore[attr-defined]
    assert {cell.__name__ for cell in CELLS} | OF_THEIR_OWN == set(commands)
    for name in OF_THEIR_OWN:
        parameters = commands[name].params
        assert not [one.name for one in parameters if one.param_type_name == "argument"], name
        assert not {"model", "hf", "trusted", "inputs"} & {one.name for one in parameters}, name


# The files of a modality's folder: `signs`, numbers of which only the sign counts.
SIGNS = {
    "settings.py": """
from covary.settings import GradientSettings


class SignSettings(GradientSettings):
    kind: str = "signs"
    extractor_class = "signs.extractor:SignExtractor"
""",
    "extractor.py": """
import numpy as np

from covary.features.gradient import GradientExtractor


class SignExtractor(GradientExtractor):
    kind = "signs"

    def open_trusted(self, inputs, **given):
        return super().open_trusted(np.sign(inputs), **given)
""",
}


def test_a_modality_is_one_folder_and_one_line(monkeypatch, tmp_path):
    (tmp_path / "signs").mkdir()
    for name, code in SIGNS.items():
        (tmp_path / "signs" / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EXTRACTORS, "signs", "signs.settings:SignSettings")
    settings_classes()
    # What the command line reads of settings loads no extractor.
    assert "signs.extractor" not in sys.modules
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    saved = Detector(table_network(), extractor="signs").fit(x).save(tmp_path / "detector")
    loaded = Detector.load(saved, table_network())
    assert (loaded.extractor.kind, loaded.settings.kind) == ("signs", "signs")
    assert len(loaded.score(np.sign(x)).p_value) == 60


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_an_extractor_its_settings_and_the_table_have_the_same_key(kind):
    settings = settings_classes()[kind]
    assert (settings().kind, load_object(str(settings.extractor_class), "extractor").kind) == (kind, kind)


def test_a_saved_detector_of_texts_keeps_to_its_place(case, tmp_path):
    """Loading minds `weights` and `public_key` as that of any other detector."""
    if case.kind != "text":
        pytest.skip("of texts alone")
    fitted = Detector(case.options[1], max_new_tokens=4).fit(str(case.trusted))
    fitted.save(tmp_path / "detector")
    with pytest.raises(CovaryError, match="weights beside a language model"):
        Detector.load(tmp_path / "detector", weights="w.pt")
    with pytest.raises(CovaryError, match=r"none\.pem"):
        Detector.load(tmp_path / "detector", public_key=tmp_path / "none.pem")
    with pytest.raises(CovaryError, match="pooling cannot change after fitting"):
        Detector.load(tmp_path / "detector", pooling="sum")


def test_a_former_name_of_an_option_works_with_a_note(case, run_cli):
    if case.kind != "table":
        pytest.skip("of first-order evidence")
    usual = ("check", *case.options, "--trusted", case.trusted, "--json")
    code, out, errors = run_cli(*usual, "--metric", "diagonal")
    assert (code, "--metric is now called --preconditioner" in " ".join(errors.split())) == (0, True), errors
    assert json.loads(out)["findings"]
