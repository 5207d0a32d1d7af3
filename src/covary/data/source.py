"""Inputs: from a path, a name or an array to a stream of batches, with ids, labels and truth beside them."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped

from covary.data.preprocessing import (
    channel_numbers,
    mixed_shapes,
    named_transform,
    normalised,
    picture,
    scaled,
    stacked,
)
from covary.data.presets import preset_of, with_preset
from covary.data.readers import Reader, open_reader
from covary.data.readers.base import checked_ids, checked_labels, checked_truth
from covary.data.readers.images import ImageReader
from covary.data.truth import read_truth
from covary.errors import CovaryError
from covary.objects import load_object
from covary.scoring.rows import Batch


class Source:
    """Inputs that stream: read, scaled, transformed and normalised batch by batch, in a fixed order.

    uint8 images become float32 in [0, 1], channels first; floats are taken as they are (float32); other integers are
    token ids (int64). Then `transform`, sample by sample; then (x − mean) / std. With `names` (see `named`) batches are
    dictionaries of the input and its fields.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        name: str,
        y: np.ndarray | None = None,
        truth: np.ndarray | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        transform: Callable[[torch.Tensor], Any] | None = None,
        transform_name: str | dict[str, Any] | None = None,
        index: np.ndarray | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.reader, self.name, self.names = reader, name, tuple(names)
        self.mean, self.std, self.transform, self.transform_name = mean, std, transform, transform_name
        self._y, self._truth = y, truth
        self.index = np.arange(len(reader.ids)) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"Source({self.name!r}, {len(self)} inputs)"

    @property
    def ids(self) -> list[str]:
        """Unique names of the inputs, in order."""
        return [self.reader.ids[i] for i in self.index]

    def renamed(self, ids: Sequence[str] | None) -> Source:
        """The same inputs under other names, one for each in order; None keeps the names they have."""
        if ids is None:
            return self
        names = list(self.reader.ids)
        for i, name in zip(self.index.tolist(), checked_ids(ids, len(self), self.name), strict=True):
            names[i] = name
        other = copy.copy(self)
        other.reader = copy.copy(self.reader)
        other.reader.ids = names
        return other

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of `y`, where the data say."""
        return self.reader.class_names

    @property
    def y(self) -> np.ndarray | None:
        """Original classes, int64 (n,), or None; a Dataset without a list of labels is read through once for it."""
        return self._labels(self.index)

    @property
    def truth(self) -> np.ndarray | None:
        """1 = anomalous, 0 = clean, int64 (n,), or None; for evaluation alone, never for fit or calibration."""
        truth = self.reader.truth if self._truth is None else self._truth
        return None if truth is None else truth[self.index]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to raw inputs before the network sees them, as JSON; `mode` of images that are decoded alone."""
        mean, std = (None if v is None else list(v) for v in (self.mean, self.std))
        mode = {} if self.reader.mode is None else {"mode": self.reader.mode}
        return {"mean": mean, "std": std, "transform": self.transform_name, **mode}

    def _with(self, **changes: Any) -> Source:
        kept = {
            "name": self.name, "y": self._y, "truth": self._truth, "mean": self.mean, "std": self.std,
            "transform": self.transform, "transform_name": self.transform_name, "index": self.index,
            "names": self.names,
        }  # fmt: skip
        return Source(self.reader, **{**kept, **changes})

    def take(self, index: Any) -> Source:
        """The inputs at `index` (integers or a boolean mask), in that order."""
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        return self._with(index=self.index[index])

    def preprocessed(self, *, mean: Any = None, std: Any = None, transform: Any = None) -> Source:
        """The same raw inputs with another mean, std and transform in place of the present ones."""
        function, name = named_transform(transform)
        mean, std = channel_numbers(mean, "mean"), channel_numbers(std, "std")
        return self._with(mean=mean, std=std, transform=function, transform_name=name)

    def in_mode(self, mode: str) -> Source:
        """The same inputs, images decoded in this mode: `L` or `RGB`."""
        reader = copy.copy(self.reader)
        reader.set_mode(mode)
        other = copy.copy(self)
        other.reader = reader
        return other

    def named(self, names: Sequence[str]) -> Source:
        """The same inputs as dictionaries: the input by the first of these names, then the fields of the others."""
        return self._with(names=tuple(names))

    @property
    def mode(self) -> str | None:
        """`L` or `RGB` of images that are decoded; None of everything else."""
        return self.reader.mode

    @property
    def columns(self) -> list[str] | None:
        """Names of the columns where an input is a row of a table, numbered where the data have none; else None."""
        sample = np.asarray(self.reader.read(self.index[:1])[0]) if len(self) else np.empty(0)
        if sample.ndim != 1 or sample.dtype != np.float32:
            return None
        return self.reader.columns or [f"column {i}" for i in range(len(sample))]

    def raw(self, name: str) -> np.ndarray:
        """The input of that name as it is stored, before all preprocessing."""
        return np.asarray(self.reader.read(self.index[[self.ids.index(name)]])[0])

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """What the data hold and no verdict is given on, as JSON: kind, number and names (hidden ones by number)."""
        return [left.to_json() for left in self.reader.left_out]

    @property
    def notes(self) -> list[str]:
        """What is read in a way that somebody may not expect, in sentences."""
        unused = [f"`{name}`" for name in self.reader.fields if name not in self.names]
        about = f"{', '.join(unused)} of {self.name} left out: the network's forward takes no such argument."
        return [*self.reader.notes, *([about] if unused else [])]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches in order, the last one smaller.

        Raises:
            CovaryError: NaN or infinite values, samples of different shapes, a failing transform.
        """
        first: tuple[str, tuple[int, ...]] | None = None
        for start in range(0, len(self), batch_size):
            rows = self.index[start : start + batch_size]
            ids = [self.reader.ids[i] for i in rows]
            raw, fields = self.reader.read_with(rows, self.names[1:])
            x: Any = self._inputs(raw, ids)
            shape = tuple(x.shape[1:])
            first = first or (ids[0], shape)
            if shape != first[1]:
                raise mixed_shapes(f"{first[0]} has shape {first[1]}", f"{ids[0]} has shape {shape}", self.name)
            if self.names:
                x = {self.names[0]: x, **{name: self._field(values, ids) for name, values in fields.items()}}
            truth = self.reader.truth if self._truth is None else self._truth
            yield Batch(ids, x, self._labels(rows), None if truth is None else truth[rows])

    def _labels(self, rows: np.ndarray) -> np.ndarray | None:
        return self.reader.labels(rows) if self._y is None else self._y[rows]

    def _field(self, values: list[np.ndarray], ids: list[str]) -> torch.Tensor:
        return torch.from_numpy(stacked(values, ids, self.name))

    def _inputs(self, raw: Any, ids: list[str]) -> torch.Tensor:
        if self.transform is None:
            x = scaled(stacked(raw, ids, self.name))
        else:
            samples = [self._transformed(np.asarray(sample), name) for sample, name in zip(raw, ids, strict=True)]
            x = torch.from_numpy(stacked([sample.numpy() for sample in samples], ids, self.name))
        x = normalised(x, self.mean, self.std)
        if x.is_floating_point() and not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
            raise CovaryError(f"input {ids[bad]!r} of {self.name} holds NaN or infinity", "finite numbers", "remove it")
        return x

    def _transformed(self, sample: np.ndarray, name: str) -> torch.Tensor:
        assert self.transform is not None
        what = f"transform {self.transform_name}"
        try:
            result = self.transform(scaled(sample[None])[0])
        except Exception as error:
            found = f"{what} failed on {name!r} with {type(error).__name__}: {error}"
            raise CovaryError(found, "a function of one float tensor (c, h, w)", "mend that function") from error
        result = torch.from_numpy(result) if isinstance(result, np.ndarray) else result
        if not isinstance(result, torch.Tensor):
            raise CovaryError(f"{what} returned a {type(result).__name__} for {name!r}", "a tensor")
        result = result.detach().cpu()
        return result.float() if result.is_floating_point() else result.long()

    def thumbnail(self, i: int) -> Shaped[np.ndarray, "h w 3"] | None:
        """Input i as a small uint8 picture (at most 64 px a side), before mean and std; None where it is no image."""
        return picture(np.asarray(self.reader.read(self.index[i : i + 1])[0]))

    def fingerprint(self) -> str:
        """sha256 over ids, raw contents, y and truth, in order; preprocessing is not part of it."""
        digest = hashlib.sha256()
        for i in self.index:
            content = self.reader.content(int(i))
            digest.update(f"{self.reader.ids[i]}\0{len(content)};".encode())
            digest.update(content)
        for name, values in (("y", self.y), ("truth", self.truth)):
            digest.update(name.encode() + (b"-" if values is None else values.astype("<i8").tobytes()))
        return digest.hexdigest()

    def digests(self) -> list[bytes]:
        """A hash of the raw contents of every input: equal hashes, equal inputs."""
        return [hashlib.blake2b(self.reader.content(int(i)), digest_size=16).digest() for i in self.index]

    def describe(self, limit: int = 256) -> dict[str, Any]:
        """Number, shape, dtype and range of the inputs as the network gets them, from `limit` of them spread evenly."""
        looked_at = self.take(np.unique(np.linspace(0, len(self) - 1, min(limit, len(self))).astype(int)))
        parts = [batch.x for batch in looked_at.named(()).batches(64)]
        x = torch.cat(parts)
        channels = x.double().transpose(0, 1).flatten(1) if x.ndim >= 3 else x.double().reshape(1, -1)
        return {
            "name": self.name, "n": len(self), "looked_at": len(x), "shape": list(x.shape[1:]),
            "dtype": str(x.dtype).removeprefix("torch."), "min": float(x.min()), "max": float(x.max()),
            "mean": channels.mean(1).tolist()[:16], "std": channels.std(1, correction=0).tolist()[:16],
        }  # fmt: skip


def open_data(
    spec: Any,
    *,
    y: Any = None,
    mean: Any = None,
    std: Any = None,
    transform: Any = None,
    truth: Any = None,
    mode: str | None = None,
) -> Source:
    """The inputs that `spec` names: anything in `READERS`, such as a path, a glob, a Dataset, an array, a pair (x, y).

    Args:
        spec: what to open; a Source is taken as it is, with what else is given here put in place of its own.
        y: original classes (n,), where the data do not hold them.
        mean: subtracted after scaling, one number or one per channel.
        std: divided by after that, positive.
        transform: function of one float tensor (c, h, w), or `package.module:function`; runs before mean and std. Or
            torchvision's `Weights.transforms()` or an image processor of transformers, whose mean and std are taken
            where none are given.
        truth: 0 or 1 for every input: an array, a .npy, .csv or .npz file (key or column `truth`), or the name of an
            array in the .npz that `spec` names.
        mode: `L` (grey) or `RGB` of images that are decoded, as the trusted ones were.

    Raises:
        CovaryError: nothing there, nothing in it, or inputs, labels, ids or truth that do not fit together.
    """
    transform, mean, std = with_preset(_at_hand(transform), mean, std)
    function, transform_name = named_transform(transform)
    mean, std = channel_numbers(mean, "mean"), channel_numbers(std, "std")
    if isinstance(spec, Source):
        source = spec if mode in (None, spec.reader.mode) else spec.in_mode(mode)
        if not (mean is None and std is None and function is None):
            source = source._with(mean=mean, std=std, transform=function, transform_name=transform_name)
        if y is not None or truth is not None:
            source = _relabelled(source, y, truth)
        return source
    reader = open_reader(spec)
    if mode is not None:
        reader.set_mode(mode)
    name = str(spec) if isinstance(spec, str | Path) else f"the {type(spec).__name__} given"
    if isinstance(reader, ImageReader) and function is None and (pair := reader.mixed_sizes()):
        raise mixed_shapes(*pair, name)
    n = len(reader.ids)
    labels = None if y is None else checked_labels(y, n, name)
    known = None if truth is None else checked_truth(read_truth(truth, spec, reader.ids), n, name)
    return Source(
        reader, name=name, y=labels, truth=known, mean=mean, std=std, transform=function, transform_name=transform_name
    )


def _at_hand(transform: Any) -> Any:
    """What a name stands for where that is a library's preset, or a function without arguments that gives one."""
    if not isinstance(transform, str):
        return transform
    found = load_object(transform, "transform")
    if isinstance(found, functools.partial) and not found.args:
        found = found()
    return transform if preset_of(found) is None else found


def _relabelled(source: Source, y: Any, truth: Any) -> Source:
    changes = {}
    for key, values, checked in (("y", y, checked_labels), ("truth", truth, checked_truth)):
        if values is not None:
            values = read_truth(values, None, source.ids) if key == "truth" else values
            full = np.full(len(source.reader.ids), 0, np.int64)
            full[source.index] = checked(values, len(source), source.name)
            changes[key] = full
    return source._with(**changes)
