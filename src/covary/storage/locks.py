"""One writer at a time, and temporary names that are covary's alone."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from covary.errors import CovaryError

OURS = re.compile(r"\.covary-[0-9a-f]{16}-[0-9a-f]{32}\.(?P<kind>part|old)")
# What a filesystem says that knows no locks; there, nothing of another writer's is ever swept away.
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_held: dict[Path, tuple[int, bool]] = {}
_guard = threading.Lock()


def _key(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]


def temporary(path: Path, kind: str = "part") -> Path:
    """A hidden name beside `path` that nobody else has; `kind` is `part` (being written) or `old` (to be replaced)."""
    return path.with_name(f".covary-{_key(path)}-{uuid.uuid4().hex}.{kind}")


def is_temporary(name: str) -> bool:
    """Whether a name is one of `temporary`."""
    return OURS.fullmatch(name) is not None


def leftovers(path: Path, kind: str) -> list[Path]:
    """What writers of `path` that were killed left beside it, the newest last."""
    found = path.parent.glob(f".covary-{_key(path)}-*.{kind}")
    return sorted((one for one in found if is_temporary(one.name)), key=lambda one: one.lstat().st_mtime_ns)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary name that takes the wanted one, on the disk, when the block ends well."""
    part = temporary(path)
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with atomic_file(path) as part:
        part.write_bytes(content)


@contextmanager
def one_writer(folder: Path) -> Iterator[bool]:
    """Holds the lock on writing to `folder`, which need not be there; whether the filesystem knows locks at all.

    The system gives a lock back when its process ends, however it ends. Within a thread the lock may be taken again.

    Raises:
        CovaryError: another process, or another thread, is writing there, or the place cannot be written to.
    """
    folder = Path(os.path.abspath(folder))
    with _guard:
        owner, real = _held.get(folder, (None, False))
    if owner == threading.get_ident():
        yield real
        return
    made = _make_parents(folder)
    file = folder.with_name(f".covary-{_key(folder)}.lock")
    try:
        descriptor = _open(file, folder)
    except BaseException:
        _remove_empty(made)
        raise
    with _guard:
        _held[folder] = threading.get_ident(), descriptor is not None
    try:
        yield descriptor is not None
    finally:
        with _guard:
            del _held[folder]
        # Removed while it is held: whoever waits for it finds another file, or none, and takes a new one.
        file.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)
        _remove_empty(made)


def _make_parents(folder: Path) -> list[Path]:
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise cannot_write(folder, problem) from problem
    return made


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _open(file: Path, folder: Path) -> int | None:
    """A descriptor that holds the lock; None where the filesystem has none to give."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as problem:
            raise cannot_write(folder, problem) from problem
        try:
            _lock(descriptor)
        except OSError as problem:
            if problem.errno in NO_LOCKS:
                os.close(descriptor)
                return None
            who = ""
            with suppress(OSError):
                who = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            by = f"process {who}" if who.isdigit() and int(who) != os.getpid() else "another writer"
            remedy = "wait until it has ended, or choose another out="
            raise CovaryError(f"{folder} is being written by {by}", "one writer at a time", remedy) from problem
        # The lock must be on the file that has the name now, not on one that its last holder has removed.
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(file)):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def cannot_write(folder: Path, problem: OSError) -> CovaryError:
    """The error for a place that cannot be written to."""
    reason = problem.strerror or str(problem)
    return CovaryError(f"{folder} cannot be written ({reason})", "", "free some space or choose another place")
