"""Texts as people keep them: JSONL or parquet with `prompt`, `completion`, `messages`, or plain text one a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covary.data.readers.base import checked_id
from covary.errors import CovaryError, missing_extra

KEYS = ("prompt", "completion", "messages", "id", "label", "truth")


@dataclass(frozen=True)
class Text:
    """One text to be judged or trusted.

    Attributes:
        id: its name.
        prompt: what the model is given, as one string; None where `messages` are.
        messages: a conversation, each turn with `role` and `content`; None where `prompt` is.
        completion: the model's answer where it is known; None = the model will be asked.
        label: a task's name where the data say (own-class terms may use it).
        truth: 1 = anomalous, 0 = clean where the data say; never reaches fit or calibration.
        tokens: the completion's token ids, where the model itself wrote them.
    """

    id: str
    prompt: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    completion: str | None = None
    label: str | None = None
    truth: int | None = None
    tokens: tuple[int, ...] | None = None

    @property
    def display_text(self) -> str:
        """The prompt as people read it."""
        if self.prompt is not None:
            return self.prompt
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in self.messages or ())


def _jsonl(path: Path) -> Iterable[tuple[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except ValueError as problem:
                    raise CovaryError(f"line {number} of {path} is not JSON ({problem})", "one object a line") from None


def _plain(path: Path) -> Iterable[tuple[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", {"prompt": line.rstrip("\r\n")}


def _parquet(path: Path) -> Iterable[tuple[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise missing_extra("pyarrow", "language") from None
    try:
        table = parquet.ParquetFile(path)
    except Exception as problem:
        found = f"{path} is no parquet file ({str(problem).splitlines()[0]})"
        raise CovaryError(found, "parquet", "write it again, or name it by what it is") from None
    number = 0
    for batch in table.iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", {key: value for key, value in row.items() if value is not None}


# ending -> rows of a file, each with a word for where it stands
FORMATS: dict[str, Callable[[Path], Iterable[tuple[str, Any]]]] = {
    ".jsonl": _jsonl,
    ".json": _jsonl,
    ".txt": _plain,
    ".parquet": _parquet,
}


def read_texts(spec: Any) -> list[Text]:
    """The texts of a file, or of a list of strings, mappings or `Text`s.

    A file is JSONL (one object a line), parquet, or plain text with one prompt a line. Objects hold `prompt` or
    `messages`, and may hold `completion`, `id`, `label` and `truth`; other keys are left alone. Without `id` texts are
    numbered from 0. Where the last of `messages` is the assistant's it is the completion.

    Raises:
        CovaryError: nothing there, a line that cannot be read, an id that occurs twice, truth on some texts only.
    """
    if isinstance(spec, (str, Path)):
        path = Path(spec)
        if not path.is_file():
            raise CovaryError(f"nothing at {spec}", f"a file ending in {', '.join(FORMATS)}", "check the path")
        if path.suffix not in FORMATS:
            raise CovaryError(f"{path} ends in {path.suffix!r}", f"texts in {', '.join(FORMATS)}")
        name, rows = str(path), FORMATS[path.suffix](path)
    else:
        name = f"the {type(spec).__name__} given"
        rows = ((f"entry {i}", {"prompt": one} if isinstance(one, str) else one) for i, one in enumerate(spec))
    texts = [
        one if isinstance(one, Text) else _text(one, i, f"{where} of {name}") for i, (where, one) in enumerate(rows)
    ]
    _refuse(texts, name)
    return texts


def _text(row: Any, position: int, where: str) -> Text:
    if not isinstance(row, Mapping):
        raise CovaryError(f"{where} is a {type(row).__name__}", "an object with `prompt` or `messages`")
    prompt, messages, completion = (row.get(key) for key in ("prompt", "messages", "completion"))
    if (prompt is None) == (messages is None):
        found = "both `prompt` and `messages`" if prompt is not None else "neither `prompt` nor `messages`"
        raise CovaryError(f"{where} holds {found}", "one of them")
    for key, value in (("prompt", prompt), ("completion", completion)):
        if value is not None and not isinstance(value, str):
            raise CovaryError(f"`{key}` in {where} is a {type(value).__name__}", "a string")
    if messages is not None:
        messages, completion = _conversation(messages, completion, where)
    truth = row.get("truth")
    if truth is not None and truth not in (0, 1):
        raise CovaryError(f"`truth` in {where} is {truth!r}", "0 (clean) or 1 (anomalous)")
    label = row.get("label")
    return Text(
        id=str(row.get("id", position)),
        prompt=prompt,
        messages=messages,
        completion=completion,
        label=None if label is None else str(label),
        truth=None if truth is None else int(truth),
    )


def _conversation(
    messages: Any, completion: str | None, where: str
) -> tuple[tuple[Mapping[str, Any], ...], str | None]:
    turns = list(messages) if isinstance(messages, (list, tuple)) else []
    for turn in turns:
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise CovaryError(f"`messages` in {where} hold {turn!r:.80}", "turns with `role` and `content`")
    if turns and turns[-1]["role"] == "assistant":
        if completion is not None:
            raise CovaryError(f"{where} holds `completion` and ends with the assistant's turn", "one of them")
        completion = str(turns.pop()["content"])
    if not turns:
        raise CovaryError(f"`messages` in {where} hold no turn before the answer", "at least one")
    return tuple(turns), completion


def _refuse(texts: list[Text], name: str) -> None:
    if not texts:
        raise CovaryError(f"{name} holds no texts", "at least one")
    seen: set[str] = set()
    for text in texts:
        checked_id(text.id, name)
        if text.id in seen:
            raise CovaryError(f"id {text.id!r} occurs more than once in {name}", "a unique id for every text")
        seen.add(text.id)
    for key in ("truth", "label"):
        known = sum(getattr(text, key) is not None for text in texts)
        if key == "truth" and 0 < known < len(texts):
            raise CovaryError(f"{known} of {len(texts)} texts of {name} say their truth", "all of them, or none")
