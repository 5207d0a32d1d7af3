"""The second pass, partition by partition: counting p-values, then setting flags by one threshold for all."""

from __future__ import annotations

from typing import Any

import numpy as np

from covary.serving.pile import fdr
from covary.serving.pile.output_store import OutputStore
from covary.serving.pile.partitions import part_name
from covary.serving.pile.verdicts import read_part, with_flags, write_part

Record = dict[str, Any]


def fixed_rule(fpr: float) -> str:
    """The rule of a detector's own false-alarm rate, in the words of a partition's footer."""
    return f"p <= {fpr!r}"


class Tally:
    """Counts the p-values of partitions: the first half of a second pass."""

    def __init__(self, out: str) -> None:
        self.place = OutputStore(out)

    def __call__(self, number: int, part: str) -> Record:
        """Counts of one partition, and what its footer says."""
        table, record = read_part(self.place, part_name(number), ("p_value", "flagged"))
        p = table["p_value"].combine_chunks().to_numpy(zero_copy_only=False)
        flagged = int(np.count_nonzero(table["flagged"].combine_chunks().to_numpy(zero_copy_only=False)))
        return {**record, "number": number, "n": len(p), "counts": fdr.counts_of(p), "n_flagged": flagged}


class Flagger:
    """Sets the flags of partitions by one threshold for the whole pile: the second half of that pass."""

    def __init__(self, out: str, rule: str, limit: float) -> None:
        self.place, self.rule, self.limit = OutputStore(out), rule, limit

    def __call__(self, number: int, part: str) -> Record:
        """Writes one partition again with flagged = p_value <= limit."""
        table, record = read_part(self.place, part_name(number))
        flagged = table["p_value"].combine_chunks().to_numpy(zero_copy_only=False) <= self.limit
        write_part(self.place, part_name(number), with_flags(table, flagged), {**record, "rule": self.rule})
        return {"number": number, "n": len(table), "n_flagged": int(flagged.sum())}
