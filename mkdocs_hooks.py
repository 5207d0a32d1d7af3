"""What MkDocs cannot know from files: pages made from the live command line and package, and a table of contents that
holds what is there."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

GENERATED = {"commands.md": "command_reference", "python.md": "python_reference"}
EVERY_ERROR = "<!-- every error -->"


def on_config(config: Any) -> Any:
    """Drops pages that are not there from the table of contents and appends those it does not name."""
    there = {path.relative_to(config.docs_dir).as_posix() for path in Path(config.docs_dir).rglob("*.md")}
    there |= set(GENERATED)
    there |= {path.with_suffix(".md").name for path in Path(config.docs_dir).glob("*.ipynb")}
    named: set[str] = set()

    def kept(entries: list[Any]) -> list[Any]:
        result = []
        for entry in entries:
            (title, value), *_ = entry.items()
            if isinstance(value, list):
                inner = kept(value)
                result += [{title: inner}] if inner else []
            elif value in there:
                named.add(value)
                result.append(entry)
        return result

    config.nav = kept(config.nav)
    if more := sorted(there - named):
        config.nav.append({"More": more})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages."""
    for name, maker in GENERATED.items():
        files.append(File.generated(config, name, content=globals()[maker]()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts every error sentence of the package into the page that has a place for them."""
    if EVERY_ERROR not in markdown:
        return markdown
    spec = importlib.util.spec_from_file_location("error_sentences", Path(__file__).with_name("error_sentences.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return markdown.replace(EVERY_ERROR, module.table())


def command_reference() -> str:
    """Every command with its options, from the command line itself."""
    from typer.main import get_command

    from covary.cli.main import app

    lines = [
        "# Commands",
        "",
        "Made from `covary --help`. Exit codes: 0 fine, 1 flagged, failed or different, 2 bad input or use, 3 a failure of covary's own.",
    ]
    for name, command in _commands("covary", get_command(app)):
        lines += ["", f"## {name}", "", _unindented(command.help or "")]
        rows = [_option(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            lines += ["", "| option | default | |", "| --- | --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def _commands(prefix: str, group: Any) -> list[tuple[str, Any]]:
    found = []
    for name, command in sorted(group.commands.items()):
        inner = hasattr(command, "commands")
        found += _commands(f"{prefix} {name}", command) if inner else [(f"{prefix} {name}", command)]
    return found


def _option(parameter: Any) -> str:
    required = getattr(parameter, "required", False)
    name = ", ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.name.upper()
    default = parameter.default
    value = "" if default is None or default is False or callable(default) else f"`{default}`"
    text = _cell(getattr(parameter, "help", None) or "")
    return f"| `{name}` | {'required' if required else value} | {text} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _unindented(text: str) -> str:
    return inspect.cleandoc(text).replace("\f", "")


def python_reference() -> str:
    """Every public name of the package with its signature and docstring."""
    import covary

    lines = ["# Python", "", "Public names of `covary`. Scores: higher = more anomalous, everywhere."]
    for name in sorted(covary.__all__, key=str.lower):
        thing = getattr(covary, name)
        if name == "__version__":
            continue
        lines += ["", f"## {name}", ""]
        if isinstance(thing, dict):
            rows = [f"| `{key}` | {_cell(_summary(value))} |" for key, value in thing.items()]
            lines += ["| name | |", "| --- | --- |", *rows]
        else:
            lines += _documented(name, thing, importlib.import_module(thing.__module__))
            if inspect.isclass(thing) and not issubclass(thing, Exception):
                for method, function in vars(thing).items():
                    function = getattr(function, "__func__", function)
                    if not method.startswith("_") and inspect.isfunction(function) and function.__doc__:
                        lines += ["", f"### {name}.{method}", "", *_documented(method, function, None)]
    return "\n".join(lines) + "\n"


def _summary(value: Any) -> str:
    return (inspect.getdoc(value) or "").split("\n\n")[0] if not isinstance(value, (str, type(None))) else str(value)


def _documented(name: str, thing: Any, home: Any) -> list[str]:
    doc = inspect.cleandoc(thing.__doc__ or "")
    head, _, rest = doc.partition("\n\n")
    said = [f"From `{home.__name__}`.", ""] if home is not None else []
    return ["```python", _signature(name, thing), "```", "", _plain(head), "", *said, *_paragraphs(rest)]


def _signature(name: str, thing: Any) -> str:
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return name
    parts = [re.sub(r"'([^']*)'", r"\1", str(p)) for p in signature.parameters.values() if p.name != "self"]
    if (first := _keyword_only(signature)) is not None:
        parts.insert(first, "*")
    if len(name) + sum(map(len, parts)) < 70:
        return f"{name}({', '.join(parts)})"
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), ")"])


def _keyword_only(signature: inspect.Signature) -> int | None:
    """Where the lone star stands, if there is one."""
    kinds = [p.kind for p in signature.parameters.values() if p.name != "self"]
    if inspect.Parameter.VAR_POSITIONAL in kinds or inspect.Parameter.KEYWORD_ONLY not in kinds:
        return None
    return kinds.index(inspect.Parameter.KEYWORD_ONLY)


def _paragraphs(text: str) -> list[str]:
    """The rest of a docstring as Markdown: sections such as Args as lists, examples as code."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        first, _, body = paragraph.partition("\n")
        if paragraph.startswith(">>>"):
            lines += ["```python", re.sub(r" *# doctest:.*", "", paragraph), "```", ""]
        elif re.fullmatch(r"[A-Z][a-z]+:", first) and body.startswith(" "):
            lines += [f"**{first[:-1]}**", "", *_items(inspect.cleandoc(body)), ""]
        elif paragraph.strip():
            lines += [_plain(paragraph), ""]
    return lines


def _items(body: str) -> list[str]:
    items: list[str] = []
    for line in body.split("\n"):
        if line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        else:
            items.append(line)
    # `name: what it is`, the name as code.
    return ["- " + re.sub(r"^([\w., ]+): ", r"`\1`: ", _plain(item)) for item in items]


def _plain(text: str) -> str:
    return text.replace("<", "&lt;")
