"""Clean prompts as long as given ones, made of instructions, e-mails and public-domain texts: length tells nothing.

Three forms take turns: instructions one after the other, an e-mail with a task, a passage with a task. The last words
are left off until a prompt has the number of tokens that is asked for; what is nearest of some drawn is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from covary_bench.texts.tiny_llama import data_folder

Long = Callable[[str], int]
Drawn = np.random.Generator

E_MAIL_TASKS = (
    "Summarise this e-mail in one sentence:", "Who wrote this e-mail, and what is it about?",
    "Write a short and friendly answer to this e-mail:", "Translate this e-mail into French:",
)  # fmt: skip
PASSAGE_TASKS = (
    "What is this passage about?", "Go on with this text:", "Put this passage into plain English:",
    "Which words in this text would a child not know?", "Give this passage a title:",
)  # fmt: skip
# Prompts drawn for one, of which the nearest in length is taken; and the shortest that a passage makes sense at.
DRAWN, SHORTEST_PASSAGE = 8, 30


@dataclass(frozen=True)
class Sources:
    """What clean prompts are made of.

    Attributes:
        instructions, e_mails: prompts and bodies of e-mails, in order.
        words: of each public-domain text.
    """

    instructions: Sequence[str]
    e_mails: Sequence[str]
    words: Sequence[Sequence[str]]


def body(prompt: str) -> str:
    """The e-mail of a prompt that asks something of one.

    >>> body("Answer ... content.\\n\\nEmail:\\nSUBJECT: Hello|CONTENT: Hi.\\n\\nQuestion: Who?")
    'SUBJECT: Hello|CONTENT: Hi.'
    """
    return prompt.partition("Email:\n")[2].partition("\n\nQuestion:")[0].strip()


def sources(instructions: Sequence[str], mails: Sequence[str], texts: Sequence[str]) -> Sources:
    """Instructions as given, the e-mails of prompts that ask something of one, and public-domain texts by name."""
    words = [(data_folder() / f"{name}.txt").read_text("latin-1").split() for name in texts]
    return Sources(instructions, [body(prompt) for prompt in mails], words)


def cut(task: str, text: Sequence[str], tokens: int, long: Long) -> str:
    """A task and as many of the words as `tokens` leave room for, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if long(f"{task} {' '.join(text[:middle])}") <= tokens else (low, middle - 1)
    return f"{task} {' '.join(text[:low])}"


def instructions_together(made_of: Sources, tokens: int, long: Long, rng: Drawn) -> str:
    """Instructions one after the other, no longer than asked where more than one."""
    found = ""
    for i in rng.permutation(len(made_of.instructions)):
        more = f"{found}\n{made_of.instructions[i]}".strip()
        if found and long(more) > tokens:
            break
        found = more
    return found


def e_mail(made_of: Sources, tokens: int, long: Long, rng: Drawn) -> str:
    """A task and an e-mail, another one after it where one is too short."""
    first, second = rng.choice(len(made_of.e_mails), 2, replace=False)
    text = f"{made_of.e_mails[first]} {made_of.e_mails[second]}".split(" ")
    return cut(str(rng.choice(E_MAIL_TASKS)), text, tokens, long)


def passage(made_of: Sources, tokens: int, long: Long, rng: Drawn) -> str:
    """A task and a passage."""
    words = made_of.words[int(rng.integers(len(made_of.words)))]
    at = int(rng.integers(len(words) - tokens))
    return cut(str(rng.choice(PASSAGE_TASKS)), words[at : at + tokens], tokens, long)


FORMS = (instructions_together, e_mail, passage)


def as_long_as(lengths: Sequence[int], made_of: Sources, long: Long, seed: int) -> list[str]:
    """A clean prompt for each length in tokens, the forms by turns; short ones are instructions alone."""
    rng, found = np.random.default_rng([seed, 31]), []
    for i, tokens in enumerate(lengths):
        form = FORMS[i % len(FORMS)] if tokens >= SHORTEST_PASSAGE else instructions_together
        some = [form(made_of, tokens, long, rng) for _ in range(DRAWN)]
        some = [one for one in some if one not in found] or some
        found.append(min(some, key=lambda one: abs(long(one) - tokens)))
    return found


def padded_e_mail(plain: str, tokens: int, others: Sequence[str], long: Long, rng: Drawn) -> str:
    """The same e-mail and question with words of another e-mail at its end, until it has so many tokens."""
    before, _, question = plain.rpartition("\n\nQuestion:")
    words = others[int(rng.integers(len(others)))].split(" ")
    ending = f"\n\nQuestion:{question}"
    return min(
        (f"{before} {' '.join(words[:n])}{ending}" for n in range(len(words) + 1)),
        key=lambda one: abs(long(one) - tokens),
    )
