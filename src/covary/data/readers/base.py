"""What a reader is: ids, labels and raw samples of a data set, in the form they are stored in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from covary.errors import CovaryError


class LeftOut(NamedTuple):
    """What a data set holds and nobody will see: of which kind, and the names."""

    kind: str
    names: list[str]

    def __str__(self) -> str:
        """In words, as in "2 files that are no images (a.txt, b.csv)"; hidden ones are counted alone."""
        some = ", ".join(self.names[:3]) + (", ..." if len(self.names) > 3 else "")
        return f"{len(self.names):,} {self.kind}" + ("" if self.kind.startswith("hidden") else f" ({some})")


    def to_json(self) -> dict[str, Any]:
        """Kind, number and names; hidden ones by number alone."""
        names = [] if self.kind.startswith("hidden") else self.names
        return {"kind": self.kind, "n": len(self.names), "names": names}


class Reader(ABC):
    """Raw samples of one data set, read on demand.

    A raw sample is uint8 or uint16 (H, W, C) or (H, W): an image to be scaled to [0, 1]; float32 of any shape: taken
    as it is; or int64: token ids.

    Attributes:
        ids: unique names, one per sample.
        truth: 1 = anomalous, 0 = clean, int64 (n,), where the data say.
        class_names: names of the classes in the order of the labels, where the data say.
        left_out: what is there and not read.
        notes: what is read in a way that somebody may not expect, in sentences.
        columns: names of the numbers of a sample, where the data are a table and say.
        input_name: the input's own name, where samples have fields.
        fields: what a sample has beside its input, by name; a network gets those its forward takes.
        mode: `L` (grey) or `RGB` of images that are decoded; None of everything else.
        cheap: whether reading a sample again costs next to nothing (arrays: yes, decoding and user code: no).
    """

    ids: list[str]
    truth: np.ndarray | None = None
    class_names: list[str] | None = None
    left_out: Sequence[LeftOut] = ()
    notes: Sequence[str] = ()
    columns: list[str] | None = None
    input_name: str | None = None
    fields: tuple[str, ...] = ()
    mode: str | None = None
    cheap: bool = False

    @abstractmethod
    def labels(self, index: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"] | None:
        """Original classes of the samples at `index`, where the data say; known for free once these were read."""

    @abstractmethod
    def read(self, index: Int[np.ndarray, " n"]) -> list[np.ndarray] | np.ndarray:
        """Raw samples at `index`, in that order."""

    def read_with(
        self, index: Int[np.ndarray, " n"], names: Sequence[str]
    ) -> tuple[list[np.ndarray] | np.ndarray, dict[str, list[np.ndarray]]]:
        """Raw samples at `index` and, by name, the fields asked for."""
        if names:
            raise CovaryError(f"fields {', '.join(names)} of a {type(self).__name__}", "a data set that has them")
        return self.read(index), {}

    def set_mode(self, mode: str) -> None:
        """Images are read in this mode from now on; nothing else has one."""
        del mode

    @abstractmethod
    def content(self, i: int) -> bytes:
        """Bytes that tell sample i from any other: equal bytes, equal sample."""


def canonical(values: np.ndarray, where: str, *, batched: bool = True) -> np.ndarray:
    """Raw values as uint8, uint16, float32 or int64.

    uint16 with two dimensions or more a sample are pixels, with one dimension token ids; other integers are token ids.

    Raises:
        CovaryError: the dtype is none that a network takes (text, objects, booleans, complex numbers), or integers
            that can only be pixels and do not say of which range.
    """
    dimensions = values.ndim - batched
    if values.dtype == np.uint8 or (values.dtype == np.uint16 and dimensions >= 2):
        return values
    if np.issubdtype(values.dtype, np.floating):
        return values.astype(np.float32, copy=False)
    if np.issubdtype(values.dtype, np.integer):
        if dimensions >= 3:
            shape, kinds = values.shape[batched:], "uint8 (0 to 255), uint16 (0 to 65535), or floats as they are"
            raise CovaryError(f"{where} holds {values.dtype} of shape {shape} an input", kinds, "x.astype('uint8')")
        return values.astype(np.int64, copy=False)
    raise CovaryError(f"{where} holds {values.dtype} values", "uint8 images, floats or integer token ids")


def integers_taken(dtype: np.dtype, sample_shape: tuple[int, ...]) -> list[str]:
    """What a user may want to know of integers that could be meant as pixels."""
    if dtype.kind not in "iu" or dtype in (np.uint8, np.uint16) or len(sample_shape) != 2:
        return []
    return [f"{dtype} of shape {sample_shape} are taken as token ids; pixels are uint8, uint16 or floats."]


def from_tensor(values: torch.Tensor, *, batched: bool) -> np.ndarray:
    """A tensor as a raw array; images of integers, channels first by torch's custom, become channels last."""
    values = values.detach().cpu()
    if values.dtype == torch.bfloat16:
        values = values.float()
    shape = values.shape[1:] if batched else values.shape
    if (
        values.dtype in (torch.uint8, torch.uint16)
        and len(shape) == 3
        and shape[0] in (1, 3, 4)
        and shape[2] not in (1, 3, 4)
    ):
        values = values.movedim(-3, -1)
    return values.numpy()


def checked_labels(values: Any, n: int, where: str) -> np.ndarray:
    """Labels as int64 (n,).

    Raises:
        CovaryError: another length, more than one number a sample, or fractions.
    """
    labels = from_tensor(values, batched=True) if isinstance(values, torch.Tensor) else np.asarray(values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        remedy = "for one-hot rows pass y.argmax(1)" if labels.ndim == 2 else ""
        raise CovaryError(f"y of {where} has shape {labels.shape}", f"one integer a sample, shape ({n},)", remedy)
    if len(labels) != n:
        raise CovaryError(f"{where} holds {n} inputs and {len(labels)} labels", "as many labels as inputs")
    if labels.dtype.kind not in "biuf" or not np.all(np.isfinite(labels)) or not np.all(labels == np.floor(labels)):
        raise CovaryError(f"y of {where} holds {labels.dtype} values that are no class numbers", "integers from 0")
    return labels.astype(np.int64)


def checked_truth(values: Any, n: int, where: str) -> np.ndarray:
    """Truth as int64 (n,) of 0 (clean) and 1 (anomalous).

    Raises:
        CovaryError: another length, or anything but 0 and 1.
    """
    truth = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)
    if truth.shape != (n,):
        raise CovaryError(f"truth of {where} has shape {truth.shape} for {n} inputs", f"shape ({n},)")
    if truth.dtype.kind not in "biuf" or not np.all((truth == 0) | (truth == 1)):
        odd = next((v for v in truth.tolist() if v not in (0, 1)), truth.dtype)
        raise CovaryError(f"truth of {where} holds {odd!r}", "0 (clean) or 1 (anomalous) for every input")
    return truth.astype(np.int64)


# As long as a path may be.
LONGEST_ID = 4096


def checked_id(name: str, where: str) -> str:
    """The name of one input.

    Raises:
        CovaryError: it is longer than any path, or cannot be written as UTF-8.
    """
    if len(name) > LONGEST_ID:
        raise CovaryError(f"an id of {where} has {len(name):,} characters", f"at most {LONGEST_ID:,}", "shorten it")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise CovaryError(f"id {name!a} of {where} cannot be written as UTF-8", "text", "name it otherwise") from None
    return name


def checked_ids(values: Any, n: int, where: str) -> list[str]:
    """Ids as unique strings; "0", "1", ... where `values` is None.

    Raises:
        CovaryError: another length, an id that occurs twice, or one that `checked_id` refuses.
    """
    if values is None:
        return [str(i) for i in range(n)]
    ids = [checked_id(str(v), where) for v in np.asarray(values).tolist()]
    if len(ids) != n:
        raise CovaryError(f"{where} holds {n} inputs and {len(ids)} ids", "as many ids as inputs")
    if len(set(ids)) != n:
        seen: set[str] = set()
        twice = next(name for name in ids if name in seen or seen.add(name))
        raise CovaryError(f"id {twice!r} occurs more than once in {where}", "a unique id for every input")
    return ids
