"""Every error sentence of the package, read from its source: what was found, what was expected, what to do."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent / "src" / "covary"
# Classes of errors, and how many arguments stand before the sentence. `missing_extra`, `unknown_name` and other helpers
# make them too: theirs is one sentence each, whatever it is filled in with.
ERRORS = {"CovaryError": 0, "NotTrusted": 0, "NotFitted": 0, "Refused": 1}


@dataclass(frozen=True)
class Sentence:
    """One error as it is written in the source; `…` stands for what is filled in.

    Attributes:
        where: module under `covary`.
        line: its line there.
        found, expected, remedy: its three parts, empty where it has none.
    """

    where: str
    line: int
    found: str
    expected: str
    remedy: str

    @property
    def what_to_do(self) -> str:
        """The remedy; where the sentence has none, what it expects."""
        return self.remedy.strip("…") or (f"give {self.expected}" if self.expected else "")


@functools.cache
def sentences() -> list[Sentence]:
    """All of them, by module and line."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        where = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for function in _scopes(tree):
            known = _assigned(function)
            for call in _calls(function):
                parts = [_text(value, known) for value in _arguments(call)]
                found.append(Sentence(where, call.lineno, *parts))
    # What holds no word of its own hands another's sentence on.
    found = [one for one in found if one.found.strip("… /") or one.expected]
    return sorted(set(found), key=lambda s: (s.where, s.line))


def _scopes(tree: ast.Module) -> Iterator[ast.AST]:
    """Each function with what lies directly in it, and the module."""
    yield tree
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _own(child)


def _calls(scope: ast.AST) -> Iterator[ast.Call]:
    for node in _own(scope):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            yield node


def _arguments(call: ast.Call) -> list[ast.expr | None]:
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    given = call.args[ERRORS[call.func.id] :] if isinstance(call.func, ast.Name) else []
    places = ("found", "expected", "remedy")
    return [given[i] if i < len(given) else named.get(name) for i, name in enumerate(places)]


def _assigned(scope: ast.AST) -> dict[str, list[str]]:
    """Texts that local names are given, for sentences put together a line above."""
    known: dict[str, list[str]] = {}
    for node in _own(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                for name, value in pairs:
                    if isinstance(name, ast.Name) and (text := _text(value, {})) not in ("", "…"):
                        known.setdefault(name.id, []).append(text)
    return known


def _text(value: ast.expr | None, known: dict[str, list[str]]) -> str:
    if value is None:
        return ""
    if isinstance(value, ast.Constant):
        return str(value.value or "")
    if isinstance(value, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "…" for part in value.values
        )
    if isinstance(value, ast.IfExp):
        return " / ".join(filter(None, dict.fromkeys((_text(value.body, known), _text(value.orelse, known)))))
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return _text(value.left, known) + _text(value.right, known)
    if isinstance(value, ast.Name):
        return " / ".join(dict.fromkeys(known.get(value.id, []))) or "…"
    return "…"


def table() -> str:
    """All sentences in Markdown, a table for each package."""
    lines: list[str] = []
    for package in sorted({one.where.split(".")[0] for one in sentences()}):
        lines += ["", f"### {package}", "", "| the error says | what to do |", "| --- | --- |"]
        of_package = [one for one in sentences() if one.where.split(".")[0] == package]
        rows = {(one.found, one.expected, one.what_to_do): None for one in of_package}
        for found, expected, what in sorted(rows):
            said = found + (f"; expected {expected}" if expected and what != f"give {expected}" else "")
            lines.append(f"| {cell(said)} | {cell(what[:1].upper() + what[1:])} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text as it stands in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
