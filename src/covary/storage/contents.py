"""What lies in a folder: its regular files, and whatever else somebody put there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from covary.errors import printable
from covary.storage.fingerprints import digest_file

KINDS = {
    stat.S_IFIFO: "is a named pipe",
    stat.S_IFSOCK: "is a socket",
    stat.S_IFBLK: "is a device",
    stat.S_IFCHR: "is a device",
    stat.S_IFLNK: "is a link",
}


def contents(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Regular files of a folder by their path inside it, sorted; and what else is there, by name, in words.

    Nothing is opened and no link is followed, so that neither a pipe nor a link can hold up or lead astray.
    """
    files: dict[str, Path] = {}
    strange: dict[str, str] = {}
    _look(folder, "", files, strange)
    return dict(sorted(files.items())), dict(sorted(strange.items()))


def _look(folder: Path, prefix: str, files: dict[str, Path], strange: dict[str, str]) -> None:
    entries = list(os.scandir(folder))
    if prefix and not entries:
        strange[prefix.rstrip("/")] = "is an empty folder"
    for entry in entries:
        name = prefix + printable(entry.name)
        mode = entry.stat(follow_symlinks=False).st_mode
        if name != prefix + entry.name:
            strange[name] = "has a name that is not UTF-8"
        elif stat.S_ISDIR(mode):
            _look(Path(entry.path), f"{name}/", files, strange)
        elif stat.S_ISREG(mode):
            files[name] = Path(entry.path)
        else:
            strange[name] = KINDS.get(stat.S_IFMT(mode), "is no file")


def irregular(path: Path) -> str | None:
    """What is wrong with a path, links followed, that ought to be a regular file, in words; None where it is one."""
    try:
        mode = path.stat().st_mode
    except OSError as problem:
        if path.is_symlink():
            return "is a link that leads nowhere"
        return f"cannot be read ({problem.strerror})"
    if stat.S_ISREG(mode):
        return None
    word = "is a folder" if stat.S_ISDIR(mode) else KINDS.get(stat.S_IFMT(mode), "is no file")
    return word.replace("is a", "is a link to a", 1) if path.is_symlink() else word


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of every regular file of a folder by its path inside it."""
    return {name: digest_file(path) for name, path in contents(folder)[0].items()}
