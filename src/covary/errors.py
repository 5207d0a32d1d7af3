"""Errors that a person can act on: what was found, what was expected, what to do."""

from __future__ import annotations


class CovaryError(Exception):
    """Bad input or a broken file, told in one sentence; the command line turns it into exit code 2.

    >>> CovaryError("the trusted set is empty", "at least 20 inputs", "pass trusted= with more inputs").args[0]
    'the trusted set is empty; expected at least 20 inputs; pass trusted= with more inputs'
    """

    def __init__(self, found: str, expected: str = "", remedy: str = "") -> None:
        found, expected, remedy = printable(found), printable(expected), printable(remedy)
        self.found, self.expected, self.remedy = found, expected, remedy
        parts = [found, f"expected {expected}" if expected else "", remedy]
        super().__init__("; ".join(part for part in parts if part))


def printable(text: str) -> str:
    r"""Text that any file and terminal takes: bytes of a file name that are no UTF-8 as escapes.

    >>> printable("caf\udce9.png")
    'caf\\xe9.png'
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def missing_extra(package: str, extra: str) -> CovaryError:
    """The error for an optional dependency that is not installed."""
    return CovaryError(f"{package} is not installed", f"the extra `{extra}`", f"run: pip install 'covary[{extra}]'")


def unknown_name(kind: str, name: str, table: object) -> CovaryError:
    """The error for a name that is not in a literal table; lists the valid ones."""
    valid = ", ".join(str(key) for key in table)  # type: ignore[attr-defined]
    return CovaryError(f"unknown {kind} {name!r}", f"one of: {valid}")
