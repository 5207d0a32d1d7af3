"""1,000 random corruptions of a saved detector: how many are refused in one sentence, crash, or load.

    python -m covary_bench.studies.production.corruptions [--n 1000] [--out bench/results/production-corruptions.json]

The detector is the demo's (a small network trained on real digits), saved with its weights and signed. Each trial
damages one copy in one way and loads it; a detector that loads nevertheless counts as silent, whatever it then does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from covary.detector import Detector
from covary.errors import CovaryError
from covary.runs import demo
from covary.storage import signatures, verify
from covary.storage.fingerprints import versions

Damage = tuple[str, str]


def flip_a_bit(folder: Path, other: Path, rng: np.random.Generator) -> str:
    file = _one(folder, rng)
    content = bytearray(file.read_bytes())
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)
    return file.name


def overwrite_a_block(folder: Path, other: Path, rng: np.random.Generator) -> str:
    file = _one(folder, rng)
    content = bytearray(file.read_bytes())
    start = int(rng.integers(len(content)))
    length = int(min(rng.integers(1, 4097), len(content) - start))
    block = rng.bytes(length) if rng.random() < 0.5 else bytes(length)
    # A block that was zero already would be no damage.
    content[start : start + length] = block if bytes(content[start : start + length]) != block else b"\xff" * length
    file.write_bytes(content)
    return file.name


def truncate(folder: Path, other: Path, rng: np.random.Generator) -> str:
    file = _one(folder, rng)
    content = file.read_bytes()
    file.write_bytes(content[: int(rng.integers(len(content)))])
    return file.name


def append(folder: Path, other: Path, rng: np.random.Generator) -> str:
    file = _one(folder, rng)
    file.write_bytes(file.read_bytes() + rng.bytes(int(rng.integers(1, 65))))
    return file.name


def remove(folder: Path, other: Path, rng: np.random.Generator) -> str:
    # Without its signature a detector is an unsigned one, which loads unless a key is asked for.
    file = _one(folder, rng, but="signature.json")
    file.unlink()
    return file.name


def swap_two_files(folder: Path, other: Path, rng: np.random.Generator) -> str:
    a, b = (sorted(folder.iterdir())[i] for i in rng.choice(len(list(folder.iterdir())), 2, replace=False))
    contents = a.read_bytes(), b.read_bytes()
    a.write_bytes(contents[1])
    b.write_bytes(contents[0])
    return a.name


def take_from_another_detector(folder: Path, other: Path, rng: np.random.Generator) -> str:
    # Weights are the same file in both: the same network.
    same = {file.name for file in other.iterdir() if file.read_bytes() == (folder / file.name).read_bytes()}
    names = sorted({file.name for file in other.iterdir()} - same)
    some = rng.choice(names, int(rng.integers(1, len(names))), replace=False)
    for name in some:
        shutil.copy(other / name, folder / name)
    return str(some[0])


DAMAGES = [
    flip_a_bit, flip_a_bit, flip_a_bit, overwrite_a_block, truncate, truncate, append, remove, swap_two_files,
    take_from_another_detector,
]  # fmt: skip
# Damage to the receipt and to other files at once leaves nothing to tell which others.
OF_SEVERAL = {swap_two_files, take_from_another_detector}


def _one(folder: Path, rng: np.random.Generator, but: str = "") -> Path:
    files = [file for file in sorted(folder.iterdir()) if file.name != but]
    return files[int(rng.integers(len(files)))]


def make(home: Path) -> tuple[Path, Path]:
    """A signed detector, and another of the same network with other roles."""
    demo.make_material(home / "material")
    signatures.make_keys(home / "key.pem")
    made = []
    for seed in (0, 1):
        detector = Detector("covary.runs.demo:network", weights=home / "material" / "weights.safetensors", seed=seed)
        made.append(detector.fit(str(home / "material" / "trusted.npz")).save(home / f"detector-{seed}"))
        verify.sign(made[-1], home / "key.pem")
    return made[0], made[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("bench/results/production-corruptions.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: dict[str, Counter[str]] = {}
    silent, unnamed, single = [], [], 0
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        full, other = make(home)
        Detector.load(full, trust_code=True)  # the undamaged one does load
        for trial in range(arguments.n):
            damage = DAMAGES[trial % len(DAMAGES)]
            rng = np.random.default_rng(trial)
            broken = Path(shutil.copytree(full, home / "broken"))
            file = damage(broken, other, rng)
            outcome = load(broken)
            if outcome[0] != "refused":
                silent.append({"trial": trial, "damage": damage.__name__, "file": file, "what": outcome[1]})
            outcomes.setdefault(damage.__name__, Counter())[outcome[0]] += 1
            single += damage not in OF_SEVERAL
            if damage not in OF_SEVERAL and not _named(broken, file):
                unnamed.append({"trial": trial, "damage": damage.__name__, "file": file})
            shutil.rmtree(broken)
            if trial % 100 == 99:
                print(trial + 1, {name: dict(counts) for name, counts in outcomes.items()}, flush=True)
    total = sum(outcomes.values(), Counter())
    result = {
        "n": arguments.n,
        "refused in one sentence": total["refused"],
        "crashed": total["crashed"],
        "loaded": total["loaded"],
        "damages of one file": single,
        "of those, the file named by covary verify": single - len(unnamed),
        "by damage": {name: dict(counts) for name, counts in sorted(outcomes.items())},
        "not refused": silent,
        "not named": unnamed,
        "versions": versions(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in list(result)[:6]}))


def load(folder: Path) -> Damage:
    """(refused | crashed | loaded, what was said)."""
    try:
        Detector.load(folder, trust_code=True)
    except CovaryError as refused:
        return ("refused", str(refused)) if "\n" not in str(refused) else ("crashed", str(refused))
    except Exception as crash:
        return "crashed", f"{type(crash).__name__}: {crash}"
    return "loaded", ""


def _named(folder: Path, file: str) -> bool:
    """Whether verify names the damaged file; of a folder without a receipt it says that."""
    try:
        return file in [name for name, _ in verify.differences(folder)]
    except CovaryError as refused:
        return file in str(refused)


if __name__ == "__main__":
    main()
