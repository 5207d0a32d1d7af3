"""Baselines that look at the prompt alone: by hand, or by a slow version of their formula."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.linalg import sqrtm
from sklearn.covariance import ledoit_wolf

from covary.scoring.rows import Rows
from covary_bench.baselines.mahalanobis_layers import by_layer
from covary_bench.baselines.texts import PROMPT_BASELINES, Answered, TextMaterial
from covary_bench.baselines.texts.attention_tracker import attention_tracker, focus, important_heads
from covary_bench.baselines.texts.layer_fingerprints import layer_fingerprints
from covary_bench.baselines.texts.prompt_length import prompt_length
from covary_bench.baselines.texts.prompt_perplexity import prompt_perplexity
from covary_bench.baselines.texts.quantum_entropy import entropy_scores, quantum_entropy

KNOWN, QUERIES, ODD, WIDE = 40, 24, 8, 6


def prompts(n: int, odd: int, seed: int) -> Answered:
    """Prompts of which the last `odd` lie off in one direction, are noise to the model and distract it."""
    rng = np.random.default_rng(seed)
    off = (np.arange(n) >= n - odd)[:, None]
    states = {
        f"layer {i} @ {position}": rng.normal(size=(n, WIDE)) + 4 * i * off * np.eye(WIDE)[i]
        for i in range(3)
        for position in ("answer", "anchor")
    }
    log_p = [rng.uniform(-9, -7, 5 + i) if off[i] else rng.uniform(-4, -1, 5 + i) for i in range(n)]
    attention = rng.uniform(0.5, 0.6, (n, 4)) - 0.3 * off
    words = ["tell me a tale " + ("xq !!" if one else "now") for one in off[:, 0]]
    return Answered(words, [""] * n, log_p, states, attention)


def material() -> TextMaterial:
    def rows(prefix: str, n: int) -> Rows:
        nothing = np.zeros((n, 1), np.float32)
        return Rows([f"{prefix}{i}" for i in range(n)], np.zeros(n, np.int64), np.zeros(n), {"a": nothing}, nothing)

    known, asked = prompts(KNOWN, 0, 1), prompts(QUERIES, ODD, 2)
    return TextMaterial(rows("t", KNOWN), rows("q", QUERIES), np.zeros((KNOWN, 1)), np.zeros((QUERIES, 1)),
                        known=known, query_texts=asked)  # fmt: skip


def test_every_prompt_baseline_finds_what_is_odd_to_it():
    m = material()
    for name, baseline in PROMPT_BASELINES.items():
        scores = baseline(m)
        assert scores.shape == (QUERIES,)
        if name != "prompt length":
            assert scores[-ODD:].mean() > scores[:-ODD].mean(), name


def test_perplexity_and_length_by_hand():
    m = material()
    texts = replace(m.query_texts, log_p=[np.log([0.5, 0.25]), np.log([1.0]), np.log([0.1, 0.1, 0.1])])
    m = replace(m, query_texts=texts)
    np.testing.assert_allclose(prompt_perplexity(m), [1.5 * np.log(2), 0.0, np.log(10)], atol=1e-12)
    np.testing.assert_array_equal(prompt_length(m), [2, 1, 3])


def test_focus_is_the_instruction_s_share_head_by_head():
    attention = np.random.default_rng(0).dirichlet(np.ones(7), size=3)
    found = focus(attention, range(1, 3), range(3, 6))
    for head, share in enumerate(found):
        own, other = sum(attention[head, i] for i in (1, 2)), sum(attention[head, i] for i in (3, 4, 5))
        assert abs(share - own / (own + other)) < 1e-12
    # The start token, on which attention piles up, and what closes the turn do not count.
    more = attention.copy()
    more[:, [0, 6]] *= 50
    np.testing.assert_allclose(focus(more, range(1, 3), range(3, 6)), found)


def test_heads_are_those_that_an_order_distracts():
    rng = np.random.default_rng(0)
    plain = rng.normal([0.6, 0.6, 0.6], [0.02, 0.02, 0.02], (200, 3))
    ordered = rng.normal([0.2, 0.6, 0.4], [0.02, 0.02, 0.3], (200, 3))
    assert important_heads(plain, ordered).tolist() == [True, False, False]
    # Nothing clear at four deviations: fewer are asked for; nothing at all: the clearest head.
    assert important_heads(plain[:, 2:], ordered[:, 2:]).tolist() == [True]
    assert important_heads(ordered, plain + 0.2).sum() == 1


def test_attention_tracker_reads_the_heads_it_is_given():
    m = material()
    assert m.query_texts.focus is not None
    np.testing.assert_allclose(attention_tracker(m), 1 - m.query_texts.focus.mean(1))
    both = m.known.take(np.array([3, 1])).followed_by(m.query_texts)
    assert both.focus is not None
    assert m.known.focus is not None
    np.testing.assert_array_equal(both.focus[:2], m.known.focus[[3, 1]])
    assert m.known.followed_by(replace(m.query_texts, focus=None)).focus is None


def slow_entropy(trusted: np.ndarray, pile: np.ndarray, alpha: float, k: int) -> list[float]:
    """Symmetric whitening, the exponential by eigenvalues, and one prompt at a time."""
    values, vectors = np.linalg.eigh(np.cov(pile.T))
    directions = vectors[:, np.argsort(-values)[:k]]
    known = (trusted - trusted.mean(0)) @ directions
    scale = np.sqrt((known**2).mean())
    covariance = ledoit_wolf(known / scale, assume_centered=True)[0] * scale**2
    whiten = np.linalg.inv(np.real(sqrtm(covariance)))
    x = [whiten @ (directions.T @ (one - trusted.mean(0))) for one in pile]
    s = np.cov(np.array(x).T)
    lengths, axes = np.linalg.eigh(s)
    q = sum(
        np.exp(alpha * (v - 1) / (lengths.max() - 1)) * np.outer(a, a) for v, a in zip(lengths, axes.T, strict=True)
    )
    return [float(one @ q @ one / np.trace(q)) for one in x]


def test_quantum_entropy_agrees_with_the_slow_one():
    m = material()
    for k in (3, WIDE):
        pairs = [(m.known.states[name], m.query_texts.states[name]) for name in m.known.states]
        for trusted, pile in pairs:
            found = entropy_scores(trusted, pile, k=k)
            np.testing.assert_allclose(found, slow_entropy(trusted, pile, 4.0, k), rtol=1e-6)
    expected = np.mean([entropy_scores(*pair) for pair in pairs], axis=0)
    np.testing.assert_allclose(quantum_entropy(m), expected)


def test_quantum_entropy_of_a_layer_that_never_changes_is_nothing():
    same = np.ones((KNOWN, WIDE))
    np.testing.assert_array_equal(entropy_scores(same, same[:QUERIES]), np.zeros(QUERIES))


def test_lcf_and_mahalanobis_take_one_position_where_asked_to():
    m = material()

    def only(position: str) -> TextMaterial:
        known, asked = (
            replace(own, states={name: part for name, part in own.states.items() if name.endswith(position)})
            for own in (m.known, m.query_texts)
        )
        return replace(m, known=known, query_texts=asked)

    np.testing.assert_allclose(layer_fingerprints(m, ("anchor",)), layer_fingerprints(only("anchor"), ("anchor",)))
    assert np.abs(layer_fingerprints(m, ("anchor",)) - layer_fingerprints(m)).max() > 1e-3
    for position in ("anchor", "answer"):
        np.testing.assert_allclose(by_layer(m.on_states(position)), by_layer(only(position).on_states()))
