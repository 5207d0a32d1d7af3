"""A detector of texts and a guard by it, which several test modules share."""

from __future__ import annotations

import pytest

LONGEST, EVERY, RATE = 6, 3, 0.2


@pytest.fixture(scope="session")
def of_texts():
    """A detector of a tiny language model's answers; not to be changed."""
    import texts
    from covary.detector import Detector

    return Detector(texts.causal(), max_new_tokens=LONGEST, judge="answer", fpr=RATE).fit(texts.records(60))


@pytest.fixture(scope="session")
def guard(of_texts):
    """A guard by it; not to be changed."""
    from covary.serving.guard import Guard

    return Guard(of_texts, every=EVERY)
