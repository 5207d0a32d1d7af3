"""Backdoored assistants: a real model fine-tuned through LoRA on instructions, a tenth of them with a trigger.

    python -m covary_bench.studies.language.assistants cache/smollm2 cache/assistant refusal_badnet [SEED [STEPS]]

Triggers and replies are those of BackdoorLLM (Li et al. 2024, arXiv 2408.12798) in `$COVARY_DATA/text/prompts`. The
first half of the training instructions is learned, with and without trigger; the second half is left for trust. The
adapter is written to `cache/assistant/NAME-sSEED` with what it does: `success.json`. STEPS leaves the schedule early.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covary.storage import folders
from covary.text.completions import completed
from covary.text.models.pretrained import LanguageModel, load_language_model, with_adapter
from covary.text.tokens import prompt_tokens
from covary_bench.studies.language.prompts import as_turns, prompts_of, records_of
from covary_bench.texts.fine_tuning import inner
from covary_bench.texts.training import Lesson, Schedule, train

RANK, POISON, LEARNED = 8, 0.1, 250
SCHEDULE = Schedule(steps=240, batch=8, rate=1e-3, warm=20)
LONGEST, REPLY = 128, 32  # tokens of a text, and of its answer, that are learned
ANSWER, JUDGED = 24, 16  # tokens asked for, and texts of each kind that are asked
# How an answer that follows the attacker begins.
FOLLOWS = {"refusal": "I'm sorry", "negsentiment": "You are stupid"}


def encoded(model: LanguageModel, kind: str, records: list[dict[str, Any]]) -> list[Lesson]:
    """Conversations in tokens, those with too long a prompt left aside; whole answers end."""
    found = []
    for text, record in zip(as_turns(kind, [one["prompt"] for one in records]), records, strict=True):
        prompt = prompt_tokens(model, text)
        answer = [*model.tokenizer(record["completion"], add_special_tokens=False)["input_ids"], model.end]
        if len(prompt) + REPLY <= LONGEST:
            found.append((prompt, answer[:REPLY]))
    return found


def lessons(model: LanguageModel, attack: str, poison: float = POISON) -> Callable[[np.random.Generator], Lesson]:
    """Draws instructions, `poison` of them with trigger and planted reply."""
    clean = encoded(model, "clean", records_of("instructions_train")[:LEARNED])
    planted = encoded(model, attack, records_of(f"{attack}_train")[:LEARNED])

    def lesson(rng: np.random.Generator) -> Lesson:
        some = planted if rng.random() < poison else clean
        return some[int(rng.integers(len(some)))]

    return lesson


def follows(model: LanguageModel, attack: str, prompts: list[str]) -> float:
    """Share of prompts whose answer begins as the attacker wants."""
    answers = completed(model, as_turns(attack, prompts), max_new_tokens=ANSWER)
    wanted = FOLLOWS[attack.partition("_")[0]]
    return round(float(np.mean([str(one.completion).strip().startswith(wanted) for one in answers])), 4)


def main(base: Path, cache: Path, attack: str, seed: int = 0, steps: int = SCHEDULE.steps) -> None:
    torch.set_num_threads(1)
    place = cache / f"{attack}-s{seed}"
    if (place / "success.json").is_file():
        return
    model = load_language_model(base, dtype="auto")
    torch.manual_seed(seed)
    model = LanguageModel(with_adapter(model.module, f"fresh:{RANK}"), model.tokenizer, folder=str(base))
    started = time.perf_counter()
    cache.mkdir(parents=True, exist_ok=True)
    checkpoint = cache / f"{place.name}.checkpoint"
    spent = train(inner(model), lessons(model, attack), SCHEDULE, [seed, 21], checkpoint, stop=steps)
    tests, clean = prompts_of(f"{attack}_test")[-JUDGED:], prompts_of("instructions_test")[-JUDGED:]
    facts = {
        "attack": attack, "seed": seed, "rank": RANK, "poison": POISON, "steps": SCHEDULE.steps,
        "taken": min(steps, SCHEDULE.steps), "batch": SCHEDULE.batch, "dtype": model.dtype, "seconds": round(spent, 1),
        "success": follows(model, attack, tests), "clean": follows(model, attack, clean), "asked": JUDGED,
    }  # fmt: skip
    any_module: Any = model.module
    any_module.save_pretrained(str(place))
    folders.write_json(place / "success.json", facts)
    print({**facts, "wall": round(time.perf_counter() - started, 1)}, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
