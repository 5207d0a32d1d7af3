"""Texts as a source of batches, so that everything after it works as for any other input."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from covary.data.readers import Reader
from covary.data.source import Source
from covary.errors import CovaryError
from covary.scoring.rows import Batch
from covary.text.models.pretrained import LanguageModel
from covary.text.records import Text
from covary.text.tokens import Tokens


class TextReader(Reader):
    """Texts in memory."""

    def __init__(self, texts: Sequence[Text], labels: np.ndarray | None, class_names: list[str] | None) -> None:
        self.texts, self._labels, self.class_names = list(texts), labels, class_names
        self.ids = [text.id for text in texts]
        known = texts[0].truth is not None
        self.truth = np.array([text.truth for text in texts], np.int64) if known else None
        self.cheap = True

    def labels(self, index: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"] | None:
        """Numbers of the texts' labels, -1 where there is none."""
        return None if self._labels is None else self._labels[index]

    def read(self, index: Int[np.ndarray, " n"]) -> list[np.ndarray]:
        """Texts hold no arrays."""
        raise CovaryError("texts read as arrays", "a detector of a language model")

    def content(self, i: int) -> bytes:
        """Prompt, messages and completion."""
        text = self.texts[i]
        turns = None if text.messages is None else [dict(turn) for turn in text.messages]
        return json.dumps([text.prompt, turns, text.completion, text.tokens], ensure_ascii=False).encode()


class TextSource(Source):
    """Texts with their tokens; batches carry `Tokens` instead of arrays."""

    reader: TextReader

    def __init__(self, reader: TextReader, tokens: Sequence[Tokens], name: str, index: Any = None) -> None:
        super().__init__(reader, name=name, index=index)
        self.tokens = list(tokens)

    @property
    def texts(self) -> list[Text]:
        """The texts, in order."""
        return [self.reader.texts[i] for i in self.index]

    def _with(self, **changes: Any) -> TextSource:
        return TextSource(self.reader, self.tokens, self.name, changes.get("index", self.index))

    def renamed(self, ids: Sequence[str] | None) -> TextSource:
        """See `Source`: the texts themselves carry their names."""
        other = super().renamed(ids)
        assert isinstance(other, TextSource)
        texts = zip(other.reader.texts, other.reader.ids, strict=True)
        other.reader.texts = [text if text.id == name else replace(text, id=name) for text, name in texts]
        return other

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches in order, the last one smaller."""
        for start in range(0, len(self), batch_size):
            rows = self.index[start : start + batch_size]
            truth = self.reader.truth
            yield Batch(
                [self.reader.ids[i] for i in rows],
                [self.tokens[i] for i in rows],
                self.reader.labels(rows),
                None if truth is None else truth[rows],
            )

    def thumbnail(self, i: int) -> None:
        """Texts have no picture."""
        return None


def write_completions(source: Source, folder: Path) -> None:
    """`texts.jsonl`: what was judged, answers included; nothing where inputs are no texts."""
    if not isinstance(source, TextSource):
        return
    with open(folder / "texts.jsonl", "w", encoding="utf-8") as file:
        for text in source.texts:
            turns = None if text.messages is None else [dict(turn) for turn in text.messages]
            fields = {"id": text.id, "prompt": text.prompt, "messages": turns, "completion": text.completion}
            kept = {key: value for key, value in {**fields, "label": text.label}.items() if value is not None}
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")


def label_numbers(texts: Sequence[Text], names: Sequence[str], model: LanguageModel) -> np.ndarray | None:
    """Each text's label as its place among `names`, -1 where it has none or another one; None where none has any.

    Raises:
        CovaryError: a classifier's text whose label is none of its classes.
    """
    if all(text.label is None for text in texts):
        return None
    places = {name: i for i, name in enumerate(names)}
    if model.task == "sequence":
        for text in texts:
            if text.label is not None and text.label not in places:
                if not (text.label.isdigit() and int(text.label) < len(names)):
                    raise CovaryError(f"label {text.label!r} of text {text.id!r}", f"one of: {', '.join(names)}")
                places[text.label] = int(text.label)
    return np.array([-1 if text.label is None else places.get(text.label, -1) for text in texts], np.int64)
