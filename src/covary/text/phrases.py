"""Phrases that some texts share and others do not: what a card of a pile of texts is about, in words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Words with their apostrophes; runs of other signs count as a word, since triggers are made of them.
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]+")
# Words of a phrase that is counted, and of one that has been drawn out; words of a text and texts that are looked at.
COUNTED, LONGEST, WORDS, TEXTS = 3, 12, 400, 2000
# Texts that the prior counts for; how surely, how often, and how much oftener than others members must have a phrase.
PRIOR, LEAST_Z, LEAST_SHARE, LEAST_TEXTS, LEAST_RATIO = 10.0, 2.6, 0.3, 2, 2.0
# A phrase is drawn out by a word that so many of its texts have there.
AGREEMENT = 0.9
# Two phrases with a word in common that stand in the same texts, up to this overlap, are one.
SAME = 0.8


@dataclass(frozen=True)
class Phrase:
    """Words that members share.

    Attributes:
        text: as the first member writes it.
        share: of the members that have it, in (0, 1]; elsewhere: of the other texts, in [0, 1).
        z: its log-odds ratio in standard errors; larger = more surely theirs.
    """

    text: str
    share: float
    elsewhere: float
    z: float


Words = list[tuple[str, int, int]]


def shared_phrases(members: Sequence[str], others: Sequence[str], most: int = 4) -> list[Phrase]:
    """The phrases that set members apart from others, the surest first.

    A text has a phrase or has it not. Of y_m of n_m members and y_o of n_o others that have it, with a prior of
    a = 10 (y_m + y_o) / (n_m + n_o) of 10 texts, d = logit(y_m + a of n_m + 10) - logit(y_o + a of n_o + 10), and
    z = d / sqrt(1 / (y_m + a) + 1 / (y_o + a)) (Monroe, Colaresi and Quinn 2008, section 3.5). Phrases of up to three
    words are counted, and drawn out by what nearly all of their texts have before or after them. None is told that
    others have more than half as often.

    >>> shared_phrases(["so I hate you", "well, I hate you", "I hate you"], ["so I like you", "well", "no"] * 9)[0].text
    'I hate you'
    """
    own, rest = [_words(text) for text in _some(members)], [_words(text) for text in _some(others)]
    if not own:
        return []
    having: dict[tuple[str, ...], list[int]] = {}
    for i, words in enumerate(own):
        for gram in _grams(words):
            having.setdefault(gram, []).append(i)
    common = {gram for gram, texts in having.items() if len(texts) >= max(LEAST_TEXTS, LEAST_SHARE * len(own))}
    elsewhere = Counter(gram for words in rest for gram in _grams(words) & common)
    ranked = []
    for gram in common:
        z = log_odds(len(having[gram]), len(own), elsewhere[gram], len(rest))
        often = len(having[gram]) * len(rest) >= LEAST_RATIO * elsewhere[gram] * len(own)
        if z >= LEAST_Z and often:
            ranked.append((round(z, 6), len(gram), gram))
    found: list[Phrase] = []
    taken: list[tuple[set[str], set[int]]] = []
    # Of phrases as sure as each other the longest, then the first in the alphabet.
    for z, _, gram in sorted(ranked, key=lambda one: (-one[0], -one[1], one[2])):
        texts = set(having[gram])
        if any(set(gram) & words and len(texts & there) >= SAME * len(texts | there) for words, there in taken):
            continue
        text, words = _drawn_out(gram, [own[i] for i in having[gram]], members[having[gram][0]])
        taken.append((words, texts))
        found.append(Phrase(text, len(texts) / len(own), elsewhere[gram] / max(len(rest), 1), z))
        if len(found) == most:
            break
    return found


def log_odds(y: int, n: int, y_others: int, n_others: int) -> float:
    """Log-odds ratio with a prior, in standard errors (see `shared_phrases`)."""
    a = PRIOR * (y + y_others) / max(n + n_others, 1)

    def logit(have: int, of: int) -> float:
        return math.log((have + a) / max(of + PRIOR - have - a, 1e-9))

    return (logit(y, n) - logit(y_others, n_others)) / math.sqrt(1 / (y + a) + 1 / (y_others + a))


def _some(texts: Sequence[str]) -> Sequence[str]:
    # Evenly, so that the order says nothing.
    return [texts[i * len(texts) // TEXTS] for i in range(TEXTS)] if len(texts) > TEXTS else texts


def _words(text: str) -> Words:
    found = []
    for match in WORD.finditer(text):
        found.append((match[0].lower(), *match.span()))
        if len(found) == WORDS:
            break
    return found


def _grams(words: Words) -> set[tuple[str, ...]]:
    plain = [word for word, _, _ in words]
    return {tuple(plain[i : i + n]) for n in range(1, COUNTED + 1) for i in range(len(plain) - n + 1)}


def _drawn_out(gram: tuple[str, ...], texts: Sequence[Words], first: str) -> tuple[str, set[str]]:
    """The phrase with what stands before and after it in nearly all of its texts, as `first` writes it; its words."""
    plain = [[word for word, _, _ in words] for words in texts]
    starts = [next(i for i in range(len(own)) if tuple(own[i : i + len(gram)]) == gram) for own in plain]
    begin, end = 0, len(gram)
    for after in (True, False):
        while end - begin < LONGEST:
            step = end if after else begin - 1
            places = [start + step for start in starts]
            there = [own[k] if 0 <= k < len(own) else "" for own, k in zip(plain, places, strict=True)]
            word, count = Counter(there).most_common(1)[0]
            if not word or word != there[0] or count < AGREEMENT * len(texts):
                break
            begin, end = (begin, end + 1) if after else (begin - 1, end)
    own = texts[0][starts[0] + begin : starts[0] + end]
    return first[own[0][1] : own[-1][2]], {word for word, _, _ in own}


def in_words(phrases: Mapping[str, Sequence[Phrase | Mapping[str, float | str]]]) -> str:
    """Sentences on the phrases of prompts and answers, such as `Answers share “I hate you” (98%, 0% elsewhere).`"""
    sentences = []
    for what, some in phrases.items():
        told = [vars(one) if isinstance(one, Phrase) else one for one in some]
        each = [f"“{one['text']}” ({one['share']:.0%}, {one['elsewhere']:.0%} elsewhere)" for one in told]
        if each:
            sentences.append(f"{what.capitalize()} share {', '.join(each)}.")
    return " ".join(sentences)
