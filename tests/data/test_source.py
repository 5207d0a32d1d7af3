"""Inputs: what each reader gives, what Source does to it, and one clear sentence for every kind of bad input."""

import csv
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from covary.data.preprocessing import reverse_channels
from covary.data.readers import READERS
from covary.data.readers.mapped import Mapped
from covary.data.source import Source, open_data
from covary.errors import CovaryError


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (11, 6, 5, 3), dtype=np.uint8)


@pytest.fixture
def npz(tmp_path, images):
    path = tmp_path / "inputs.npz"
    names = [f"n{i}" for i in range(11)]
    np.savez(path, x=images, y=np.arange(11) % 3, id=names, truth=np.arange(11) % 2, other=np.ones(11))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A module in the working directory, as a user has it."""
    (tmp_path / "their_data.py").write_text(
        "import numpy as np, torch\n"
        "from torch.utils.data import TensorDataset\n"
        "x = torch.arange(24.).reshape(4, 6)\n"
        "dataset = TensorDataset(x, torch.tensor([1, 0, 1, 0]))\n"
        "def make(): return dataset\n"
        "def pair(): return np.zeros((4, 6)), np.arange(4)\n"
        "def fails(): raise KeyError('no such split')\n"
        "number = 3\n"
        "def double(x): return 2 * x\n"
        "def crop(x): return x[:, :2, :2]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    yield tmp_path
    sys.modules.pop("their_data", None)


def everything(source, batch_size=4):
    return torch.cat([batch.x for batch in source.batches(batch_size)])


# What comes out ------------------------------------------------------------------------------------------------------


def test_colour_images_are_scaled_and_put_channels_first(images):
    x = everything(open_data(images))
    assert x.dtype == torch.float32
    assert x.shape == (11, 3, 6, 5)
    assert x[2, 1, 3, 4].item() == pytest.approx(images[2, 3, 4, 1] / 255, abs=1e-7)


def test_grey_images_get_one_channel(images):
    x = everything(open_data(images[..., 0]))
    assert x.shape == (11, 1, 6, 5)
    assert torch.equal(x[:, 0], torch.from_numpy(images[..., 0]) / 255)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(np.float64, torch.float32), (np.float16, torch.float32), (np.int32, torch.int64), (np.uint16, torch.int64)],
)
def test_floats_and_token_ids_are_taken_as_they_are(arguments, expected):
    values = np.arange(12).reshape(3, 4).astype(arguments)
    x = everything(open_data(values))
    assert x.dtype == expected
    assert np.array_equal(x.numpy(), values)


def test_mean_and_std_are_applied_per_channel_after_scaling_and_transform(images):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    x = everything(open_data(images, mean=mean, std=std, transform=reverse_channels))
    slow = np.empty((11, 3, 6, 5))
    for c in range(3):
        slow[:, c] = (images[..., 2 - c] / 255 - mean[c]) / std[c]
    np.testing.assert_allclose(x.numpy(), slow, atol=1e-6)
    one = everything(open_data(images, mean=0.5, std=0.25))
    np.testing.assert_allclose(one.numpy(), (np.moveaxis(images, -1, 1) / 255 - 0.5) / 0.25, atol=1e-6)


@given(st.integers(1, 13), st.permutations(range(11)))
def test_batch_size_and_order_change_nothing(batch_size, order):
    values = np.random.default_rng(1).normal(size=(11, 4)).astype(np.float32)
    source = open_data((values, np.arange(11)))
    full = everything(source, 11)
    assert torch.equal(everything(source, batch_size), full)
    batches = list(source.take(order).batches(batch_size))
    assert torch.equal(torch.cat([b.x for b in batches]), full[list(order)])
    assert [name for b in batches for name in b.ids] == [str(i) for i in order]
    assert np.concatenate([b.y for b in batches if b.y is not None]).tolist() == list(order)


def test_take_composes_and_understands_masks(npz):
    source = open_data(npz).take(np.arange(11) % 2 == 0).take([3, 0])
    assert (source.ids, source.y.tolist(), source.truth.tolist()) == (["n6", "n0"], [0, 0], [0, 0])
    assert len(source) == 2


# Readers -------------------------------------------------------------------------------------------------------------


def test_every_reader_says_what_it_is_for():
    assert all(kind.help for kind in READERS.values())


def test_npz_mapped_and_compressed_are_the_same(tmp_path, images, npz):
    np.savez_compressed(tmp_path / "c.npz", **dict(np.load(npz)))
    mapped, loaded = open_data(npz), open_data(tmp_path / "c.npz")
    assert isinstance(mapped.reader.x, Mapped)
    assert isinstance(loaded.reader.x, np.ndarray)
    for source in (mapped, loaded):
        assert source.ids[3] == "n3"
        assert source.y.tolist() == (np.arange(11) % 3).tolist()
        assert source.truth.tolist() == (np.arange(11) % 2).tolist()
        np.testing.assert_array_equal((everything(source) * 255).round(), np.moveaxis(images, -1, 1))
    assert mapped.fingerprint() == loaded.fingerprint()


def test_npz_in_fortran_order_is_mapped_right(tmp_path):
    values = np.asfortranarray(np.random.default_rng(2).normal(size=(5, 3, 4)).astype(np.float32))
    np.savez(tmp_path / "f.npz", x=values)
    assert np.array_equal(everything(open_data(tmp_path / "f.npz")).numpy(), values)


def test_a_mapped_array_is_opened_anew_and_stays_the_same(tmp_path, monkeypatch):
    values = np.random.default_rng(2).normal(size=(50, 3, 4)).astype(np.float32)
    np.savez(tmp_path / "m.npz", x=values)
    source = open_data(tmp_path / "m.npz")
    opened, maps = source.reader.x._opened, []
    monkeypatch.setattr("covary.data.readers.mapped.RENEWED_AFTER", 3 * 2**16)
    monkeypatch.setattr(source.reader.x, "_opened", lambda: maps.append(1) or opened())
    assert np.array_equal(everything(source, 5).numpy(), values)
    assert len(maps) == 3
    order = np.random.default_rng(3).permutation(50)
    assert np.array_equal(everything(source.take(order), 5).numpy(), values[order])


def write_images(folder, names, size=(7, 9), mode="RGB", seed=0):
    rng = np.random.default_rng(seed)
    arrays = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
        arrays.append(rng.integers(0, 256, shape, dtype=np.uint8))
        Image.fromarray(arrays[-1]).save(path)
    return arrays


def test_flat_folder_gives_relative_paths_and_no_labels(tmp_path):
    arrays = write_images(tmp_path, ["b.png", "a.bmp"])
    (tmp_path / "notes.txt").write_text("not an image")
    source = open_data(tmp_path)
    assert source.ids == ["a.bmp", "b.png"]
    assert source.y is None
    assert source.class_names is None
    np.testing.assert_array_equal((everything(source)[1] * 255).round(), np.moveaxis(arrays[0], -1, 0))


def test_class_folders_give_labels_in_sorted_order(tmp_path):
    write_images(tmp_path, ["dog/1.png", "cat/2.png", "cat/deep/3.png", "ant/4.png"])
    (tmp_path / "bee").mkdir()
    source = open_data(str(tmp_path))
    assert source.class_names == ["ant", "bee", "cat", "dog"]
    assert source.ids == ["ant/4.png", "cat/2.png", "cat/deep/3.png", "dog/1.png"]
    assert source.y.tolist() == [0, 2, 2, 3]


def test_grey_folder_keeps_one_channel_and_one_colour_image_makes_it_colour(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"], mode="L")
    assert everything(open_data(tmp_path)).shape == (2, 1, 9, 7)
    write_images(tmp_path, ["c.png"])
    assert everything(open_data(tmp_path)).shape == (3, 3, 9, 7)


def test_folder_of_two_sizes_names_two_files_unless_a_transform_mends_it(tmp_path, here):
    write_images(tmp_path / "p", ["a.png"])
    write_images(tmp_path / "p", ["b.jpg"], size=(8, 9))
    with pytest.raises(CovaryError, match=r"a\.png is 7x9 and b\.jpg is 8x9.*transform="):
        open_data(tmp_path / "p")
    assert everything(open_data(tmp_path / "p", transform="their_data:crop")).shape == (2, 3, 2, 2)
    with pytest.raises(CovaryError, match=r"a\.png has shape \(3, 9, 7\) and b\.jpg has shape \(3, 9, 8\)"):
        everything(open_data(tmp_path / "p", transform="their_data:double"), 1)


def test_folder_streams(tmp_path, monkeypatch):
    write_images(tmp_path, [f"{i}.png" for i in range(6)])
    source, decoded = open_data(tmp_path), []
    decode = source.reader.decode
    monkeypatch.setattr(source.reader, "decode", lambda path: decoded.append(path.name) or decode(path))
    next(source.batches(2))
    assert decoded == ["0.png", "1.png"]


class Pictures(Dataset):
    """Pillow images with labels that only __getitem__ knows."""

    classes = ("even", "odd")

    def __init__(self, images):
        self.images, self.read = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.read += 1
        return Image.fromarray(self.images[i]), i % 2


def test_dataset_of_pillow_images_streams_and_reads_labels_on_demand(images):
    dataset = Pictures(images)
    source = open_data(dataset)
    dataset.read = 0
    assert next(source.batches(2)).y.tolist() == [0, 1]
    assert dataset.read == 2
    assert source.take([5, 4]).y.tolist() == [1, 0]
    assert dataset.read == 4
    assert source.y.tolist() == (np.arange(11) % 2).tolist()
    assert source.class_names == ["even", "odd"]
    np.testing.assert_array_equal((everything(source) * 255).round(), np.moveaxis(images, -1, 1))


@pytest.mark.parametrize("kind", ["tensor dataset", "subset", "dict", "bare", "targets", "uint8 channels first"])
def test_kinds_of_items(kind, images):
    x, y = torch.from_numpy(np.moveaxis(images, -1, 1)).float() / 255, torch.arange(11)
    full = TensorDataset(x, y)

    class Items(Dataset):
        def __len__(self):
            return 11

        def __getitem__(self, i):
            if kind == "dict":
                return {"pixel_values": x[i], "labels": int(y[i]), "other": 1}
            if kind == "uint8 channels first":
                return (x[i] * 255).round().to(torch.uint8), y[i]
            return (x[i], -1) if kind == "targets" else x[i]

    dataset = {"tensor dataset": full, "subset": Subset(full, [3, 1])}.get(kind, Items())
    if kind == "targets":
        dataset.targets = list(range(11))  # type: ignore[attr-defined]
    source = open_data(dataset)
    order = [3, 1] if kind == "subset" else list(range(11))
    torch.testing.assert_close(everything(source), x[order])
    assert (source.y is None) if kind == "bare" else (source.y.tolist() == order)


@pytest.mark.parametrize("name", ["their_data:dataset", "their_data:make"])
def test_dataset_by_name_from_the_working_directory(here, name):
    source = open_data(name)
    assert torch.equal(everything(source), torch.arange(24.0).reshape(4, 6))
    assert source.y.tolist() == [1, 0, 1, 0]
    assert open_data("their_data:pair").y.tolist() == [0, 1, 2, 3]


def test_source_is_taken_as_it_is_and_can_be_given_more(images):
    source = open_data(images)
    assert open_data(source) is source
    more = open_data(source.take([4, 2]), y=[7, 8], truth=[1, 0], mean=0.5)
    assert (more.y.tolist(), more.truth.tolist(), more.mean) == ([7, 8], [1, 0], (0.5,))
    assert isinstance(more, Source)


# Truth ---------------------------------------------------------------------------------------------------------------


def test_truth_from_every_place(tmp_path, images, npz):
    truth = np.array([1, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0])
    np.save(tmp_path / "t.npy", truth)
    np.savez(tmp_path / "t.npz", truth=truth)
    with open(tmp_path / "t.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "truth"])
        writer.writerows(reversed([(str(i), t) for i, t in enumerate(truth)]))
    (tmp_path / "ordered.csv").write_text("truth\n" + "\n".join(map(str, truth)) + "\n")
    for place in (truth, truth.astype(bool), *(tmp_path / n for n in ("t.npy", "t.npz", "t.csv", "ordered.csv"))):
        assert open_data(images, truth=place).truth.tolist() == truth.tolist()
    assert open_data(npz, truth="other").truth.tolist() == [1] * 11


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,truth\n0,1\n", "no row for 10 inputs, such as '1'"),
        ("id,label\n0,1\n", "columns id, label; expected a column 'truth'"),
        ("truth\n" + "x\n" * 11, "'x'; expected 0 or 1"),
        ("truth\n" + "2\n" * 11, "holds 2.0; expected 0"),
        ("truth\n1\n", r"shape \(1,\) for 11 inputs"),
    ],
)
def test_bad_truth_table(tmp_path, images, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(CovaryError, match=message):
        open_data(images, truth=tmp_path / "t.csv")


# Thumbnails, fingerprints, description -------------------------------------------------------------------------------


def test_thumbnails_show_raw_inputs_small(images, tmp_path):
    source = open_data(images, mean=0.5, std=0.1)
    assert np.array_equal(source.thumbnail(3), images[3])
    floats = np.moveaxis(images, -1, 1).astype(np.float32)
    assert np.array_equal(open_data(floats / 255).thumbnail(3), images[3])
    assert np.array_equal(open_data(floats).thumbnail(3), images[3])
    assert open_data(floats / 100 - 1).thumbnail(3).shape == (6, 5, 3)
    grey = open_data(images[..., 0]).thumbnail(1)
    assert np.array_equal(grey, np.repeat(images[1, :, :, :1], 3, axis=-1))
    write_images(tmp_path, ["a.png"], size=(200, 100))
    assert open_data(tmp_path).thumbnail(0).shape == (32, 64, 3)
    assert open_data(np.zeros((3, 8))).thumbnail(0) is None
    assert open_data(np.zeros((3, 8), int)).thumbnail(0) is None


def test_fingerprint_changes_with_contents_ids_labels_and_order_alone(images, tmp_path):
    base = open_data((images, np.arange(11)))
    changed = images.copy()
    changed[10, 5, 4, 2] ^= 1
    others = [
        open_data((changed, np.arange(11))),
        open_data(images),
        base.take(range(10)),
        base.take([1, 0, *range(2, 11)]),
        open_data(base, truth=np.zeros(11)),
    ]
    assert len({source.fingerprint() for source in [base, *others]}) == 6
    assert open_data(base, mean=0.5).fingerprint() == base.fingerprint() == base.take(range(11)).fingerprint()
    write_images(tmp_path, ["a.png", "b.png"])
    before = open_data(tmp_path).fingerprint()
    write_images(tmp_path, ["b.png"], seed=5)
    assert open_data(tmp_path).fingerprint() != before


def test_description(images):
    about = open_data(images, std=0.5).describe()
    assert (about["n"], about["shape"], about["dtype"]) == (11, [3, 6, 5], "float32")
    assert about["max"] == pytest.approx(images.max() / 255 / 0.5)
    np.testing.assert_allclose(about["mean"], images.mean((0, 1, 2)) / 127.5, rtol=1e-5)
    np.testing.assert_allclose(about["std"], images.std((0, 1, 2)) / 127.5, rtol=1e-5)
    assert open_data(images).preprocessing == {"mean": None, "std": None, "transform": None}


# Bad input -----------------------------------------------------------------------------------------------------------


def savez(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere.npz", "nothing at .*nowhere"),
        (lambda p: (p / "a.csv").write_text("") or p / "a.csv", r"is a \.csv file"),
        (lambda p: savez(p / "a.npz", y=np.arange(3)), r"no array 'x' \(it holds y\)"),
        (lambda p: savez(p / "a.npz", x=np.zeros((0, 3))), "is empty; expected at least one"),
        (lambda p: savez(p / "a.npz", x=np.zeros((3, 4)), y=[0, 1]), "3 inputs and 2 labels"),
        (lambda p: savez(p / "a.npz", x=np.zeros((3, 4)), y=np.eye(3)), "one integer a sample.*argmax"),
        (lambda p: savez(p / "a.npz", x=np.zeros((3, 4)), y=[0, 0.5, 1]), "no class numbers"),
        (lambda p: savez(p / "a.npz", x=np.zeros((3, 4)), id=["a", "b", "a"]), "id 'a' occurs more than once"),
        (lambda p: savez(p / "a.npz", x=np.zeros((3, 4)), truth=[0, 2, 1]), "holds 2; expected 0"),
        (lambda p: savez(p / "a.npz", x=np.zeros(4)), r"shape \(4,\)"),
        (lambda p: savez(p / "a.npz", x=np.zeros((3, 4), np.uint8)), r"expected \(N, H, W, C\) or \(N, H, W\)"),
        (lambda p: savez(p / "a.npz", x=np.zeros((2, 3, 32, 32), np.uint8)), "move the channels last"),
        (lambda p: savez(p / "a.npz", x=np.array([["a"], ["b"]])), "holds <U1 values"),
        (lambda p: savez(p / "a.npz", x=np.zeros((2, 2)), y=np.array([{}, []], dtype=object)), "Python objects"),
        (lambda p: p, "no images in"),
        (lambda p: "their_data:fails", "failed with KeyError.*no such split"),
        (lambda p: "their_data:number", "is a int; expected a map-style"),
        (lambda p: "their_data:datasets", "did you mean dataset"),
        (lambda p: "no_such_module:dataset", "no Python module 'no_such_module'"),
        (lambda p: "their_data.py:dataset", "write their_data:dataset"),
        (lambda p: 5, "data given as int"),
        (lambda p: np.zeros((2, 3), complex), "complex128"),
    ],
)
def test_bad_data_is_told_in_one_sentence(here, make, message):
    (here / "sub").mkdir()
    with pytest.raises(CovaryError, match=message) as caught:
        open_data(make(here / "sub"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "flipped compressed", "text"])
def test_corrupt_npz(tmp_path, damage):
    path = tmp_path / "a.npz"
    values = np.random.default_rng(0).normal(size=(50, 40))
    (np.savez_compressed if "compressed" in damage else np.savez)(path, x=values)
    content = bytearray(path.read_bytes())
    if damage == "text":
        content = bytearray(b"hello")
    elif damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CovaryError, match=r"a\.npz cannot be read as \.npz"):
        open_data(path)


def test_pickled_arrays_are_never_loaded(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array(file, np.array([{1: 2}], dtype=object), allow_pickle=True)
    with pytest.raises(CovaryError, match=r"'x' in .* holds Python objects"):
        open_data(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_found_as_batches_stream(value):
    values = np.zeros((6, 3), np.float32)
    values[4, 1] = value
    source = open_data(values)
    batches = source.batches(2)
    next(batches)
    next(batches)
    with pytest.raises(CovaryError, match=r"input '4' .* NaN or infinity"):
        next(batches)


def test_unreadable_and_deep_images(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    content = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(b"nothing like an image")
    with pytest.raises(CovaryError, match=r"b\.png cannot be read as an image"):
        open_data(tmp_path)
    (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(CovaryError, match=r"b\.png cannot be read as an image"):
        everything(open_data(tmp_path))
    Image.fromarray(np.zeros((9, 7), np.int32)).save(tmp_path / "b.tif")
    (tmp_path / "b.png").unlink()
    with pytest.raises(CovaryError, match="32 bits a channel; expected 8 or 16 bits"):
        open_data(tmp_path)


def test_images_beside_class_folders_are_refused(tmp_path):
    write_images(tmp_path, ["a.png", "cat/b.png"])
    with pytest.raises(CovaryError, match="as well as folders of images"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.1, 0.2]}, "2 numbers for mean and inputs with 3 channels"),
        ({"std": 0}, "std is .0.0.; expected positive"),
        ({"mean": float("nan")}, "finite"),
        ({"transform": "their_data:number"}, "is a int; expected a function"),
        ({"transform": lambda x: 1 / 0}, "failed on '0' with ZeroDivisionError"),
        ({"transform": lambda x: None}, "returned a NoneType"),
        ({"truth": "nowhere.npy"}, "no file nowhere.npy"),
        ({"y": [1, 2]}, "11 inputs and 2 labels"),
    ],
)
def test_bad_options(here, images, options, message):
    with pytest.raises(CovaryError, match=message):
        everything(open_data(images, **options))


def test_normalised_token_ids_are_refused():
    with pytest.raises(CovaryError, match="token ids"):
        everything(open_data(np.arange(6).reshape(2, 3), mean=0.5))


def test_failing_dataset_names_the_item(images):
    class Broken(Pictures):
        def __getitem__(self, i):
            if i == 3:
                raise OSError("disk gone")
            return super().__getitem__(i)

    with pytest.raises(CovaryError, match="item 3 of a Broken failed with OSError: disk gone"):
        everything(open_data(Broken(images)))
    with pytest.raises(CovaryError, match="is empty"):
        open_data(Pictures([]))
