"""A pile scored partition by partition, here or over a cluster, and a second pass that decides who is flagged."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from covary.detector import Detector, Progress
from covary.errors import CovaryError
from covary.runs.display import SILENT, Display
from covary.runs.folder.summary import summary_of
from covary.scoring.pile.together import views
from covary.serving.pile import INPUTS_PER_PARTITION, local, on_ray, partitions
from covary.serving.pile import fdr as counted
from covary.serving.pile.duplicates import Repeated, first_repeated
from covary.serving.pile.output_store import OutputStore
from covary.serving.pile.partitions import SUMMARY, Pile
from covary.serving.pile.passes import Flagger, Record, Tally, fixed_rule
from covary.serving.pile.together import Gatherer, Looker, looking, merge_moments
from covary.serving.pile.verdicts import read_part
from covary.serving.pile.worker import Job, Scorer, limited
from covary.storage import detector as saved
from covary.storage.fingerprints import digest_json
from covary.storage.locks import one_writer
from covary.storage.parts import MOMENTS, arrow, moments_name, part_name
from covary.storage.receipts import write_receipt

# Up to here one process reads the p-values in less time than actors take to start.
FEW = 1024

OnPartition = Callable[[Record], None]
Run = Callable[..., Iterator[Record]]


def score_pile(
    folder: str | Path,
    data: str,
    out: str | Path,
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    fdr: float | None = None,
    together: bool = False,
    device: str = "cpu",
    batch_size: int = 64,
    partition_size: int = INPUTS_PER_PARTITION,
    threads: int = 1,
    ray: str | None = None,
    actors: int | None = None,
    public_key: str | Path | None = None,
    trust_code: bool = False,
    force: bool = False,
    display: Display = SILENT,
    progress: Progress | None = None,
    on_partition: OnPartition | None = None,
) -> dict[str, Any]:
    """Judges a pile by a saved detector into one parquet file a partition; returns the summary written beside them.

    Run again after an interruption, it does what is missing. Batches begin anew with every partition, so scores,
    p-values and verdicts do not depend on who scored a partition or when: a run over a cluster equals a local one to
    the bit (on processors of one kind, with the same `threads`).

    Args:
        folder, data, out: detector, pile and place of the results; `data` and `out` may be URLs that fsspec knows.
        model, weights: the network, where the detector does not hold it.
        fdr: flag by Benjamini-Hochberg over the whole pile at this rate, in (0, 1).
        together: judge the pile together: numbers of every input are stored in `out` until the whole pile is known.
        device, batch_size, threads: where and how the network runs; one actor takes `threads` processors.
        partition_size: inputs a partition at most.
        ray: None for this process, `local` for a Ray cluster on this machine, else a cluster's address.
        actors: copies of the network; by default as many as the cluster has room for.
        public_key, trust_code: who vouches for code that the detector names (see `Detector.load`).
        force: change a pile though it is signed.
        display: what is told while the cluster starts.
        progress: called with (partitions done, partitions in all).
        on_partition: called with the record of every partition as it is done.

    Raises:
        CovaryError: bad input, another plan's results at `out`, a cluster that does not answer.
    """
    arrow()
    check_options(fdr=fdr, batch_size=batch_size, partition_size=partition_size, threads=threads, actors=actors)
    place, folder = OutputStore(out), Path(folder)
    with limited(threads):
        here = "cpu" if ray else device
        detector = Detector.load(
            folder, model, weights=weights, device=here, batch_size=batch_size, public_key=public_key,
            trust_code=trust_code,
        )  # fmt: skip
    if detector.settings.kind == "text":
        found = "a pile of texts in partitions, whose answers a language model may still have to give"
        raise CovaryError(found, "a detector of images or arrays", "score the texts as one RUN")
    pile = partitions.cut(str(data), partition_size)
    about = {
        "digest": digest_json(saved.open_record(folder)), "network": detector.network.fingerprint,
        "trusted": detector.trusted_fingerprint,
    }  # fmt: skip
    if together:
        views(detector.judge)  # what cannot be looked at is told before the work
    plan = partitions.plan_of(pile, about, partition_size, batch_size, threads, device, together)
    job = Job(
        out=str(out), plan=partitions.plan_digest(plan), data=pile.data, kind=pile.kind, detector=str(folder),
        model=model, weights=None if weights is None else str(weights), device=device, batch_size=batch_size,
        threads=threads, rule=fixed_rule(detector.judge.fpr_in_force),
        trust_code=trust_code or public_key is not None,
    )  # fmt: skip
    with ExitStack() as stack:
        if place.local:
            stack.enter_context(one_writer(Path(place.root)))
        done = partitions.begin(place, plan, force)
        cluster = None
        if ray is not None:
            workers = None if actors is None else actors * threads
            cluster = stack.enter_context(on_ray.cluster(ray, workers, display))
        return _scored(place, detector, pile, job, done, fdr, cluster, actors, progress, on_partition, together)


def _scored(
    place: OutputStore, detector: Detector, pile: Pile, job: Job, done: set[str], fdr: float | None, cluster: Any,
    actors: int | None, progress: Progress | None, on_partition: OnPartition | None, together: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Both passes over a place that is ours alone, here or over `cluster`."""
    begun = time.perf_counter()
    everything = list(enumerate(pile.parts))
    missing = [(i, part) for i, part in everything if part_name(i) not in done]
    if strange := sorted(done - {part_name(i) for i, _ in everything}):
        raise CovaryError(f"{place.where} holds {strange[0]}", f"{len(everything)} partitions", "remove it")
    run: Run = local.run
    scorer: dict[str, Any] = {"job": job, "detector": detector}
    again: Run = run
    if cluster is not None:
        gpus = int(job.device.startswith("cuda"))
        run = partial(on_ray.run, cluster, actors=actors, cpus=job.threads, gpus=gpus)
        if len(everything) > FEW:
            again = partial(on_ray.run, cluster, actors=actors)
        scorer = {"job": job.packed()} if missing or together else {}
    if together:
        names = set(place.names())
        if MOMENTS not in names:
            missing = [(i, part) for i, part in everything if part_name(i) not in done or moments_name(i) not in names]
    worked = _score(run, Gatherer if together else Scorer, scorer, missing, len(everything), progress, on_partition)
    if together:
        detector = _look(run, scorer, place, detector, job, everything)
    judged = _judge(again, detector, job, everything, pile.inputs, fdr)
    place.sweep()
    summary = {
        **summary_of(detector, judged["n"], fdr),
        **judged,
        **worked,
        "detector": str(Path(job.detector).absolute()),
        "partitions": len(everything),
        "actors": actors,
        "stored_bytes": pile.stored,
        "left_out": [left.to_json() for left in pile.left_out],
        "seconds": round(time.perf_counter() - begun, 3),
    }
    summary["statements"] += [f"Inputs: {left} left out." for left in pile.left_out]
    if judged["n_copies"]:
        summary["statements"].append(
            f"{judged['n_copies']:,} of {judged['n']:,} inputs are copies of trusted ones (column copy_of), and never "
            "flagged."
        )
    place.write(SUMMARY, json.dumps(summary, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")
    if place.local:
        write_receipt(Path(place.root))
    return summary


def _look(
    run: Run, scorer: dict[str, Any], place: OutputStore, detector: Detector, job: Job, parts: list[tuple[int, str]]
) -> Detector:
    """Judges every partition that waits for the pile; the detector after its look at the pile."""
    seen = looking(detector, merge_moments(place, len(parts), job.plan))
    names = set(place.names())
    waiting = [(i, "") for i, _ in parts if moments_name(i) in names]
    if waiting:
        looker = {**scorer, "detector": seen} if "detector" in scorer else scorer
        for _ in run(Looker, looker, waiting):
            pass
    return seen


def check_options(fdr: float | None, **positive: int | None) -> None:
    """Refuses rates outside (0, 1) and counts below 1."""
    if fdr is not None and not 0 < fdr < 1:
        raise CovaryError(f"fdr= is {fdr}", "a number between 0 and 1")
    for name, value in positive.items():
        if value is not None and value < 1:
            raise CovaryError(f"{name}= is {value}", "at least 1")


def _score(
    run: Run, worker: type[Scorer], scorer: dict[str, Any], missing: list, total: int, progress: Progress | None,
    on_partition: OnPartition | None,
) -> dict[str, Any]:  # fmt: skip
    """The first pass: what is missing."""
    inputs, seen = 0, total - len(missing)
    started = time.perf_counter()
    for record in run(worker, scorer, missing):
        inputs, seen = inputs + record["n"], seen + 1
        if progress is not None:
            progress(seen, total)
        if on_partition is not None:
            on_partition(record)
    return {
        "resumed_partitions": total - len(missing),
        "scored_now": inputs,
        "scoring_seconds": round(time.perf_counter() - started, 3),
    }


def _judge(
    run: Run, detector: Detector, job: Job, parts: list[tuple[int, str]], inputs: int | None, fdr: float | None
) -> dict[str, Any]:
    """The second pass: memory holds one count for every distinct p-value, and 64 letters a partition.

    Nothing is counted before every partition is known to be whole, this plan's and its own, and every id unique.
    """
    started = time.perf_counter()
    digests: list[str] = [""] * len(parts)
    counts, n, copies, rules, flagged = counted.merged([]), 0, 0, {}, {}
    took = {"seconds": 0.0, "processor_seconds": 0.0}
    about = {"out": job.out, "plan": job.plan, "data": job.data, "kind": job.kind}
    with Repeated() as repeated:
        for record in run(Tally, about, parts):
            i = record["number"]
            digests[i], rules[i], flagged[i] = record["digest"], record["rule"], record["n_flagged"]
            n, copies = n + record["n"], copies + record["n_copies"]
            took = {name: sofar + record[name] for name, sofar in took.items()}
            counts.update(counted.merged([[(p, times) for p, times in record["counts"]]]))
            repeated.add(np.frombuffer(base64.b64decode(record["ids"]), np.uint64))
        if inputs is not None and n != inputs:
            raise CovaryError(f"{n} verdicts for {inputs} inputs", "one each", "remove out= and run again")
        _check_repeated(OutputStore(job.out), len(parts), repeated)
    rule, limit = fixed_rule(detector.judge.fpr_in_force), detector.judge.fpr_in_force * (1 + 1e-9)
    if fdr is not None:
        limit = counted.threshold(counts, fdr)
        rule = f"Benjamini-Hochberg at {fdr!r} over {n}: p <= {limit!r}"
    other = [(i, "") for i, _ in parts if rules[i] != rule]
    for record in run(Flagger, {"out": job.out, "rule": rule, "limit": limit}, other):
        flagged[record["number"]], digests[record["number"]] = record["n_flagged"], record["digest"]
    return {
        "n": n,
        "n_flagged": sum(flagged.values()),
        "n_copies": copies,
        "rule": rule,
        "p_limit": None if limit == counted.NONE else limit,
        "verdicts": digest_json({"partitions": digests, "rule": rule}),
        # Of all workers together, whichever run they worked in.
        **{f"{name}_per_input": sum_ / n if n else None for name, sum_ in took.items()},
        "second_pass_seconds": round(time.perf_counter() - started, 3),
    }


def _check_repeated(place: OutputStore, parts: int, repeated: Repeated) -> None:
    suspects = repeated.found()
    if not suspects:
        return
    found = first_repeated(((part_name(i), read_part(place, i)[0]["id"].to_pylist()) for i in range(parts)), suspects)
    if found is not None:
        name, one, other = found
        where = f"twice in {one}" if one == other else f"in {one} and in {other}"
        remedy = "mend the ids and choose a new out="
        raise CovaryError(f"id {name!r} occurs {where}", "a unique id for every input", remedy)
