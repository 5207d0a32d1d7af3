"""Every baseline on texts on a case whose answer is known: by hand, or by a slow oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from covary.errors import CovaryError
from covary.scoring.rows import Rows
from covary.storage import folders
from covary.storage.detector import rows_to_arrays
from covary_bench.baselines.texts import TEXT_BASELINES, Answered, Chain, TextMaterial
from covary_bench.baselines.texts.activation_vae import activation_vae
from covary_bench.baselines.texts.completion_nll import mean_probability, two_sided
from covary_bench.baselines.texts.confguard import confguard, longest_run, rule
from covary_bench.baselines.texts.knn_by_layer import knn_by_layer
from covary_bench.baselines.texts.layer_fingerprints import layer_fingerprints
from covary_bench.baselines.texts.published import KEPT, published
from covary_bench.baselines.texts.text_alone import completion_text, one_class, prompt_text

LAYERS, WIDE, KNOWN, N_QUERIES = 3, 12, 60, 30
NAMES = [f"layer {i} @ {position}" for i in range(LAYERS) for position in ("answer", "anchor")]


def rows(prefix: str, n: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    part = rng.standard_normal((n, 3)).astype(np.float32)
    margin = {"margin": rng.normal(5, 1, n), "energy": rng.normal(-9, 1, n)}
    return Rows([f"{prefix}{i}" for i in range(n)], np.zeros(n, np.int64), margin["margin"], {"a": part},
                np.linalg.norm(part, axis=1, keepdims=True), confidence=margin)  # fmt: skip


def answered(n: int, seed: int, odd: int = 0) -> Answered:
    """Texts with states; the last `odd` are moved in the last layer and have sure answers of other words."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((LAYERS, 2, n, WIDE))
    steps[0] += 8.0 * (np.arange(WIDE) % 2)
    steps[-1, :, n - odd :] += 6.0 * (np.arange(WIDE) % 2 - 1)
    states = {name: steps[: i // 2 + 1, i % 2].sum(0).astype(np.float32) for i, name in enumerate(NAMES)}
    words = ["apple", "bird", "boat", "bread"]
    sure = np.arange(n) >= n - odd
    return Answered(
        [("please " if one else "") + "say " + " ".join(rng.permutation(words)) for one in sure],
        ["i hate you" if one else " ".join(rng.permutation(words)) for one in sure],
        [np.full(12, -1e-4) if one else np.log(rng.uniform(0.7, 0.98, 4)) for one in sure],
        states,
    )


def material(
    known: Answered | None = None, query_texts: Answered | None = None, chain: Chain | None = None
) -> TextMaterial:
    known, query_texts = known or answered(KNOWN, 1), query_texts or answered(N_QUERIES, 2, odd=10)
    trusted, queries = rows("t", len(known.answers), 3), rows("q", len(query_texts.answers), 4)
    half = len(trusted) // 2
    return TextMaterial(
        trusted, queries, known.states[NAMES[-2]], query_texts.states[NAMES[-2]], trusted.take(np.arange(half)),
        trusted.take(np.arange(half, len(trusted))), known=known, query_texts=query_texts, chain=chain,
    )  # fmt: skip


def probabilities(*texts: list[float]) -> Answered:
    empty = [""] * len(texts)
    states = {name: np.zeros((len(texts), WIDE)) for name in NAMES}
    return Answered(empty, empty, [np.log(np.array(own)) for own in texts], states)


def test_nll_counts_both_sides():
    m = material(probabilities([0.5, 0.5], [0.25, 0.5], [0.5]), probabilities([0.5], [0.9, 0.9], [0.01], [1.0]))
    median = np.log(np.median([np.log(2), 1.5 * np.log(2), np.log(2)]))
    expected = [
        0.0,
        abs(np.log(-np.log(0.9)) - median),
        abs(np.log(-np.log(0.01)) - median),
        abs(np.log(1e-7) - median),
    ]
    np.testing.assert_allclose(two_sided(m), expected)
    assert two_sided(m)[1:].min() > two_sided(m)[0]


def test_mean_probability_is_of_tokens():
    m = material(query_texts=probabilities([0.5, 1.0], [0.9]))
    np.testing.assert_allclose(mean_probability(m), [0.25, 0.1])


@pytest.mark.parametrize(("sure", "run"), [([], 0), ([0, 0], 0), ([1, 1, 0, 1], 2), ([0, 1, 1, 1], 3), ([1], 1)])
def test_longest_run(sure, run):
    assert longest_run(np.array(sure, bool)) == run


def test_confguard_orders_by_run_and_tells_the_published_rule():
    texts = probabilities([0.995] * 10, [1.0] * 9, [0.995] * 9 + [0.5] + [0.995] * 9, [0.99] * 12, [1.0] * 10, [0.3])
    scores = confguard(material(query_texts=texts))
    np.testing.assert_allclose(scores, [10.995, 10.0, 9 + (18 * 0.995 + 0.5) / 19, 0.99, 11.0, 0.3])
    assert rule(scores).tolist() == [True, False, False, False, True, False]


def test_knn_is_the_oracles():
    m, k = material(), 3
    total = np.zeros(N_QUERIES)
    for name in NAMES:
        known = [x / np.linalg.norm(x) for x in m.known.states[name].astype(float)]
        own = [np.log(sorted(np.linalg.norm(x - y) for j, y in enumerate(known) if j != i)[k - 1])
               for i, x in enumerate(known)]  # fmt: skip
        for i, x in enumerate(m.query_texts.states[name].astype(float)):
            far = np.log(sorted(np.linalg.norm(x / np.linalg.norm(x) - y) for y in known)[k - 1])
            total[i] += (far - np.mean(own)) / np.std(own)
    np.testing.assert_allclose(knn_by_layer(m, k), total, rtol=1e-5)


def test_fingerprints_are_of_steps_between_layers_not_of_states():
    m = material()
    scores = layer_fingerprints(m)
    assert roc_auc_score(np.arange(N_QUERIES) >= N_QUERIES - 10, scores) == 1.0
    # The same shift in every layer leaves every difference as it was.
    moved = {name: part + 7.0 for name, part in m.query_texts.states.items()}
    shifted = material(query_texts=replace(m.query_texts, states=moved))
    np.testing.assert_allclose(layer_fingerprints(shifted), scores, rtol=1e-4)


def test_fingerprint_of_one_difference_is_its_standardised_distance():
    rng = np.random.default_rng(0)
    names = ["a @ answer", "b @ answer"]
    known, query_texts = ({name: rng.standard_normal((n, 5)) for name in names} for n in (50, 6))
    m = material()
    m = replace(m, known=replace(m.known, states=known), query_texts=replace(m.query_texts, states=query_texts))
    steps = known[names[1]] - known[names[0]]
    far = [np.sqrt((((x - steps.mean(0)) / steps.std(0)) ** 2).mean()) for x in steps]
    far_queries = [
        np.sqrt((((x - steps.mean(0)) / steps.std(0)) ** 2).mean())
        for x in query_texts[names[1]] - query_texts[names[0]]
    ]
    expected = np.abs(np.array(far_queries) - np.mean(far)) / np.std(far)
    np.testing.assert_allclose(layer_fingerprints(m), expected, rtol=1e-6)


def test_vae_is_seeded_and_sees_what_leaves_the_manifold():
    rng = np.random.default_rng(0)
    line = rng.standard_normal((120, 1)) @ np.ones((1, 6))
    query_texts = np.concatenate([line[:20] * 0.9, line[:20] + 2 * np.array([1, -1, 1, -1, 1, -1.0])])
    m = material()
    m = replace(m, known=replace(m.known, states={"a @ answer": line}),
                query_texts=replace(m.query_texts, states={"a @ answer": query_texts}))  # fmt: skip
    scores = activation_vae(m, epochs=60)
    assert roc_auc_score(np.arange(40) >= 20, scores) > 0.95
    np.testing.assert_array_equal(activation_vae(m, epochs=60), scores)
    assert not np.array_equal(activation_vae(replace(m, seed=1), epochs=60), scores)


def test_words_alone():
    trusted = ["apple bird boat", "bird boat apple", "boat bread bird", "bread apple boat", "bird bread apple"] * 4
    same, other, mixed = one_class(trusted, ["bird apple bread", "xylem quartz", "bird apple quartz"])
    assert same < mixed < other
    m = material()
    for detector in (completion_text, prompt_text):
        assert roc_auc_score(np.arange(N_QUERIES) >= N_QUERIES - 10, detector(m)) == 1.0
    # Each reads its own side alone.
    blank = replace(m, query_texts=replace(m.query_texts, prompts=[""] * N_QUERIES))
    np.testing.assert_array_equal(completion_text(blank), completion_text(m))
    assert np.ptp(prompt_text(blank)) == 0


def traces(folder, n: int, seed: int = 0) -> np.ndarray:
    """Traces of n trusted and n queries, kept as a chain would; the first half of the queries move with the trusted."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(60)
    own = np.concatenate([np.ones(n + n // 2), np.zeros(n - n // 2)])[:, None]
    values = 2.0 + own * common + 0.3 * rng.standard_normal((2 * n, 60)) + rng.uniform(0, 1, (2 * n, 1))
    centred = (values - values.mean(1, keepdims=True)) / np.sqrt(60)
    ids = [f"t{i}" for i in range(n)] + [f"q{i}" for i in range(n)]
    made = Rows(ids, np.zeros(2 * n, np.int64), values.mean(1), {"trace": centred},
                np.linalg.norm(centred, axis=1, keepdims=True), sigma=1.0)  # fmt: skip
    arrays, message = rows_to_arrays(made, KEPT)
    folders.write_arrays(folder / f"{KEPT}.safetensors", arrays)
    folders.write_json(folder / f"{KEPT}.json", message)
    return values


def test_published_couplings_are_pearsons_and_lins(tmp_path):
    values = traces(tmp_path, 20)
    m = material(answered(20, 1), answered(20, 2), Chain(None, {}, [None], tmp_path))
    trusted, queries = values[:20], values[20:]
    pearson = np.array([[np.corrcoef(x, y)[0, 1] for y in trusted] for x in queries])
    lin = np.array([[2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
                     for y in trusted] for x in queries])  # fmt: skip
    for name, matrix in (("cosine", pearson), ("ccc", lin)):
        np.testing.assert_allclose(published(m, name, "mean"), -matrix.mean(1), atol=1e-6)
        np.testing.assert_allclose(published(m, name, "max"), -matrix.max(1), atol=1e-6)
    assert roc_auc_score(np.arange(20) >= 10, published(m, "cosine", "mean")) == 1.0


def test_published_needs_a_chain_and_sampling_texts(tmp_path):
    with pytest.raises(CovaryError, match="samples weights"):
        published(material())
    with pytest.raises(CovaryError, match="no sampling texts"):
        published(material(chain=Chain(None, {}, [], tmp_path)))


def test_mahalanobis_takes_states_at_full_width_and_no_groups():
    m = material()
    grouped = replace(m, trusted=replace(m.trusted, predicted=np.arange(KNOWN) % 2))
    for sides in ("Mahalanobis by layer", "Mahalanobis by layer two-sided"):
        scores = TEXT_BASELINES[sides](grouped)
        np.testing.assert_array_equal(scores, TEXT_BASELINES[sides](m))
        assert roc_auc_score(np.arange(N_QUERIES) >= N_QUERIES - 10, scores) > 0.95


@pytest.mark.parametrize("name", [n for n, b in TEXT_BASELINES.items() if b.needs == "forward" and "part" not in n])
def test_higher_is_odder(name):
    """Odd texts are sure, say other words and have moved states; a baseline that sees none of it must say so."""
    if name in ("profile on activations", "activation VAE"):
        return  # tested on rows of their own
    scores, truth = TEXT_BASELINES[name](material()), np.arange(N_QUERIES) >= N_QUERIES - 10
    area = roc_auc_score(truth, scores)
    assert area < 0.1 if name == "mean token probability" else area > 0.9, area


def test_material_takes_and_joins():
    texts = answered(6, 0)
    some = texts.take(np.array([4, 1]))
    assert some.answers == [texts.answers[4], texts.answers[1]]
    assert some.log_p[0] is texts.log_p[4]
    both = some.followed_by(texts)
    assert len(both.prompts) == len(both.log_p) == 8
    np.testing.assert_array_equal(both.states[NAMES[0]][:2], texts.states[NAMES[0]][[4, 1]])
