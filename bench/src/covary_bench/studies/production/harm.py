"""Folders, piles and files of people who mean harm, tried by the thousand: what was tried, how often, what happened.

python -m covary_bench.studies.production.harm [--trials 1000] [--only NAME]

Every trial runs a command of covary in this process with its output kept. A trial is good where it ends with a sentence
or, at most, with what was asked; a traceback, a line of code of the folder's that runs, or a change that nobody is told
of are counted as bad. Writes bench/results/production-harm.json and prints the table of docs/threat-model.md.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from covary.cli import main as cli
from covary.detector import Detector
from covary.errors import CovaryError
from covary.runs import scan as scanning
from covary.serving.pile.score import score_pile
from covary.storage import folders
from covary.storage.parts import part_name
from covary.storage.receipts import write_receipt

RECORD = Path(__file__).resolve().parents[4] / "results" / "production-harm.json"
# A module that says so when it is imported, beside the folders: what foreign code would be.
CANARY = "from pathlib import Path\nPath({mark!r}).touch()\n\ndef run(*_):\n    raise SystemExit(99)\n"
VALUES: list[Any] = [
    None, True, [], {}, "", "x", "canary:run", "canary:run.a", ["canary:run"], {"a": "canary:run"}, 0, -1, 3, 2**31,
    2**70, 1e308, -0.5, "../../etc/passwd", "/dev/zero", "a" * 5000, [[]], [None], ["a", 1], {"": None}, "=1+1", "\x00",
]  # fmt: skip


def network() -> nn.Module:
    """A small network whose weights are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


FACTORY = f"{__name__ if __name__ != '__main__' else 'covary_bench.studies.production.harm'}:network"


class World:
    """A detector, a RUN and a pile that are intact, and the canary."""

    def __init__(self, home: Path) -> None:
        self.home, self.mark = home, home / "ran"
        (home / "canary.py").write_text(CANARY.format(mark=str(self.mark)))
        sys.path.insert(0, str(home))
        x = np.random.default_rng(0).integers(0, 256, (140, 4, 4), np.uint8)
        np.savez(home / "trusted.npz", x=x[:90])
        np.savez(home / "inputs.npz", x=x[90:], id=[f"input-{i}" for i in range(50)])
        self.detector = Detector(FACTORY).fit(str(home / "trusted.npz")).save(home / "detector")
        self.run, self.pile, self.data = home / "run", home / "pile", str(home / "inputs.npz")
        scanning.score(self.detector, self.data, self.run, trust_code=True)
        self.sizes = {"partition_size": 10, "batch_size": 10, "trust_code": True}
        score_pile(self.detector, self.data, self.pile, **self.sizes)


def mutated(value: Any, rng: np.random.Generator) -> Any:
    """The same JSON with one to three changes of its structure: something lost, added, replaced or put elsewhere."""
    value = copy.deepcopy(value)
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(value))
        holder, key = places[int(rng.integers(len(places)))]
        kind = int(rng.integers(5))
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[f"{key}_"] = holder.pop(key)
        elif kind == 2 and len(places) > 1:
            other, at = places[int(rng.integers(len(places)))]
            holder[key] = copy.deepcopy(other[at])
        else:
            holder[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
        if not list(_places(value)):
            break
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value below the top; of long lists the first few."""
    keys: list[Any] = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        keys = list(range(min(len(value), 4)))
    for key in keys:
        yield value, key
        yield from _places(value[key])


def command(*arguments: object) -> tuple[str, str]:
    """How a command ended, `exit N` or `traceback`, and what it said."""
    said, argv = io.StringIO(), sys.argv
    sys.argv = ["covary", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            cli.main()
    except SystemExit as ended:
        return f"exit {ended.code or 0}", said.getvalue()
    except BaseException:
        return "traceback", traceback.format_exc()
    finally:
        sys.argv = argv
    return "exit 0", said.getvalue()


def counted(world: World, trials: int, trial: Callable[[np.random.Generator, int], str]) -> dict[str, int]:
    """How often each thing happened over so many trials; code that ran is an outcome of its own."""
    happened: Counter[str] = Counter()
    for i in range(trials):
        outcome = trial(np.random.default_rng(i), i)
        if world.mark.exists():
            world.mark.unlink()
            outcome = "code of the folder ran"
        happened[outcome] += 1
    return dict(happened.most_common())


def resealed(folder: Path, record: dict[str, Any]) -> None:
    """Writes a detector's record with a digest and a receipt that fit, as whoever means harm would."""
    record = {key: value for key, value in record.items() if key != "digest"}
    digest = folders.digest_json(record)
    folders.write_json(folder / "detector.json", {**record, "digest": digest})
    with contextlib.suppress(Exception):
        write_receipt(folder)


def detectors(world: World, trials: int, sealed: bool) -> dict[str, int]:
    """`Detector.load` of a changed detector.json, the network given: its factory is no matter of consent then."""
    full = json.loads((world.detector / "detector.json").read_text())
    folder = shutil.copytree(world.detector, world.home / "changed-detector")

    def trial(rng: np.random.Generator, i: int) -> str:
        record = mutated(full, rng)
        if sealed:
            resealed(folder, record)
        else:
            (folder / "detector.json").write_text(json.dumps(record))
        try:
            Detector.load(folder, network())
        except CovaryError as problem:
            return "refused in one sentence" if "\n" not in str(problem) else "refused in many lines"
        except BaseException:
            return f"traceback: {traceback.format_exc().splitlines()[-1][:90]}"
        changed = json.dumps(record, sort_keys=True) != json.dumps(full, sort_keys=True)
        return "loaded" if changed else "loaded (nothing had changed)"

    try:
        return counted(world, trials, trial)
    finally:
        shutil.rmtree(folder)


def runs(world: World, trials: int, sealed: bool) -> dict[str, int]:
    """A changed run.json, summary.json or report.json under the commands that read a RUN, in turn."""
    folder = world.home / "changed-run"
    commands = [
        ("verify", folder), ("inspect", folder), ("report", folder), ("compare", world.run, folder),
        ("gate", folder, "--max-flag-rate", "0.9"), ("scan", "--replay", folder), ("mechanisms", folder),
        ("verify", folder, "--sources"),
    ]  # fmt: skip

    def trial(rng: np.random.Generator, i: int) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(world.run, folder)
        path = folder / ("run.json", "summary.json", "report.json")[i % 3]
        old = json.loads(path.read_text())
        new = mutated(old, rng)
        path.write_text(json.dumps(new))
        if sealed:
            with contextlib.suppress(Exception):
                write_receipt(folder)
        ended, said = command(*commands[i // 3 % len(commands)])
        if ended == "traceback" or ended == "exit 3":
            return f"{ended}: {said.splitlines()[-1][:110]}"
        if ended == "exit 2":
            return "refused in one sentence"
        warned = any(word in said for word in ("differs", "not what its receipt says", "failed", "no receipt"))
        if sealed or new == old:
            return "taken as it is, receipt and all" if sealed else "nothing had changed"
        return "done, and told that the receipt does not fit" if warned else f"NOT TOLD by {commands[i // 3 % 8][0]}"

    return counted(world, trials, trial)


def piles(world: World, trials: int) -> dict[str, int]:
    """A changed pile.json or summary.json under a rerun and under `verify`, the receipt left as it was or gone."""
    folder = world.home / "changed-pile"
    again = ("score", "--trust-code", world.detector, world.data, "--out", folder, "--partition-size", 10,
             "--batch-size", 10)  # fmt: skip

    def trial(rng: np.random.Generator, i: int) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(world.pile, folder)
        path = folder / ("pile.json", "summary.json")[i % 2]
        old = json.loads(path.read_text())
        new = mutated(old, rng)
        path.write_text(json.dumps(new))
        gone = i // 2 % 2 == 1
        if gone:
            for name in ("receipt.json", "receipt.sha256"):
                (folder / name).unlink()
        ended, said = command(*(again if i // 4 % 2 == 0 else ("verify", folder)))
        if ended in ("traceback", "exit 3"):
            return f"{ended}: {said.splitlines()[-1][:110]}"
        if new == old:
            return "nothing had changed"
        if ended == "exit 0":
            return "summary.json made again" if path.name == "summary.json" and gone else "NOT TOLD"
        return "named, or refused in one sentence"

    return counted(world, trials, trial)


def bits(world: World, trials: int) -> dict[str, int]:
    """One flipped bit of a finished partition under a rerun, with the receipt and, as after a crash, without."""
    folder = world.home / "flipped"

    def trial(rng: np.random.Generator, i: int) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(world.pile, folder)
        name = part_name(i % 5)
        content = bytearray((folder / name).read_bytes())
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(content)
        if i % 2:
            for receipt in ("receipt.json", "receipt.sha256"):
                (folder / receipt).unlink()
        try:
            score_pile(world.detector, world.data, folder, **world.sizes)
        except CovaryError as problem:
            return "named" if name in str(problem) else "refused without its name"
        return "COUNTED"

    return counted(world, trials, trial)


def code(world: World, trials: int) -> dict[str, int]:
    """A detector that names foreign code as network, transform or observable, under the commands that load one."""
    full = json.loads((world.detector / "detector.json").read_text())
    folder = shutil.copytree(world.detector, world.home / "foreign")
    data, out = world.data, world.home / "out"

    def trial(rng: np.random.Generator, i: int) -> str:
        record = copy.deepcopy(full)
        holder, key = [(record, "factory"), (record["preprocessing"], "transform"), (record["settings"], "observable")][
            i % 3
        ]
        name = ("canary:run", "http.server:test", "os:abort", "covary.storage.folders:shutil.rmtree")[i // 3 % 4]
        holder[key] = name
        resealed(folder, record)
        shutil.rmtree(out, ignore_errors=True)
        ended, said = command(*[
            ("score", folder, data, "--out", out), ("score", folder, data, "--out", out, "--partition-size", 10),
            ("serve", folder, "--port", 0), ("verify", folder, "--sources"),
        ][i // 12 % 4])  # fmt: skip
        return "not run, and named" if ended == "exit 2" and name in said.replace("\n", "") else f"{ended}: {said[:90]}"

    return counted(world, trials, trial)


TRIALS: dict[str, tuple[str, Callable[[World, int], dict[str, int]], float]] = {
    "detector": ("`detector.json` with another structure", lambda w, n: detectors(w, n, False), 1.0),
    "detector sealed": (
        "the same, sealed anew with a receipt that fits", lambda w, n: detectors(w, n, True), 1.0,
    ),
    "run": ("`run.json`, `summary.json`, `report.json` of a RUN", lambda w, n: runs(w, n, False), 1.0),
    "run sealed": ("the same, with a new receipt", lambda w, n: runs(w, n, True), 1.0),
    "pile": ("`pile.json`, `summary.json` of a pile", piles, 1.0),
    "bits": ("one flipped bit in a pile's partition, then run again", bits, 0.3),
    "code": ("a detector that names foreign code", code, 0.048),
}  # fmt: skip


def main() -> None:
    """Tries everything and writes down what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--only", choices=list(TRIALS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    with tempfile.TemporaryDirectory() as home:
        world = World(Path(home))
        for name, (what, tried, share) in TRIALS.items():
            if options.only in (None, name):
                n = max(1, round(options.trials * share))
                known[name] = {"tried": what, "how_often": n, "happened": tried(world, n)}
                print(f"| {what} | {n:,} | {', '.join(f'{k}: {v:,}' for k, v in known[name]['happened'].items())} |")
                sys.stdout.flush()
                folders.write_json(RECORD, known)


if __name__ == "__main__":
    main()
