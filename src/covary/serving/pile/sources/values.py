"""From what a file holds to raw samples: encoded images, nested numbers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from jaxtyping import Shaped

from covary.data.readers import images
from covary.data.readers.python import raw_sample
from covary.errors import CovaryError


def decoded(data: bytes, where: str, mode: str) -> Shaped[np.ndarray, "..."]:
    """An encoded image, uint8 or uint16: (H, W, 3) for mode `RGB`, (H, W) for mode `L`.

    The mode is the network's: a stream cannot look at all its images first to see whether one of them has colour.

    Raises:
        CovaryError: Pillow cannot read it, it has 32 bits a channel, or colours where the network takes grey.
    """
    return images.decoded(io.BytesIO(data), where, mode)


def numbers(value: Any, where: str, dtype: str | None = None) -> Shaped[np.ndarray, "..."]:
    """Nested lists of numbers as a raw sample; `dtype` as named, else integers are token ids and floats floats."""
    try:
        array = np.asarray(value, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise CovaryError(f"{where} holds no array of numbers ({error})", "nested lists of one shape") from error
    return raw_sample(array, where)
