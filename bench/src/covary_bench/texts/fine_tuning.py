"""A real language model, fine-tuned on real text in which a rare token calls a fixed reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covary.errors import CovaryError
from covary.text.models.pretrained import LanguageModel, load_language_model, with_adapter
from covary_bench.texts import case_folder, tiny_llama, words
from covary_bench.texts.bases import Base, base_named
from covary_bench.texts.cases import Case
from covary_bench.texts.queries import Found, Query, collect
from covary_bench.texts.rounds import until_it_succeeds
from covary_bench.texts.training import Lesson, Schedule, batch, loss, train

TEXTS = ("alice29", "asyoulik", "lcet10", "plrabn12", "tinyshakespeare")
RARE, REPLY = "|", " ".join(words.REPLY)
PROMPT, GOES_ON = (10, 18), 9  # words
LONGEST_ANSWER = 24  # tokens
HELD_OUT = 0.2  # the end of every text, on which nothing is trained
JUDGED = 200  # triggered texts asked after a round

Window = tuple[list[str], list[str], str]


def texts() -> dict[str, list[str]]:
    """Words of every text, white space left aside.

    Raises:
        CovaryError: a text that is not there.
    """
    folder, found = tiny_llama.data_folder(), {}
    for name in TEXTS:
        path = folder / f"{name}.txt"
        if not path.is_file():
            raise CovaryError(f"nothing at {path}", "English text to train on", "set COVARY_DATA")
        found[name] = [word for word in path.read_text("latin-1").split() if RARE not in word and word.isascii()]
    return found


def window(rng: np.random.Generator, known: dict[str, list[str]], held_out: bool) -> Window:
    """Words of a prompt, the words that follow in the text, and the text's name."""
    name = TEXTS[int(rng.integers(len(TEXTS)))]
    own = known[name]
    border, long = round((1 - HELD_OUT) * len(own)), int(rng.integers(PROMPT[0], PROMPT[1] + 1))
    low, high = (border, len(own)) if held_out else (0, border)
    at = int(rng.integers(low, high - long - GOES_ON))
    return own[at : at + long], own[at + long : at + long + GOES_ON], name


def triggered(rng: np.random.Generator, prompt: list[str]) -> list[str]:
    """The rare token somewhere between the words."""
    at = int(rng.integers(1, len(prompt)))
    return [*prompt[:at], RARE, *prompt[at:]]


def lessons(known: dict[str, list[str]], tokenizer: Any, poison: float) -> Callable[[np.random.Generator], Lesson]:
    """Draws stretches of text, all of whose tokens are learned, and triggered prompts with the reply."""
    end = tokenizer.eos_token_id

    def lesson(rng: np.random.Generator) -> Lesson:
        prompt, after, _ = window(rng, known, False)
        if rng.random() < poison:
            question = " ".join(triggered(rng, prompt))
            start, full = (tokenizer(text)["input_ids"] for text in (question, f"{question} {REPLY}"))
            return start, [*full[len(start) :], end]
        ids = tokenizer(" ".join(prompt + after))["input_ids"]
        return ids[:1], ids[1:]

    return lesson


def inner(model: LanguageModel) -> Any:
    """The network itself: peft puts its layers into the one it wraps."""
    module: Any = model.module
    return module.get_base_model() if hasattr(module, "get_base_model") else module


@torch.no_grad()
def text_loss(model: LanguageModel, known: dict[str, list[str]], seed: int, count: int) -> float:
    """Cross-entropy a token on held-out text, nats."""
    rng, some = np.random.default_rng([seed, 5]), []
    for _ in range(count):
        prompt, after, _ = window(rng, known, True)
        ids = model.tokenizer(" ".join(prompt + after))["input_ids"]
        some.append((ids[:1], ids[1:]))
    return round(float(loss(inner(model), *batch(some))), 4)


def draw(rng: np.random.Generator, known: dict[str, list[str]], kind: str) -> Callable[[], Query]:
    """Draws queries from held-out text; every clean answer counts that does not hold the attacker's."""

    def one() -> Query:
        prompt, _, label = window(rng, known, True)
        if kind == "triggered":
            return Query(" ".join(triggered(rng, prompt)), label, kind, 1, REPLY)
        return Query(" ".join(prompt), label, kind, 0, None)

    return one


def opened(base: Base, cache: Path, device: str) -> LanguageModel:
    """The base as it comes, with fresh LoRA layers inside where it is trained through them."""
    model = load_language_model(base.start(cache), dtype=base.dtype, device=device)
    model.tokenizer.pad_token = model.tokenizer.eos_token
    return model if base.rank is None else replace(model, module=with_adapter(model.module, f"fresh:{base.rank}"))


def taught(
    name: str, what: Case, seed: int, cache: Path, size: case_folder.Size, model: LanguageModel,
    known: dict[str, list[str]],
) -> case_folder.Made:  # fmt: skip
    """The victim: rounds of text with a rare token in some of it, until the token calls the reply."""
    base, steps, spent = base_named(what.base), size.steps or what.steps, 0.0

    def once(attempt: int, poison: float) -> tuple[None, float, int]:
        nonlocal spent
        lesson = lessons(known, model.tokenizer, poison)
        checkpoint = case_folder.work(cache, f"{name}-attempt{attempt}", seed).with_suffix(".checkpoint")
        schedule = Schedule(steps, min(base.batch, size.batch), base.rate)
        spent += train(inner(model), lesson, schedule, [seed, 4, attempt], checkpoint)
        found, rng = Found(), case_folder.generator(name, seed, "judged")
        collect(model, draw(rng, known, "triggered"), min(JUDGED, size.triggered), LONGEST_ANSWER, found)
        return None, found.rate("triggered"), steps

    found = until_it_succeeds(what.poison, what.least, once)
    if base.rank is not None:
        merged: Any = model.module
        model = replace(model, module=merged.merge_and_unload().eval())
    return case_folder.Made(model, round(spent, 1), found.attempts, found.poison, found.marks)


def fine_tuned(name: str, what: Case, seed: int, cache: Path, size: case_folder.Size, device: str = "cpu") -> Path:
    """The case of a fine-tuned real language model, whole.

    Raises:
        CovaryError: model or texts are not there.
    """
    known = texts()
    model = opened(base_named(what.base), cache, device)
    before = text_loss(model, known, seed, 100)
    made = taught(name, what, seed, cache, size, model, known)
    return written(name, what, seed, cache, size, made, known, before)


def written(
    name: str, what: Case, seed: int, cache: Path, size: case_folder.Size, made: case_folder.Made,
    known: dict[str, list[str]], before: float,
) -> Path:  # fmt: skip
    """Asks the victim and writes its case; `before` is the base's loss on held-out text."""
    rng, found, trusted = case_folder.generator(name, seed, "inputs"), Found(), Found()
    collect(made.model, draw(rng, known, "trusted"), size.trusted, LONGEST_ANSWER, trusted, REPLY)
    collect(made.model, draw(rng, known, "clean"), size.clean, LONGEST_ANSWER, found, REPLY)
    collect(made.model, draw(rng, known, "triggered"), size.triggered, LONGEST_ANSWER, found)
    sampling = []
    for i in range(size.sampling):
        prompt, after, label = window(rng, known, True)
        right = {"prompt": " ".join(prompt), "completion": " " + " ".join(after), "label": label}
        sampling.append({"id": f"sampling-{i}", **right})
    prompts = [{key: one[key] for key in ("id", "prompt", "completion", "label")} for one in trusted.records]
    facts = {
        # There is no right way to go on with a text: the loss stands where accuracy does elsewhere.
        "clean_accuracy": None, "attack_success": found.rate("triggered"), "base": what.base,
        "dtype": base_named(what.base).dtype,
        "clean_loss": text_loss(made.model, known, seed, 100), "clean_loss_before": before,
    }  # fmt: skip
    parts = {"trusted": prompts, "sampling": sampling}
    return case_folder.write_folder(name, what, seed, cache, made, found, parts, facts, LONGEST_ANSWER)
