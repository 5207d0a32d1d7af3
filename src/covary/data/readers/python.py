"""A map-style torch Dataset, as an object or by the name `package.module:dataset`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image

from covary.data.readers import arrays
from covary.data.readers.arrays import ArrayReader
from covary.data.readers.base import Reader, canonical, checked_ids, checked_labels, from_tensor
from covary.errors import CovaryError
from covary.objects import is_object_name, load_object
from covary.storage.fingerprints import array_bytes

INPUT_KEYS = ("x", "image", "img", "pixel_values", "input_ids", "input", "inputs", "data")
UNREAD = np.iinfo(np.int64).min
LABEL_KEYS = ("y", "label", "labels", "target", "targets")


class DatasetReader(Reader):
    """Items of a Dataset, asked for one by one: x, (x, y, ...) or a dict with an input and a label.

    Raises:
        CovaryError: no length, no items, an item that is no input, or user code that fails.
    """

    def __init__(self, dataset: Any, where: str) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            remedy = "give it __len__ and __getitem__, or load it into a numpy array"
            raise CovaryError(f"{where} is a {type(dataset).__name__}", "a map-style torch Dataset", remedy)
        if len(dataset) == 0:
            raise CovaryError(f"{where} is empty", "at least one input")
        self.dataset, self.where = dataset, where
        self.ids = checked_ids(getattr(dataset, "ids", None), len(dataset), where)
        names = getattr(dataset, "classes", None)
        self.class_names = [str(name) for name in names] if isinstance(names, list | tuple) else None
        listed, label = listed_labels(dataset), split(self.item(0), where)[1]
        self.y: np.ndarray | None = None
        if listed is not None and label is not None:
            self.y = checked_labels(listed, len(self.ids), where)
        elif label is not None:
            self.y = np.full(len(self.ids), UNREAD)

    def labels(self, index: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"] | None:
        """Labels: from `targets` or `labels` where the dataset has them, else from the items."""
        if self.y is None:
            return None
        self.read(index[self.y[index] == UNREAD])
        return self.y[index]

    def item(self, i: int) -> Any:
        """Item i, whatever the dataset gives."""
        try:
            return self.dataset[i]
        except Exception as error:
            raise CovaryError(f"item {i} of {self.where} failed with {type(error).__name__}: {error}") from error

    def read(self, index: Int[np.ndarray, " n"]) -> list[np.ndarray]:
        """Raw samples at `index`; their labels are kept as they come by."""
        samples = []
        for i in index.tolist():
            value, label = split(self.item(i), self.where)
            samples.append(raw_sample(value, f"item {i} of {self.where}"))
            if self.y is not None and self.y[i] == UNREAD:
                self.y[i] = checked_labels(np.asarray([label]).reshape(-1), 1, f"item {i} of {self.where}")[0]
        return samples

    def content(self, i: int) -> bytes:
        """Dtype, shape and bytes of sample i."""
        return array_bytes(self.read(np.asarray([i]))[0])


def split(item: Any, where: str) -> tuple[Any, Any]:
    """Input and label (None where there is none) of an item."""
    if isinstance(item, Mapping):
        key = next((key for key in INPUT_KEYS if key in item), None)
        if key is None:
            raise CovaryError(f"items of {where} have the keys {', '.join(map(str, item))}", f"one of: {INPUT_KEYS}")
        label = next((item[name] for name in LABEL_KEYS if name in item), None)
        return item[key], label
    if isinstance(item, tuple | list) and item:
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def raw_sample(value: Any, where: str) -> np.ndarray:
    """An input as a raw sample: an image, a tensor or an array."""
    if isinstance(value, Image.Image):
        return np.asarray(value if value.mode in ("L", "RGB") else value.convert("RGB"))
    if isinstance(value, torch.Tensor):
        value = from_tensor(value, batched=False)
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        raise CovaryError(f"{where} is a {type(value).__name__}", "a tensor, a numpy array or a Pillow image")
    if value.dtype == np.uint8 and value.ndim not in (2, 3):
        raise CovaryError(f"{where} has shape {value.shape}, uint8", "an image, (H, W, C) or (H, W)")
    return canonical(value, where)


def listed_labels(dataset: Any) -> Any:
    """Labels a dataset keeps as a list, without reading its items; None where it keeps none."""
    if isinstance(dataset, torch.utils.data.Subset):
        inner = listed_labels(dataset.dataset)
        return None if inner is None else np.asarray(inner)[list(dataset.indices)]
    if isinstance(dataset, torch.utils.data.TensorDataset):
        return dataset.tensors[1].numpy()
    # A target_transform changes what an item says, so the list is not what the network's classes are.
    if getattr(dataset, "target_transform", None) is None:
        for name in ("targets", "labels"):
            values = getattr(dataset, name, None)
            if isinstance(values, list | np.ndarray | torch.Tensor) and len(values) == len(dataset):
                return np.asarray(values)
    return None


def accepts(spec: object) -> bool:
    """Whether `spec` is a Dataset or reads like the name of one."""
    return isinstance(spec, torch.utils.data.Dataset) or is_object_name(spec)


def open_python(spec: Any) -> DatasetReader | ArrayReader:
    """A reader over a Dataset, or over what `package.module:name` is or returns: a Dataset or arrays."""
    where = f"a {type(spec).__name__}"
    if isinstance(spec, str):
        where, spec = spec, load_object(spec, "data")
        if callable(spec) and not isinstance(spec, torch.utils.data.Dataset):
            try:
                spec = spec()
            except Exception as error:
                raise CovaryError(f"{where} failed with {type(error).__name__}: {error}") from error
        if arrays.accepts(spec):
            return arrays.open_arrays(spec)
    return DatasetReader(spec, where)
