"""Cells: one line of a table, `what/dataset/seed`, as in `badnets/cifar10/0` or `badnets:trusted=10/gtsrb/1`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from covary.errors import CovaryError

_PATTERN = re.compile(r"(\w[\w.+-]*)((?::[\w-]+=[\w.-]+)*)/(\w[\w.-]*)/(\d+)")


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        what: an attack, a foreign data set, a kind of hard input: whatever the table varies; `a+b` for several.
        dataset: a kind of victim (see `victims.VICTIMS`) or a public network (see `public.NETWORKS`).
        seed: of the victim, of the split and of everything drawn.
        options: further settings by name, such as `ratio=0.01`.
    """

    what: str
    dataset: str
    seed: int
    options: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> Cell:
        """The cell of that name."""
        found = _PATTERN.fullmatch(text)
        if found is None:
            raise CovaryError(f"{text!r} is not a cell", "what/dataset/seed, as in badnets/cifar10/0")
        options = dict(part.split("=", 1) for part in found[2].split(":") if part)
        return Cell(found[1], found[3], int(found[4]), options)

    @property
    def variant(self) -> str:
        """What, with its options."""
        return "".join([self.what, *(f":{name}={value}" for name, value in self.options.items())])

    @property
    def case(self) -> str:
        """The cell without its seed; seeds of one case share an interval."""
        return f"{self.variant}/{self.dataset}"

    def __str__(self) -> str:
        return f"{self.case}/{self.seed}"

    @property
    def slug(self) -> str:
        """Its name as a folder."""
        return str(self).replace("/", "--").replace(":", "-")

    def number(self, name: str, default: float | int) -> float:
        """A numeric option."""
        try:
            return float(self.options.get(name, default))
        except ValueError:
            raise CovaryError(f"{name} is {self.options[name]!r} in the cell {self}", "a number") from None
