"""Whatever people hand over as inputs is taken, or what is left out is named; nothing is dropped without a word."""

import os
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from covary.data import preprocessing
from covary.data.source import open_data
from covary.errors import CovaryError
from covary.serving.pile.sources import SOURCES, recognise

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


def full(source):
    return torch.cat([batch.x for batch in source.batches(2)])


def scaled(images):
    return torch.from_numpy(np.moveaxis(images, -1, 1) / 255).float()


def save(folder, *names, images=PIXELS):
    for name, image in zip(names, images, strict=False):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


# Folders -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".tga", ".gif", ".jp2", ".JPG"])
def test_a_folder_reads_what_pillow_reads(tmp_path, suffix):
    save(tmp_path, "a.png", f"b{suffix}")
    source = open_data(tmp_path)
    assert source.ids == ["a.png", f"b{suffix}"]
    assert full(source).shape == (2, 3, 6, 7)
    assert source.left_out == []


@pytest.mark.parametrize("suffix", [".eps", ".h5", ".mpg"])
def test_what_pillow_hands_to_other_programs_is_left_out_by_name(tmp_path, suffix):
    save(tmp_path, "a.png")
    (tmp_path / f"b{suffix}").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    assert open_data(tmp_path).left_out == [{"kind": "files that are no images", "n": 1, "names": [f"b{suffix}"]}]


def test_an_image_is_not_read_by_another_program_whatever_it_is_called(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")
    with pytest.raises(CovaryError, match="cannot be read as an image"):
        open_data(tmp_path)


def test_hidden_files_and_folders_are_skipped_at_every_depth_and_counted(tmp_path):
    save(tmp_path, "cat/a.png", "dog/deep/b.png", "cat/.ipynb_checkpoints/a-checkpoint.png", "__MACOSX/cat/a.png")
    for name in ("._a.png", "cat/._a.png", "dog/deep/.DS_Store"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    source = open_data(tmp_path)
    assert source.ids == ["cat/a.png", "dog/deep/b.png"]
    assert source.class_names == ["cat", "dog"]
    assert source.left_out == [{"kind": "hidden files and folders", "n": 5, "names": []}]


def test_everything_left_out_is_counted_and_named(tmp_path):
    save(tmp_path, "cat/a.png", "cat/b.png")
    for name in ("readme.txt", "cat/labels.csv", "cat/notes", "broken.lnk"):
        (tmp_path / name).write_text("")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    (left,) = open_data(tmp_path).left_out
    assert left["n"] == 5
    assert sorted(left["names"]) == [
        "broken.lnk",
        "cat/labels.csv",
        "cat/loop",
        "cat/notes",
        "readme.txt",
    ]


def test_frames_after_the_first_are_told(tmp_path):
    first, second = (Image.fromarray(image) for image in PIXELS[:2])
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    first.save(tmp_path / "b.gif")
    assert open_data(tmp_path).left_out == [{"kind": "frames after the first", "n": 1, "names": ["a.gif"]}]


def test_names_that_are_no_utf_8(tmp_path):
    place = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(place)
    save(tmp_path, "a.png")
    os.rename(tmp_path / "a.png", place + b"/\xff.png")
    source = open_data(tmp_path)
    assert source.ids == [r"caf\xe9/\xff.png"]
    assert source.class_names == [r"caf\xe9"]
    source.ids[0].encode()
    with open(place + b"/\xff.png", "wb") as file:
        file.write(b"broken")
    with pytest.raises(CovaryError, match=r"\\xff\.png cannot be read") as caught:
        open_data(tmp_path)
    str(caught.value).encode()


# Grey and colour -----------------------------------------------------------------------------------------------------


def test_images_are_read_in_the_mode_of_the_trusted_ones(tmp_path):
    save(tmp_path / "colour", "a.png")
    save(tmp_path / "grey", "a.png", images=PIXELS[..., 0])
    assert open_data(tmp_path / "colour").preprocessing["mode"] == "RGB"
    assert open_data(tmp_path / "grey").preprocessing["mode"] == "L"
    x = full(open_data(tmp_path / "grey", mode="RGB"))
    assert torch.equal(x, torch.from_numpy(PIXELS[:1, ..., 0]).div(255).unsqueeze(1).expand(1, 3, 6, 7))
    with pytest.raises(CovaryError, match=r"a\.png has colours; expected a grey image"):
        open_data(tmp_path / "colour", mode="L")


def test_pillow_images_of_a_list_have_one_mode():
    grey, colour = Image.fromarray(PIXELS[0, ..., 0]), Image.fromarray(PIXELS[1])
    assert full(open_data([grey, grey.convert("1"), grey.convert("LA")])).shape == (3, 1, 6, 7)
    assert full(open_data([grey, colour])).shape == (2, 3, 6, 7)
    with pytest.raises(CovaryError, match="32 bits"):
        open_data([Image.fromarray(np.full((6, 7), 0.5, np.float32))])


@pytest.mark.parametrize("form", ["folder", "list", "partition"])
def test_grey_images_of_16_bits_are_scaled_as_arrays_are(form, tmp_path):
    values = RNG.integers(0, 65536, (2, 6, 7), dtype=np.uint16)
    # One of 8 bits among them keeps its own range, and its scaled values to the bit.
    images = [*(Image.fromarray(image) for image in values), Image.fromarray(PIXELS[0, ..., 0])]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.{'png' if i else 'tif'}")
    expected = torch.cat([full(open_data(values)), full(open_data(PIXELS[:1, ..., 0]))])
    for mode in ("L", "RGB"):
        if form == "partition":
            kind, files, _ = recognise(str(tmp_path))
            ((part, _),) = SOURCES[kind].cut(str(tmp_path), files, 8)
            decoded = [sample for _, sample in SOURCES[kind].read(str(tmp_path), part, mode)]
            x = preprocessing.scaled(preprocessing.stacked(decoded, ["0", "1", "2"], "here"))
        elif mode == "RGB" and form == "list":
            x = full(open_data([*images, Image.fromarray(PIXELS[1])]))[:3]
        else:
            x = full(open_data(images if form == "list" else tmp_path, mode=mode))
        assert torch.equal(x, expected if mode == "L" else expected.expand(3, 3, 6, 7))


@pytest.mark.parametrize("shape", [(3, 6, 7), (3, 6, 7, 3)])
def test_uint16_images_are_scaled(shape):
    values = RNG.integers(0, 65536, shape, dtype=np.uint16)
    x = full(open_data(values))
    expected = values[..., None] if len(shape) == 3 else values
    np.testing.assert_allclose(x, np.moveaxis(expected, -1, 1) / 65535, atol=1e-7)
    picture = open_data(values).thumbnail(0)
    np.testing.assert_array_equal(picture[..., 0], (expected[0, ..., 0] >> 8).astype(np.uint8))
    if len(shape) == 4:
        assert torch.equal(full(open_data(torch.from_numpy(values).movedim(-1, 1))), x)


def test_other_integers_are_token_ids_or_refused():
    assert full(open_data(np.arange(12, dtype=np.uint16).reshape(3, 4))).dtype == torch.int64
    assert open_data(np.zeros((3, 6, 7), np.int32)).notes == [
        "int32 of shape (6, 7) are taken as token ids; pixels are uint8, uint16 or floats."
    ]
    with pytest.raises(CovaryError, match=r"int32 of shape \(6, 7, 3\) an input; expected uint8"):
        open_data(np.zeros((3, 6, 7, 3), np.int32))
    with pytest.raises(CovaryError, match="int64 of shape"):
        open_data([np.zeros((6, 7, 3), np.int64)])


# What Python hands over ----------------------------------------------------------------------------------------------


VALUES = torch.arange(24.0).reshape(4, 6)
LABELS = torch.tensor([1, 0, 1, 0])


def test_datasets_without_labels():
    for dataset in (TensorDataset(VALUES), Subset(TensorDataset(VALUES), range(4))):
        source = open_data(dataset)
        assert torch.equal(full(source), VALUES)
        assert source.y is None


@pytest.mark.parametrize(
    "make",
    [
        lambda d: DataLoader(d, batch_size=3),
        lambda d: DataLoader(d, batch_size=3, shuffle=True, drop_last=True),
        lambda d: DataLoader(
            d, batch_size=3, collate_fn=lambda items: list(map(torch.stack, zip(*items, strict=True)))
        ),
        lambda d: lambda: d,
        lambda d: [d[i] for i in range(4)],
        lambda d: {"x": VALUES, "y": LABELS},
    ],
    ids=["loader", "shuffled", "collated", "function", "list", "columns"],
)
def test_everything_that_gives_items(make):
    source = open_data(make(TensorDataset(VALUES, LABELS)))
    assert torch.equal(full(source), VALUES)
    assert source.y.tolist() == [1, 0, 1, 0]


def test_a_loader_s_sampler_chooses():
    loader = DataLoader(TensorDataset(VALUES), sampler=SubsetRandomSampler([2, 0]))
    assert sorted(full(open_data(loader))[:, 0].tolist()) == [0, 12]


def test_a_stream_is_refused_with_what_to_do():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(VALUES)

    with pytest.raises(CovaryError, match=r"IterableDataset.*pass list\(dataset\)"):
        open_data(DataLoader(Stream()))
    assert torch.equal(full(open_data(list(Stream()))), VALUES)


def test_labels_that_name_no_class_are_left_aside_and_told():
    for labels, word in ((torch.rand(4), "numbers such as"), (torch.ones(4, 3), "of shape (3,)")):
        source = open_data(TensorDataset(VALUES, labels))
        assert source.y is None
        assert [word in note for note in source.notes] == [True]


# Files ---------------------------------------------------------------------------------------------------------------


def test_a_glob_one_image_and_a_list_of_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, "pile/a.png", "pile/b.gif", "pile/c.png", "other/d.png")
    (tmp_path / "pile" / "e.png.txt").write_text("")
    assert open_data("pile/*.png").ids == ["a.png", "c.png"]
    assert open_data("*/[a-d].*").ids == ["other/d.png", "pile/a.png", "pile/b.gif", "pile/c.png"]
    source = open_data("pile/*")
    assert source.ids == ["a.png", "b.gif", "c.png"]
    assert source.left_out[0]["names"] == ["e.png.txt"]
    assert torch.equal(full(open_data("pile/a.png")), scaled(PIXELS[:1]))
    assert open_data(["pile/a.png", "other/d.png"]).ids == ["pile/a.png", "other/d.png"]
    with pytest.raises(CovaryError, match=r"nothing at pile/\*\.jpg"):
        open_data("pile/*.jpg")
    (tmp_path / "pile" / "f.txt").write_text("")
    with pytest.raises(CovaryError, match="which is no image"):
        open_data("pile/*.txt")


def test_arrays_and_tensors_in_files(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    assert torch.equal(full(open_data(tmp_path / "a.npy")), scaled(PIXELS))
    torch.save(VALUES, tmp_path / "a.pt")
    torch.save((VALUES, LABELS), tmp_path / "pair.pt")
    torch.save({"x": VALUES, "y": LABELS, "id": list("abcd"), "more": 1}, tmp_path / "named.pth")
    for name in ("a.pt", "pair.pt", "named.pth"):
        assert torch.equal(full(open_data(tmp_path / name)), VALUES)
    assert open_data(tmp_path / "pair.pt").y.tolist() == [1, 0, 1, 0]
    assert open_data(tmp_path / "named.pth").ids == list("abcd")


class Harm:
    """Unpickled, it would say so."""

    def __reduce__(self):
        return (print, ("code of a file was run",))


def test_foreign_files_run_nothing_and_are_told_in_a_sentence(tmp_path, capsys):
    torch.save({"x": Harm()}, tmp_path / "harm.pt")
    np.save(tmp_path / "harm.npy", np.array([{}], dtype=object), allow_pickle=True)
    torch.save({"weight": VALUES}, tmp_path / "weights.pt")
    np.save(tmp_path / "whole.npy", PIXELS)
    (tmp_path / "half.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:300])
    for name, message in (
        ("harm.pt", "cannot be read"), ("harm.npy", "Python objects"), ("weights.pt", "the keys weight"),
        ("half.npy", "cannot be read as .npy"),
    ):  # fmt: skip
        with pytest.raises(CovaryError, match=message) as caught:
            open_data(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


# Dictionaries --------------------------------------------------------------------------------------------------------


class Texts(Dataset):
    """Token ids with a mask, as tokenizers give them."""

    def __init__(self, n=6):
        rng = np.random.default_rng(1)
        self.tokens = torch.from_numpy(rng.integers(1, 9, (n, 5)))
        self.mask = torch.from_numpy(rng.integers(0, 2, (n, 5)))
        self.mask[:, 0] = 1

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return {"input_ids": self.tokens[i], "attention_mask": self.mask[i], "labels": -1, "idx": i, "text": "words"}


def test_fields_are_named_and_come_with_batches():
    source = open_data(Texts())
    assert source.reader.fields == ("attention_mask", "idx")
    assert "text" in source.notes[0]
    named = source.named(("input_ids", "attention_mask"))
    batch = next(named.batches(4))
    assert torch.equal(batch.x["input_ids"], Texts().tokens[:4])
    assert torch.equal(batch.x["attention_mask"], Texts().mask[:4])
    assert any("`idx`" in note for note in named.notes)
    assert torch.equal(next(source.batches(4)).x, Texts().tokens[:4])


def test_a_field_is_part_of_what_an_input_is():
    one, other = Texts(), Texts()
    other.mask[2, 1] = 1 - other.mask[2, 1]
    assert open_data(one).fingerprint() != open_data(other).fingerprint()


class Masked(nn.Module):
    """Mean of the embeddings that the mask lets through."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        assert labels is None
        weights = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embedding(input_ids) * weights.unsqueeze(-1)
        return self.head(x.sum(1) / weights.sum(1, keepdim=True))


def test_the_mask_reaches_the_network():
    from covary.detector import Detector

    data, net = Texts(60), Masked()
    detector = Detector(net, fpr=0.1).fit(data)
    with torch.no_grad():
        right, wrong = net(data.tokens, data.mask).argmax(1), net(data.tokens).argmax(1)
    assert not torch.equal(right, wrong), "the mask decides some answers"
    assert detector.score(data).predicted.tolist() == right.tolist()
    assert detector.trusted_rows.predicted.tolist() == right.tolist()


@pytest.mark.parametrize("engine", ["hooks", "exact"])
def test_fields_reach_both_engines(engine):
    from covary.detector import Detector

    data, net = Texts(40), Masked()
    rows = Detector(net, fpr=0.1, engine=engine).fit(data).trusted_rows
    for i in (0, 7):
        z = net(data.tokens[i : i + 1], data.mask[i : i + 1])[0]
        y = int(z.argmax())
        m = z[y] - torch.logsumexp(torch.cat([z[:y], z[y + 1 :]]), 0)
        g = torch.autograd.grad(m, list(net.parameters()))
        norms = [g[0].norm(), torch.cat([g[1].flatten(), g[2]]).norm()]
        np.testing.assert_allclose(rows.functional_norms[i], [float(v) for v in norms], rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [{}, {"engine": "exact"}, {"estimator": "gaussian", "draws": 8, "sigma": 0.01}])
def test_inputs_follow_the_weights(dtype, settings):
    from covary.detector import Detector

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    verdicts = Detector(net, fpr=0.1, **settings).fit(x).score(x[:5])
    with torch.no_grad():
        assert verdicts.predicted.tolist() == net(torch.from_numpy(x[:5]).to(dtype)).argmax(1).tolist()
    assert np.isfinite(verdicts.score).all()


def test_inputs_of_several_fields_are_checked_and_scanned_with_all_evidence(tmp_path, monkeypatch):
    from covary.runs import scan as scanning

    here = types.ModuleType("fields_here")
    vars(here).update(net=Masked, texts=Texts(60))
    monkeypatch.setitem(sys.modules, "fields_here", here)
    plan = scanning.ScanPlan.checked(
        model="fields_here:net", trusted="fields_here:texts", inputs="fields_here:texts", together=True,
        settings={"fpr": 0.1, "evidence": "thorough"},
    )  # fmt: skip
    assert scanning.check_plan(plan).ok
    assert scanning.scan(plan, tmp_path / "run")["n"] == 60
