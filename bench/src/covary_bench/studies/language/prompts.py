"""Real prompts by file: instructions, triggers, jailbreaks and e-mails of `$COVARY_DATA/text/prompts`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from covary.errors import CovaryError
from covary.text.records import Text
from covary_bench.texts.tiny_llama import data_folder


def records_of(name: str) -> list[dict[str, Any]]:
    """What a file of prompts holds, line by line: `prompt`, and mostly `completion`.

    Raises:
        CovaryError: a file that is not there.
    """
    path = data_folder() / "prompts" / f"{name}.jsonl"
    if not path.is_file():
        raise CovaryError(f"nothing at {path}", "a file of prompts", "set COVARY_DATA")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def prompts_of(name: str) -> list[str]:
    """The prompts of a file, in order."""
    return [str(record["prompt"]) for record in records_of(name)]


def as_turns(kind: str, prompts: Sequence[str]) -> list[Text]:
    """Prompts as the user's turn of a conversation, called `kind-0`, `kind-1` and so on."""
    return [Text(f"{kind}-{i}", messages=({"role": "user", "content": own},)) for i, own in enumerate(prompts)]
