"""Baselines against their papers' formulas, image by image and number by number, on small made-up networks and rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from core_cases import synthetic
from covary.scoring.rows import Rows
from covary_bench.baselines.images import Material, Probe, baseline
from covary_bench.baselines.images.ibd_psc import first_depth
from covary_bench.baselines.images.published import PLAN, published, traces_of
from covary_bench.baselines.mahalanobis import log_distances

# Twelve trusted samples of each of two classes, three of a third: too few for figures of its own.
TRUSTED_CLASSES = np.repeat([0, 1, 2], [12, 12, 3])
QUERY_CLASSES = np.array([0, 1, 2, 0, 1, 2, 0, 1])


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(predicted: np.ndarray) -> Rows:
    """Rows that say nothing but the predicted classes."""
    n, none = len(predicted), np.zeros((len(predicted), 1), np.float32)
    return Rows([str(i) for i in range(n)], predicted.astype(np.int64), np.zeros(n), {"a": none}, none)


def material(module: nn.Module, trusted: torch.Tensor, queries: torch.Tensor, labels: np.ndarray) -> Material:
    probe = Probe(module, trusted, queries, labels)
    none = np.zeros((len(trusted), 1)), np.zeros((len(queries), 1))
    return Material(plain(TRUSTED_CLASSES), plain(QUERY_CLASSES), *none, probe=probe)


class Seeing(nn.Module):
    """Two convolutions, the last with three channels at 4x4 positions, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3)
        self.flatten, self.say = nn.Flatten(), nn.Linear(48, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=drawn(16_000 + parameter.numel())))
        self.eval()

    def forward(self, x):
        return self.say(self.flatten(torch.relu(self.last(torch.relu(self.first(x))))))


def seen() -> Material:
    """Images of three brightnesses, one a class; some queries are far from all of them."""
    brightness = torch.tensor([0.05, 0.15, 0.4])
    trusted = brightness[TRUSTED_CLASSES].view(-1, 1, 1, 1) + 0.3 * torch.rand(27, 1, 8, 8, generator=drawn(1))
    queries = brightness[QUERY_CLASSES].view(-1, 1, 1, 1) + 0.3 * torch.rand(8, 1, 8, 8, generator=drawn(2))
    queries[3:6] = torch.rand(3, 1, 8, 8, generator=drawn(3)).round()
    return material(Seeing(), trusted, queries, TRUSTED_CLASSES)


def of_the_class(values: np.ndarray, label: int) -> np.ndarray:
    """Values of the trusted samples of a class; of all where the class has fewer than five."""
    own = [value for value, predicted in zip(values, TRUSTED_CLASSES, strict=True) if predicted == label]
    return np.array(own if len(own) >= 5 else list(values))


# Beatrix -------------------------------------------------------------------------------------------------------------


def gram_numbers(module: Seeing, image: torch.Tensor, orders: range) -> list[float]:
    """Row sums of (F^p (F^p)^T)^(1/p) for every order p, entry by entry."""
    with torch.no_grad():
        maps = module.last(torch.relu(module.first(image[None])))[0].flatten(1).double().numpy()
    numbers = []
    for order in orders:
        for a in maps:
            total = 0.0
            for b in maps:
                entry = sum(np.sign(u * v) * abs(u * v) ** order for u, v in zip(a, b, strict=True))
                total += np.sign(entry) * abs(entry) ** (1 / order)
            numbers.append(total)
    return numbers


def test_beatrix_by_loops():
    found = seen()
    probe, orders = found.network, range(1, 10)
    trusted = np.array([gram_numbers(probe.module, image, orders) for image in probe.trusted])
    expected = []
    for image, label in zip(probe.queries, QUERY_CLASSES, strict=True):
        beyond, deviations = 0.0, []
        for position, value in enumerate(gram_numbers(probe.module, image, orders)):
            own = of_the_class(trusted[:, position], label)
            median = np.median(own)
            mad = np.median([abs(v - median) for v in own])
            low, high = median - 10 * mad, median + 10 * mad
            if value < low:
                beyond += (low - value) / abs(low)
            if value > high:
                beyond += (value - high) / abs(high)
            deviations.append(abs(value - median) / (mad + 1e-9 + 1e-3 * abs(median)))
        expected.append((beyond, np.mean(deviations)))
    scores = baseline("Beatrix")(found)
    np.testing.assert_allclose(scores, [beyond + 1e-6 * inside for beyond, inside in expected], rtol=1e-4)
    # Some lie inside all bounds and some do not.
    assert 0 < sum(beyond > 0.1 for beyond, _ in expected) < 8, expected


# SCALE-UP ------------------------------------------------------------------------------------------------------------


def test_data_limited_scale_up_by_loops():
    found = seen()
    probe, factors = found.network, (3, 5, 7, 9, 11)

    def agreement(image: torch.Tensor) -> float:
        with torch.no_grad():
            first = int(probe.module(image[None]).argmax())
            again = [int(probe.module((factor * image[None]).clamp(0, 1)).argmax()) for factor in factors]
        return sum(label == first for label in again) / 5

    trusted = np.array([agreement(image) for image in probe.trusted])
    expected = []
    for image, label in zip(probe.queries, QUERY_CLASSES, strict=True):
        own = of_the_class(trusted, label)
        spread = np.sqrt(np.mean([(v - own.mean()) ** 2 for v in own]))
        expected.append((agreement(image) - own.mean()) / (spread + 0.1))
    np.testing.assert_allclose(baseline("SCALE-UP")(found), expected, atol=1e-9)
    means = [of_the_class(trusted, label).mean() for label in (0, 1, 2)]
    assert len(set(means)) == 3, "each class is standardised in its own way"


# IBD-PSC -------------------------------------------------------------------------------------------------------------

DEPTH = 8


class Stack(nn.Module):
    """Eight linear layers, each with batch normalisation and a ReLU, and a ninth that answers."""

    def __init__(self, seed: int = 12) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(16, 16) for _ in range(DEPTH))
        self.norm = nn.ModuleList(nn.BatchNorm1d(16) for _ in range(DEPTH))
        self.say = nn.Linear(16, 3)
        generator = drawn(seed)
        with torch.no_grad():
            for tensor in [*self.parameters(), *(norm.running_mean for norm in self.norm)]:
                tensor.copy_(0.4 * torch.randn(tensor.shape, generator=generator))
            for norm in self.norm:
                norm.weight.copy_(0.8 + 0.4 * torch.rand(16, generator=generator))
                norm.running_var.copy_(0.5 + torch.rand(16, generator=generator))
            self.say.bias.mul_(8)
        self.eval()

    def forward(self, x):
        x = x.flatten(1)
        for linear, norm in zip(self.linear, self.norm, strict=True):
            x = torch.relu(norm(linear(x)))
        return self.say(x)


def answer(module: Stack, image: torch.Tensor, last: int, omega: float) -> np.ndarray:
    """Probabilities when scale and shift of the `last` last normalisations are multiplied by omega."""
    v = image.double().numpy().ravel()
    weights = {name: value.double().numpy() for name, value in module.state_dict().items()}
    for i in range(DEPTH):
        factor = omega if i >= DEPTH - last else 1.0
        v = weights[f"linear.{i}.weight"] @ v + weights[f"linear.{i}.bias"]
        v = (v - weights[f"norm.{i}.running_mean"]) / np.sqrt(weights[f"norm.{i}.running_var"] + 1e-5)
        v = np.maximum(factor * weights[f"norm.{i}.weight"] * v + factor * weights[f"norm.{i}.bias"], 0)
    logits = weights["say.weight"] @ v + weights["say.bias"]
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


@pytest.mark.parametrize(("omega", "error", "start"), [(1.5, 0.6, 3), (1.5, 0.9, 8), (1.5, 0.4, 2)])
def test_ibd_psc_by_loops(omega, error, start):
    module = Stack()
    trusted, queries = 3 * torch.randn(27, 1, 4, 4, generator=drawn(1)), 3 * torch.randn(8, 1, 4, 4, generator=drawn(2))
    labels = np.array([int(answer(module, image, 0, omega).argmax()) for image in trusted])
    found = material(module, trusted, queries, labels)
    wrong = []
    for last in range(1, DEPTH + 1):
        message = [int(answer(module, image, last, omega).argmax()) for image in trusted]
        wrong.append(sum(a != b for a, b in zip(message, labels, strict=True)) / len(labels))
    chosen = next((last for last in range(1, DEPTH + 1) if wrong[last - 1] > error), DEPTH)
    assert chosen == start
    assert first_depth(found.network, omega, error) == chosen
    expected = []
    for image in queries:
        label = int(answer(module, image, 0, omega).argmax())
        expected.append(np.mean([answer(module, image, min(chosen + i, DEPTH), omega)[label] for i in range(5)]))
    np.testing.assert_allclose(baseline("IBD-PSC")(found, omega=omega, error=error), expected, atol=1e-4)


# Scores of rows and features -----------------------------------------------------------------------------------------


def featured(trusted: list, queries: list) -> Material:
    """Trusted and query features, each given as (class, point)."""
    classes = [np.array([label for label, _ in some]) for some in (trusted, queries)]
    points = [np.array([point for _, point in some], float) for some in (trusted, queries)]
    return Material(plain(classes[0]), plain(classes[1]), *points)


def test_activation_clustering_by_loops():
    rng = np.random.default_rng(0)
    # Class 0 falls into two clusters far apart, class 1 into two that are less so, class 2 has too few members.
    centres = {0: ((0, 0), (9, 3)), 1: ((0, 0), (0, 2)), 2: ((0, 0), (5, 5))}
    counts = {0: (6, 3, 7), 1: (7, 4, 5), 2: (3, 1, 2)}
    trusted, queries, sides = [], [], []
    for label, (near, far) in centres.items():
        a, b, c = counts[label]
        trusted += [(label, rng.normal(near, 0.3)) for _ in range(a)]
        queries += [(label, rng.normal(near, 0.3)) for _ in range(b)] + [
            (label, rng.normal(far, 0.3)) for _ in range(c)
        ]
        sides += [0] * b + [1] * c
    expected = []
    for (label, point), _ in zip(queries, sides, strict=True):
        # PCA to as many components as there are turns the points and no more.
        own = [(p, 0) for other, p in trusted if other == label]
        own += [(p, side) for (other, p), side in zip(queries, sides, strict=True) if other == label]
        if len(own) < 8:
            expected.append(0.0)
            continue
        silhouettes = []
        for i, (p, side) in enumerate(own):
            to = [[np.linalg.norm(p - q) for j, (q, s) in enumerate(own) if s == k and j != i] for k in (0, 1)]
            inside, outside = np.mean(to[side]), np.mean(to[1 - side])
            silhouettes.append((outside - inside) / max(inside, outside))
        usual, odd = (np.linalg.norm(point - np.mean([p for p, s in own if s == k], axis=0)) for k in (0, 1))
        expected.append(np.mean(silhouettes) * (usual - odd) / (usual + odd))
    scores = baseline("Activation Clustering")(featured(trusted, queries))
    np.testing.assert_allclose(scores, expected, atol=1e-9)
    classes = np.array([label for label, _ in queries])
    assert (scores[(classes < 2)] > 0).tolist() == [side == 1 for side, c in zip(sides, classes, strict=True) if c < 2]
    assert (scores[classes == 2] == 0).all()


@pytest.mark.parametrize(("directions", "centre"), [(1, "pile"), (2, "pile"), (1, "trusted"), (2, "trusted")])
def test_spectral_signatures_by_loops(directions, centre):
    rng = np.random.default_rng(0)
    trusted = [(i % 2, rng.normal(size=4) * [3, 2, 1, 1] * (1 + i % 2)) for i in range(20)]
    queries = [(i % 2, rng.normal(1, 1, size=4) * [3, 2, 1, 1]) for i in range(12)]
    expected = []
    for label, point in queries:
        known = [p for other, p in trusted if other == label]
        everybody = known + [p for other, p in queries if other == label]
        middle = np.mean(known if centre == "trusted" else everybody, axis=0)
        scatter = sum(np.outer(p - middle, p - middle) for p in everybody)
        top = np.linalg.eigh(scatter)[1].T[::-1][:directions]

        def square(p, top=top, middle=middle):
            return sum(float(direction @ (p - middle)) ** 2 for direction in top)

        expected.append(square(point) / np.mean([square(p) for p in known]))
    found = baseline("Spectral Signatures")(featured(trusted, queries), directions=directions, centre=centre)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_layers_of_one_side_and_of_two():
    trusted, queries = synthetic(120, 1)[0], synthetic(40, 2)[0]
    pair = Material(trusted, queries, np.zeros((120, 1)), np.zeros((40, 1)))
    z = []
    for layer in trusted.latent:
        known, query_rows = (rows.latent[layer].astype(float) for rows in (trusted, queries))
        held_out, distances = log_distances(known, trusted.predicted, query_rows)
        z.append((distances - np.mean(held_out)) / np.std(held_out))
    np.testing.assert_allclose(baseline("Mahalanobis by layer")(pair), [sum(of) for of in zip(*z, strict=True)])
    two = [sum(abs(one) for one in of) for of in zip(*z, strict=True)]
    np.testing.assert_allclose(baseline("Mahalanobis by layer two-sided")(pair), two)
    assert min(map(min, z)) < 0 < max(map(max, z))


def test_class_max_cosine_by_loops():
    trusted, queries = synthetic(40, 1)[0], synthetic(6, 2)[0]
    vectors = [np.concatenate(list(rows.functional.values()), axis=1).astype(float) for rows in (trusted, queries)]
    expected = []
    for q in vectors[1]:
        by_class: dict[int, list[float]] = {}
        for t, label in zip(vectors[0], trusted.predicted.tolist(), strict=True):
            by_class.setdefault(label, []).append(q @ t / np.sqrt((q @ q) * (t @ t)))
        expected.append(-max(np.mean(cosines) for cosines in by_class.values()))
    pair = Material(trusted, queries, np.zeros((40, 1)), np.zeros((6, 1)))
    np.testing.assert_allclose(baseline("class-max cosine")(pair), expected, atol=1e-5)


def test_each_part_looks_at_its_own_evidence_alone():
    reference, fit, queries = (synthetic(80, seed, prefix=str(seed))[0] for seed in (1, 2, 3))
    pair = Material(
        Rows.concatenate([reference, fit]), queries, np.zeros((160, 1)), np.zeros((80, 1)), reference, fit
    )  # fmt: skip
    other = synthetic(80, 4, prefix="3")[0]
    other = replace(other, ids=queries.ids, predicted=queries.predicted)
    fields = {
        "functional": {"functional": other.functional, "functional_norms": other.functional_norms},
        "latent": {"latent": other.latent},
        "confidence": {"confidence": other.confidence, "observable": other.observable},
    }
    for part in fields:
        for changed, values in fields.items():
            moved = replace(pair, queries=replace(queries, **values))
            same = np.allclose(baseline(f"{part} part")(pair), baseline(f"{part} part")(moved))
            assert same == (changed != part), (part, changed)


# Draws of the weights ------------------------------------------------------------------------------------------------


class Line(nn.Module):
    """Two logits, b and w x: draws of w move bright images more than dark ones."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.say = nn.Flatten(), nn.Linear(1, 2)
        with torch.no_grad():
            self.say.weight.copy_(torch.tensor([[0.0], [1.0]]))
            self.say.bias.copy_(torch.tensor([0.5, 0.0]))
        self.eval()

    def forward(self, x):
        return self.say(self.flatten(x))


def lines(n: int, queries: list[float]) -> Material:
    trusted = torch.cat([torch.linspace(0, 0.3, n // 2), torch.linspace(0.7, 1, n // 2)]).view(-1, 1, 1, 1)
    query_rows = torch.tensor(queries).view(-1, 1, 1, 1)
    labels = (trusted.flatten() > 0.5).numpy().astype(np.int64)
    probe = Probe(Line(), trusted, query_rows, labels, sampling=trusted, sampling_labels=labels)
    rows = [plain(np.array([float(v) > 0.5 for v in x.flatten()])) for x in (trusted, query_rows)]
    rows = [replace(some, ids=[f"{letter}{i}" for i in some.ids]) for some, letter in zip(rows, "tq", strict=True)]
    return Material(*rows, np.zeros((n, 1)), np.zeros((len(queries), 1)), probe=probe)


def test_spread_of_the_own_trace_grows_with_what_the_draws_move_and_its_mean_with_the_margin():
    found = lines(40, [0.9, 0.0, 3.0, 6.0])
    mean, spread = (baseline(f"own trace, {what}")(found) for what in ("mean", "spread"))
    assert spread[1] < spread[0] < spread[2] < spread[3]
    assert (spread > 0).all()
    # The margin is |x - 1/2| at the weights as they are.
    assert mean[0] == pytest.approx(0.4, abs=0.2)
    assert mean[1] == pytest.approx(0.5, abs=0.2)


def test_class_ccc_by_loops_on_what_comes_after_the_burn_in():
    found = lines(20, [0.2, 0.9, 4.0])
    plan = replace(PLAN, steps=24, burn_in=8, thinning=2)
    kept, every = (traces_of(found, one).values["nll"] for one in (plan, replace(plan, burn_in=0)))
    assert (kept.shape, every.shape) == ((1, 8, 23), (1, 12, 23))
    np.testing.assert_array_equal(kept, every[:, 4:])
    traces = kept[0].astype(float)
    expected = []
    for i in range(20, 23):
        a, by_class = traces[:, i], {0: [], 1: []}
        for j in range(20):
            b = traces[:, j]
            together = np.mean((a - a.mean()) * (b - b.mean()))
            by_class[int(found.trusted.predicted[j])].append(
                2 * together / (a.var() + b.var() + (a.mean() - b.mean()) ** 2)
            )
        expected.append(-max(np.mean(some) for some in by_class.values()))
    np.testing.assert_allclose(published(found, "ccc", plan), expected, atol=1e-4)
