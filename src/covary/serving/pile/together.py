"""A pile in partitions judged together: workers store numbers, moments are summed in order, workers judge.

The first pass writes of every partition its numbers, in its parquet file, and its second moments beside it. These are
added in the order of partitions, whoever took them, so the result is the same to the bit over any number of workers.
The second pass reads the numbers, judges them with the pile, and leaves the partition as any other.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from covary.data.source import Source
from covary.detector import Detector
from covary.errors import CovaryError
from covary.scoring.copies import Found
from covary.scoring.pile.second_moment import SecondMoment
from covary.scoring.pile.stored import Stored, judged, store
from covary.scoring.pile.together import Sums, added, look
from covary.serving.pile.output_store import TROUBLE, OutputStore
from covary.serving.pile.passes import WAITING, Record
from covary.serving.pile.verdicts import read_part, table_of, write_part
from covary.serving.pile.worker import Job, Scorer, limited
from covary.storage.parts import MOMENTS, REMEDY, arrow, moments_name, part_name

if TYPE_CHECKING:
    import pyarrow as pa

# Columns of a partition that waits for the pile.
NUMBERS, DISTANCE = "numbers", "copy_distance"


def write_moments(place: OutputStore, name: str, sums: Sums, plan: str) -> None:
    """Writes second moments under their SHA-256."""
    arrays, counts = {}, []
    for k, views in enumerate(sums):
        counts.append({view: moment.n for view, moment in views.items()})
        arrays |= {f"{k}.{view}": np.ascontiguousarray(moment.total) for view, moment in views.items()}
    content = save(arrays, {"plan": plan, "n": json.dumps(counts)})
    place.write(name, hashlib.sha256(content).hexdigest().encode() + content)


def read_moments(place: OutputStore, name: str, plan: str) -> Sums:
    """Second moments from their file.

    Raises:
        CovaryError: the file is missing, damaged, or of another run.
    """
    try:
        content = place.read(name)
        seal, content = content[:64], content[64:]
        if hashlib.sha256(content).hexdigest().encode() != seal:
            raise ValueError("its bytes are not those that were written")
        length = int.from_bytes(content[:8], "little")
        about = json.loads(content[8 : 8 + length])["__metadata__"]
        arrays, counts = load(content), json.loads(about["n"])
    except (*TROUBLE, SafetensorError, TypeError) as problem:
        raise CovaryError(f"{name} of {place.where} cannot be read ({problem})", "an intact file", REMEDY) from problem
    if about["plan"] != plan:
        raise CovaryError(f"{name} of {place.where} is of another run", "one plan's moments", REMEDY)
    return [
        {view: SecondMoment(n, arrays[f"{k}.{view}"]) for view, n in views.items()} for k, views in enumerate(counts)
    ]


def merge_moments(place: OutputStore, parts: int, plan: str) -> Sums:
    """Second moments of the whole pile, from their file or from those of all partitions, in their order."""
    if not place.exists(MOMENTS):
        total = read_moments(place, moments_name(0), plan)
        for number in range(1, parts):
            total = added([total, read_moments(place, moments_name(number), plan)])
        write_moments(place, MOMENTS, total, plan)
    return read_moments(place, MOMENTS, plan)


def looking(detector: Detector, sums: Sums) -> Detector:
    """The detector after a look at a pile of which these are the second moments; good for that pile alone."""
    seen = copy.copy(detector)
    seen.judge = look(detector.judge, sums)
    return seen


class Gatherer(Scorer):
    """The first pass: the numbers of a partition and its second moments, with verdicts on each input alone."""

    def is_done(self, number: int) -> bool:
        """Whether the partition is there, waiting or judged."""
        there = self.place.exists(part_name(number))
        return there and (self.place.exists(MOMENTS) or self.place.exists(moments_name(number)))

    def begin(self) -> None:
        """Nothing of this partition yet."""
        super().begin()
        self.stored: list[Stored] = []
        self.sums: list[Sums] = []

    def take(self, source: Source) -> None:
        """One batch."""
        rows = self.detector.rows(source)
        stored, sums, verdicts = store(self.detector.judge, rows)
        self.keep(verdicts)
        self.stored.append(stored)
        self.sums.append(sums)

    def finish(self, number: int, record: Record) -> pa.Table:
        """Writes the moments, then the partition: where it is, they are."""
        pa = arrow()
        table = super().finish(number, record)
        columns = np.concatenate([stored.columns for stored in self.stored])
        record |= {"rule": WAITING, "layout": self.stored[0].layout}
        flat = pa.array(np.ascontiguousarray(columns).reshape(-1), pa.float64())
        # Named as parquet names them, since a type is part of a table's digest.
        kind = pa.list_(pa.field("element", pa.float64()), columns.shape[1])
        table = table.append_column(NUMBERS, pa.FixedSizeListArray.from_arrays(flat, type=kind))
        distances = np.concatenate([stored.found.distance for stored in self.stored])
        table = table.append_column(DISTANCE, pa.array(distances, pa.float64()))
        write_moments(self.place, moments_name(number), added(self.sums), self.job.plan)
        return table


class Looker:
    """The second pass: judges what a partition's file holds with the whole pile.

    Args:
        job: what is done.
        detector: one that has looked at the pile; None loads the job's and looks.
    """

    def __init__(self, job: Job, detector: Detector | None = None) -> None:
        self.job, self.place = job, OutputStore(job.out)
        if detector is None:
            with limited(job.threads):
                detector = looking(job.load(), read_moments(self.place, MOMENTS, job.plan))
        self.detector = detector

    def __call__(self, number: int, part: str) -> Record:
        """Writes partition `number` again as the pile shows it, without its numbers."""
        table, record = read_part(self.place, number)
        if record["rule"] == WAITING:
            with limited(self.job.threads):
                verdicts = judged(self.detector.judge, stored_in(table, record))
                least = self.detector.explainer.least_explained(verdicts)
            record = {key: value for key, value in record.items() if key != "layout"} | {"rule": self.job.rule}
            table = table_of([verdicts], [least], self.detector.judge.parts)
            write_part(self.place, table, record)
        self.place.remove(moments_name(number))
        return {"number": number, "n": len(table)}


def stored_in(table: pa.Table, record: Record) -> Stored:
    """What the first pass stored in a partition's file."""
    column = table[NUMBERS].combine_chunks()
    numbers = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    of = table["copy_of"].to_pylist()
    distance = table[DISTANCE].combine_chunks().to_numpy(zero_copy_only=False)
    predicted = table["predicted"].combine_chunks().to_numpy(zero_copy_only=False)
    found = Found(of, distance, np.array([bool(name) for name in of], bool))
    layout = [(int(k), group, kind, int(width)) for k, group, kind, width in record["layout"]]
    return Stored(table["id"].to_pylist(), predicted, found, numbers, layout)
