"""A finished pile looked at again: the inputs it flagged, the mechanisms behind them, whether its sources are there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from covary.data.source import Source
from covary.detector import Detector
from covary.errors import CovaryError
from covary.objects import check_consent
from covary.runs import scan as scanning
from covary.runs.pile import mechanisms
from covary.serving.pile.output_store import TROUBLE, OutputStore
from covary.serving.pile.partitions import PLAN, SUMMARY, Pile, cut
from covary.serving.pile.sources import SOURCES
from covary.serving.pile.verdicts import read_part
from covary.serving.pile.worker import Samples, preparation_of
from covary.storage import detector as saved
from covary.storage import folders
from covary.storage.fingerprints import digest_json
from covary.storage.locks import one_writer

WHAT = "a finished pile of `covary score`"


def plan_and_summary(out: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a finished pile says it was made of, and its summary.

    Raises:
        CovaryError: no pile there, one that is not finished, or one that is not as covary writes it.
    """
    place = OutputStore(out)
    found = []
    for name in (PLAN, SUMMARY):
        try:
            found.append(json.loads(place.read(name)))
        except (*TROUBLE, RecursionError) as problem:
            raise CovaryError(f"{out} has no readable {name} ({problem})", WHAT, "finish it first") from problem
    plan, summary = found
    texts = ("data", "kind", "listing")
    fits = isinstance(plan, dict) and isinstance(summary, dict) and all(isinstance(plan.get(t), str) for t in texts)
    size = plan.get("partition_size") if fits else None
    if not fits or type(size) is not int or size < 1 or not isinstance(plan.get("detector"), dict):
        raise CovaryError(f"{PLAN} or {SUMMARY} of {out} is not as covary writes it", WHAT, "make the pile again")
    return plan, summary


def same_cut(plan: dict[str, Any], out: str | Path, trust_code: bool) -> Pile:
    """The pile's inputs cut as they were then.

    Raises:
        CovaryError: names or boundaries are others now, or the pile names code that nobody has agreed to run.
    """
    check_consent(out, {"inputs": plan["data"]}, trust_code)
    pile = cut(plan["data"], plan["partition_size"])
    if (pile.kind, pile.digest()) != (plan["kind"], plan["listing"]):
        raise CovaryError(f"{plan['data']} is no longer cut as it was", "the same files and names", "score it again")
    return pile


def flagged_inputs(
    out: str | Path, detector: Detector, *, trust_code: bool = False
) -> tuple[Source, Int[np.ndarray, " k"]]:
    """The inputs that a pile flagged, read again and kept in memory, and what was predicted of each.

    Raises:
        CovaryError: nothing is flagged, or the inputs are no longer those that were judged.
    """
    plan, _ = plan_and_summary(out)
    pile, place = same_cut(plan, out, trust_code), OutputStore(out)
    preparation, mode = preparation_of(detector)
    ids: list[str] = []
    samples: list[np.ndarray] = []
    predicted: list[int] = []
    for number, part in enumerate(pile.parts):
        table, _ = read_part(place, number, ("id", "flagged", "predicted"))
        flags, names = table["flagged"].to_pylist(), table["id"].to_pylist()
        if not any(flags):
            continue
        inputs = SOURCES[pile.kind].read(pile.data, json.loads(part), mode)
        for (name, sample), expected, flag in zip(inputs, names, flags, strict=True):
            if name != expected:
                found = f"{pile.data} gives {name!r} where {expected!r} was judged"
                raise CovaryError(found, "the same inputs", "score the pile again")
            if flag:
                ids.append(name)
                samples.append(sample)
        predicted += [label for label, flag in zip(table["predicted"].to_pylist(), flags, strict=True) if flag]
    if not ids:
        raise CovaryError(f"nothing in {out} is flagged", "a pile with flags", "raise fpr= or fdr=")
    return Source(Samples(ids, samples), name=f"what {out} flagged", **preparation), np.array(predicted, np.int64)


def score_flagged(folder: Path, pile: str, out: Path, *, trust_code: bool = False, **rest: Any) -> dict[str, Any]:
    """Judges again what a pile flagged and writes a RUN of it, evidence and report included; returns the summary.

    Any detector may look again. `rest` is what `covary.runs.scan.score` takes. The inputs were chosen by a detector:
    their p-values are no longer those of inputs that come as they may, and so flag nothing by `fdr`.

    Raises:
        CovaryError: as of `flagged_inputs` and `score`, or an FDR over inputs that were chosen.
    """
    if rest.get("fdr") is not None:
        raise CovaryError("fdr= over inputs that were chosen by their p-values", "no fdr=", "leave it away")
    plan, _ = plan_and_summary(pile)
    check_consent(pile, {"inputs": plan["data"]}, trust_code)

    def opened(detector: Detector) -> Source:
        return flagged_inputs(pile, detector, trust_code=trust_code)[0]

    return scanning.score(folder, plan["data"], out, opened=opened, flagged_of=pile, trust_code=trust_code, **rest)


def find_pile_mechanisms(
    out: Path, least: int | None = None, *, detector: Path | None = None, trust_code: bool = False, force: bool = False
) -> dict[str, Any]:
    """Clusters what a pile flagged, as `find_mechanisms` does for a RUN; the detector is where the pile found it.

    Args:
        out: the pile, on this machine.
        least: inputs that make a mechanism.
        detector: where the detector is now, where it has moved.
        trust_code: run code that detector and pile name.
        force: change a pile though it is signed.

    Raises:
        CovaryError: as of `flagged_inputs`, or another detector than the pile's.
    """
    with one_writer(out):
        folders.check_unsigned(out, "changed", force)
        plan, summary = plan_and_summary(out)
        home = Path(str(summary.get("detector"))) if detector is None else detector
        check_detector(plan, home)
        found = mechanisms.nothing(int(summary.get("n_flagged") or 0))
        if found["n_flagged"]:
            opened = Detector.load(home, trust_code=trust_code)
            some, predicted = flagged_inputs(out, opened, trust_code=trust_code)
            found |= mechanisms.clusters_of(opened, some, predicted, least)
        return mechanisms.written(out, found)


def check_detector(plan: dict[str, Any], folder: Path) -> None:
    """Refuses another detector than the one that judged the pile."""
    found, then = digest_json(saved.open_record(folder)), plan["detector"].get("digest")
    if found != then:
        expected = f"{str(then)[:16]}, which judged the pile"
        raise CovaryError(f"{folder} is detector {found[:16]}", expected, "name that one (detector=)")


def pile_source_differences(out: Path, *, trust_code: bool = False) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of a pile's detector and inputs where they are others now; contents are not read."""
    plan, summary = plan_and_summary(out)
    check_consent(out, {"inputs": plan["data"]}, trust_code)
    for name, check in (
        ("detector", lambda: check_detector(plan, Path(str(summary.get("detector"))))),
        ("listing", lambda: same_cut(plan, out, trust_code)),
    ):
        try:
            check()
        except CovaryError as problem:
            yield f"fingerprints.{name}", str(problem)
