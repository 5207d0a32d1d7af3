"""Names of classes from a file: one a line, a JSON list, or a JSON object from class number to name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from covary.errors import CovaryError


def read_class_names(path: str | Path) -> list[str]:
    """Names in the order of the network's outputs.

    Raises:
        CovaryError: no such file, or something else in it.
    """
    path, expected = Path(path), "one name a line, or JSON: a list, or an object from class number to name"
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CovaryError(f"class names {path} cannot be read ({error})", expected) from error
    if path.suffix.lower() != ".json":
        names = [line.strip() for line in text.splitlines()]
        while names and not names[-1]:
            names.pop()
        return _checked(names, path)
    try:
        held = json.loads(text)
    except ValueError as error:
        raise CovaryError(f"class names {path} are no JSON ({error})", expected) from error
    if isinstance(held, dict):
        if sorted(held, key=_number) != [str(i) for i in range(len(held))]:
            raise CovaryError(f"class names {path} have the keys {', '.join(list(held)[:4])}, ...", "0, 1, 2, ...")
        held = [held[str(i)] for i in range(len(held))]
    if not isinstance(held, list):
        raise CovaryError(f"class names {path} hold a {type(held).__name__}", expected)
    # ImageNet's usual file has [WordNet id, name].
    return _checked([name[-1] if isinstance(name, list) and name else name for name in held], path)


def _checked(names: list[Any], where: Path) -> list[str]:
    if not names or not all(isinstance(name, str | int) and str(name) for name in names):
        raise CovaryError(f"class names {where} hold an empty or nameless class", "a name for every class")
    return [str(name) for name in names]


def _number(text: str) -> int:
    return int(text) if text.isdigit() else -1
