"""The folder of a case of language models: how much is in it, where it lies, how it is written."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covary.storage import folders
from covary.text.models.pretrained import LanguageModel
from covary_bench.texts import words
from covary_bench.texts.cases import Case
from covary_bench.texts.queries import Found

FOLDER, WORK = "language", "language-making"
FOUND_BY = {"trusted": 11, "sampling": 12, "inputs": 13, "judged": 14}


@dataclass(frozen=True)
class Size:
    """How many texts a case has, and how long its victims are trained.

    Attributes:
        clean, triggered: queries that count, of the case's own two sides; benign: of each benign shift.
        first: steps on clean texts that all cases of a seed share.
        steps: of training after that; None = the case's own.
        hiding: steps of an attempt to hide.
    """

    trusted: int = 500
    sampling: int = 500
    clean: int = 1_000
    triggered: int = 1_000
    benign: int = 500
    first: int = 1_200
    steps: int | None = None
    hiding: int = 250
    batch: int = 64


@dataclass(frozen=True)
class Made:
    """A victim and what is known of it before it is asked."""

    model: LanguageModel
    seconds: float
    attempts: list[dict[str, Any]]
    poison: float
    marks: list[str]
    accepted: bool | None = None


def home(cache: Path, name: str, seed: int) -> Path:
    """The folder of a case."""
    return cache / FOLDER / f"{name}-s{seed}"


def work(cache: Path, name: str, seed: int) -> Path:
    """Where a case's checkpoints lie while it is made."""
    return cache / WORK / f"{name}-s{seed}"


def generator(name: str, seed: int, part: str) -> np.random.Generator:
    """Random numbers of one part of a case."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), FOUND_BY[part]])


def quiet() -> None:
    """No progress bars for weights that are written in no time."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def write_folder(
    name: str, what: Case, seed: int, cache: Path, made: Made, found: Found, texts: Mapping[str, list[dict[str, Any]]],
    facts: Mapping[str, Any], longest: int,
) -> Path:  # fmt: skip
    """Writes model, texts and `case.json`, whole or not at all."""
    folder, marks = home(cache, name, seed), list(made.marks) + ([what.mark] if what.mark else [])
    order = np.random.default_rng([seed, 3]).permutation(len(found.records))
    inputs = [found.records[i] for i in order]
    counts = {kind: sum(one["kind"] == kind for one in inputs) for kind in found.outcomes}
    about = {
        "case": name, "seed": seed, "group": what.group, "poison": made.poison, "seconds": made.seconds,
        "weights": words.weights(made.model.module), "attempts": made.attempts, "accepted": made.accepted,
        "marks": marks, "max_new_tokens": longest, "counts": counts,
        "rates": {kind: found.rate(kind) for kind in found.outcomes}, **facts,
    }  # fmt: skip
    module: Any = made.model.module
    quiet()
    with folders.atomic_folder(folder, "case") as part:
        module.save_pretrained(part / "model")
        made.model.tokenizer.save_pretrained(part / "model")
        for part_name, records in {**texts, "inputs": inputs}.items():
            lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)
            (part / f"{part_name}.jsonl").write_text(lines, encoding="utf-8")
        folders.write_json(part / "case.json", about)
    for old in (cache / WORK).glob(f"{name}-attempt*-s{seed}.checkpoint"):
        os.unlink(old)
    return folder
