"""Folders and files by path or by any URL that fsspec knows; a file appears whole or not at all."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from covary.errors import CovaryError
from covary.storage.contents import irregular
from covary.storage.locks import is_temporary, temporary, write_file

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
# What a filesystem may raise where nothing is wrong with covary: missing packages, keys, hosts, files.
TROUBLE = (OSError, ImportError, ValueError, RuntimeError, KeyError, zipfile.BadZipFile)


def filesystem(where: str | Path) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a path or URL, and the path within it.

    Raises:
        CovaryError: a protocol nobody knows, or one whose package is not installed.
    """
    try:
        fs, path = url_to_fs(str(where))
    except TROUBLE as problem:
        raise CovaryError(f"{where} cannot be opened ({problem})", "a path, or a URL that fsspec knows") from problem
    return fs, path


def files_at(where: str) -> list[tuple[str, int]]:
    """Paths and sizes of the files that a folder, a file, a glob or a numbered range `{000..099}` names, sorted.

    Raises:
        CovaryError: nothing there, or it cannot be listed.
    """
    if found := BRACES.search(where):
        first, last = found.groups()
        numbers = range(int(first), int(last) + 1)
        names = [f"{where[: found.start()]}{i:0{len(first)}}{where[found.end() :]}" for i in numbers]
        return [file for name in names for file in files_at(name)]
    fs, path = filesystem(where)
    try:
        fs.invalidate_cache()
        if any(mark in path for mark in "*?[") and not fs.exists(path):
            listed: Any = {str(name): fs.info(name) for name in fs.glob(path)}
        else:
            # A chained URL such as zip://::pile.zip has an empty path: all of it.
            listed = {path: fs.info(path)} if path and fs.isfile(path) else fs.find(path, detail=True)
    except TROUBLE as problem:
        raise CovaryError(f"{where} cannot be listed ({problem})", "a readable path or URL") from problem
    local = isinstance(fs, LocalFileSystem)
    files = [(name, _size(name, info, local)) for name, info in listed.items() if info["type"] != "directory"]
    if not files:
        raise CovaryError(f"nothing at {where}", "files to judge", "check the path")
    return sorted(files, key=lambda file: file[0].split("/"))


def _size(name: str, info: dict[str, Any], local: bool) -> int:
    """The size of a file; a link to one is followed.

    Raises:
        CovaryError: a pipe, a device, a link to one or to a folder: leaving it out would be a verdict nobody gave.
    """
    if info["type"] == "file" and not info.get("islink"):
        return int(info.get("size") or 0)
    wrong = irregular(Path(name)) if local else "is no file"
    if wrong is not None:
        raise CovaryError(f"{name} {wrong}", "files to judge", "remove it, or name the files by a glob")
    return Path(name).stat().st_size


class OutputStore:
    """A folder to write to."""

    def __init__(self, where: str | Path) -> None:
        self.where = str(where)
        self.fs, self.root = filesystem(where)
        self.local = isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """The path of a file in the folder."""
        return f"{self.root.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """Names of what is in the folder, sorted; none where there is no folder.

        Raises:
            CovaryError: the place is a file.
        """
        self.fs.invalidate_cache()
        if self.fs.isfile(self.root):
            raise CovaryError(f"{self.where} is a file", "a folder, or a place for one", "choose another")
        if not self.fs.exists(self.root):
            return []
        listed = self.fs.ls(self.root, detail=False)
        return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in listed)

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return bool(self.fs.exists(self.path(name)))

    def open(self, name: str) -> Any:
        """A file, for reading bytes."""
        return self.fs.open(self.path(name), "rb")

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        with self.open(name) as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Writes a file under a name of its own and renames it once it is whole; whoever comes later wins.

        Raises:
            CovaryError: the place cannot be written to.
        """
        part = self.path(temporary(Path(name)).name)
        try:
            self.fs.makedirs(self.root, exist_ok=True)
            if self.local:
                write_file(Path(self.path(name)), data)
            else:
                self.fs.pipe_file(part, data)
                self.fs.mv(part, self.path(name))
        except TROUBLE as problem:
            reason = getattr(problem, "strerror", None) or str(problem)
            raise CovaryError(
                f"{self.where} cannot be written ({reason})", "", "free some space or choose another place"
            ) from problem

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        if self.exists(name):
            self.fs.rm_file(self.path(name))

    def sweep(self) -> None:
        """Removes what killed writers left behind, by names that are covary's alone."""
        for name in self.names():
            if is_temporary(name):
                self.remove(name)
