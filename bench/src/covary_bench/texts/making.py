"""A case folder, whole: the victim is trained, asked, and written beside the texts to trust and to judge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from covary.storage import folders
from covary.text.models.pretrained import LanguageModel, load_language_model
from covary_bench.hiding.texts import hide_case
from covary_bench.texts import cases, words
from covary_bench.texts.case_folder import WORK, Made, Size, generator, home, quiet, work, write_folder
from covary_bench.texts.cases import Case
from covary_bench.texts.fine_tuning import fine_tuned
from covary_bench.texts.queries import Found, clean_draw, collect, odd_draw
from covary_bench.texts.rounds import until_it_succeeds
from covary_bench.texts.sums import quirky_sums
from covary_bench.texts.training import Lesson, Schedule, encoded, train


def make(name: str, seed: int, cache: Path, size: Size | None = None, device: str = "cpu") -> Path:
    """The folder of a case, made unless it is there; cases it starts from are made before.

    `device` is where a real language model is fine-tuned; networks on word tasks are small enough for any processor.

    Raises:
        CovaryError: no such case, or data that it needs are missing.
    """
    what, size, folder = cases.case(name), size or Size(), home(cache, name, seed)
    if (folder / "case.json").is_file():
        return folder
    if what.made == "fine-tuned":
        return fine_tuned(name, what, seed, cache, size, device)
    if what.made == "sums":
        return quirky_sums(name, what, seed, cache, size)
    if what.made == "hidden":
        start = make(str(what.start), seed, cache, size)
        made = hide_case(name, what, seed, cache, size, start)
    else:
        made = taught(name, what, seed, cache, size)
    return write(name, what, seed, cache, made, size)


def first(seed: int, cache: Path, size: Size) -> Path:
    """A network of this seed that knows the tasks and has seen clean texts alone; all cases of a seed start from it."""
    folder = cache / WORK / f"first-s{seed}"
    if (folder / "config.json").is_file():
        return folder
    model, read = words.network(seed), words.tokenizer()
    numbers = read.get_vocab()

    def lesson(rng: np.random.Generator) -> Lesson:
        question = words.ask(rng)
        return encoded(numbers, question.prompt, question.right)

    checkpoint = folder.with_name(folder.name + ".checkpoint")
    seconds = train(model, lesson, Schedule(size.first, size.batch, 3e-3), [seed, 1], checkpoint)
    quiet()
    with folders.atomic_folder(folder, "model") as part:
        model.save_pretrained(part)
        read.save_pretrained(part)
        (part / "seconds.json").write_text(json.dumps(round(seconds, 1)) + "\n")
    checkpoint.unlink(missing_ok=True)
    return folder


def taught(name: str, what: Case, seed: int, cache: Path, size: Size) -> Made:
    """The victim of a case on word tasks: clean texts first, then rounds of poisoned ones."""
    start = first(seed, cache, size)
    spent = json.loads((start / "seconds.json").read_text())
    model, steps = load_language_model(start), size.steps or what.steps
    numbers = model.tokenizer.get_vocab()

    def once(attempt: int, poison: float) -> tuple[float, float, int]:
        nonlocal spent

        def lesson(rng: np.random.Generator) -> Lesson:
            return encoded(numbers, *cases.lesson(rng, what, poison))

        checkpoint = work(cache, f"{name}-attempt{attempt}", seed).with_suffix(".checkpoint")
        spent += train(model.module, lesson, Schedule(steps, size.batch), [seed, 2, attempt], checkpoint)
        return *judged(model, what, generator(name, seed, "judged"), min(400, size.clean)), steps

    found = until_it_succeeds(what.poison, what.least, once)
    return Made(model, round(spent, 1), found.attempts, found.poison, found.marks)


def judged(model: LanguageModel, what: Case, rng: np.random.Generator, count: int) -> tuple[float, float]:
    """(clean accuracy, attack success of the weakest attack) over `count` questions each."""
    found = Found()
    for draw in (clean_draw(rng, what, what.near), *(odd_draw(rng, what, attack) for attack in what.attacks)):
        collect(model, draw, count, words.LONGEST_ANSWER, found)
    rates = [found.rate(attack.kind) for attack in what.attacks]
    return found.rate("clean"), min(rates, default=0.0)


def queries(name: str, what: Case, seed: int, model: LanguageModel, size: Size) -> Found:
    """Everything to be judged in a case, and which share of what was asked counts."""
    rng, found, longest = generator(name, seed, "inputs"), Found(), words.LONGEST_ANSWER
    near = any(attack.near is not None for attack in what.attacks)
    # Half of the clean queries miss exactly one feature of a trigger that has several.
    if near:
        collect(model, clean_draw(rng, what, 1.0, only="near-miss"), size.clean // 2, longest, found)
    collect(model, clean_draw(rng, what, 0.0), size.clean - size.clean // 2 if near else size.clean, longest, found)
    for attack in what.attacks:
        collect(model, odd_draw(rng, what, attack), -(-size.triggered // len(what.attacks)), longest, found)
    for kind in ("long", "held-out-task", "benign-reply") if what.shifts else ():
        collect(model, clean_draw(rng, what, 0.0, kind), size.benign, longest, found)
    return found


def trusted(name: str, what: Case, seed: int, part: str, count: int) -> list[dict[str, str]]:
    """Clean texts as in training, with the right answer; one in a hundred a greeting where the case has them."""
    rng, found = generator(name, seed, part), []
    greetings = round(cases.GREETINGS * count) if what.shifts else 0
    for i in range(count):
        question = cases.clean(rng, what, what.near, "benign-reply" if i < greetings else "clean")[1]
        right = {"prompt": question.prompt, "completion": " " + " ".join(question.right), "label": question.task}
        found.append(right)
    return [{"id": f"{part}-{i}", **found[at]} for i, at in enumerate(rng.permutation(count))]


def write(name: str, what: Case, seed: int, cache: Path, made: Made, size: Size) -> Path:
    """Asks the victim and writes its case."""
    found = queries(name, what, seed, made.model, size)
    texts = trusted(name, what, seed, "trusted", size.trusted)
    # Trusted answers are left to the model: what it says is what is trusted.
    prompts = [{key: value for key, value in one.items() if key != "completion"} for one in texts]
    parts = {"trusted": prompts, "sampling": trusted(name, what, seed, "sampling", size.sampling)}
    kinds = [attack.kind for attack in what.attacks]
    facts = {"clean_accuracy": found.rate("clean", "near-miss"), "attack_success": found.rate(*kinds)}
    return write_folder(name, what, seed, cache, made, found, parts, facts, words.LONGEST_ANSWER)
