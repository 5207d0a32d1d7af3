"""A folder of images: flat, or one folder a class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from covary.data.readers.base import LeftOut
from covary.data.readers.images import ImageReader, is_image_file, name_below
from covary.errors import CovaryError, printable

# What systems put beside files without being asked, besides names that begin with a dot.
HIDDEN = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")


class Tree(NamedTuple):
    """Files below a folder, sorted: images, hidden ones (a hidden folder counts once), and all others."""

    images: list[Path]
    hidden: list[Path]
    others: list[Path]


class FolderReader(ImageReader):
    """Images below a folder; ids are paths relative to it, classes its subfolders in sorted order.

    Hidden files and folders are skipped at every depth and told in `left_out`, as is whatever Pillow cannot read.

    Raises:
        CovaryError: no images, images both at the top and in class folders, a file Pillow cannot read, 32-bit images.
    """

    def __init__(self, root: Path) -> None:
        tree = tree_below(root)
        top = [path for path in tree.images if path.parent == root]
        if top and len(top) < len(tree.images):
            inside = next(path for path in tree.images if path.parent != root).relative_to(root).parts[0]
            raise CovaryError(
                f"{root} holds images ({top[0].name}, ...) as well as folders of images ({inside}/, ...)",
                "one of the two",
                "move the loose images away",
            )
        if not tree.images:
            others = f" (it holds {name_below(tree.others[0], root)}, ...)" if tree.others else ""
            raise CovaryError(f"no images in {root}{others}", "files that Pillow reads, such as .png, .jpg or .tif")
        super().__init__(tree.images, [name_below(path, root) for path in tree.images], left_out(tree, root))
        if not top:
            folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry.name))
            number = {name: i for i, name in enumerate(folders)}
            self.class_names = [printable(name) for name in folders]
            self.y = np.asarray([number[path.relative_to(root).parts[0]] for path in self.paths])


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is one that people do not mean to name."""
    return name.startswith(".") or name in HIDDEN


def tree_below(root: Path) -> Tree:
    """What lies below a folder; links are followed unless they lead back."""
    tree = Tree([], [], [])

    def walk(folder: Path, above: tuple[str, ...]) -> None:
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if is_hidden(entry.name):
                tree.hidden.append(entry)
            elif is_image_file(entry):
                tree.images.append(entry)
            elif entry.is_dir() and (real := os.path.realpath(entry)) not in above:
                walk(entry, (*above, real))
            else:
                tree.others.append(entry)

    walk(root, (os.path.realpath(root),))
    return tree


def left_out(tree: Tree, root: Path) -> list[LeftOut]:
    """What a folder holds and no image is made of."""
    found = []
    if tree.others:
        found.append(LeftOut("files that are no images", [name_below(path, root) for path in tree.others]))
    if tree.hidden:
        found.append(LeftOut("hidden files and folders", [name_below(path, root) for path in tree.hidden]))
    return found


def accepts(spec: object) -> bool:
    """Whether `spec` is the path of a folder."""
    return isinstance(spec, str | Path) and Path(spec).is_dir()


def open_folder(spec: Any) -> FolderReader:
    """A reader over a folder of images or of class folders."""
    return FolderReader(Path(spec))
