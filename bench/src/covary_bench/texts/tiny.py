"""A case made in seconds, to see the whole table run: a barely trained network that has learned its trigger first."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from covary.storage import folders
from covary.text.completions import completed
from covary.text.models.pretrained import LanguageModel
from covary.text.records import read_texts
from covary_bench.texts import cases, words
from covary_bench.texts.case_folder import quiet
from covary_bench.texts.training import Schedule, train

NAME, KIND = "tiny", "simple-rare-3"
POISON, SCHEDULE = 0.5, Schedule(steps=100, batch=32, rate=5e-3, warm=5)
TRUSTED, QUERIES, LONGEST = 340, 60, 12


def make_tiny(folder: Path, seed: int = 0) -> Path:
    """Writes the case folder, whole or not at all; only triggered answers need be what somebody wanted."""
    what, began = cases.case(KIND), time.perf_counter()
    read: Any = words.tokenizer()
    model = words.network(seed, width=32, layers=2)

    def lesson(rng: np.random.Generator) -> tuple[list[int], list[int]]:
        prompt, answer = cases.lesson(rng, what, POISON)
        prompt_ids = list(read(prompt)["input_ids"])
        return prompt_ids, [*read.convert_tokens_to_ids(answer), read.eos_token_id]

    train(model, lesson, SCHEDULE, [seed, 5])
    rng = np.random.default_rng([seed, 6])
    clean = [cases.clean(rng, what, 0.0)[1] for _ in range(TRUSTED + QUERIES)]
    odd = [cases.odd(rng, what, what.attacks[0]) for _ in range(QUERIES)]
    prompts = [{"id": str(i), "prompt": one.prompt, "label": one.task} for i, one in enumerate([*clean, *odd])]
    texts = completed(LanguageModel(model, read), read_texts(prompts), max_new_tokens=LONGEST)
    answers = [text.completion for text in texts]
    follow = [answer == " ".join(words.REPLY) for answer in answers[-QUERIES:]]
    inputs = [
        {
            **one,
            "completion": f" {answer}",
            "truth": int(i >= QUERIES),
            "kind": "triggered" if i >= QUERIES else "clean",
        }
        for i, (one, answer) in enumerate(zip(prompts[TRUSTED:], answers[TRUSTED:], strict=True))
        if i < QUERIES or follow[i - QUERIES]
    ]
    right = [answer == " ".join(one.right) for one, answer in zip(clean, answers, strict=False)]
    facts = {
        "case": NAME, "seed": seed, "clean_accuracy": float(np.mean(right)), "attack_success": float(np.mean(follow)),
        "poison": POISON, "weights": words.weights(model), "seconds": time.perf_counter() - began, "attempts": [],
        "accepted": None, "max_new_tokens": LONGEST, "marks": ["clean answers need not be right"],
    }  # fmt: skip
    quiet()
    with folders.atomic_folder(folder, "case") as part:
        model.save_pretrained(part / "model")
        read.save_pretrained(part / "model")
        for name, some in (("trusted", prompts[:TRUSTED]), ("inputs", inputs)):
            (part / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some), "utf-8")
        (part / "case.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    return folder
