"""Python objects by name: `package.module:attribute`."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covary.errors import CovaryError

PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


# Names that detectors and RUNs of covary 0.1 hold.
FORMER = {
    "covary.demo:network": "covary.runs.demo:network",
    "covary.preprocessing:reverse_channels": "covary.data.preprocessing:reverse_channels",
}
# covary's own, which a folder may name without being asked about: no others, since a name may lead anywhere from here.
OWN = {*FORMER, *FORMER.values()}


def is_object_name(text: object) -> bool:
    """Whether `text` reads like `package.module:attribute`."""
    return isinstance(text, str) and PATTERN.fullmatch(text) is not None


class NotTrusted(CovaryError):
    """A folder names code to run, and nobody has agreed to that."""


def check_consent(where: object, named: Mapping[str, object], trust_code: bool) -> None:
    """Refuses a folder that names code to run, unless whoever opens it has agreed to that.

    Args:
        where: the folder.
        named: what it names, by what that is for; whatever does not read like the name of an object is no code.
        trust_code: whether its code may run.

    Raises:
        NotTrusted: it names code other than covary's own, which is not imported.
    """
    foreign = [f"{name} as its {what}" for what, name in named.items() if is_object_name(name) and name not in OWN]
    if foreign and not trust_code:
        raise NotTrusted(
            f"{where} wants to run code: {', '.join(foreign)}",
            "your consent",
            "read that code, then pass trust_code=True, name the network yourself (model=), or "
            "check the folder's signature (public_key=)",
        )


def load_object(name: str, what: str) -> Any:
    """The object called `package.module:attribute`; the working directory is importable.

    Raises:
        CovaryError: the name is malformed, the module does not import, or it has no such attribute.
    """
    if not is_object_name(name):
        raise CovaryError(f"{what} {name!r} is not a Python name", "package.module:attribute")
    module_name, attribute = FORMER.get(name, name).split(":")
    here = str(Path.cwd())
    if name not in OWN and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if ".py:" in name:
            module, attribute = name.split(".py:")
            raise CovaryError(f"{what} {name!r} names a file", "a module", f"write {module}:{attribute}") from error
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            remedy = f"run covary in the folder that holds {module_name.split('.')[0]}, or install its package"
            raise CovaryError(f"no Python module {error.name!r} for {what} {name!r}", "", remedy) from error
        remedy = f"install {error.name} into the environment covary runs in"
        raise CovaryError(f"{module_name} imports {error.name!r}, which is not installed", "", remedy) from error
    except Exception as error:
        found = f"importing {module_name} failed with {type(error).__name__}: {error}"
        raise CovaryError(found, "a module that imports", f"python -c 'import {module_name}' shows where") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, [key for key in vars(found) if not key.startswith("_")], n=3)
            remedy = f"did you mean {', '.join(close)}?" if close else ""
            raise CovaryError(f"{module_name} has no {part!r}, given as {what}", "", remedy)
        found = getattr(found, part)
    return found
