"""Truth: 0 (clean) or 1 (anomalous) for every input, where somebody knows; for evaluation alone."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from covary.data.readers import npz
from covary.data.readers.base import checked_ids
from covary.errors import CovaryError


def read_truth(truth: Any, spec: Any, ids: list[str]) -> Any:
    """Truth as an array, from an array, a .npy, .csv or .npz file, or the name of an array in the .npz `spec`.

    Raises:
        CovaryError: nothing of that name, a broken file, or a table without a row for every id.
    """
    if not isinstance(truth, str | Path):
        return truth
    path = Path(truth)
    if path.is_file():
        if path.suffix == ".csv":
            return truth_column(path, ids)
        if path.suffix == ".npz":
            return npz.read_array(path, "truth")
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise CovaryError(f"{path} cannot be read as .npy ({error})", "truth as .npy, .csv or .npz") from error
    if npz.accepts(spec):
        return npz.read_array(Path(spec), str(truth))
    raise CovaryError(f"no file {truth} for truth", "a .npy, .csv or .npz file, or an array in the inputs' .npz")


def truth_column(path: Path, ids: list[str]) -> Float[np.ndarray, " n"]:
    """The column `truth` of a CSV file, matched by the column `id` where there is one, else in order."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns = list(table.fieldnames or [])
            if "truth" not in columns:
                raise CovaryError(f"{path} has the columns {', '.join(columns)[:200] or 'none'}", "a column 'truth'")
            rows = list(table)
    except (csv.Error, UnicodeDecodeError) as error:
        raise CovaryError(f"{path} is not readable CSV ({error})", "a column 'truth'", "write it again") from error
    try:
        values = [float(row["truth"]) for row in rows]
    except (TypeError, ValueError) as error:
        raise CovaryError(f"column 'truth' of {path} holds {error}", "0 or 1") from error
    if "id" not in columns:
        return np.asarray(values)
    by_id = dict(zip(checked_ids([row["id"] for row in rows], len(rows), str(path)), values, strict=True))
    missing = [name for name in ids if name not in by_id]
    if missing:
        raise CovaryError(f"{path} has no row for {len(missing)} inputs, such as {missing[0]!r}", "a row for every id")
    return np.asarray([by_id[name] for name in ids])
