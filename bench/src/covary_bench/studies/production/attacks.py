"""Fifty thousand connections of one request each, then 64 kept ones for a minute, beside clients that mean harm.

    OMP_NUM_THREADS=1 python -m covary_bench.studies.production.attacks [--parts kept]

The slow ones come from an address of their own (127.0.0.2): connections that send nothing, heads and bodies a byte a
second, answers that are never read, each repeated as soon as it is closed. Counts what the others lose, and watches the
service's descriptors, memory and log. Two more rounds under `prlimit --nofile`: one-request connections under 1,024
descriptors, 250 half heads under 200. Then one-byte bodies, and one connection alone. Writes
`bench/results/production-attacks.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from covary_bench.studies.production.service_process import INFER, RESULTS, ServiceProcess, keep, machine

AT_ONCE = 16
BROKEN = (OSError, ValueError, IndexError, asyncio.IncompleteReadError)


@dataclass
class Found:
    """What a group of clients saw."""

    sent: int = 0
    lost: int = 0
    mixed_up: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


def message(image: np.ndarray, name: str, headers: str = "") -> bytes:
    """A request for one image."""
    tensor: dict[str, Any] = {"name": "input", "datatype": "UINT8", "shape": [1, *image.shape]}
    tensor["parameters"] = {"binary_data_size": image.nbytes}
    head = json.dumps({"id": name, "inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers += f"Content-Length: {len(head) + image.nbytes}\r\nInference-Header-Content-Length: {len(head)}\r\n"
    return f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode() + head + image.tobytes()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body."""
    status, size = int((await reader.readline()).split()[1]), 0
    while (line := await reader.readline()).strip():
        name, _, text = line.partition(b":")
        size = int(text) if name.lower() == b"content-length" else size
    return status, await reader.readexactly(size)


async def ask(streams: Any, image: np.ndarray, name: str, found: Found, begin: float, how: int = 0) -> None:
    """One request and its answer; a third of the clients close their side at once, a third says that it will."""
    reader, writer = streams
    writer.write(message(image, name, "Connection: close\r\n" if how == 1 else ""))
    if how == 2:
        writer.write_eof()
    status, body = await answer(reader)
    found.statuses[status] += 1
    found.mixed_up += f'"id":"{name}"'.encode() not in body
    found.seconds.append(time.perf_counter() - begin)


async def one_each(port: int, numbers: Iterable[int], images: np.ndarray, found: Found) -> None:
    """Requests, each on a connection of its own."""
    for i in numbers:
        found.sent += 1
        begin = time.perf_counter()
        try:
            streams = await asyncio.open_connection("127.0.0.1", port)
            await ask(streams, images[i % len(images)], f"one-{i}", found, begin, i % 3)
            streams[1].close()
        except BROKEN:
            found.lost += 1


async def keeping(port: int, k: int, images: np.ndarray, ended: asyncio.Event, found: Found) -> None:
    """Requests on one connection, each when the last one is answered."""
    streams, i = await asyncio.open_connection("127.0.0.1", port), 0
    while not ended.is_set():
        found.sent, i = found.sent + 1, i + 1
        try:
            await ask(streams, images[(k + i) % len(images)], f"kept-{k}-{i}", found, time.perf_counter())
        except BROKEN:
            found.lost += 1
            streams = await asyncio.open_connection("127.0.0.1", port)
    streams[1].close()


async def slow(port: int, k: int, image: np.ndarray, ended: asyncio.Event, tried: Counter[str]) -> None:
    """Connections that hold what they can for as long as they can."""
    lots, full = Random(k), message(image, "slow")
    starts = {"idle": 0, "head": 20, "body": full.index(b"\r\n\r\n") + 5, "unread": len(full)}
    while not ended.is_set():
        kind = lots.choice(sorted(starts))
        sent = starts[kind]
        tried[kind] += 1
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
            writer.write(full[:sent])
            while not ended.is_set():
                try:
                    came = await asyncio.wait_for(reader.read(200), 1)
                except TimeoutError:
                    if kind in ("head", "body"):
                        writer.write(full[sent : sent + 1])
                        sent += 1
                    continue
                if not came:
                    break
                if came.startswith(b"HTTP/"):
                    tried[f"{kind}: {came[9:12].decode()}"] += 1
            writer.close()
        except OSError as problem:
            tried[f"{kind}: {type(problem).__name__}"] += 1
            await asyncio.sleep(0.2)


async def watch(service: ServiceProcess, ended: asyncio.Event, seen: list[tuple[int, int]]) -> None:
    """Descriptors and memory, twice a second."""
    while not ended.is_set():
        seen.append((service.descriptors, service.mebibytes))
        await asyncio.sleep(0.5)


async def round_of(
    service: ServiceProcess, work: Sequence[Coroutine[Any, Any, None]], ended: asyncio.Event, seconds: float,
    others: int, image: np.ndarray, found: Found,
) -> dict[str, Any]:  # fmt: skip
    """Runs `work` beside `others` slow clients; for `seconds`, or where that is 0 until it is done."""
    seen = [(service.descriptors, service.mebibytes)]
    tried: Counter[str] = Counter()
    background = [asyncio.create_task(slow(service.port, k, image, ended, tried)) for k in range(others)]
    background.append(asyncio.create_task(watch(service, ended, seen)))
    begin, load = time.perf_counter(), os.getloadavg()[0]
    tasks = [asyncio.create_task(one) for one in work]
    if seconds:
        await asyncio.sleep(seconds)
        ended.set()
    await asyncio.gather(*tasks)
    took = time.perf_counter() - begin
    ended.set()
    await asyncio.gather(*background)
    await asyncio.sleep(2)
    files, memory = np.array(seen).T.tolist()
    p50, p99 = np.quantile(np.array(found.seconds) * 1000, [0.5, 0.99])
    return {
        "requests": found.sent, "lost": found.lost, "mixed_up": found.mixed_up,
        "statuses": {str(status): n for status, n in sorted(found.statuses.items())},
        "p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1), "seconds": round(took, 1),
        "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
        "slow": dict(sorted(tried.items())),
        "descriptors": {"before": files[0], "most": max(files), "after": service.descriptors},
        "mebibytes": {"before": memory[0], "a tenth in": memory[len(memory) // 10], "half in": memory[len(memory) // 2],
                      "after": service.mebibytes},
        "log_bytes": len(service.log), "tracebacks": service.log.count("Traceback"), "alive": service.healthy(),
    }  # fmt: skip


async def connections(service: ServiceProcess, count: int, slow_ones: int) -> dict[str, Any]:
    """One-request connections."""
    images, found = service.images, Found()
    work = [one_each(service.port, range(k, count, AT_ONCE), images, found) for k in range(AT_ONCE)]
    return await round_of(service, work, asyncio.Event(), 0, slow_ones, images[0], found)


async def kept(service: ServiceProcess, seconds: float, slow_ones: int) -> dict[str, Any]:
    """Kept connections."""
    images, found, ended = service.images, Found(), asyncio.Event()
    work = [keeping(service.port, k, images, ended, found) for k in range(64)]
    return await round_of(service, work, ended, seconds, slow_ones, images[0], found)


async def half_heads(service: ServiceProcess, count: int) -> dict[str, Any]:
    """Half-sent heads and connections without one, then whether a client still gets in, until all are closed."""
    held = []
    for i in range(count):
        streams = await asyncio.open_connection("127.0.0.1", service.port, local_addr=("127.0.0.2", 0))
        if i % 2:
            streams[1].write(b"POST /v2 HTTP/1.1\r\nHo")
        held.append(streams)
    begin, healthy, most, looks = time.perf_counter(), 0, 0, 0
    while time.perf_counter() - begin < 15:
        looks, most = looks + 1, max(most, service.descriptors)
        healthy += await asyncio.to_thread(service.healthy)
        await asyncio.sleep(1)
    found = {"half_heads": count, "looks": looks, "healthy": healthy, "descriptors_most": most,
             "descriptors_after": service.descriptors, "log_bytes": len(service.log)}  # fmt: skip
    for _, writer in held:
        writer.close()
    return found


async def slow_bodies(service: ServiceProcess, count: int) -> dict[str, Any]:
    """Bodies of which one byte came, as many as requests may be open, and how long another request takes."""
    image, found = service.images[0], Found()
    full, held = message(image, "slow"), []
    for _ in range(count):
        held.append(await asyncio.open_connection("127.0.0.1", service.port))
        held[-1][1].write(full[: full.index(b"\r\n\r\n") + 5])
    await asyncio.sleep(1)
    await one_each(service.port, range(20), image[None], found)
    for _, writer in held:
        writer.close()
    return {"bodies": count, "requests": found.sent, "lost": found.lost, "statuses": dict(found.statuses),
            "most_ms": round(1000 * max(found.seconds), 1)}  # fmt: skip


async def one_kept(service: ServiceProcess, count: int) -> dict[str, Any]:
    """Requests on one connection, nothing beside them."""
    image, found = service.images[0], Found()
    streams = await asyncio.open_connection("127.0.0.1", service.port)
    for i in range(count):
        await ask(streams, image, f"alone-{i}", found, time.perf_counter())
    streams[1].close()
    return {"requests": count, "p50_ms": round(1000 * float(np.median(found.seconds)), 1),
            "load_average": round(os.getloadavg()[0], 1)}  # fmt: skip


def run(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """One part of the record, on a service of its own."""
    limits = {"half heads of 200 descriptors": 200, "one request each of 1024 descriptors": 1024}
    more = ["--max-requests", "4"] if part == "slow bodies" else []
    with ServiceProcess(*more, descriptors=limits.get(part)) as service:
        assert service.healthy()
        return asyncio.run({
            "half heads of 200 descriptors": lambda: half_heads(service, 250),
            "slow bodies": lambda: slow_bodies(service, 4),
            "one kept": lambda: one_kept(service, 500),
            "one request each of 1024 descriptors": lambda: connections(service, 3000, 0),
            "one request each": lambda: connections(service, options.connections, options.slow),
            "kept": lambda: kept(service, options.seconds, options.slow),
        }[part]())  # fmt: skip


PARTS = ("half heads of 200 descriptors", "slow bodies", "one kept", "one request each of 1024 descriptors",
         "one request each", "kept")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--slow", type=int, default=200)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="The others stay as they are.")
    options = parser.parse_args()
    place = RESULTS / "production-attacks.json"
    record: dict[str, Any] = json.loads(place.read_text()) if place.is_file() else {}
    for part in options.parts:
        record[part] = run(part, options)
        keep({**record, **machine()}, place.name)


if __name__ == "__main__":
    main()
