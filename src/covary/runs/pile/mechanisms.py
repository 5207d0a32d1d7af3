"""The mechanisms behind the flags of a RUN: flagged inputs looked at again, clustered, and told in its report."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from covary.data.source import Source
from covary.detector import Detector
from covary.errors import CovaryError
from covary.runs.folder.cards import data_uri
from covary.runs.pile.phrases import phrases_of
from covary.runs.report import REPORT, write_report
from covary.runs.scan import WHAT, Material, ScanPlan, additions, recorded, trusting, working_in
from covary.scoring.clusters import cluster, mechanism_axis, uncertainty, unexplained_directions
from covary.scoring.judge import Verdicts
from covary.storage import folders
from covary.storage.locks import atomic_file, one_writer
from covary.storage.receipts import renew
from covary.storage.verify import receipt_state

MAX_THUMBNAILS = 24
FILE = "mechanisms.json"


def find_mechanisms(
    run: Path, least: int | None = None, *, trust_code: bool = False, force: bool = False
) -> dict[str, Any]:
    """Clusters the flagged inputs of a RUN; writes `mechanisms.json` and the report, and returns what was found.

    The network and the data must still be where the RUN found them: features of the flagged inputs are taken anew.

    Raises:
        CovaryError: no RUN there, one of texts, one that names code nobody has agreed to run, one that is signed
            (unless `force` is given), or inputs or a network that have changed since.
    """
    with one_writer(run):
        folders.check_unsigned(run, "changed", force)
        return _found_and_written(run, least, trust_code)


def _found_and_written(run: Path, least: int | None, trust_code: bool) -> dict[str, Any]:
    record, plan = recorded(run, trust_code)
    flagged, predicted = _flags(run)
    found = nothing(len(flagged))
    if len(flagged):
        with working_in(Path(record["folder"])):
            detector, inputs = _again(record, plan, trust_code)
            if record["fingerprints"]["inputs"] != inputs.fingerprint():
                raise CovaryError(f"{inputs.name} has changed since the RUN", "the same inputs", "scan again")
            passed = inputs.take(np.setdiff1d(np.arange(len(inputs)), flagged))
            found |= clusters_of(detector, inputs.take(flagged), predicted, least, passed)
    return written(run, found)


def nothing(n_flagged: int) -> dict[str, Any]:
    """What is found before anything was looked for."""
    return {"n_flagged": n_flagged, "n_mechanisms": 0, "alone": 0, "clusters": []}


def clusters_of(
    detector: Detector, some: Source, predicted: Int[np.ndarray, " k"], least: int | None, passed: Source | None = None
) -> dict[str, Any]:
    """The clusters of flagged inputs, of which the network said `predicted` then; `passed` are those it flagged not.

    Raises:
        CovaryError: the network says something else now.
    """
    rows = detector.rows(some)
    verdicts = detector.judge.judge(rows)
    if not np.array_equal(rows.predicted, predicted):
        raise CovaryError("the network answers otherwise than in the RUN", "the same network", "scan again")
    labels = cluster(rows, detector.judge.reference, least)
    directions = unexplained_directions(rows, detector.judge.reference)
    layers = detector.explainer.least_explained(verdicts)
    return {
        "n_mechanisms": int(labels.max()) + 1 if len(labels) else 0,
        "alone": int((labels < 0).sum()),
        "clusters": [
            _row(int(k), np.flatnonzero(labels == k), directions, verdicts, layers, some)
            | phrases_of(
                some.take(np.flatnonzero(labels == k)),
                [some.take(np.flatnonzero(labels != k)), *([] if passed is None else [passed])],
                detector.extractor.trusted_texts,
            )
            for k in np.unique(labels[labels >= 0])
        ],
        "members": {name: int(k) for name, k in zip(rows.ids, labels, strict=True)},
    }


def written(run: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Writes what was found and the report into a folder and its receipt; returns it with the receipt's state."""
    state = receipt_state(run, ignoring=(FILE, REPORT))
    found = {**found, "receipt": state}
    with atomic_file(run / FILE) as part:
        folders.write_json(part, found)
    renew(run, FILE)
    renew(run, write_report(run, state).name)
    return found


def _flags(run: Path) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Positions of the flagged inputs and what the network said of them."""
    try:
        with open(run / "results.csv", newline="", encoding="utf-8") as file:
            rows = [
                (i, int(row["predicted"])) for i, row in enumerate(csv.DictReader(file)) if row["flagged"] == "true"
            ]
    except (OSError, KeyError, ValueError) as problem:
        raise CovaryError(f"{run / 'results.csv'} cannot be read ({problem})", WHAT) from problem
    return np.array([i for i, _ in rows], np.int64), np.array([label for _, label in rows], np.int64)


def _again(record: dict[str, Any], plan: ScanPlan | None, trust_code: bool) -> tuple[Detector, Source]:
    """The detector of a RUN and its inputs."""
    config = record["config"]
    if "flagged_of" in config:
        found = f"the RUN is of what {config['flagged_of']} flagged"
        raise CovaryError(found, "a RUN of whole data", f"covary mechanisms {config['flagged_of']}")
    if plan is None:
        detector = Detector.load(config["detector"], trust_code=trust_code)
        detector = trusting(detector, additions(record))
        return detector, detector.open(config["inputs"], truth=config.get("truth"))
    material = Material(plan)
    detector = material.fit((record["fingerprints"]["trusted"], record["roles"]))
    assert material.inputs is not None
    return detector, material.inputs


def _row(
    number: int,
    members: Int[np.ndarray, " m"],
    directions: Float[np.ndarray, "n d"],
    verdicts: Verdicts,
    layers: list[str],
    inputs: Source,
) -> dict[str, Any]:
    """What is told of one cluster, its most typical members first."""
    centre = directions[members].mean(0)
    members = members[np.argsort(-(directions[members] @ centre), kind="stable")]
    axis, unsure = float(np.median(mechanism_axis(verdicts)[members])), uncertainty(verdicts)[members]
    raised = Counter(verdicts.raised_by[i] for i in members)
    return {
        "number": number + 1,
        "n": len(members),
        "ids": [verdicts.ids[i] for i in members],
        "predicted": {str(k): v for k, v in Counter(verdicts.predicted[members].tolist()).most_common()},
        "least_explained_layer": Counter(layers[i] for i in members).most_common(1)[0][0],
        "raised_by": raised.most_common(1)[0][0],
        "median_uncertainty": float(np.median(unsure)),
        "median_axis": axis,
        "reading": "another mechanism behind sure answers" if axis > 0 else "answers the network is unsure of",
        "shown": [
            {"id": verdicts.ids[i], "thumbnail": data_uri(inputs.thumbnail(int(i)))}
            for i in members[:MAX_THUMBNAILS].tolist()
        ],
    }
