"""Troubleshooting holds every error sentence of the package, and each says what to do."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny
from covary.data.source import open_data
from covary.detector import Detector
from covary.errors import CovaryError, missing_extra, unknown_name

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import error_sentences as errors  # noqa: E402  # pyright: ignore[reportMissingImports]

sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def page() -> str:
    """The page as the site shows it."""
    return errors.table()


def test_every_sentence_is_on_the_page_with_something_to_do(page):
    found = errors.sentences()
    assert len(found) > 300
    rows = {line.split(" | ")[0].removeprefix("| ") for line in page.split("\n")}
    for one in found:
        said = one.found + (
            f"; expected {one.expected}" if one.expected and one.what_to_do != f"give {one.expected}" else ""
        )
        assert errors.cell(said) in rows, one
        assert one.what_to_do.strip("… "), one


def test_every_class_of_errors_and_every_place_is_read():
    """What is counted another way: names that end a call, by text, against the reader's tree."""
    known = set(errors.ERRORS)
    for path in errors.SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and {getattr(base, "id", "") for base in node.bases} & known:
                assert node.name in known, f"{node.name} of {path} is an error that nobody reads"
    calls = 0
    for path in errors.SOURCE.rglob("*.py"):
        text = re.sub(r'"""(.|\n)*?"""', "", path.read_text("utf-8"))
        calls += len(re.findall(rf"(?<![\w.])(?<!class )(?:{'|'.join(known)})\((?=[^)])", text))
    handed_on = 8
    assert calls - handed_on <= len(errors.sentences()) <= calls


def pattern(text: str) -> str:
    return ".*".join(re.escape(part) for part in text.split("…"))


def fail(case: str, fitted: Detector) -> None:
    if case == "nothing there":
        open_data("no/such/file.npz")
    elif case == "shape":
        fitted.score(np.zeros((2, 5, 5), np.uint8))
    elif case == "ids":
        open_data(np.zeros((2, 3), np.float32)).renamed(["a"])
    elif case == "setting":
        Detector(tiny.trained(), no_such=1)
    elif case == "name":
        raise unknown_name("score", "x", ["y"])
    else:
        raise missing_extra("pandas", "pandas")


@pytest.mark.parametrize("case", ["nothing there", "shape", "name", "extra", "ids", "setting"])
def test_what_is_raised_is_one_of_them(case, fitted):
    with pytest.raises(CovaryError) as caught:
        fail(case, fitted)
    message = caught.value.found
    patterns = {part for one in errors.sentences() for part in one.found.split(" / ") if part.strip("… ")}
    assert any(re.fullmatch(pattern(part), message, re.S) for part in patterns), message


def test_the_library_names_arguments_of_python_and_leaves_options_to_the_command_line():
    """Text that is no docstring, outside the commands and the findings of `covary check`, which are words of theirs."""
    option = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
    allowed = re.compile(r"--[a-z-]+/--[a-z-]+|.*ray start --head")
    found = []
    for path in errors.SOURCE.rglob("*.py"):
        if {"cli", "check"} & set(path.relative_to(errors.SOURCE).parts):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) and id(node) not in prose else None
            if isinstance(text, str) and option.search(text) and not allowed.fullmatch(text):
                found.append((path.name, node.lineno, text))
    assert found == []
