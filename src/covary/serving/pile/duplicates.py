"""Does any id occur twice in a pile: exact, and with memory that does not grow with the pile."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import UInt64

# So many hashes are sorted at a time: 128 MB.
AT_ONCE = 1 << 24


def hashes(ids: Sequence[str]) -> UInt64[np.ndarray, " n"]:
    """64 bits of BLAKE2 of each id."""
    found = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(b"".join(found), np.uint64)


class Repeated:
    """Hashes that were added more than once, kept in a temporary file (8 bytes an id) until they are asked for."""

    def __init__(self) -> None:
        self.file, self.n = tempfile.TemporaryFile(prefix="covary-"), 0  # noqa: SIM115

    def __enter__(self) -> Repeated:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, some: UInt64[np.ndarray, " n"]) -> None:
        """Adds the hashes of some ids."""
        self.file.write(some.tobytes())
        self.n += len(some)

    def found(self) -> set[int]:
        """Those that occur twice; each remainder of a division is looked at by itself, so that it fits in memory."""
        twice: set[int] = set()
        shares = -(-self.n // AT_ONCE)
        for share in range(shares):
            own = np.sort(np.concatenate([piece[piece % np.uint64(shares) == share] for piece in self._pieces()]))
            twice.update(own[1:][own[1:] == own[:-1]].tolist())
        return twice

    def _pieces(self) -> Iterator[np.ndarray]:
        self.file.seek(0)
        while content := self.file.read(8 * AT_ONCE):
            yield np.frombuffer(content, np.uint64)


def first_repeated(parts: Iterable[tuple[str, Sequence[str]]], suspects: set[int]) -> tuple[str, str, str] | None:
    """An id that is in two places, with both of them; None where equal hashes were of different ids.

    Args:
        parts: (name of a partition, its ids) of all partitions.
        suspects: hashes that occur twice.
    """
    seen: dict[str, str] = {}
    for place, ids in parts:
        for i in np.flatnonzero(np.isin(hashes(ids), list(suspects))).tolist():
            if ids[i] in seen:
                return ids[i], seen[ids[i]], place
            seen[ids[i]] = place
    return None
