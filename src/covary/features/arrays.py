"""What extractors of images and other arrays share: how inputs are opened, and a first look at the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covary.data.carried import open_as_carried
from covary.data.presets import Preset, carried_by
from covary.data.source import Source, open_data
from covary.errors import CovaryError
from covary.features.guards import check_labels, network_at_work, no_gradient, shape_of_one
from covary.models.network import Network
from covary.scoring.rows import Rows

Roles = dict[str, list[str]]


class ArrayInputs:
    """Half of an `Extractor` (see there) whose batches are tensors that a network is called with."""

    kind = ""
    host: Network
    # Rows need more than one tensor an input, by name; traces along draws take one.
    one_tensor = False
    by_gradients = True

    def _start(self, host: Network) -> None:
        self.host = host
        self.classes, self.class_names = 0, None
        self.input_shape: tuple[int, ...] | None = None
        self.preprocessing: dict[str, Any] = {"mean": None, "std": None, "transform": None}
        self.summary: dict[str, Any] = {}
        self.statements: list[str] = []
        self.trusted_texts: dict[str, str] = {}
        # Roles of a fit that is done again.
        self.previous_split: Roles | None = None
        self._transform: Callable[..., Any] | None = None
        self._mode: str | None = None
        # What the network says of its images, and what came of it, in words.
        self.carried: Preset | None = carried_by(host.module)
        self.said_of_images = ""

    def open_trusted(self, inputs: Any, **kwargs: Any) -> Source:
        """See `Extractor`."""
        source, self.said_of_images = open_as_carried(self.carried, inputs, **kwargs)
        self.preprocessing, self._transform, self._mode = source.preprocessing, source.transform, source.mode
        source = self._named(source)
        self.class_names = source.class_names
        return source

    def open(self, inputs: Any, *, truth: Any = None, like_trusted: bool = False) -> Source:
        """See `Extractor`."""
        if isinstance(inputs, Source) and not like_trusted:
            return self._named(inputs)
        # The function itself where it is at hand: a lambda has no name to find it by.
        transform = self._transform or self.preprocessing["transform"]
        return self._named(open_data(inputs, truth=truth, **{**self.preprocessing, "transform": transform}))

    def _named(self, source: Source) -> Source:
        """Inputs with those of their fields that the network's forward takes."""
        names = self.host.names(source.reader.input_name, source.reader.fields)
        if len(names) > 1 and self.one_tensor:
            found = f"the fields {', '.join(names[1:])} for an estimator that takes draws"
            raise CovaryError(found, "one input by itself", "choose estimator=first-order")
        return source.named(names)

    def look(self, trusted: Source) -> None:
        """See `Extractor`."""
        batch = next(trusted.take([0]).batches(1))
        self.input_shape, self.classes = shape_of_one(batch.x), 0
        if getattr(self, "observable", None) is None:
            return
        with network_at_work(batch):
            self.classes = self.host.logits(batch.x).shape[1]
            if self.by_gradients and not self.host.differentiable(batch.x):
                raise no_gradient()
        if trusted.y is not None:
            check_labels(trusted.y, self.classes, trusted.name)

    def prepare(
        self, trusted: Source, calibration: Source | None, sampling: Source | None, roles: Roles | None
    ) -> tuple[Source, list[str]]:
        """See `Extractor`: gradients need nothing before rows are taken."""
        if sampling is not None:
            found = "a sampling set for the estimator first-order, which takes no draws"
            raise CovaryError(found, "no sampling=", "or choose estimator=paper or sgld")
        self.previous_split = roles
        return trusted, []

    def learn(
        self, trusted: Source, rows: Rows, roles: Callable[[], Roles], *, calibration_apart: bool = False
    ) -> Rows | None:
        """See `Extractor`."""
        return rows

    def remember(self, trusted: Source, reference: list[str]) -> None:
        """See `Extractor`: pictures are kept by the detector."""

    def cards(self, inputs: Source) -> list[dict[str, Any]]:
        """See `Extractor`."""
        return [{} for _ in range(len(inputs))]

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any], Callable[[Path], object] | None]:
        """See `Extractor`."""
        return {}, {}, None

    def restore(self, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any], file: Path, trusted: Rows) -> None:
        """See `Extractor`."""
