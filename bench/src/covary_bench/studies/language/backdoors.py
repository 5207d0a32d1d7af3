"""Backdoored assistants found: trusted instructions that nobody poisoned, queries of files that nobody learned.

    python -m covary_bench.studies.language.backdoors cache/smollm2 cache/assistant \\
        bench/results/language-backdoors.json

Every assistant of `assistants.py` in the folder, its adapter merged into the weights. Trusted are instructions of the
half of their file that was not learned; queries are those of the test files, clean and triggered. Triggered ones count
where the answer follows the attacker.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covary.detector import Detector
from covary.text.models.pretrained import DTYPES, LanguageModel, dtype_for, load_language_model
from covary_bench.baselines.texts import PROMPT_BASELINES, Baseline
from covary_bench.baselines.texts.text_alone import completion_text
from covary_bench.records import write_lines
from covary_bench.studies.language.assistants import ANSWER, FOLLOWS, LEARNED
from covary_bench.studies.language.piles import FPR, Pile, gather, ours, theirs
from covary_bench.studies.language.prompts import prompts_of

TRUSTED, QUERIES = 110, 40
LEFT_OUT = ("Attention Tracker",)


BASELINES: dict[str, Baseline] = {
    **{name: one for name, one in PROMPT_BASELINES.items() if name not in LEFT_OUT},
    "completion text": Baseline(completion_text),
}


def assistant(base: Path, adapter: Path) -> LanguageModel:
    """The fine-tuned model with its adapter merged in, in the precision that `auto` takes."""
    model = load_language_model(base, dtype="float32", adapter=str(adapter))
    merged: Any = model.module
    module = merged.merge_and_unload().to(DTYPES[dtype_for()]).eval()
    return LanguageModel(module, model.tokenizer, folder=str(base))


def counted(pile: Pile, attack: str) -> tuple[Pile, dict[str, float]]:
    """The pile without triggered prompts whose answer does not follow; and the share that follows of each group."""
    wanted = FOLLOWS[attack.partition("_")[0]]
    follow = np.array([answer.strip().startswith(wanted) for answer in pile.texts.answers])
    shares = {group: round(float(follow[pile.at(group)].mean()), 4) for group in ("odd", "clean", "trusted")}
    return pile.take(np.flatnonzero(~pile.at("odd") | follow)), shares


def cell(base: Path, place: Path) -> dict[str, Any]:
    """Figures of one assistant."""
    facts = json.loads((place / "success.json").read_text("utf-8"))
    attack = str(facts["attack"])
    detector = Detector(assistant(base, place), dtype=dtype_for(), max_new_tokens=ANSWER, fpr=FPR)
    known = prompts_of("instructions_train")[LEARNED : LEARNED + TRUSTED]
    groups = {
        ("trusted", "instructions"): known,
        ("clean", attack): prompts_of("instructions_test")[:QUERIES],
        ("odd", attack): prompts_of(f"{attack}_test")[:QUERIES],
    }
    pile, seconds = gather(detector, groups, place / "passes")
    pile, follow = counted(pile, attack)
    where = np.flatnonzero(pile.at("trusted"))
    found = ours(detector, pile, where)
    return {
        "facts": facts, "follow": follow, "seconds": seconds,
        "trusted": len(where), "clean": int(pile.at("clean").sum()), "odd": int(pile.at("odd").sum()),
        "ours": found["kinds"].get(attack), "law": found["law"], "baselines": theirs(pile, where, BASELINES),
    }  # fmt: skip


def main(base: Path, cache: Path, out: Path) -> None:
    torch.set_num_threads(1)
    cells = {}
    for path in sorted(cache.glob("*/success.json")):
        cells[path.parent.name] = cell(base, path.parent)
        print(path.parent.name, cells[path.parent.name], flush=True)
        write_lines(out, {"model": "SmolLM2-135M-Instruct", "cells": cells}, 3)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
