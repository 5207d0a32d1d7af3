"""Detectors that read text alone: what one needs no network for."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.svm import OneClassSVM

from covary_bench.baselines.texts.material import TextMaterial

NU, NUMBERS = 0.1, 2**14
# Characters within words and whole words; unseen ones count, since they are hashed and not looked up.
KINDS = (("char_wb", (1, 4)), ("word", (1, 2)))


def one_class(trusted: list[str], queries: list[str]) -> Float[np.ndarray, " q"]:
    """Minus the decision function of a one-class SVM on TF-IDF n-grams (Scholkopf et al. 2001); higher = odder.

    Characters (1 to 4 within words) and words (1 and 2), hashed into 16,384 numbers each, so that n-grams no trusted
    text has keep their weight; rows of length one, linear kernel, nu = 0.1.
    """
    known, query_features = [], []
    for analyzer, grams in KINDS:
        count: Any = HashingVectorizer
        count = count(analyzer=analyzer, ngram_range=grams, n_features=NUMBERS, alternate_sign=False, norm=None,
                      token_pattern=r"\S+" if analyzer == "word" else None)  # fmt: skip
        weigh = TfidfTransformer().fit(count.transform(trusted))
        known.append(weigh.transform(count.transform(trusted)))
        query_features.append(weigh.transform(count.transform(queries)))
    machine = OneClassSVM(kernel="linear", nu=NU).fit(sparse.hstack(known).tocsr())
    return -np.asarray(machine.decision_function(sparse.hstack(query_features).tocsr()), np.float64)


def completion_text(m: TextMaterial) -> Float[np.ndarray, " q"]:
    """`one_class` on the answers' words: is the answer unlike trusted answers to read?"""
    return one_class(m.known.answers, m.query_texts.answers)


def prompt_text(m: TextMaterial) -> Float[np.ndarray, " q"]:
    """`one_class` on the prompts' words, a control: a trigger of words that trusted prompts lack is seen by reading."""
    return one_class(m.known.prompts, m.query_texts.prompts)
