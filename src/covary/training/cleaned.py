"""Which samples of a training set to keep: what was judged of each, what is decided, and the files that say so."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from covary.runs.folder.cells import to_cell
from covary.scoring.calibration import conformal
from covary.scoring.pile.cards import SHIFT_LIKE
from covary.storage import folders

ODD, MISLABELLED = "odd mechanism", "mislabelled"
TABLE, RECORD, KEEP, REMOVE, LOOK_AT = "clean.csv", "clean.json", "keep.txt", "remove.txt", "mislabelled.txt"
# Of p-values as a table has them.
ROUNDED = 1e-6
COLUMNS = ("id", "decision", "reason", "score", "p_value", "card", "predicted", "label", "label_p")


@dataclass(frozen=True)
class Cleaned:
    """A training set judged against trusted samples.

    Attributes:
        ids: names of the samples, in order.
        score: higher = more anomalous.
        p_value: chance that a clean sample scores at least as high, (0, 1].
        predicted: the network's own answer.
        card: number of the pile's card that a sample is on; 0 = on none.
        rate: of clean samples that may be given up, as calibration can resolve it.
        by_cards: whether cards decide in place of p-values.
        attack_cards: numbers of the cards that are not shift-like, whose members go where cards decide.
        label: what the training set says, -1 where it does not; None where it has no labels.
        label_p: chance that a trusted sample's label is contradicted as surely (see `contradiction`), (0, 1]; None
            where trusted samples have no labels or the network no classes.
        drop_mislabelled: whether surely contradicted labels are removed, too.
    """

    ids: Sequence[str]
    score: Float[np.ndarray, " n"]
    p_value: Float[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"]
    card: Int[np.ndarray, " n"]
    rate: float
    by_cards: bool = False
    attack_cards: Sequence[int] = ()
    label: Int[np.ndarray, " n"] | None = None
    label_p: Float[np.ndarray, " n"] | None = None
    drop_mislabelled: bool = False
    statements: Sequence[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Cleaned({len(self)} samples, {int(self.remove.sum())} to remove)"

    @property
    def odd(self) -> Bool[np.ndarray, " n"]:
        """Which samples taught another mechanism than trusted ones did: by p-value, or by card."""
        if self.by_cards:
            return np.isin(self.card, np.asarray(self.attack_cards, np.int64))
        return self.p_value <= self.rate * (1 + ROUNDED)

    @property
    def mislabelled(self) -> Bool[np.ndarray, " n"]:
        """Which of the others have a label that the network surely contradicts: it has not learned them."""
        if self.label is None or self.label_p is None:
            return np.zeros(len(self), bool)
        differs = (self.label >= 0) & (self.label != self.predicted)
        return differs & ~self.odd & (self.label_p <= self.rate * (1 + ROUNDED))

    @property
    def remove(self) -> Bool[np.ndarray, " n"]:
        """Which samples to train without."""
        return self.odd | self.mislabelled if self.drop_mislabelled else self.odd

    @property
    def keep(self) -> Bool[np.ndarray, " n"]:
        """Which samples to train on: `x[cleaned.keep]`."""
        return ~self.remove

    def to_json(self) -> dict[str, Any]:
        """Counts, and what was decided by."""
        return {
            "n": len(self),
            "n_keep": int(self.keep.sum()),
            "n_remove": int(self.remove.sum()),
            "n_odd": int(self.odd.sum()),
            "n_mislabelled": int(self.mislabelled.sum()),
            "labels": self.label is not None,
            "labels_tested": self.label_p is not None,
            "rate": self.rate,
            "by_cards": self.by_cards,
            "attack_cards": list(self.attack_cards),
            "drop_mislabelled": self.drop_mislabelled,
            "statements": list(self.statements),
        }

    def write(self, folder: Path) -> None:
        """Writes the table, the three lists of ids and the counts into a folder."""
        remove, odd, mislabelled = self.remove, self.odd, self.mislabelled
        with open(folder / TABLE, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for i, name in enumerate(self.ids):
                writer.writerow([
                    to_cell(name), "remove" if remove[i] else "keep",
                    ODD if odd[i] else MISLABELLED if mislabelled[i] else "",
                    repr(float(self.score[i])), repr(float(self.p_value[i])), int(self.card[i]) or "",
                    int(self.predicted[i]),
                    "" if self.label is None or self.label[i] < 0 else int(self.label[i]),
                    "" if self.label_p is None or np.isnan(self.label_p[i]) else repr(float(self.label_p[i])),
                ])  # fmt: skip
        for name, chosen in ((KEEP, ~remove), (REMOVE, remove), (LOOK_AT, mislabelled)):
            lines = "".join(f"{_one_line(self.ids[i])}\n" for i in np.flatnonzero(chosen).tolist())
            (folder / name).write_text(lines, encoding="utf-8", newline="\n")
        folders.write_json(folder / RECORD, self.to_json())


def _one_line(name: str) -> str:
    """An id on a line of its own; a line break in one is written as its escape, the table has it as it is."""
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


def contradiction(
    margin: Float[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], label: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """How surely the network contradicts a sample's label, in nats; higher = more surely.

    softplus(m) with m the log-odds of the network's answer where that is not the label: a lower bound on the label's
    own loss -log p. Where it is the label, -softplus(m): below every contradiction, the surer the lower.
    """
    loss = np.logaddexp(0.0, margin)
    return np.where(predicted != label, loss, -loss)


def label_p_values(
    contradicted: Float[np.ndarray, " n"], label: Int[np.ndarray, " n"], trusted: Float[np.ndarray, " t"]
) -> Float[np.ndarray, " n"]:
    """Conformal p-values of contradictions among those of trusted samples, nan where there is no label."""
    return np.where(label >= 0, conformal.conformal_p(contradicted, trusted), np.nan)


def attack_like(cards: Sequence[dict[str, Any]]) -> list[int]:
    """Numbers of the cards whose members go where cards decide: all but those that read as a shift."""
    return [int(card["number"]) for card in cards if card["reading"] != SHIFT_LIKE]
