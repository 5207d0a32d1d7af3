"""The documentation: every command and snippet runs, every command is told of, the site builds and asks nobody."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from covary.cli import main as cli
from snippets import Reader, Snippet, commands, run_keys, snippets

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULE = """
import torch
from tiny import Digits, network, trained
factory, dataset = network, Digits

def function(x):
    return x
"""


@pytest.fixture(scope="session")
def world(tiny_files, saved_folder, tmp_path_factory) -> Path:
    """What a reader has: a network, data under the names that pages use, a fitted detector; not to be changed."""
    home = tmp_path_factory.mktemp("world")
    (home / "package").mkdir()
    for name in ("package/module.py", "nets.py"):
        (home / name).write_text(MODULE)
    for name in ("weights.safetensors", "weights.pt", "trusted.npz"):
        shutil.copy(tiny_files / name, home / name)
    for name in ("inputs.npz", "new.npz", "today.npz"):
        shutil.copy(tiny_files / "inputs.npz", home / name)
    x, y = tiny.trusted()
    for folder, images, classes in (("trusted", x, y), ("new", tiny.inputs()[0], tiny.inputs()[1])):
        for i, (image, label) in enumerate(zip(images, classes, strict=True)):
            place = home / folder / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i}.png")
    shutil.copytree(saved_folder, home / "detectors" / "first")
    return home


@pytest.fixture
def reader(world, tmp_path, monkeypatch):
    """A reader at the start of a page, with the names that pages may use without saying where they come from."""
    home = shutil.copytree(world, tmp_path / "reader")
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", [*sys.path, str(home)])
    # For what a page starts in a process of its own; `tiny` is where the fitted detector's network comes from.
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(home), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    )
    before = set(sys.modules)
    x, y = tiny.trusted()
    names = {"network": tiny.trained(), "trusted_images": x, "trusted_labels": y, "new_images": tiny.inputs()[0]}
    reader = Reader(names)
    yield reader
    reader.end()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(home)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_snippet_runs(page, reader):
    for snippet in snippets(page.read_text(encoding="utf-8")):
        reader.follow(snippet)


def test_the_python_page_has_an_example_of_every_public_name():
    import covary

    code = "\n".join(snippet.code for snippet in snippets((ROOT / "docs" / "api.md").read_text("utf-8")))
    names = set(re.findall(r"\w+", code))
    assert set(covary.__all__) - {"__version__"} <= names
    assert {"scores", "profile", "cards"} <= names


def test_the_tutorial_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    names: dict[str, object] = {}
    for cell in json.loads((ROOT / "docs" / "tutorial.ipynb").read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # they are made when the site is
            exec("".join(cell["source"]), names)
    said = capsys.readouterr().out
    clean, odd = map(float, re.findall(r"ones: ([\d.]+)", said))
    assert clean < 0.2 < 0.9 <= odd
    assert (tmp_path / "runs" / "tutorial" / "report.html").is_file()


def test_outputs_of_a_notebook_are_shown_as_what_they_are():
    spec = importlib.util.spec_from_file_location("mkdocs_notebooks", ROOT / "mkdocs_notebooks.py")
    notebooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebooks)
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["a ``` b\n"]},
        {"output_type": "stream", "name": "stderr", "text": "noise"},
        {"output_type": "execute_result", "data": {"text/html": "<div>\n\n</div>", "text/plain": "plain"}},
        {"output_type": "display_data", "data": {"image/png": "QUJD\n", "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/plain": ["5"]}},
    ]
    cell = {"cell_type": "code", "source": ["x"], "outputs": outputs}
    text = notebooks.page({"cells": [{"cell_type": "markdown", "source": "# Title"}, cell]})
    assert text == (
        "# Title\n\n```python\nx\n```\n\n````text\na ``` b\n````\n\n<div>\n</div>\n\n"
        '<img alt="&lt;Figure&gt;" src="data:image/png;base64,QUJD">\n\n```text\n5\n```\n'
    )


def test_a_notebook_whose_sources_stand_as_lines_is_run():
    spec = importlib.util.spec_from_file_location("mkdocs_notebooks", ROOT / "mkdocs_notebooks.py")
    notebooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebooks)
    cell = {"cell_type": "code", "id": "a", "source": ["x = 2\n", "print(x + 1)"], "outputs": [], "metadata": {},
            "execution_count": None}  # fmt: skip
    made = notebooks.executed({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    assert "```text\n3\n```" in notebooks.page(made)


def test_few_blocks_are_not_run():
    found = [snippet for page in PAGES for snippet in snippets(page.read_text(encoding="utf-8"))]
    assert len(found) > 15
    assert sum(snippet.skipped is not None for snippet in found) <= 10


# The runner ----------------------------------------------------------------------------------------------------------


def test_blocks_are_found_with_what_is_said_of_them():
    text = '\n'.join([
        '<!-- exit: 1 -->', '```sh', 'covary x', '```', '', '<!-- not run: no browser here -->', '', '```python', '1/0',
        '```', '- item', '', '  ```python title="a.py"', '  if 1:', '      pass', '  ```', '````', '```', '````',
    ])  # fmt: skip
    found = snippets(text)
    assert [(s.line, s.language, s.title, s.skipped, s.exit) for s in found] == [
        (2, "sh", None, None, 1), (8, "python", None, "no browser here", 0), (13, "python", "a.py", None, 0),
        (17, "", None, None, 0),
    ]  # fmt: skip
    assert found[2].code == "if 1:\n    pass\n"


def test_shell_lines():
    assert commands("# first\ncovary a \\\n   b\n\n$ covary c  # why\n") == ["covary a b", "covary c  # why"]
    assert run_keys({"jobs": [{"run": "a"}, {"steps": {"run": "b", "x": 1}}]}) == ["a", "b"]


@pytest.mark.parametrize(
    "line",
    ["covary nonsense", "covary scan --no-such-option", "make nothing", "pip install 'covary[nothing]'", "false",
     "python -m covary.nothing", "covary scan … --nothing", "covary nothing …"],
)  # fmt: skip
def test_what_does_not_work_is_noticed(line, reader):
    with pytest.raises(AssertionError, match="ended with"):
        reader.follow(Snippet(1, "sh", None, f"covary --version\n{line}", None, 0))
    with pytest.raises(AssertionError, match="ended with 0, not 1"):
        reader.follow(Snippet(1, "sh", None, "covary --version", None, 1))


def test_what_is_left_out_is_not_asked_for(reader):
    reader.follow(Snippet(1, "sh", None, "covary scan … --fpr 0.1 --fdr=0.1\ncovary receipts merge … --out b", None, 0))


def test_python_that_does_not_work_is_noticed_and_names_are_kept(reader):
    reader.follow(Snippet(1, "python", None, "a = 1", None, 0))
    reader.follow(Snippet(1, "python", None, "assert a == 1", None, 0))
    with pytest.raises(ZeroDivisionError):
        reader.follow(Snippet(1, "python", None, "a / 0", None, 0))
    with pytest.raises(AssertionError, match="say why"):
        reader.follow(Snippet(1, "python", None, "a / 0", "", 0))


# The site ------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page would fetch, and its headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        message = dict(attrs)
        self.ids.add(message.get("id") or "")
        if tag in ("script", "img", "iframe", "source", "video"):
            self.fetched.append(message.get("src") or "")
        if tag == "link" and message.get("rel") in ("stylesheet", "preconnect", "preload", "icon"):
            self.fetched.append(message.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as in continuous integration."""
    out = tmp_path_factory.mktemp("site")
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    # The notebook's cells run in a test of their own; `make docs` executes it.
    done = subprocess.run(mkdocs, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COVARY_EXECUTE": "0"})
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_site_holds_every_page_and_fetches_nothing_from_elsewhere(site):
    pages = {path.relative_to(site).as_posix(): Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    expected = {
        path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")
    }
    assert expected | {"commands.html", "python.html"} <= set(pages)
    fetched = [address for page in pages.values() for address in page.fetched]
    assert not [address for address in fetched if re.match(r"(https?:)?//", address)]
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text("utf-8"))


def test_the_reference_has_every_command_and_every_public_name(site):
    import covary

    ids = Page((site / "commands.html").read_text("utf-8")).ids
    for command in cli.app.registered_commands:
        assert f"covary-{command.name or command.callback.__name__}" in ids
    assert "covary-receipts-merge" in ids
    ids = Page((site / "python.html").read_text("utf-8")).ids
    assert {name.lower() for name in covary.__all__} - {"__version__"} <= ids


def test_no_image_is_missing(site):
    text = (site / "results.html").read_text("utf-8")
    for address in filter(None, Page(text).fetched):
        assert (site / address.partition("?")[0]).is_file(), address
    assert np.any([address.endswith(".svg") for address in Page(text).fetched])
