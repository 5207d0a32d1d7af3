"""The second pass, partition by partition: counting p-values, then setting flags by one threshold for all."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from covary.errors import CovaryError
from covary.serving.pile import fdr
from covary.serving.pile.duplicates import hashes
from covary.serving.pile.output_store import OutputStore
from covary.serving.pile.sources import SOURCES
from covary.serving.pile.verdicts import read_part, with_flags, write_part
from covary.storage.parts import REMEDY, digest_of, part_name

Record = dict[str, Any]


# The rule of a partition that is to be judged with the whole pile.
WAITING = "waits for the pile"


def fixed_rule(fpr: float) -> str:
    """The rule of a detector's own false-alarm rate, in the words of a partition's footer."""
    return f"p <= {fpr!r}"


class Tally:
    """Counts the p-values of partitions, once each is known to be whole and of the inputs it should be of."""

    def __init__(self, out: str, plan: str, data: str, kind: str) -> None:
        self.place, self.plan, self.data, self.kind = OutputStore(out), plan, data, kind

    def __call__(self, number: int, part: str) -> Record:
        """Counts of one partition, hashes of its ids, and what its footer says.

        Raises:
            CovaryError: a byte of it was changed, or it is another partition's, another run's or of other inputs.
        """
        name = part_name(number)
        table, record = read_part(self.place, number)
        if record["plan"] != self.plan:
            raise CovaryError(f"{name} of {self.place.where} is of another run", "one plan's partitions", REMEDY)
        if record["rule"] == WAITING:
            raise CovaryError(f"{name} of {self.place.where} still waits for the pile", "its verdicts", REMEDY)
        ids = table["id"].to_pylist()
        expected = SOURCES[self.kind].ids(self.data, json.loads(part))
        if expected is not None and ids != expected:
            found = f"{name} of {self.place.where} holds verdicts on other inputs"
            raise CovaryError(found, f"{len(expected)} inputs from {expected[0]!r} on", REMEDY)
        p = table["p_value"].combine_chunks().to_numpy(zero_copy_only=False)
        flagged = int(np.count_nonzero(table["flagged"].combine_chunks().to_numpy(zero_copy_only=False)))
        added = {"ids": base64.b64encode(hashes(ids).tobytes()).decode(), "counts": fdr.counts_of(p)}
        copies = sum(bool(name) for name in table["copy_of"].to_pylist())
        return {**record, **added, "n_flagged": flagged, "n_copies": copies}


class Flagger:
    """Sets the flags of partitions by one threshold for the whole pile: the second half of that pass."""

    def __init__(self, out: str, rule: str, limit: float) -> None:
        self.place, self.rule, self.limit = OutputStore(out), rule, limit

    def __call__(self, number: int, part: str) -> Record:
        """Writes one partition again with flagged = p_value <= limit."""
        table, record = read_part(self.place, number)
        flagged = table["p_value"].combine_chunks().to_numpy(zero_copy_only=False) <= self.limit
        table = with_flags(table, flagged)
        write_part(self.place, table, {**record, "rule": self.rule})
        return {"number": number, "n": len(table), "n_flagged": int(flagged.sum()), "digest": digest_of(table)}
