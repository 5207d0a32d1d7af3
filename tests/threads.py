"""One thread a test process: tests run side by side, and sums of another order would make other networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What a test did to the number of threads ends with it."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
