"""What the command line asks of a pile; imports nothing heavy."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from covary.errors import CovaryError

PANEL = "Piles too large for one machine"

OutOrUrl = Annotated[str, Option("--out", help="Folder to write; with partitions also a URL.")]


def judges_texts(detector: Path) -> bool:
    """Whether a saved detector is one of texts, whose files are RUNs; False of what cannot be read."""
    from covary.storage.detector import RECORD, kind_of

    try:
        return kind_of(json.loads((detector / RECORD).read_text("utf-8"))) == "text"
    except (OSError, ValueError, KeyError, TypeError):
        return False


@dataclass(frozen=True)
class Partitioned:
    """Whether and how a pile is scored partition by partition."""

    partition_size: Annotated[
        int | None,
        Option("--partition-size", min=1, rich_help_panel=PANEL,
               help="Write one parquet file for so many inputs (8192), which can be resumed, instead of a RUN."),
    ] = None  # fmt: skip
    ray: Annotated[
        str | None,
        Option("--ray", help="Spread partitions over Ray: `local`, `auto` or a cluster's address.",
               rich_help_panel=PANEL),
    ] = None  # fmt: skip
    actors: Annotated[
        int | None,
        Option("--actors", min=1, help="Copies of the network; as many as there is room for.", rich_help_panel=PANEL),
    ] = None
    threads: Annotated[
        int | None,
        Option("--threads", min=1, rich_help_panel=PANEL,
               help="Threads of each copy (1); another number may change the last bits."),
    ] = None  # fmt: skip

    def is_needed(self, data: str, out: str, detector: Path) -> bool:
        """Whether partitions are asked for, or nothing else can be done with `data` and `out`."""
        if any(value is not None for value in asdict(self).values()) or "://" in out:
            return True
        if judges_texts(detector):
            return False
        from covary.serving.pile.sources import streamed

        return Path(data).suffix != ".npz" and streamed(data)

    def score(self, detector: Path, data: str, out: str, requested: dict[str, Any], **rest: Any) -> dict[str, Any]:
        """Scores the pile; `asked` is what was asked of it as a whole. Returns the summary."""
        from covary.serving.pile.score import score_pile

        for name in ("truth", "target"):
            if requested.get(name) is not None:
                raise CovaryError(
                    f"--{name} with partitions", "a RUN of inputs small enough for figures", f"leave --{name} away"
                )
        arguments = {name: value for name, value in asdict(self).items() if value is not None}
        with rest["display"].progress("partitions") as bar:
            together = bool(requested.get("together"))
            return score_pile(
                detector, data, out, fdr=requested["fdr"], together=together, progress=bar, **arguments, **rest
            )
