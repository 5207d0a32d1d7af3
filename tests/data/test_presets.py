"""What networks and libraries say of their images: found, done to the pixel as theirs, kept, and told."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiny
from covary.data.presets import ImageTransform, carried_by, preset_of
from covary.data.source import open_data
from covary.detector import Detector
from covary.errors import CovaryError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CFG = {
    "input_size": (3, 24, 24), "crop_pct": 0.875, "interpolation": "bicubic", "mean": MEAN, "std": STD,
    "crop_mode": "center",
}  # fmt: skip


class ImageClassification:
    """The fields of torchvision's preset of that name, which `Weights.transforms()` gives."""

    def __init__(self) -> None:
        self.crop_size, self.resize_size = [20], [26]
        self.mean, self.std = list(MEAN), list(STD)
        self.interpolation, self.antialias = SimpleNamespace(value="bilinear"), True


def theirs(picture: Image.Image, resize, crop, kind) -> np.ndarray:
    """Pillow and NumPy step by step: shorter side, middle, [0, 1], mean and std; (c, h, w)."""
    width, height = picture.size
    if width < height:
        picture = picture.resize((resize, int(resize * height / width)), kind)
    else:
        picture = picture.resize((int(resize * width / height), resize), kind)
    width, height = picture.size
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    x = np.asarray(picture)[top : top + crop, left : left + crop].astype(np.float32) / 255
    return ((x - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)


@pytest.fixture
def pictures(tmp_path) -> list[Image.Image]:
    """Coloured images of several sizes in the folder `images`."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    found = []
    for i in range(24):
        size = (30 + i, 41) if i % 2 else (43, 29 + i)
        found.append(Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)))
        found[-1].save(tmp_path / "images" / f"{i:02}.png")
    return found


class Coloured(nn.Sequential):
    """A network of colour images that carries timm's notes."""

    def __init__(self, **changes) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
        self.pretrained_cfg = {**CFG, **changes}
        self.eval()


def first(source) -> np.ndarray:
    return next(source.batches(100)).x.numpy()


def test_what_timm_notes_is_done_to_the_pixel(pictures, tmp_path):
    detector = Detector(Coloured()).fit(str(tmp_path / "images"))
    found = first(detector.open(str(tmp_path / "images")))
    expected = np.stack([theirs(p, 27, 24, Image.Resampling.BICUBIC) for p in pictures])  # floor(24 / 0.875) = 27
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert detector.extractor.said_of_images.startswith("Images are prepared as by the network's pretrained_cfg")
    loaded = Detector.load(detector.save(tmp_path / "detector"), Coloured())
    assert loaded.preprocessing == detector.preprocessing
    np.testing.assert_array_equal(first(loaded.open(str(tmp_path / "images"))), found)


def test_torchvisions_transforms_are_done_to_the_pixel_and_kept_as_plain_data(pictures, tmp_path):
    source = open_data(str(tmp_path / "images"), transform=ImageClassification())
    expected = np.stack([theirs(p, 26, 20, Image.Resampling.BILINEAR) for p in pictures])
    np.testing.assert_allclose(first(source), expected, atol=1e-6)
    kept = source.preprocessing
    assert kept["transform"] == ImageTransform((26,), (20, 20)).to_json()
    np.testing.assert_array_equal(first(open_data(str(tmp_path / "images"), **kept)), first(source))


def test_timm_and_torchvision_themselves(pictures):
    """By the real packages where they are: neither comes without a torchvision that fits the build of torch."""
    timm = pytest.importorskip("timm", reason="timm needs torchvision, which not every build of torch has")
    model = timm.create_model("resnet18", pretrained=False)
    config = timm.data.resolve_data_config({}, model=model)
    preset = carried_by(model)
    transform = timm.data.create_transform(**config, is_training=False)
    x = np.asarray(pictures[0])[None]
    found = open_data(x, mean=preset.mean, std=preset.std, transform=preset.transform)
    np.testing.assert_allclose(first(found)[0], transform(pictures[0]).numpy(), atol=1e-5)


def test_a_squashed_cfg_and_small_images(tmp_path):
    carried = carried_by(SimpleNamespace(pretrained_cfg={**CFG, "crop_mode": "squash"}))
    assert carried is not None
    assert carried.transform == ImageTransform((27, 27), (24, 24), "bicubic")
    small = torch.rand(3, 5, 6)
    found = ImageTransform(None, (8, 9))(small)
    assert found.shape == (3, 8, 9)
    inner = found[:, 1:6, 1:7]
    assert float((inner - small).abs().max()) < 1 / 255
    assert int((found != 0).sum()) == int((inner != 0).sum())  # black around it


@pytest.mark.parametrize("cfg", [None, {}, {"mean": None, "std": None}, {**CFG, "mean": ()}])
def test_a_network_that_says_nothing_changes_nothing(cfg):
    assert carried_by(SimpleNamespace(pretrained_cfg=cfg)) is None
    assert carried_by(tiny.trained()) is None
    assert preset_of(None) is preset_of(tiny.trained()) is preset_of("package.module:function") is None


def test_arrays_are_normalised_and_floats_are_left():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    detector = Detector(Coloured()).fit(pixels)
    assert detector.preprocessing == {"mean": list(MEAN), "std": list(STD), "transform": None}
    expected = (pixels.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    np.testing.assert_allclose(first(detector.open(pixels)), expected.transpose(0, 3, 1, 2), atol=1e-6)
    floats = np.random.default_rng(0).normal(size=(40, 3, 16, 16)).astype(np.float32)
    detector = Detector(Coloured()).fit(floats)
    assert detector.preprocessing == {"mean": None, "std": None, "transform": None}
    np.testing.assert_array_equal(first(detector.open(floats)), floats)


def test_what_is_given_wins_and_is_told():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    detector = Detector(Coloured()).fit(pixels, mean=[0.5], std=[0.5])
    assert detector.preprocessing["mean"] == [0.5]
    assert detector.extractor.said_of_images.startswith("mean and std given beside the network's pretrained_cfg")
    found = detector.check(pixels[:5], pixels).findings
    assert [f.title for f in found if "pretrained_cfg" in f.text] == ["Preparation of images"]
    fresh = Detector(Coloured())
    told = [f.text for f in fresh.check(pixels[:5], pixels).findings if f.title == "Preparation of images"]
    assert told == [f"Images are prepared as by the network's pretrained_cfg: mean {', '.join(map(str, MEAN))}, "
                    f"std {', '.join(map(str, STD))}."]  # fmt: skip


def test_a_pipeline_of_images_is_judged_as_it_prepares_them(pictures, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra `language` is not installed")
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    model = transformers.ViTForImageClassification(config)
    pipe = transformers.pipeline("image-classification", model=model, image_processor=processor)
    detector = Detector(pipe).fit(str(tmp_path / "images"))
    found = first(detector.open(str(tmp_path / "images")))
    expected = processor(pictures, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    verdicts = detector.score(str(tmp_path / "images"))
    labels = [max(answer, key=lambda one: one["score"])["label"] for answer in pipe(pictures)]
    assert [f"LABEL_{i}" for i in verdicts.predicted] == labels


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ImageTransform(interpolation="cubic"), "interpolation"),
        (lambda: ImageTransform.from_json({"side": 3}), "a transform with side"),
        (lambda: ImageTransform((8,))(torch.rand(4, 9, 9)), "an input of shape"),
        (lambda: ImageTransform((8,))(3 * torch.rand(3, 9, 9)), "an image with values from"),
        (lambda: preset_of(processor(rescale_factor=1.0)), "rescales by 1"),
        (lambda: preset_of(processor(size={"longest_edge": 8})), "with the size"),
    ],
)
def test_what_is_no_such_preparation_is_told(make, said):
    with pytest.raises(CovaryError, match=said):
        make()


def processor(**changes) -> SimpleNamespace:
    usual = {"size": {"height": 8, "width": 8}, "resample": 2, "image_mean": MEAN, "image_std": STD, "do_resize": True}
    return SimpleNamespace(**{**usual, **changes})
