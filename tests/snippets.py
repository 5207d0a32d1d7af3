"""Runs the fenced blocks of a Markdown page, in order, in a folder of their own, as a reader would.

- `python`: executed; the blocks of a page share their names. With `title="FILE"` it is written to that file instead.
- `sh`: line by line. `covary ...` runs in this process; a line ending in `&` in the background, until its port answers;
  `make TARGET`, `pip install ...` and `python -m covary...` are looked up, not run; of a line with `…` in place of
  something the options are; the rest goes to the shell.
- `yaml`: parsed, and what stands behind a `run:` key is treated as `sh`.
- Other languages are text.

A comment in front of a block says more: `<!-- not run: REASON -->`, or `<!-- exit: 1 -->` for its last command.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from typer.main import get_command

from covary.cli import main as cli

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`\n]*)\n(?P<code>.*?)^(?P=indent)(?P=ticks) *$", re.M | re.S
)
MARK = re.compile(r"<!-- (?P<name>not run|exit): *(?P<value>.*?) -->\s*\Z")
PATIENCE = 120.0


@dataclass(frozen=True)
class Snippet:
    """A fenced block: where it begins, its language, its title, its text, and what a comment says of it."""

    line: int
    language: str
    title: str | None
    code: str
    skipped: str | None
    exit: int


def snippets(text: str) -> list[Snippet]:
    """The fenced blocks of a page, in order."""
    found = []
    for block in FENCE.finditer(text):
        mark = MARK.search(text[: block.start()])
        said = {mark["name"]: mark["value"]} if mark else {}
        info = block["info"].strip()
        title = re.search(r'title="([^"]+)"', info)
        indent = len(block["indent"])
        code = "\n".join(line[indent:] for line in block["code"].split("\n"))
        language = info.split(" ")[0].strip("{}.") if info else ""
        line = text.count("\n", 0, block.start()) + 1
        found.append(Snippet(line, language, title and title[1], code, said.get("not run"), int(said.get("exit", 0))))
    return found


def commands(code: str) -> list[str]:
    """The lines of a shell block without comments, continued ones joined."""
    lines = re.sub(r"\s*\\\n\s*", " ", code).split("\n")
    return [line.strip().removeprefix("$ ") for line in lines if line.strip() and not line.strip().startswith("#")]


class Reader:
    """Follows a page: one folder, one set of Python names, and what is left running until the page ends."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names, self.running = {"__name__": "__main__", **names}, []

    def follow(self, snippet: Snippet) -> None:
        """Does what a block says; AssertionError where it does not end as it should."""
        if snippet.skipped is not None:
            assert snippet.skipped, f"line {snippet.line}: say why it is not run"
        elif snippet.title and snippet.language in ("python", "toml", "json", "txt"):
            Path(snippet.title).write_text(snippet.code, encoding="utf-8")
        elif snippet.language in ("python", "py"):
            # So that a traceback shows the line of the page.
            padded = "\n" * snippet.line + snippet.code
            exec(compile(padded, "page.md", "exec"), self.names)
        elif snippet.language in ("sh", "bash", "shell", "console"):
            self.shell(snippet)
        elif snippet.language in ("yaml", "yml"):
            for line in run_keys(yaml.safe_load(snippet.code)):
                self.shell(Snippet(snippet.line, "sh", None, line, None, 0))

    def shell(self, snippet: Snippet) -> None:
        """Line by line; all but the last have to end with 0."""
        lines = commands(snippet.code)
        for i, line in enumerate(lines):
            code, said = self.command(line)
            expected = snippet.exit if i == len(lines) - 1 else 0
            assert code == expected, f"line {snippet.line}: `{line}` ended with {code}, not {expected}:\n{said}"

    def command(self, line: str) -> tuple[int, str]:
        """Exit code and output of one line."""
        words = shlex.split(line, comments=True)
        if not words:
            return 0, ""
        if words[0] == "covary" and "…" in words:
            return unknown_options(words[1:])
        if words[0] == "covary" and words[-1] == "&":
            return self.background(words[1:-1])
        if words[0] == "covary" and not set(words) & {"|", ">", ">>", "&&", "||"}:
            return covary(words[1:])
        if words[0] == "make":
            targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
            missing = [word for word in words[1:] if word not in targets and "=" not in word]
            return len(missing), f"no target {missing}"
        if words[:2] == ["pip", "install"] or words[:4] == ["python", "-m", "pip", "install"]:
            return missing_extras(words)
        if words[:2] == ["python", "-m"] and words[2].startswith("covary."):
            return int(importlib.util.find_spec(words[2]) is None), f"no module {words[2]}"
        here = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=here, timeout=PATIENCE)
        return done.returncode, done.stdout + done.stderr

    def background(self, words: list[str]) -> tuple[int, str]:
        """Starts a command that keeps running and waits until something answers on its port."""
        port = int(words[words.index("--port") + 1]) if "--port" in words else 8000
        said = Path(f"background-{port}.log")
        with said.open("wb") as file:
            command = [sys.executable, "-m", "covary", *words]
            self.running.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.running[-1].poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return 0, ""
            time.sleep(0.2)
        return 1, f"nothing answers on port {port}: {said.read_text()}"

    def end(self) -> None:
        """Ends what was left running."""
        for process in self.running:
            process.terminate()
            process.wait(PATIENCE)


def run_keys(value: Any) -> list[str]:
    """What stands behind `run:` anywhere in a YAML document."""
    if isinstance(value, dict):
        own = [value["run"]] if isinstance(value.get("run"), str) else []
        return own + [line for inner in value.values() for line in run_keys(inner)]
    return [line for inner in value for line in run_keys(inner)] if isinstance(value, list) else []


def covary(words: list[str]) -> tuple[int, str]:
    """Exit code and output of the command line in this process."""
    out, argv = io.StringIO(), sys.argv
    sys.argv = ["covary", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            cli.main()
    except SystemExit as ended:
        return int(ended.code or 0), out.getvalue()
    finally:
        sys.argv = argv
    return 0, out.getvalue()


def unknown_options(words: list[str]) -> tuple[int, str]:
    """Whether a command has every option that a line with something left out gives it."""
    command: Any = get_command(cli.app)
    words = [word for word in words if word != "…"]
    while words and hasattr(command, "commands"):
        command = command.commands.get(words.pop(0))
    known = {
        name for parameter in getattr(command, "params", []) for name in (*parameter.opts, *parameter.secondary_opts)
    }
    missing = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    return len(missing) + (command is None), f"no option {missing}"


def missing_extras(words: list[str]) -> tuple[int, str]:
    """Whether every extra that a `pip install` names is one of the package's."""
    section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    known = re.findall(r"^(\w+) = \[", section, re.M)
    needed = [name.strip() for word in words for group in re.findall(r"\[(.*?)\]", word) for name in group.split(",")]
    missing = [name for name in needed if name not in known]
    return len(missing), f"no extra {missing}"
