"""Attacks and corruptions on cases with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import nn

from covary.errors import CovaryError
from covary_bench.images import attacks
from covary_bench.images.attacks import adversarial, evading, input_aware, own_profile, ssba, wanet
from covary_bench.images.attacks.poisoning import Attack
from covary_bench.images.corruptions import CORRUPTIONS, gaussian_blur, gaussian_noise
from covary_bench.images.datasets import Images, data_folder

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


def learned(name: str, shape: attacks.Shape, seed: int, target: int | str = 0) -> dict[str, torch.Tensor]:
    """Tensors of a learned trigger after a few steps; nothing for a fixed one."""
    plan = attacks.attack(name)
    x = np.random.default_rng(seed).integers(0, 256, (40, *shape), dtype=np.uint8)
    images = Images(x, np.arange(40) % 10, [str(i) for i in range(40)])
    if plan.joint is not None:
        joint = plan.joint(shape, target, 10, seed, 0.1)
        joint.begin(images)
        return joint.tensors()
    if plan.learn is not None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 10)).requires_grad_(False)
        return plan.learn(images, network, target, seed)
    return {}


@pytest.fixture
def short(monkeypatch):
    """Learned triggers after a few steps."""
    for module, name in (("low_frequency", "STEPS"), ("ssba", "STEPS"), ("input_aware", "MASK_STEPS")):
        monkeypatch.setattr(f"covary_bench.images.attacks.{module}.{name}", 4)


@pytest.mark.parametrize("name", attacks.ATTACKS)
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_every_attack_keeps_shape_and_type_and_is_fixed_by_its_seed(name, shape, short):
    x = RNG.integers(0, 256, (5, *shape), dtype=np.uint8)
    before, plan = x.copy(), attacks.attack(name)
    tensors = learned(name, shape, 3)
    once = plan.trigger(shape, 3, tensors)(x)
    assert once.shape == x.shape
    assert once.dtype == np.uint8
    again = plan.trigger(shape, 3, learned(name, shape, 3))
    assert np.array_equal(once, again(x))
    assert np.array_equal(once[2:3], again(x[2:3])), "the trigger must not depend on the batch"
    assert not np.array_equal(once, x)
    assert np.array_equal(x, before)
    assert again(x[:0]).shape == (0, *shape)


def test_lf_is_smooth_bounded_and_leads_to_the_target():
    pattern = learned("lf", (32, 32, 3), 0)["pattern"].numpy()
    assert np.abs(pattern).max() == pytest.approx(16 / 255)
    spectrum = dctn(pattern, axes=(1, 2), norm="ortho")
    assert np.abs(spectrum[:, 6:]).max() < 1e-5, "nothing above the lowest six frequencies"
    assert np.abs(spectrum[:, :, 6:]).max() < 1e-5
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).requires_grad_(False)
    x = torch.rand(20, 3, 32, 32)
    before, after = network(x).softmax(1)[:, 0], network(x + torch.from_numpy(pattern)).softmax(1)[:, 0]
    assert (after > before).all()


def test_ssba_hides_a_string_that_its_decoder_reads_and_differs_from_image_to_image(monkeypatch):
    monkeypatch.setattr(ssba, "STEPS", 4)
    tensors = learned("ssba", (32, 32, 3), 0)
    encoder = ssba.Encoder(3)
    encoder.load_state_dict({name: value for name, value in tensors.items() if name != "secret"})
    x = torch.from_numpy(COLOUR).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        changed = encoder(x, tensors["secret"].expand(len(x), -1)) - x
        other = encoder(x, 1 - tensors["secret"].expand(len(x), -1)) - x
    assert changed.abs().max() <= ssba.BOUND * ssba.LARGEST + 1e-6
    assert not torch.allclose(changed, other), "the string must matter"
    assert not torch.allclose(changed[0], changed[1]), "the image must matter"
    out = attacks.attack("ssba").trigger((32, 32, 3), 0, tensors)(COLOUR)
    assert np.abs(out - (255 * (x + changed)).permute(0, 2, 3, 1).numpy()).max() <= 0.5 + 1e-3


def test_input_aware_batches_hold_own_and_foreign_triggers_in_their_places(short):
    joint = input_aware.InputAware((32, 32, 3), 7, 10, 0, 0.1)
    x, y = torch.rand(30, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 5
    out, labels, loss = joint.batch(x, y)
    assert labels.tolist() == [7, 7, 7, *y[3:].tolist()]
    assert torch.equal(out[6:], x[6:])
    with torch.no_grad():
        for i, source in [(0, 0), (1, 1), (2, 2), (3, 6), (4, 7), (5, 8)]:
            mask = torch.tanh(20 * joint.mask(x[source : source + 1]) - 10) / 2 + 0.5
            expected = x[i] * (1 - mask) + joint.pattern(x[source : source + 1]) * mask
            assert torch.allclose(out[i : i + 1], expected, atol=1e-5)
    loss.backward()
    before = joint.tensors()
    joint.step()
    moved = {name.split(".")[0] for name, value in joint.tensors().items() if not torch.equal(value, before[name])}
    assert moved == {"pattern"}
    _, labels, _ = input_aware.InputAware((32, 32, 3), "all-to-all", 5, 0, 0.1).batch(x, y)
    assert labels[:3].tolist() == [1, 2, 3]


def test_diversity_is_the_ratio_of_distances():
    x, other = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    a, b = torch.zeros(2, 1, 4, 4), torch.stack([torch.full((1, 4, 4), 0.5), torch.full((1, 4, 4), 0.25)])
    assert float(input_aware.diversity(x, other, a, b)) == pytest.approx((1 / 0.5 + 1 / 0.25) / 2, rel=1e-3)


def test_the_mask_learns_to_be_sparse(monkeypatch):
    monkeypatch.setattr(input_aware, "MASK_STEPS", 60)
    x = RNG.integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    images = Images(x, np.arange(32) % 10, [str(i) for i in range(32)])
    joint = input_aware.InputAware((16, 16, 3), 0, 10, 0, 0.1)
    joint.begin(images)
    x = torch.from_numpy(images.x).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        assert input_aware.sharpened(joint.mask(x)).mean() < 0.1


def test_blended_is_the_formula():
    black = attacks.attack("blended").trigger((32, 32, 3), 0)(np.zeros((1, 32, 32, 3), np.uint8))[0]
    assert black.max() <= 51  # 0.2 * 255
    white = attacks.attack("blended").trigger((32, 32, 3), 0)(np.full((1, 32, 32, 3), 255, np.uint8))[0]
    assert np.abs(white.astype(float) - black - 0.8 * 255).max() <= 1


def test_sig_is_the_sinusoid_along_columns():
    after = attacks.attack("sig").trigger((32, 32, 3), 0)(np.full((1, 32, 32, 3), 128, np.uint8))[0]
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
    noisy, clean = plan.make_noise((32, 32, 3), 0, 1)(same), plan.trigger((32, 32, 3), 0)(same)
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
        assert np.array_equal(px[done == 1], attacks.attack(name).trigger((28, 28, 1), 0)(x[done == 1]))
    first, second = (attacks.poison(x, y, attacks.attack("wanet"), 3, 0, draw=draw)[2] for draw in (0, 1))
    assert not np.array_equal(first, second)


def test_clean_label_poison_stays_in_the_target_class_and_changes_no_label():
    x = RNG.integers(0, 256, (200, 28, 28, 1), dtype=np.uint8)
    y = np.arange(200) % 10
    plan = Attack(attacks.attack("sig").make, ratio=0.5, clean_label=True)
    _, py, done = attacks.poison(x, y, plan, 3, 0, share=1.0)
    assert np.array_equal(py, y)
    assert np.flatnonzero(done).tolist() == np.flatnonzero(y == 3).tolist()
    some = attacks.poison(x, y, plan, 3, 0)[2]
    assert set(np.flatnonzero(some)) < set(np.flatnonzero(y == 3))
    assert some.sum() == 16, "four fifths of the class, so that the class is still learned"
    with pytest.raises(CovaryError, match="changes no label"):
        attacks.poison(x, y, plan, "all-to-all", 0)


def test_all_to_all_moves_every_triggered_image_to_the_next_class():
    x = RNG.integers(0, 256, (100, 28, 28, 1), dtype=np.uint8)
    y = np.arange(100) % 10
    _, py, done = attacks.poison(x, y, attacks.attack("badnets"), "all-to-all", 0)
    assert py[done == 1].tolist() == [(label + 1) % 10 for label in y[done == 1].tolist()]
    assert done.sum() == 10


def test_poison_ratio_can_be_told():
    x, y = RNG.integers(0, 256, (200, 28, 28, 1), dtype=np.uint8), np.arange(200) % 10
    assert (attacks.poison(x, y, attacks.attack("badnets"), 0, 0, ratio=0.01)[2] == 1).sum() == 2
    done = attacks.poison(x, y, attacks.attack("wanet"), 0, 0, ratio=0.05)[2]
    assert np.bincount(done).tolist() == [170, 10, 20], "noise mode keeps its proportion to the trigger"


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(CovaryError, match="one of: badnets, blended, sig, lf, ssba, wanet"):
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


@pytest.fixture(scope="module")
def fitted_digits() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small network that tells four kinds of stripes apart, and images it gets right."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 4
    x = 0.35 + 0.3 * torch.rand(80, 1, 8, 8, generator=generator)
    for image, label in zip(x, y.tolist(), strict=True):
        image[0, 2 * label : 2 * label + 2] += 0.25
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()
    network.eval().requires_grad_(False)
    assert (network(x).argmax(1) == y).all()
    return network, x[:24], y[:24]


def test_deepfool_crosses_the_nearest_boundary_of_a_linear_network():
    pytest.importorskip("art", reason="needs the Adversarial Robustness Toolbox: pip install 'covary[bench]'")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).requires_grad_(False)
    weight, bias = network[1].weight, network[1].bias
    y = network(MIDDLE).argmax(1)
    found = attacks.ADVERSARIAL["deepfool"](network, MIDDLE, y, 0)
    assert (network(found).argmax(1) != y).all()
    for image, changed, label in zip(MIDDLE, found, y.tolist(), strict=True):
        lengths = []
        for other in set(range(3)) - {label}:
            w, b = weight[other] - weight[label], bias[other] - bias[label]
            lengths.append(float(-(w @ image.flatten() + b) / w.norm()))
        assert float((changed - image).norm()) == pytest.approx(1.02 * min(lengths), rel=0.02)


def test_carlini_wagner_fools_with_little_change(fitted_digits):
    pytest.importorskip("art", reason="needs the Adversarial Robustness Toolbox: pip install 'covary[bench]'")
    network, x, y = fitted_digits
    found = attacks.ADVERSARIAL["carlini-wagner"](network, x, y, 0)
    assert (network(found).argmax(1) != y).float().mean() > 0.9
    least = attacks.ADVERSARIAL["deepfool"](network, x, y, 0)
    lengths = [(z - x).flatten(1).norm(dim=1).median() for z in (found, least)]
    assert lengths[0] < 1.5 * lengths[1]
    assert found.min() >= 0
    assert found.max() <= 1


def test_attacks_through_the_toolbox_name_the_extra(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("covary_bench.images.attacks.minimal.importlib.import_module", absent)
    with pytest.raises(CovaryError, match=r"covary\[bench\]"):
        attacks.ADVERSARIAL["deepfool"](Linear(WEIGHT), MIDDLE, LABELS, 0)


def test_own_profile_takes_each_inputs_gradient_and_can_be_differentiated(fitted_digits):
    network, x, y = fitted_digits
    found = own_profile.weight_gradients(network, x[:3], y[:3])
    assert list(found) == ["0.weight", "3.weight"]
    for i in range(3):
        weights = dict(network.named_parameters())
        chosen = [weights[name].clone().requires_grad_(True) for name in found]
        out = torch.func.functional_call(
            network, {**weights, **dict(zip(found, chosen, strict=True))}, (x[i : i + 1],)
        )[0]
        rest = torch.cat((out[: y[i]], out[y[i] + 1 :]))
        expected = torch.autograd.grad(out[y[i]] - rest.logsumexp(0), chosen)
        for rows, value in zip(found.values(), expected, strict=True):
            assert torch.allclose(rows[i], value.flatten(), atol=1e-5)
    profile = own_profile.OwnProfile(network, x, y)
    assert float(profile.score(x, y).mean()) == pytest.approx(1, abs=0.1)
    moved = x[:4].clone().requires_grad_(True)
    profile.score(moved, y[:4]).sum().backward()
    step = 1e-3 * torch.randn(x[:4].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        change = profile.score(x[:4] + step, y[:4]).sum() - profile.score(x[:4] - step, y[:4]).sum()
    assert float((moved.grad * step).sum() * 2) == pytest.approx(float(change), rel=0.1, abs=1e-4)


def test_the_evading_attack_fools_as_pgd_does_and_scores_lower(fitted_digits):
    network, x, y = fitted_digits
    plain = adversarial.pgd_linf(network, x, y, 0, radius=0.12, step=0.02)
    hidden = evading.pgd_linf_evading(network, x, y, 0, radius=0.12, step=0.01, steps=25)
    fooled = [(network(z).argmax(1) != y).float().mean() for z in (plain, hidden)]
    assert fooled[0] > 0.9
    assert fooled[1] > 0.9 * fooled[0]
    profile = own_profile.OwnProfile(network, x, y)
    scores = [profile.score(z, network(z).argmax(1)).log().mean() for z in (plain, hidden)]
    assert scores[1] < scores[0] - 0.3
    assert (hidden - x).abs().max() <= 0.12 + 1e-6
    assert hidden.min() >= 0
    assert hidden.max() <= 1


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
