"""Left of the waist: what turns inputs of one kind into rows, as a protocol; the table is `settings.EXTRACTORS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from covary.data.source import Source
from covary.models.network import Network
from covary.objects import load_object
from covary.scoring.rows import Batch, Rows
from covary.settings import Settings

Roles = dict[str, list[str]]


@runtime_checkable
class Extractor(Protocol):
    """A model and what its inputs are; `Detector` calls nothing else of a modality.

    Attributes:
        kind: its key in `EXTRACTORS`, as that of its settings.
        settings: the detector's, what they left open settled.
        host: the network as it was loaded, with its fingerprint.
        classes: number of the network's outputs, 0 without classes; class_names: their names where known.
        input_shape: shape of one trusted input, where inputs have one.
        preprocessing: what is done to raw inputs, as JSON.
        notes: what a run tells of it, in sentences.
        statements: what `learn` found and a summary must say.
        summary: what a report says of its draws; empty without draws.
        trusted_texts: what stands for a trusted input in a report that has no picture, by id.
    """

    kind: str
    settings: Settings
    host: Network
    classes: int
    class_names: list[str] | None
    input_shape: tuple[int, ...] | None
    preprocessing: dict[str, Any]
    notes: list[str]
    statements: list[str]
    summary: dict[str, Any]
    trusted_texts: dict[str, str]

    @classmethod
    def of(cls, settings: Settings, model: Any, weights: Any = None, function: Any = None) -> Extractor:
        """From a detector's settings, a model or its name, its weights, and the user's own observable if any."""
        ...

    def open_trusted(self, inputs: Any, **kwargs: Any) -> Source:
        """Trusted inputs, with `y`, `mean`, `std` and `transform` where given; how later ones are read is kept."""
        ...

    def open(self, inputs: Any, *, truth: Any = None, like_trusted: bool = False) -> Source:
        """Later inputs, read as the trusted ones were; `like_trusted` also prepares a Source that is open already."""
        ...

    def look(self, trusted: Source) -> None:
        """What the model makes of one trusted input: classes and shape; refuses labels that do not fit."""
        ...

    def prepare(
        self, trusted: Source, calibration: Source | None, sampling: Source | None, roles: Roles | None
    ) -> tuple[Source, list[str]]:
        """What looks at trusted inputs before rows are taken (draws); the inputs left, and the ids of those used up."""
        ...

    def rows(self, batch: Batch) -> Rows:
        """The rows of one batch, in order."""
        ...

    def learn(
        self, trusted: Source, rows: Rows, roles: Callable[[], Roles], *, calibration_apart: bool = False
    ) -> Rows | None:
        """What is learned from trusted rows; the rows from now on, None where they must be taken again.

        `roles` says which trusted inputs are reference, fit and calibration, where that does not come apart.
        """
        ...

    def remember(self, trusted: Source, reference: list[str]) -> None:
        """What is kept of the reference inputs for evidence."""
        ...

    def cards(self, inputs: Source) -> list[dict[str, Any]]:
        """What a report shows of each input beyond the evidence; empty dictionaries by default."""
        ...

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any], Callable[[Path], object] | None]:
        """Arrays and JSON that `restore` needs, and what writes a file of its own beside them."""
        ...

    def restore(self, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any], file: Path, trusted: Rows) -> None:
        """Takes over what `state` gave; `trusted` are the saved rows."""
        ...


def extractor_of(settings: Settings, model: Any, weights: Any = None, function: Any = None) -> Extractor:
    """The extractor that the settings name, loaded."""
    entry = settings.extractor.extractor_class
    kind = cast("type[Extractor]", load_object(entry, "extractor") if isinstance(entry, str) else entry)
    return kind.of(settings, model, weights, function)


def is_language_model(model: Any) -> bool:
    """Whether a model is a `LanguageModel`, a local folder in Hugging Face's format, or a GGUF file."""
    if isinstance(model, (str, Path)):
        return (Path(model) / "config.json").is_file() or (Path(model).suffix == ".gguf" and Path(model).is_file())
    return hasattr(model, "tokenizer")
