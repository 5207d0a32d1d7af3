"""Partitions over a Ray cluster: Ray Data hands them to a pool of actors, each with one copy of the network."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from covary.errors import CovaryError, missing_extra
from covary.runs.display import SILENT, Display
from covary.serving.pile.passes import Record

LOCAL = "local"
# Seconds for a head node to take a connection.
PATIENCE = 10
# A block is what Ray does again when an actor dies; done partitions are recognised by their files.
MOST_BLOCKS = 4096
# Partitions pass by as JSON: a local cluster needs little shared memory.
OBJECT_STORE = 256 * 2**20


def ray_modules() -> Any:
    """Ray, which never reports its use when covary loads it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError:
        raise missing_extra("ray", "ray") from None
    return ray


@contextmanager
def cluster(address: str, workers: int | None = None, display: Display = SILENT) -> Iterator[Any]:
    """A connection to the cluster at `address`, to `local` for one on this machine; one that is there already is used.

    Raises:
        CovaryError: nobody answers there.
    """
    check_cluster_answers(address)
    with display.waiting("starting Ray"):
        ray = ray_modules()
        mine = not ray.is_initialized()
        usual = {"log_to_driver": False, "logging_level": "warning"}
        try:
            if mine and address == LOCAL:
                ray.init(num_cpus=workers or os.cpu_count(), include_dashboard=False,
                         object_store_memory=OBJECT_STORE, **usual)  # fmt: skip
            elif mine:
                ray.init(address=address, **usual)
        except (OSError, RuntimeError, ValueError) as problem:
            raise no_cluster(address, problem) from problem
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def check_cluster_answers(address: str) -> None:
    """Refuses `host:port` where nobody listens; Ray itself would keep asking for many minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
        except (OSError, OverflowError) as problem:
            raise no_cluster(address, problem) from problem


def no_cluster(address: str, problem: Exception) -> CovaryError:
    """The error for an address where there is no cluster."""
    reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    expected = "`local`, `auto`, or the address of a running head node"
    return CovaryError(f"no Ray cluster at {address} ({reason})", expected, "start one with: ray start --head")


class _Actor:
    """What Ray Data keeps in every actor: a worker, and its answers as rows."""

    def __init__(self, make: Callable[..., Any], arguments: dict[str, Any], path: list[str]) -> None:
        self.problem = ""
        # Where the machine is the driver's own, its networks and transforms are found as the driver finds them.
        sys.path.extend(entry for entry in path if entry not in sys.path)
        try:
            self.worker = make(**arguments)
        except CovaryError as problem:
            self.problem = str(problem)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        # Bad input is an answer too: raised here it would come back wrapped in Ray's own words.
        record: Record = {"problem": self.problem}
        if not self.problem:
            try:
                record = self.worker(int(row["number"]), str(row["part"]))
            except CovaryError as problem:
                record = {"problem": str(problem)}
        return {"record": json.dumps(record)}


def run(
    ray: Any,
    make: Callable[..., Any],
    arguments: dict[str, Any],
    parts: list[tuple[int, str]],
    *,
    actors: int | None = None,
    cpus: int = 1,
    gpus: int = 0,
) -> Iterator[Record]:
    """What a pool of `make(**arguments)` says of every (number, partition), in no order, as it comes.

    A killed actor is started again and what it was at is done again, without end: workers may see a partition twice.

    Raises:
        CovaryError: from any worker, or fewer resources than one actor needs.
    """
    if not parts:
        return
    have = ray.cluster_resources()
    room = int(have.get("CPU", 0) // cpus)
    if gpus:
        room = min(room, int(have.get("GPU", 0) // gpus))
    if room < 1:
        found = f"{have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs"
        raise CovaryError(f"the Ray cluster has {found}", f"{cpus} and {gpus} for each actor")
    size = min(actors or room, len(parts))
    strategy = ray.data.ActorPoolStrategy
    # More actors than there is room for now are for a cluster that grows.
    pool = strategy(size=size) if size <= room else strategy(min_size=room, max_size=size)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"number": number, "part": part} for number, part in parts]
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    answers = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map(
        _Actor,
        fn_constructor_args=(make, arguments, [*sys.path, str(Path.cwd())]),
        compute=pool,
        num_cpus=cpus,
        num_gpus=gpus or None,
    )
    try:
        for row in answers.iter_rows():
            record = json.loads(row["record"])
            if record.get("problem"):
                raise CovaryError(record["problem"])
            yield record
    except ray.exceptions.RayError as problem:
        last = (str(problem).strip().splitlines() or [type(problem).__name__])[-1]
        raise CovaryError(
            f"the Ray cluster gave up ({last})", "", "run the same command again: what is done stays done"
        ) from problem
