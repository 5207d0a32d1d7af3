"""The first pass: a worker with one copy of the network scores a partition and writes its file, on whatever machine."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from threadpoolctl import threadpool_limits

from covary.data.preprocessing import channel_numbers, named_transform
from covary.data.readers import Reader
from covary.data.source import Source
from covary.detector import Detector
from covary.errors import CovaryError, printable
from covary.scoring.judge import Verdicts
from covary.serving.pile.output_store import OutputStore
from covary.serving.pile.passes import Record
from covary.serving.pile.prefetch import batched, prefetch
from covary.serving.pile.sources import SOURCES, readers
from covary.serving.pile.verdicts import table_of, write_part
from covary.storage.fingerprints import array_bytes
from covary.storage.parts import part_name

if TYPE_CHECKING:
    import pyarrow as pa


class Samples(Reader):
    """A few raw samples that are there already."""

    def __init__(self, ids: list[str], samples: list[np.ndarray]) -> None:
        self.ids, self.samples = ids, samples

    def labels(self, index: Int[np.ndarray, " n"]) -> None:
        """None are known."""
        return None

    def read(self, index: Int[np.ndarray, " n"]) -> list[np.ndarray]:
        """Samples at `index`."""
        return [self.samples[i] for i in index.tolist()]

    def content(self, i: int) -> bytes:
        """Dtype, shape and bytes of sample i."""
        return array_bytes(self.samples[i])


@dataclass(frozen=True)
class Job:
    """All that a worker needs, as plain values.

    Attributes:
        out: folder of the partitions, a path or URL.
        plan: digest of the plan they belong to.
        data, kind: the pile, and its name in `SOURCES`.
        detector: folder of the detector; `model` and `weights` where it needs them.
        trust_code: whether code that the detector names may run, which the driver has asked about.
        shipped: its files and the weights by name, for a machine that has no such folder.
        device, batch_size, threads: where and how the network runs.
        rule: who is flagged before anybody has seen the whole pile.
    """

    out: str
    plan: str
    data: str
    kind: str
    detector: str
    model: str | None
    weights: str | None
    device: str
    batch_size: int
    threads: int
    rule: str
    trust_code: bool = False
    shipped: dict[str, bytes] | None = None

    def packed(self) -> Job:
        """The same with every file it needs inside."""
        files = {f"detector/{file.name}": file.read_bytes() for file in Path(self.detector).iterdir() if file.is_file()}
        if self.weights is not None:
            files[f"weights/{Path(self.weights).name}"] = Path(self.weights).read_bytes()
        return replace(self, shipped=files)

    def load(self) -> Detector:
        """The detector."""
        settings: dict[str, Any] = {
            "device": self.device, "batch_size": self.batch_size, "trust_code": self.trust_code,
        }  # fmt: skip
        if self.shipped is None:
            return Detector.load(self.detector, self.model, weights=self.weights, **settings)
        with tempfile.TemporaryDirectory(prefix="covary-") as folder:
            weights = None
            for name, data in self.shipped.items():
                path = Path(folder) / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
                weights = path if name.startswith("weights/") else weights
            return Detector.load(Path(folder) / "detector", self.model, weights=weights, **settings)


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """As many threads in every sum, whatever the machine: another number may change its last bits."""
    before = torch.get_num_threads()
    with threadpool_limits(threads):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def preparation_of(detector: Detector) -> tuple[dict[str, Any], str]:
    """What is done to raw samples, as `Source` takes it, and the mode in which images are read."""
    done = detector.preprocessing
    transform, name = named_transform(done["transform"])
    shape = detector.input_shape
    preparation = {
        "mean": channel_numbers(done["mean"], "mean"),
        "std": channel_numbers(done["std"], "std"),
        "transform": transform,
        "transform_name": name,
    }
    grey = shape is not None and len(shape) == 3 and shape[0] == 1
    # The trusted images' own mode, where they were decoded: a transform may have changed the number of channels.
    return preparation, done.get("mode") or ("L" if grey else "RGB")


class Scorer:
    """Scores partitions with one copy of the network and writes their files."""

    def __init__(self, job: Job, detector: Detector | None = None) -> None:
        self.job, self.place = job, OutputStore(job.out)
        with limited(job.threads):
            self.detector = job.load() if detector is None else detector
        self.preparation, self.mode = preparation_of(self.detector)
        if job.kind == "readers":
            self._check_fields()

    def _check_fields(self) -> None:
        opened = readers.reader(self.job.data)
        if names := self.detector.network.names(opened.input_name, opened.fields)[1:]:
            found = f"{', '.join(names)} beside the inputs of {self.job.data}, which the network takes too"
            raise CovaryError(found, "one input by itself in partitions", "score it as a RUN, without partition_size=")

    def __call__(self, number: int, part: str) -> Record:
        """Scores partition `number` unless its file is there."""
        if self.is_done(number):
            return {"number": number, "n": 0, "pid": os.getpid()}
        started, processor = time.perf_counter(), time.process_time()
        self.begin()
        read = SOURCES[self.job.kind].read(self.job.data, json.loads(part), self.mode)
        with limited(self.job.threads):
            for batch in prefetch(batched(read, self.job.batch_size)):
                ids, samples = [printable(name) for name, _ in batch], [sample for _, sample in batch]
                self.take(Source(Samples(ids, samples), name=self.job.data, **self.preparation))
            took = {
                "seconds": time.perf_counter() - started,
                "processor_seconds": time.process_time() - processor,
            }
            record = {"plan": self.job.plan, "number": number, "rule": self.job.rule, **took}
            # Whoever was taken for dead and finishes late must not undo what a second pass has written since.
            if not self.is_done(number):
                table = self.finish(number, record)
                write_part(self.place, table, record)
        return {"number": number, "n": sum(map(len, self.kept)), "pid": os.getpid(), **took}

    def is_done(self, number: int) -> bool:
        """Whether the partition is there."""
        return self.place.exists(part_name(number))

    def begin(self) -> None:
        """Nothing of this partition yet."""
        self.kept: list[Verdicts] = []
        self.least: list[list[str]] = []

    def take(self, source: Source) -> None:
        """One batch."""
        for _, _, verdicts in self.detector.stream(source):
            self.keep(verdicts)

    def keep(self, verdicts: Verdicts) -> None:
        """Keeps a batch's verdicts."""
        self.kept.append(replace(verdicts, residuals={}))
        self.least.append(self.detector.explainer.least_explained(verdicts))

    def finish(self, number: int, record: Record) -> pa.Table:
        """The partition as a table; what else its file or its footer holds is added here."""
        return table_of(self.kept, self.least, self.detector.judge.parts)
