"""`-v` and `--quiet`, on every command: how much is told while it works."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

from typer import Option, Typer

QUIET, NORMAL, VERBOSE = -1, 0, 1
_level = NORMAL

Verbose = Annotated[
    bool, Option("-v", "--verbose", help="Tell each step, and where covary itself failed if it did.")
]
Quiet = Annotated[bool, Option("--quiet", help="Tell nothing while it works; results and errors alone.")]


def level() -> int:
    """What the command line asked for: QUIET, NORMAL or VERBOSE."""
    return _level


def set_level(value: int) -> None:
    """Sets it, as the options do."""
    global _level
    _level = value


def _with_level(command: Callable[..., Any]) -> Callable[..., Any]:
    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints.get(name, parameter.annotation), kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
    ]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("verbose", Verbose), ("quiet", Quiet))
    ]

    @functools.wraps(command)
    def with_level(*, verbose: bool, quiet: bool, **values: Any) -> Any:
        set_level(VERBOSE if verbose else QUIET if quiet else NORMAL)
        return command(**values)

    vars(with_level)["__signature__"] = inspect.Signature([*own, *more])
    with_level.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *more)}
    return with_level


class App(Typer):
    """A Typer whose commands all know `-v` and `--quiet`."""

    def command(self, *arguments: Any, **options: Any) -> Any:
        """As Typer's."""
        register = super().command(*arguments, **options)

        def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
            register(_with_level(command))
            return command

        return decorate
