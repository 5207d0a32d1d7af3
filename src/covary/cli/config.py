"""`covary.toml`: options written down once, and `covary init`, which writes it."""

from __future__ import annotations

import json as json_module
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Option, Typer, prompt
from typer.main import get_command

from covary.cli.console import print_json
from covary.cli.options import Json, warn
from covary.errors import CovaryError, unknown_name

NAME = "covary.toml"
# Consent is given by whoever runs a command, not by a file that lies there; the others are orders for one run.
NEVER = {"trust_code", "force", "json", "verbose", "quiet", "replay", "help", "version"}
# Its `--inputs` is a number.
APART = {"cost"}
QUESTIONS = {
    "model": "Factory of your network, package.module:factory; or the folder or GGUF file of a language model",
    "weights": "Its weights, a safetensors or torch file (empty: the factory sets them)",
    "trusted": "Inputs you trust: .npz, a folder of images, or package.module:dataset",
    "inputs": "Inputs to judge, in any of the same forms",
    "fpr": "False-alarm rate",
}


def defaults(path: Path, app: Typer) -> dict[str, dict[str, Any]]:
    """What `covary.toml` says of each command's options: those at its top for every command that has them, those of a
    table `[command]` for that one.

    Raises:
        CovaryError: no TOML, a key that no command has, or one that only a person may give.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CovaryError(f"{path} is not readable TOML ({problem})", "key = value", "mend it, or remove it") from None
    options = _options(app)
    own = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    shared = {name.replace("-", "_"): value for name, value in values.items() if name not in own}
    for command in own:
        if command not in options:
            raise unknown_name(f"table of {path}", command, options)
    found: dict[str, dict[str, Any]] = {}
    for command, names in options.items():
        mine = {name.replace("-", "_"): value for name, value in own.get(command, {}).items()}
        _check(path, mine, names, f"[{command}] of {path}")
        both = {**({} if command in APART else shared), **mine}
        found[command] = {name: _plain(value) for name, value in both.items() if name in names}
    _check(path, shared, set().union(*options.values()), str(path))
    return found


def _check(path: Path, arguments: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in arguments:
        if name in NEVER:
            found = f"{where} says {name}"
            raise CovaryError(found, "an option that holds for every run", "give it on the command line")
        if name not in known:
            raise unknown_name(f"option in {where}", name, sorted(known - NEVER))


def _options(app: Typer) -> dict[str, set[str]]:
    """Names of every command's options."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    return {
        name: {parameter.name for parameter in command.params if parameter.param_type_name == "option"}
        for name, command in commands.items()
    }


def _plain(value: Any) -> Any:
    """A list as the command line writes it, separated by commas."""
    return ",".join(map(str, value)) if isinstance(value, list) else value


def taken(app: Typer, arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What options default to in this folder; says on stderr which of the command's own come from the file."""
    path = Path(NAME)
    command = next((word for word in arguments if not word.startswith("-")), None)
    # `init` and `doctor` mend what is wrong, so they work whatever the file holds.
    if command in (None, "init", "doctor") or not path.is_file():
        return {}
    found = defaults(path, app)
    used = sorted(found.get(command, {}))
    # `--quiet` is read only after this.
    if used and not {"--json", "--quiet"} & set(arguments):
        warn(f"{', '.join(used)} from {NAME} unless given here")
    return found


def _is_language_model(name: str) -> bool:
    """Whether it is where a language model lies; `package.module:factory` is no path."""
    path = Path(name)
    return path.suffix.lower() == ".gguf" or (path / "config.json").is_file()


def init(
    model: Annotated[str | None, Option("--model", help=QUESTIONS["model"])] = None,
    weights: Annotated[str | None, Option("--weights", help=QUESTIONS["weights"])] = None,
    trusted: Annotated[str | None, Option("--trusted", help=QUESTIONS["trusted"])] = None,
    inputs: Annotated[str | None, Option("--inputs", help=QUESTIONS["inputs"])] = None,
    fpr: Annotated[float | None, Option("--fpr", help=QUESTIONS["fpr"])] = None,
    force: Annotated[bool, Option("--force", help="Replace a covary.toml that is there.")] = False,
    json: Json = False,
) -> None:
    """Write covary.toml, which every command here then reads; asks for what no option gives.

    **Example**

    `covary init --model nets:resnet --weights w.safetensors --trusted trusted.npz --inputs new.npz --fpr 0.01`
    """
    path = Path(NAME)
    if path.exists() and not force:
        raise CovaryError(f"{NAME} is there already", "none", "edit it, or replace it with --force")
    arguments: dict[str, Any] = {"model": model, "weights": weights, "trusted": trusted, "inputs": inputs, "fpr": fpr}
    if sys.stdin.isatty() and not json:
        for name, question in QUESTIONS.items():
            if arguments[name] is None:
                number = name == "fpr"
                arguments[name] = prompt(question, default=0.01 if number else "", show_default=number) or None
    if arguments["model"] is not None and _is_language_model(arguments["model"]):
        # Commands take it by another name, and its weights are in the folder.
        arguments = {"hf": arguments.pop("model"), **arguments}
    if arguments.get("hf", arguments.get("model")) is None or arguments["trusted"] is None:
        raise CovaryError("no network or no trusted inputs, and nobody to ask", "--model and --trusted", "pass both")
    lines = ["# Read by every covary command that is run in this folder; options given there win.", ""]
    lines += [f"{name} = {json_module.dumps(value)}" for name, value in arguments.items() if value is not None]
    if arguments["inputs"] is not None:
        lines += ["", "[scan]", 'out = "runs/first"']
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print_json({"written": NAME, **arguments}) if json else print(f"{NAME} is written; next: covary check, covary scan")
