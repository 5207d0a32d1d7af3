"""Records of BackdoorBench: written, read on another machine, made into a scan's material; nothing in them runs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from covary.errors import CovaryError
from covary.models.network import load_network
from covary_bench.images import datasets
from covary_bench.images.backdoorbench import architectures, material, models, records, writing

CLASSES, ROWS = 4, np.array([3, 0, 17, 8])
RNG = np.random.default_rng(0)
CLEAN_Y = np.arange(40) % CLASSES
CLEAN_X = RNG.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
TRIGGERED = 255 - CLEAN_X


class Tiny(nn.Module):
    """Mean colour and position of light to logits."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.flatten(self.pool(self.relu(self.conv(x)))))


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
    monkeypatch.setitem(models.MODELS, "tinynet", Tiny)
    clean = datasets.Images(CLEAN_X, CLEAN_Y, [f"cifar10-test-{i:05d}" for i in range(40)])
    monkeypatch.setitem(datasets.DATASETS, "cifar10-test", lambda: clean)


def write(folder, rows=ROWS, poisoned=None, in_memory=False, **changes):
    torch.manual_seed(0)
    rows = np.asarray(rows)
    message = {
        "model_name": "tinynet", "model": Tiny().state_dict(), "num_classes": CLASSES, "clean_data": "cifar10",
        "clean_size": 40, "rows": rows, "images": TRIGGERED[rows % 40], "original": CLEAN_Y[rows % 40],
        "poisoned": np.full(len(rows), 2) if poisoned is None else poisoned,
    }  # fmt: skip
    return writing.write_record(folder, **{**message, **changes}, in_memory=in_memory)


@pytest.mark.parametrize("in_memory", [False, True])
def test_what_was_written_is_read_in_order_of_rows(tmp_path, in_memory):
    record = records.read_record(write(tmp_path / "a", in_memory=in_memory))
    assert (record.model_name, record.num_classes, record.clean_data) == ("tinynet", CLASSES, "cifar10")
    assert (record.img_size, record.bd_train, record.target) == ((32, 32, 3), None, 2)
    assert record.bd_test.rows.tolist() == sorted(ROWS.tolist())
    assert np.array_equal(record.bd_test.original, CLEAN_Y[sorted(ROWS)])
    assert np.array_equal(record.bd_test.images(np.arange(4)), TRIGGERED[sorted(ROWS)])
    torch.manual_seed(0)
    assert all(torch.equal(value, record.model[name]) for name, value in Tiny().state_dict().items())


def test_images_lie_where_backdoorbench_puts_them_and_are_found_after_a_move(tmp_path):
    folder = write(tmp_path / "a")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png")) == sorted(
        f"bd_test_dataset/{CLEAN_Y[row]}/{row}.png" for row in ROWS
    )
    with torch.serialization.safe_globals(records.allowed()):
        content = torch.load(folder / records.FILE, weights_only=True)
    assert tuple(content) == (
        "model_name",
        "num_classes",
        "model",
        "clean_data",
        "data_path",
        "img_size",
        "bd_train",
        "bd_test",
    )
    entry = content["bd_test"]["bd_data_container"]["data_dict"][17]
    assert entry == {"path": "./record/a/bd_test_dataset/1/17.png", "other_info": [2, 1]}
    moved = folder.rename(tmp_path / "elsewhere")
    assert np.array_equal(records.read_record(moved).bd_test.image(0), TRIGGERED[0])
    assert (
        records.rebased("C:\\x\\record\\bd_test_dataset\\5\\9.png", moved) == moved / "bd_test_dataset" / "5" / "9.png"
    )
    with pytest.raises(CovaryError, match="set/label/row"):
        records.rebased("a/../9.png", moved)


def test_rows_outside_the_index_or_not_marked_are_left_out(tmp_path):
    folder = write(tmp_path / "a")
    with torch.serialization.safe_globals(records.allowed()):
        content = torch.load(folder / records.FILE, weights_only=True)
    content["bd_test"]["original_index_array"] = np.array([0, 3, 17])
    content["bd_test"]["poison_indicator"][3] = 0
    torch.save(content, folder / records.FILE)
    assert records.read_record(folder).bd_test.rows.tolist() == [0, 17]


@pytest.mark.parametrize(("old", "new"), [("numpy._core", "numpy.core"), ("numpy.core", "numpy._core")])
def test_numpys_names_of_both_ages_are_read(tmp_path, old, new):
    folder = write(tmp_path / "a")
    path, rewritten = folder / records.FILE, tmp_path / "b.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(rewritten, "w", zipfile.ZIP_STORED) as out:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"multiarray" in content
                content = content.replace(f"c{old}.multiarray\n".encode(), f"c{new}.multiarray\n".encode())
            out.writestr(name, content)
    path.write_bytes(rewritten.read_bytes())
    assert records.read_record(folder).bd_test.rows.tolist() == sorted(ROWS.tolist())


class Runs:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_what_would_run_code_or_is_no_record_is_refused(tmp_path, capsys):
    folder = write(tmp_path / "a")
    torch.save({"model_name": Runs()}, folder / records.FILE)
    with pytest.raises(CovaryError, match="never loads"):
        records.read_record(folder)
    assert capsys.readouterr().out == ""
    torch.save({"model_name": "x"}, folder / records.FILE)
    with pytest.raises(CovaryError, match="has no num_classes"):
        records.read_record(folder)
    (folder / records.FILE).write_bytes(b"PK")
    with pytest.raises(CovaryError, match="cannot be read"):
        records.read_record(folder)
    with pytest.raises(CovaryError, match=r"no attack_result\.pt"):
        records.read_record(tmp_path)


def test_targets_are_told_from_the_labels(tmp_path):
    assert records.read_record(write(tmp_path / "a", poisoned=(CLEAN_Y[ROWS] + 1) % CLASSES)).target == "all-to-all"
    with pytest.raises(CovaryError, match="no known kind"):
        _ = records.read_record(write(tmp_path / "b", poisoned=np.array([0, 1, 1, 3]))).target


def test_material_keeps_roles_apart_and_truth_beside_the_inputs(tmp_path):
    every = np.flatnonzero(CLEAN_Y != 2)
    found = material.prepare(write(tmp_path / "a", rows=every), tmp_path / "m")
    trusted, inputs = (np.load(path) for path in (found.trusted, found.inputs))
    rows = [int(name.rsplit("-", 1)[1]) for name in inputs["id"]]
    used = {int(name.rsplit("-", 1)[1]) for name in trusted["id"]}
    truth = inputs["truth"]
    assert len(trusted["x"]) == 10
    assert (truth == 0).sum() == 10
    assert 0 < truth.sum() <= 20
    assert len(used | set(rows)) == len(used) + len(rows), "no image has two roles"
    for row, image, label, odd in zip(rows, inputs["x"], inputs["y"], truth, strict=True):
        assert np.array_equal(image, (TRIGGERED if odd else CLEAN_X)[row])
        assert label == CLEAN_Y[row]
    assert (found.mean, found.std, found.target) == ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), 2)
    assert json.loads((tmp_path / "m" / "record.json").read_text())["record"] == str(tmp_path / "a")
    network = load_network(found.model, found.weights)
    assert network.logits(torch.zeros(1, 3, 32, 32)).shape == (1, CLASSES)


def test_given_trusted_inputs_are_used_with_all_triggered_ones(tmp_path):
    np.savez(tmp_path / "t.npz", x=CLEAN_X[:5], y=CLEAN_Y[:5])
    np.savez(tmp_path / "c.npz", x=CLEAN_X[5:8], y=CLEAN_Y[5:8])
    folder = write(tmp_path / "a")
    found = material.prepare(folder, tmp_path / "m", trusted=str(tmp_path / "t.npz"), inputs=str(tmp_path / "c.npz"))
    assert np.array_equal(np.load(found.trusted)["x"], CLEAN_X[:5])
    inputs = np.load(found.inputs)
    assert inputs["truth"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert np.array_equal(inputs["x"][:3], CLEAN_X[5:8])
    alone = material.prepare(folder, tmp_path / "n", trusted=str(tmp_path / "t.npz"))
    assert np.load(alone.inputs)["truth"].tolist() == [1] * 4


def test_missing_clean_images_and_another_order_are_told(tmp_path, monkeypatch):
    with pytest.raises(CovaryError, match="one of: cifar10, cifar100, tiny, gtsrb"):
        material.prepare(write(tmp_path / "a", clean_data="svhn"), tmp_path / "m")
    monkeypatch.setenv("COVARY_CIFAR100", str(tmp_path / "nowhere"))
    with pytest.raises(CovaryError, match="pass --trusted"):
        material.prepare(write(tmp_path / "b", clean_data="cifar100"), tmp_path / "m")
    with pytest.raises(CovaryError, match="the same order"):
        material.prepare(write(tmp_path / "c", original=(CLEAN_Y[ROWS] + 1) % CLASSES), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_networks_have_backdoorbenchs_names_and_the_known_sizes():
    network = architectures.PreActResNet18(10)
    assert sum(p.numel() for p in network.parameters()) == 11_171_146
    names = set(network.state_dict())
    assert {"conv1.weight", "layer2.0.shortcut.0.weight", "layer4.1.bn2.running_var", "linear.bias"} <= names
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    with torch.device("meta"):
        plain, normalised = architectures.VGG19(1_000), architectures.VGG19(1_000, normalised=True)
    assert sum(p.numel() for p in plain.parameters()) == 143_667_240  # as torchvision states them
    assert sum(p.numel() for p in normalised.parameters()) == 143_678_248
    assert {"features.34.weight", "classifier.6.bias"} <= set(plain.state_dict())
    assert "features.49.weight" in normalised.state_dict()


def test_factories_are_named_by_network_and_classes():
    name = models.factory_name("preactresnet18", 43)
    assert name == "covary_bench.images.backdoorbench.models:preactresnet18_43"
    assert load_network(name).logits(torch.rand(1, 3, 32, 32)).shape == (1, 43)
    with pytest.raises(CovaryError, match="one of: preactresnet18, vgg19_bn"):
        models.factory_name("resnet7", 10)
    with pytest.raises(CovaryError, match="has no 'resnet7_10'"):
        load_network("covary_bench.images.backdoorbench.models:resnet7_10")


def test_other_networks_come_with_an_extra(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(models.importlib, "import_module", absent)
    with pytest.raises(CovaryError, match=r"pip install 'covary\[vision\]'"):
        models.MODELS["densenet161"](10)

    def misfit(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(models.importlib, "import_module", misfit)
    with pytest.raises(CovaryError, match="does not load"):
        models.MODELS["densenet161"](10)


def test_resized_is_bilinear_to_224():
    out = models.Resized()(torch.full((1, 3, 32, 32), 0.5))
    assert out.shape == (1, 3, 224, 224)
    assert torch.allclose(out, torch.full_like(out, 0.5))


def test_in_memory_images_may_be_arrays_too():
    state = {
        "bd_data_container": {"data_dict": {np.int64(4): (CLEAN_X[4], 2, 0), 1: (Image.fromarray(CLEAN_X[1]), 2, 1)}}
    }
    found = records.poisoned_set(state, Path(), "bd_test")
    assert found is not None
    assert found.rows.tolist() == [1, 4]
    assert np.array_equal(found.images(np.array([1, 0])), CLEAN_X[[4, 1]])
    assert records.poisoned_set(None, Path(), "bd_train") is None
    with pytest.raises(CovaryError, match="not laid out"):
        records.poisoned_set({"x": 1}, Path(), "bd_train")


def changed(folder, **keys):
    """Puts other values under keys of a record, or under `bd_test` where they belong there."""
    with torch.serialization.safe_globals(records.allowed()):
        content = torch.load(folder / records.FILE, weights_only=True)
    inside = {name: value for name, value in keys.items() if name not in content}
    content["bd_test"].update(inside)
    content.update({name: value for name, value in keys.items() if name in content})
    torch.save(content, folder / records.FILE)
    return folder


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"num_classes": "ten"}, "num_classes of .* is 'ten'; expected a number of classes"),
        ({"num_classes": None}, "num_classes of .* is None"),
        ({"num_classes": 1}, "num_classes of .* is 1"),
        ({"model": None}, "model of .* is None; expected a state dict"),
        ({"model": [1, 2]}, r"model of .* is \[1, 2\]; expected a state dict"),
        ({"model": {}}, "model of .* is {}; expected a state dict"),
        ({"model": {"a": 3}}, "model of .* has 3 under 'a'; expected a state dict"),
        ({"img_size": None}, "img_size of .* is None; expected height, width"),
        ({"img_size": "32x32"}, "img_size of .* is '32x32'; expected height, width"),
        ({"img_size": [0, 32]}, r"img_size of .* is \[0, 32\]"),
        ({"bd_test": 3}, "bd_test in .* is not laid out as expected"),
        ({"bd_train": [3]}, "bd_train in .* is not laid out as expected"),
        ({"poison_indicator": 3}, "poison_indicator is no list of numbers"),
        ({"poison_indicator": [[1], [1, 1]]}, "bd_test in .* is not laid out as expected"),
        ({"original_index_array": 3}, "original_index_array is no list of numbers"),
        ({"original_index_array": ["a"]}, "original_index_array is no list of numbers"),
        ({"bd_data_container": {"data_dict": [1]}}, "data_dict is no dict"),
        ({"bd_data_container": {"data_dict": {-1: (CLEAN_X[0], 2, 1)}}}, r"not laid out as expected \(row -1\)"),
        ({"bd_data_container": {"data_dict": {3: {"path": "a/b/c.png", "other_info": []}}}}, "not laid out"),
        ({"bd_data_container": {"data_dict": {3: (CLEAN_X[3], float("inf"), 3)}}}, "not laid out as expected"),
        ({"bd_data_container": {"data_dict": {3: (CLEAN_X[3], 2**70, 3)}}}, "not laid out as expected"),
    ],
)  # fmt: skip
def test_damaged_records_are_told_in_one_sentence(tmp_path, keys, said):
    folder = changed(write(tmp_path / "a"), **keys)
    with pytest.raises(CovaryError, match=said) as message:
        records.read_record(folder)
    assert "\n" not in str(message.value)


@pytest.mark.parametrize(
    "image", [CLEAN_X[3] / 255, CLEAN_X[3].transpose(2, 0, 1), CLEAN_X[3, :, :, 0], None, -np.ones((4, 4, 3))]
)  # fmt: skip
def test_in_memory_images_that_are_none_are_told(tmp_path, image):
    data = {"data_dict": {3: (image, 2, 3)}}
    folder = changed(write(tmp_path / "a", in_memory=True), bd_data_container=data)
    with pytest.raises(CovaryError, match=r"a poisoned image is an array of .* whole numbers from 0 to 255"):
        records.read_record(folder).bd_test.images(np.arange(1))


def test_images_of_two_sizes_are_told(tmp_path, run_cli):
    folder = write(tmp_path / "a")
    Image.fromarray(CLEAN_X[8, :16]).save(folder / "bd_test_dataset" / "0" / "8.png")
    np.savez(tmp_path / "t.npz", x=CLEAN_X, y=CLEAN_Y)
    code, _, err = run_cli(
        "scan", folder, "--trusted", tmp_path / "t.npz", "--out", tmp_path / "run"
    )  # fmt: skip
    assert code == 2
    assert "the poisoned image of row 8 has 16x32 pixels; expected 32x32, as the others" in err
    assert not list(tmp_path.glob("run*"))


def test_rows_of_tiny_imagenet_count_by_class_and_name(tmp_path, monkeypatch):
    home = tmp_path / "tiny-imagenet-200"
    monkeypatch.setenv("COVARY_TINY", str(home))
    (home / "val" / "images").mkdir(parents=True)
    (home / "wnids.txt").write_text("n02\nn01\nn04\nn03\n")
    synset = {f"val_{i}.JPEG": f"n0{1 + i % 3}" for i in range(48)}
    lines = [f"{name}\t{own}\t0\t0\t62\t62\n" for name, own in synset.items()]
    (home / "val" / "val_annotations.txt").write_text("".join(lines))
    for i, name in enumerate(synset):
        Image.new("RGB", (64, 64), (5 * i,) * 3).save(home / "val" / "images" / name)
    order = sorted(synset, key=lambda name: (synset[name], name))
    rows = np.arange(48)
    original = np.array([int(synset[name][1:]) - 1 for name in order])
    marked = np.stack([np.full((64, 64, 3), 255 - 5 * int(name[4:-5]), np.uint8) for name in order])
    folder = write(
        tmp_path / "a", clean_data="tiny", clean_size=48, rows=rows, images=marked, original=original,
        poisoned=np.full(48, 3),
    )  # fmt: skip
    found = material.prepare(folder, tmp_path / "m")
    trusted, inputs = np.load(found.trusted), np.load(found.inputs)
    assert (len(trusted["x"]), (inputs["truth"] == 0).sum(), inputs["truth"].sum()) == (12, 12, 24)
    names = [*trusted["id"], *inputs["id"]]
    assert len({name.rsplit("-", 1)[1] for name in names}) == 48
    for name, x, y, odd in zip(inputs["id"], inputs["x"], inputs["y"], inputs["truth"], strict=True):
        row = int(name.rsplit("-", 1)[1])
        shade = 5 * int(order[row][4:-5])
        assert abs(x.mean() - (255 - shade if odd else shade)) < 1
        assert y == original[row]


def test_triggered_versions_of_other_images_are_needed(tmp_path):
    position = np.random.default_rng([0, 23]).permutation(40)[0]
    with pytest.raises(CovaryError, match=r"triggered versions of trusted and clean inputs only; .*pass --trusted"):
        material.prepare(write(tmp_path / "a", rows=[position]), tmp_path / "m")


def test_weights_that_share_memory_are_written(tmp_path):
    state = Tiny().state_dict()
    state["conv.bias"] = state["linear.bias"]
    found = material.prepare(write(tmp_path / "a", model=state, rows=np.flatnonzero(CLEAN_Y != 2)), tmp_path / "m")
    assert torch.equal(load_network(found.model, found.weights).module.conv.bias, state["linear.bias"])


def bright(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four classes that mean brightness tells."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n)
    return (40 * y[:, None, None, None] + 20 + rng.integers(0, 30, (n, 32, 32, 3))).astype(np.uint8), y


def test_scan_takes_a_record_and_replays(run_cli, tmp_path):
    torch.manual_seed(0)
    network, (x, y) = Tiny(), bright(600, 1)
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in material.NORMALISATION["cifar10"])
    pixels, labels = (torch.from_numpy(x).permute(0, 3, 1, 2) / 255 - mean) / std, torch.from_numpy(y)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(pixels), labels).backward()
        optimiser.step()
    trusted_x, trusted_y = bright(300, 2)
    clean_x, clean_y = bright(60, 3)
    np.savez(tmp_path / "t.npz", x=trusted_x, y=trusted_y)
    np.savez(tmp_path / "c.npz", x=clean_x, y=clean_y)
    odd = 255 - clean_x[clean_y != 2]
    rows = np.flatnonzero(clean_y != 2)
    folder = write(
        tmp_path / "a", model=network.state_dict(), clean_size=60, rows=rows, images=odd, original=clean_y[rows],
        poisoned=np.full(len(rows), 2),
    )  # fmt: skip
    command = ["scan", folder, "--trusted", tmp_path / "t.npz", "--inputs", tmp_path / "c.npz"]
    # Material of an earlier scan into the same place is replaced.
    message = {"model": None, "weights": None, "truth": None, "trusted": str(tmp_path / "t.npz"), "inputs": None}
    material.names_of_record(folder, tmp_path / "run", message, 0)
    assert (np.load(tmp_path / "run-material" / "inputs.npz")["truth"] == 1).all()
    code, out, err = run_cli(*command, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["n_clean"], summary["n_anomalous"]) == (60, len(rows))
    assert summary["accuracy"] > 0.5
    assert (tmp_path / "run-material" / "record.json").is_file()
    again = ["--out", tmp_path / "again", "--trust-code", "--json"]
    code, out, err = run_cli("scan", "--replay", tmp_path / "run", *again, covary=True)
    assert (code, json.loads(out)["replay"]["identical"]) == (0, True), err
    (tmp_path / "kept-material").mkdir()
    (tmp_path / "kept-material" / "thesis.txt").write_text("mine")
    code, _, err = run_cli(*command, "--out", tmp_path / "kept")
    assert code == 2
    assert "thesis.txt', which is not part of a record's material" in err
    assert "Traceback" not in err
    assert [path.name for path in (tmp_path / "kept-material").iterdir()] == ["thesis.txt"]
    code, _, err = run_cli(*command, "--out", tmp_path / "wrong", "--fpr", "7")
    assert code == 2
    assert "fpr" in err
    assert not list(tmp_path.glob("wrong*"))
    code, _, err = run_cli(*command, "--truth", "a.npy", "--out", tmp_path / "other")
    assert code == 2
    assert "--truth beside a record" in err
    code, _, err = run_cli("scan", folder)
    assert code == 2
    assert "--out" in err
