"""A map-style torch Dataset, a DataLoader over one, a list or columns, as an object or by `package.module:dataset`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch.utils._pytree import tree_map
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from covary.data.readers import arrays
from covary.data.readers.arrays import ArrayReader
from covary.data.readers.base import (
    Reader,
    canonical,
    checked_ids,
    checked_labels,
    from_tensor,
    integers_taken,
)
from covary.data.readers.images import DEEP, GREY, pixels, too_deep
from covary.errors import CovaryError
from covary.objects import is_object_name, load_object
from covary.storage.fingerprints import array_bytes

INPUT_KEYS = ("x", "image", "img", "pixel_values", "input_ids", "input", "inputs", "data")
UNREAD = np.iinfo(np.int64).min
LABEL_KEYS = ("y", "label", "labels", "target", "targets")


class DatasetReader(Reader):
    """Items of a Dataset, asked for one by one: x, (x, y, ...) or a dict with an input and a label.

    Of a dict every other entry of numbers is a field, which the network gets by name where its forward takes it.

    Raises:
        CovaryError: no length, no items, an item that is no input, or user code that fails.
    """

    def __init__(self, dataset: Any, where: str) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or isinstance(dataset, str | bytes):
            remedy = "give it __len__ and __getitem__, or load it into a numpy array"
            raise CovaryError(f"{where} is a {type(dataset).__name__}", "a map-style torch Dataset", remedy)
        if len(dataset) == 0:
            raise CovaryError(f"{where} is empty", "at least one input")
        self.dataset, self.where = dataset, where
        self.ids = checked_ids(getattr(dataset, "ids", None), len(dataset), where)
        names = getattr(dataset, "classes", None) or features_of(dataset)
        self.class_names = [str(name) for name in names] if isinstance(names, list | tuple) else None
        item = self.item(0)
        notes: list[str] = []
        value, label = split(item, where)
        if isinstance(item, Mapping):
            self.input_name = input_key(item)
            self.fields, unread = fields_of(item)
            if unread:
                notes.append(f"Items hold {', '.join(unread)} too, which are no numbers; no network gets them.")
        elif isinstance(item, tuple | list) and len(item) > 2:
            notes.append(f"Items have {len(item)} entries: the first is the input, the second the label.")
        if isinstance(value, Image.Image):
            some = [split(each, where)[0] for each in dataset] if isinstance(dataset, list) else [value]
            if any(each.mode in DEEP for each in some):
                raise too_deep(f"an image of {where}")
            self.mode = "L" if all(each.mode in GREY for each in some) else "RGB"
        else:
            sample = raw_sample(value, f"item 0 of {where}")
            notes += integers_taken(sample.dtype, sample.shape)
        self.y = self._first_labels(label, notes)
        self.notes = notes

    def _first_labels(self, label: Any, notes: list[str]) -> np.ndarray | None:
        if label is None:
            return None
        single = np.asarray(from_tensor(label, batched=False) if isinstance(label, torch.Tensor) else label)
        if single.size != 1 or single.dtype.kind not in "biuf" or float(single.reshape(())) % 1:
            what = (
                f"arrays of shape {single.shape}"
                if single.size != 1
                else f"numbers such as {single.reshape(-1)[0]:.3g}"
            )
            notes.append(f"Labels of {self.where} are {what}, which name no single class: they are left aside.")
            return None
        listed = listed_labels(self.dataset)
        return np.full(len(self.ids), UNREAD) if listed is None else checked_labels(listed, len(self.ids), self.where)

    def set_mode(self, mode: str) -> None:
        """Pillow images are read in this mode from now on: `L` or `RGB`."""
        self.mode = mode

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
        except CovaryError:
            raise
        except Exception as error:
            found = f"item {i} of {self.where} failed with {type(error).__name__}: {error}"
            raise CovaryError(found, "an item", "mend the dataset: that is its own error") from error

    def read(self, index: Int[np.ndarray, " n"]) -> list[np.ndarray]:
        """Raw samples at `index`; their labels are kept as they come by."""
        return self.read_with(index, ())[0]

    def read_with(
        self, index: Int[np.ndarray, " n"], names: Sequence[str]
    ) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
        """Raw samples at `index` and the fields of these names, of every item in one reading."""
        samples: list[np.ndarray] = []
        fields: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for i in index.tolist():
            item, where = self.item(i), f"item {i} of {self.where}"
            value, label = split(item, self.where)
            samples.append(raw_sample(value, where, self.mode))
            for name, column in fields.items():
                if name not in item:
                    raise CovaryError(f"{where} has no {name!r}", "the same entries in every item")
                column.append(number_array(item[name], f"{name!r} of {where}"))
            if self.y is not None and self.y[i] == UNREAD:
                self.y[i] = checked_labels(np.asarray([label]).reshape(-1), 1, where)[0]
        return samples, fields

    def content(self, i: int) -> bytes:
        """Dtype, shape and bytes of sample i, of its fields too."""
        samples, fields = self.read_with(np.asarray([i]), self.fields)
        return array_bytes(samples[0]) + b"".join(
            name.encode() + array_bytes(values[0]) for name, values in fields.items()
        )


class Collated:
    """The items of a DataLoader with a collation of its own, collated one by one."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        return tree_map(
            lambda leaf: leaf[0] if hasattr(leaf, "__getitem__") else leaf, self.collate([self.dataset[i]])
        )


class Columns:
    """Arrays by name as items: {"input_ids": (n, t), "attention_mask": (n, t)}."""

    def __init__(self, columns: Mapping[str, Any], where: str) -> None:
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise CovaryError(f"{where} has columns of different length: {found}", "one row an input in each")
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: values[i] for name, values in self.columns.items()}


def split(item: Any, where: str) -> tuple[Any, Any]:
    """Input and label (None where there is none) of an item."""
    if isinstance(item, Mapping):
        key = input_key(item)
        if key is None:
            raise CovaryError(f"items of {where} have the keys {', '.join(map(str, item))}", f"one of: {INPUT_KEYS}")
        label = next((item[name] for name in LABEL_KEYS if name in item), None)
        return item[key], label
    if isinstance(item, tuple | list) and item:
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def input_key(item: Mapping[str, Any]) -> str | None:
    """The entry that is the input; all others are fields beside it."""
    return next((key for key in INPUT_KEYS if key in item), None)


def fields_of(item: Mapping[str, Any]) -> tuple[tuple[str, ...], list[str]]:
    """Names of a dict's entries beside input and labels: those of numbers, and the rest."""
    taken = {input_key(item), *LABEL_KEYS}
    numbers, others = [], []
    for name in map(str, item):
        if name not in taken:
            try:
                number_array(item[name], name)
                numbers.append(name)
            except CovaryError:
                others.append(name)
    return tuple(numbers), others


def number_array(value: Any, where: str) -> np.ndarray:
    """Numbers of any shape, a single one too, as float32 or int64."""
    value = from_tensor(value, batched=False) if isinstance(value, torch.Tensor) else value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise CovaryError(f"{where} is a {type(value).__name__}", "numbers of one shape") from error
    kinds = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}
    if array.dtype.kind not in kinds:
        raise CovaryError(f"{where} is a {type(value).__name__}", "numbers")
    return array.astype(kinds[array.dtype.kind])


def raw_sample(value: Any, where: str, mode: str | None = None) -> np.ndarray:
    """An input as a raw sample: an image (in a mode, where one is given), a tensor, an array or a list of numbers."""
    if isinstance(value, Image.Image):
        return pixels(value, where, mode)
    if isinstance(value, torch.Tensor):
        value = from_tensor(value, batched=False)
    if isinstance(value, list) and value:
        value = number_array(value, where)
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        raise CovaryError(f"{where} is a {type(value).__name__}", "a tensor, a numpy array or a Pillow image")
    if value.dtype == np.uint8 and value.ndim not in (2, 3):
        raise CovaryError(f"{where} has shape {value.shape}, uint8", "an image, (H, W, C) or (H, W)")
    return canonical(value, where, batched=False)


def listed_labels(dataset: Any) -> Any:
    """Labels a dataset keeps as a list, without reading its items; None where it keeps none."""
    if isinstance(dataset, Subset):
        inner = listed_labels(dataset.dataset)
        return None if inner is None else np.asarray(inner)[list(dataset.indices)]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1].numpy() if len(dataset.tensors) > 1 else None
    # A target_transform changes what an item says, so the list is not what the network's classes are.
    if getattr(dataset, "target_transform", None) is None:
        for name in ("targets", "labels"):
            values = getattr(dataset, name, None)
            if isinstance(values, list | np.ndarray | torch.Tensor) and len(values) == len(dataset):
                return np.asarray(values)
    return None


def inside(loader: DataLoader[Any], where: str) -> Any:
    """What a DataLoader draws from, as items in their own order: no shuffling, nothing dropped at the end."""
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        raise CovaryError(f"{where} reads an IterableDataset", "a map-style Dataset", "pass list(dataset)")
    if not isinstance(loader.sampler, SequentialSampler | RandomSampler):
        dataset = Subset(dataset, [int(i) for i in loader.sampler])
    return dataset if loader.collate_fn is default_collate else Collated(dataset, loader.collate_fn)


def is_hugging_face(spec: object) -> bool:
    """Whether `spec` is a Dataset of Hugging Face's `datasets`, which need not be imported for that."""
    return hasattr(spec, "column_names") and hasattr(spec, "features")


def features_of(spec: Any) -> list[str] | None:
    """Names of the classes that a Hugging Face Dataset gives its label, if it does."""
    features = getattr(spec, "features", None) or {}
    label = next((features[name] for name in LABEL_KEYS if name in features), None)
    return getattr(label, "names", None)


def accepts(spec: object) -> bool:
    """Whether `spec` is a Dataset, a DataLoader, a list, columns, a function that returns one, or the name of these."""
    if isinstance(spec, Dataset | DataLoader | list | Mapping) or is_hugging_face(spec):
        return True
    return callable(spec) or is_object_name(spec)


def open_python(spec: Any) -> DatasetReader | ArrayReader:
    """A reader over a Dataset, or over what `package.module:name` is or returns: a Dataset or arrays."""
    where = f"a {type(spec).__name__}"
    if isinstance(spec, str):
        where, spec = spec, load_object(spec, "data")
    if callable(spec) and not isinstance(spec, Dataset | DataLoader):
        where = where if where != f"a {type(spec).__name__}" else f"{getattr(spec, '__name__', where)}()"
        try:
            spec = spec()
        except Exception as error:
            found = f"{where} failed with {type(error).__name__}: {error}"
            raise CovaryError(found, "a function without arguments that returns data", "mend that function") from error
    if arrays.accepts(spec):
        return arrays.open_arrays(spec)
    if isinstance(spec, DataLoader):
        spec = inside(spec, where)
    if isinstance(spec, Mapping) and all(map(is_hugging_face, spec.values())) and spec:
        found = f"{where} with the splits {', '.join(map(str, spec))}"
        raise CovaryError(found, "one of them", f"pass data[{next(iter(spec))!r}]")
    return DatasetReader(Columns(spec, where) if isinstance(spec, Mapping) else spec, where)
