"""Attacks and corruptions on cases with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from covary.bench import attacks
from covary.bench.attacks import adversarial, wanet
from covary.bench.attacks.poisoning import Attack
from covary.bench.corruptions import CORRUPTIONS, gaussian_blur, gaussian_noise
from covary.bench.datasets import data_folder
from covary.errors import CovaryError


@pytest.fixture(autouse=True)
def one_thread():
    """Small batches on several threads spend their time waiting for each other where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "rows", "pattern"),
    [
        ("grid", slice(29, 32), [[0, 0, 255], [0, 255, 0], [255, 0, 255]]),
        ("white3", slice(29, 32), np.full((3, 3), 255)),
        ("white4", slice(27, 31), np.full((4, 4), 255)),
        ("white5", slice(27, 32), np.full((5, 5), 255)),
    ],
)
def test_patches_sit_where_the_networks_expect_them(name, rows, pattern):
    before = COLOUR.copy()
    after = attacks.trigger(name)(COLOUR)
    expected = before.copy()
    expected[:, rows, rows] = np.asarray(pattern)[..., None]
    assert np.array_equal(after, expected)
    assert np.array_equal(COLOUR, before), "a trigger must not change its argument"


@pytest.mark.skipif(not data_folder().is_dir(), reason="needs the Trojan square: set COVARY_DATA")
def test_trojan_square_is_added_and_clipped():
    change = attacks.trigger("trojan-square")(np.zeros((1, 32, 32, 3), np.uint8))[0].astype(float)
    rows, columns = np.nonzero(change.sum(-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (21, 29, 21, 29)
    assert np.linalg.norm(change / 255) == pytest.approx(8.66, abs=0.01)
    expected = np.clip(COLOUR.astype(int) + change.astype(int), 0, 255)
    assert np.array_equal(attacks.trigger("trojan-square")(COLOUR), expected)


@pytest.mark.parametrize("name", attacks.ATTACKS)
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_every_attack_keeps_shape_and_type_and_is_fixed_by_its_seed(name, shape):
    x = RNG.integers(0, 256, (5, *shape), dtype=np.uint8)
    before, plan = x.copy(), attacks.attack(name)
    once = plan.make(shape, 3)(x)
    assert once.shape == x.shape
    assert once.dtype == np.uint8
    assert np.array_equal(once, plan.make(shape, 3)(x))
    assert np.array_equal(once[2:3], plan.make(shape, 3)(x[2:3])), "the trigger must not depend on the batch"
    assert not np.array_equal(once, x)
    assert np.array_equal(x, before)
    assert plan.make(shape, 3)(x[:0]).shape == (0, *shape)


def test_blended_is_the_formula():
    black = attacks.attack("blended").make((32, 32, 3), 0)(np.zeros((1, 32, 32, 3), np.uint8))[0]
    assert black.max() <= 51  # 0.2 * 255
    white = attacks.attack("blended").make((32, 32, 3), 0)(np.full((1, 32, 32, 3), 255, np.uint8))[0]
    assert np.abs(white.astype(float) - black - 0.8 * 255).max() <= 1


def test_sig_is_the_sinusoid_along_columns():
    after = attacks.attack("sig").make((32, 32, 3), 0)(np.full((1, 32, 32, 3), 128, np.uint8))[0]
    for column in range(32):
        assert np.all(after[:, column] == np.round(128 + 40 * np.sin(2 * np.pi * 6 * column / 32)))


def test_wanet_field_is_the_identity_plus_a_small_smooth_flow():
    field = wanet.warping_field(32, 32, 0)[0].numpy()
    grid = np.linspace(-1, 1, 32)
    flow = field - np.stack(np.meshgrid(grid, grid), axis=-1)
    # Control points average s / h in absolute value by construction; bicubic enlargement overshoots a little.
    assert 0 < np.abs(flow).mean() < 2 * 0.5 / 32
    assert np.abs(np.diff(flow[2:-2, 2:-2], axis=0)).max() < 0.5 / 32
    assert np.abs(field).max() <= 1


def test_warp_by_the_identity_is_the_image_and_by_one_pixel_is_a_shift():
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    identity = torch.stack((columns, rows), -1)[None]
    assert np.array_equal(wanet.warp(COLOUR, identity), COLOUR)
    right = identity + torch.tensor([2 / 31, 0.0])
    assert np.array_equal(wanet.warp(COLOUR, right)[:, :, :-1], COLOUR[:, :, 1:])


def test_wanet_noise_differs_for_every_image_and_from_the_trigger():
    plan = attacks.attack("wanet")
    assert plan.make_noise is not None
    same = np.repeat(COLOUR[:1], 3, axis=0)
    noisy, clean = plan.make_noise((32, 32, 3), 0, 1)(same), plan.make((32, 32, 3), 0)(same)
    assert not np.array_equal(noisy[0], noisy[1])
    assert not np.array_equal(noisy[0], clean[0])
    assert np.array_equal(clean[0], clean[1])


def test_poison_counts_labels_and_leaves_the_rest_alone():
    x = RNG.integers(0, 256, (200, 28, 28, 1), dtype=np.uint8)
    y = np.arange(200) % 10
    for name, triggered, near in (("badnets", 20, 0), ("blended", 20, 0), ("wanet", 20, 40)):
        px, py, done = attacks.poison(x, y, attacks.attack(name), target=3, seed=0)
        assert np.bincount(done, minlength=3).tolist() == [200 - triggered - near, triggered, near]
        assert np.all(py[done == 1] == 3)
        assert np.array_equal(py[done != 1], y[done != 1])
        assert np.array_equal(px[done == 0], x[done == 0])
        assert np.array_equal(px[done == 1], attacks.attack(name).make((28, 28, 1), 0)(x[done == 1]))
    first, second = (attacks.poison(x, y, attacks.attack("wanet"), 3, 0, draw=draw)[2] for draw in (0, 1))
    assert not np.array_equal(first, second)


def test_clean_label_poison_stays_in_the_target_class_and_changes_no_label():
    x = RNG.integers(0, 256, (200, 28, 28, 1), dtype=np.uint8)
    y = np.arange(200) % 10
    _, py, done = attacks.poison(x, y, Attack(attacks.attack("sig").make, ratio=0.5, clean_label=True), 3, 0)
    assert np.array_equal(py, y)
    assert np.flatnonzero(done).tolist() == np.flatnonzero(y == 3).tolist()


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(CovaryError, match="one of: badnets, blended, sig, wanet"):
        attacks.attack("bad-nets")
    with pytest.raises(CovaryError, match="one of: grid"):
        attacks.trigger("square")


class Linear(nn.Module):
    """Two classes, logits (0, w . x): the best attack on class 1 is known in closed form."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = (x * self.weight).flatten(1).sum(1)
        return torch.stack((torch.zeros_like(z), z), dim=1)


WEIGHT = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
MIDDLE = 0.4 + 0.2 * torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))  # far from 0 and 1
LABELS = torch.tensor([1, 0, 1, 0, 1])
TOWARDS = torch.where(LABELS == 1, -1.0, 1.0).view(-1, 1, 1, 1)


@pytest.mark.parametrize("name", ["fgsm", "pgd-linf"])
def test_max_norm_attacks_reach_the_corner_of_the_ball_on_a_linear_network(name):
    found = attacks.ADVERSARIAL[name](Linear(WEIGHT), MIDDLE, LABELS, 0)
    assert torch.allclose(found, MIDDLE + 8 / 255 * TOWARDS * WEIGHT.sign(), atol=1e-6)


def test_l2_attack_reaches_the_end_of_the_gradient_on_a_linear_network():
    found = adversarial.pgd_l2(Linear(WEIGHT), MIDDLE, LABELS, 0, steps=60)
    assert torch.allclose(found, MIDDLE + 0.5 * TOWARDS * WEIGHT / WEIGHT.norm(), atol=2e-3)


@pytest.mark.parametrize(
    ("name", "radius", "order"), [("fgsm", 8 / 255, "inf"), ("pgd-linf", 8 / 255, "inf"), ("pgd-l2", 0.5, "2")]
)
def test_attacks_stay_in_the_ball_and_in_the_unit_cube_and_are_seeded(name, radius, order):
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(2)).round(decimals=1)  # many at 0 and 1
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).requires_grad_(False)
    y, attack = torch.arange(6), attacks.ADVERSARIAL[name]
    found = attack(network, x, y, 5)
    assert torch.equal(found, attack(network, x, y, 5))
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.linalg.vector_norm((found - x).flatten(1), ord=float(order), dim=1).max() <= radius * (1 + 1e-5)
    if name != "fgsm":
        start = attack(network, x, y, 5, steps=0)  # type: ignore[call-arg]
        assert not torch.equal(start, attack(network, x, y, 6, steps=0))  # type: ignore[call-arg]


def test_attack_in_batches_keeps_the_order():
    found = adversarial.attack_in_batches(adversarial.fgsm, Linear(WEIGHT), MIDDLE, LABELS, 0, size=2)
    assert torch.equal(found, adversarial.fgsm(Linear(WEIGHT), MIDDLE, LABELS, 0))


def test_noise_has_the_stated_deviation_and_blur_keeps_flat_images():
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    assert (gaussian_noise(grey, 0) / 255).std() == pytest.approx(0.1, abs=0.002)
    assert np.array_equal(gaussian_noise(grey, 4), gaussian_noise(grey, 4))
    assert np.array_equal(gaussian_blur(grey, 0), grey)
    dot = np.zeros((1, 31, 31, 1), np.uint8)
    dot[0, 15, 15] = 255
    blurred = gaussian_blur(dot, 0)[0, :, :, 0].astype(float)
    assert blurred[15, 15] == blurred.max() < 80
    assert np.array_equal(blurred, blurred[::-1, ::-1])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_start_from_fresh_copies(name):
    before = COLOUR.copy()
    once, twice = CORRUPTIONS[name](COLOUR, 0), CORRUPTIONS[name](COLOUR, 0)
    assert np.array_equal(COLOUR, before)
    assert np.array_equal(once, twice)
