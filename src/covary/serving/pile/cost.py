"""How long a pile takes on a cluster that somebody describes, from seconds that somebody measured."""

from __future__ import annotations

import json
from typing import Any

from covary.errors import CovaryError
from covary.serving.pile import INPUTS_PER_PARTITION
from covary.serving.pile.output_store import TROUBLE, OutputStore
from covary.serving.pile.partitions import SUMMARY


def estimate(
    inputs: float,
    *,
    seconds_per_input: float,
    actors: int,
    bytes_per_input: float = 0.0,
    bandwidth: float | None = None,
    efficiency: float = 1.0,
    partition_size: int = INPUTS_PER_PARTITION,
    start_seconds: float = 60.0,
    failures_per_actor_hour: float = 0.0,
    second_pass_seconds_per_input: float = 1e-6,
) -> dict[str, Any]:
    """Seconds that N inputs take.

    T = s + max(N c / (A e), N b / B) (1 + f (P c / 2 + s)) + P c + N v / A

    with c seconds an input on one actor, A actors, e their efficiency side by side (A actors do A e times the work of
    one), b bytes an input, B bytes a second that the storage gives to all actors together, P inputs a partition, s
    seconds to start an actor, f actors killed per second and actor, v seconds an input of the second pass. Reading
    runs beside the network, hence the maximum; a killed actor loses half a partition and a start; P c is the last
    partition, which the others wait for. Left out: what the driver does (listing, one record a partition).

    Args:
        inputs: N > 0.
        seconds_per_input: c > 0, `seconds_per_input` of a pile's summary.json.
        actors: A >= 1.
        bytes_per_input: b >= 0, of the files as they are stored.
        bandwidth: B > 0, bytes per second; None where reading is no concern.
        efficiency: e in (0, 1].
        partition_size: P >= 1.
        start_seconds: s >= 0.
        failures_per_actor_hour: 3600 f >= 0.
        second_pass_seconds_per_input: v >= 0.

    Raises:
        CovaryError: a number outside its range.
    """
    above = {"inputs": inputs, "seconds_per_input": seconds_per_input, "actors": actors, "efficiency": efficiency,
             "partition_size": partition_size, "bandwidth": 1.0 if bandwidth is None else bandwidth}  # fmt: skip
    least = {"bytes_per_input": bytes_per_input, "start_seconds": start_seconds,
             "failures_per_actor_hour": failures_per_actor_hour,
             "second_pass_seconds_per_input": second_pass_seconds_per_input}  # fmt: skip
    for name, value in (above | least).items():
        if not (value > 0 if name in above else value >= 0) or value == float("inf"):
            raise CovaryError(f"{name} is {value}", "above 0" if name in above else "0 or more")
    if efficiency > 1:
        raise CovaryError(f"efficiency is {efficiency}", "at most 1")
    network = inputs * seconds_per_input / (actors * efficiency)
    reading = 0.0 if bandwidth is None else inputs * bytes_per_input / bandwidth
    partition = min(partition_size, inputs) * seconds_per_input
    rate = failures_per_actor_hour / 3600
    lost = max(network, reading) * rate * (partition / 2 + start_seconds)
    second = inputs * second_pass_seconds_per_input / actors
    total = start_seconds + max(network, reading) + lost + partition + second
    return {
        "seconds": total,
        "hours": total / 3600,
        "actor_hours": total * actors / 3600,
        "limited_by": "reading" if reading > network else "the network",
        "parts": {"start": start_seconds, "network": network, "reading": reading, "lost to killed actors": lost,
                  "last partition": partition, "second pass": second},
    }  # fmt: skip


def measured(out: str) -> dict[str, float]:
    """What a pile scored before tells of the costs: the arguments of `estimate` by name.

    Raises:
        CovaryError: no such pile, or one that is not finished.
    """
    try:
        summary = json.loads(OutputStore(out).read(SUMMARY))
    except TROUBLE as problem:
        found = f"{out} has no readable {SUMMARY} ({problem})"
        raise CovaryError(found, "a finished pile of `covary score`") from problem
    if not isinstance(summary, dict) or not summary.get("seconds_per_input"):
        raise CovaryError(f"{SUMMARY} of {out} tells no seconds", "a finished pile of `covary score`")
    return {
        "seconds_per_input": summary["seconds_per_input"],
        "bytes_per_input": summary["stored_bytes"] / summary["n"],
        "second_pass_seconds_per_input": summary["second_pass_seconds"] / summary["n"],
    }
