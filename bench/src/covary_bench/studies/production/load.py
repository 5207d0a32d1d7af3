"""Sixty-four closed-loop clients for a minute, against the service and against the bare network behind the same server.

    OMP_NUM_THREADS=1 python -m covary_bench.studies.production.load [--seconds 60] [--clients 64]

The network is `cifar10_resnet20_clean`; a request is one image of CIFAR-10's test set, as bytes behind the JSON, every
other one as its negative. Three rounds: the bare network (same HTTP layer and batching, no verdicts), the service, and
the service with eight more clients that send malformed, oversized and truncated requests all the while. Server and
clients are processes of their own on one machine. Writes `bench/results/production-load.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covary.detector import Detector
from covary.scoring.judge import Verdicts
from covary.serving.http import ServeSettings, make_server
from covary.serving.monitor import MonitorResult
from covary.storage.fingerprints import versions
from covary_bench.images.cifar import cifar10_test
from covary_bench.images.public import NETWORKS, load_public
from covary_bench.speed.allocator import keep_freed_memory

ROOT = Path(__file__).resolve().parents[5]
RESULTS = ROOT / "bench" / "results" / "production-load.json"
FOLDER = ROOT / "cache" / "production" / "resnet20-detector"
PATH = "/v2/models/detector/infer"
NAME, TRUSTED = "cifar10_resnet20_clean", 2000
MOST = 100_000
ROUNDS = {"bare": ("bare", 0), "service": ("service", 0), "service_with_bad_requests": ("service", 8)}


def saved() -> Path:
    """The detector in a folder, fitted unless it is there."""
    if not FOLDER.is_dir():
        test, network = cifar10_test(), NETWORKS[NAME]
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        trusted = test.x[:TRUSTED], test.y[:TRUSTED]
        Detector(load_public(NAME)).fit(trusted, mean=network.mean, std=network.std).save(FOLDER)
    return FOLDER


def inputs() -> np.ndarray:
    """Test images that the detector has not seen, every other one turned into its negative."""
    images = cifar10_test().x[TRUSTED : TRUSTED + 1000].copy()
    images[1::2] = 255 - images[1::2]
    return images


def run_server(kind: str, port: int) -> None:
    """The server process; `bare` answers with the network's outputs and made-up verdicts."""
    torch.set_num_threads(1)
    keep_freed_memory()
    detector = Detector.load(FOLDER, load_public(NAME))
    server = make_server(detector, ServeSettings(port=port, max_bytes=MOST, read_seconds=5.0))
    service = server.config.app.state.service
    if kind == "bare":

        def bare(x: torch.Tensor, ids: list[str]) -> MonitorResult:
            n, outputs = len(x), service.monitor._pass.bare(x)
            made_up = Verdicts(ids, np.zeros(n), np.ones(n), np.zeros(n, bool), outputs.argmax(1).numpy())
            return MonitorResult(outputs, made_up)

        service.monitor.watch = bare
    else:
        x = next(detector.open(inputs()[:64]).batches(64)).x
        service.monitor.watch(x)
    server.run()


def request(image: np.ndarray, name: str) -> tuple[bytes, int]:
    """(body, length of its JSON)."""
    datatype = "UINT8" if image.dtype == np.uint8 else "FP32"
    tensor: dict[str, Any] = {"name": "input", "datatype": datatype, "shape": [1, *image.shape]}
    tensor["parameters"] = {"binary_data_size": image.nbytes}
    head = json.dumps({"id": name, "inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + image.tobytes(), len(head)


async def exchange(streams: Any, body: bytes, cut: str, length: int | None = None) -> tuple[int, bytes]:
    """Status and body of one answer."""
    reader, writer = streams
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body) if length is None else length}\r\n"
    writer.write(f"{head}Inference-Header-Content-Length: {cut}\r\n\r\n".encode() + body)
    await writer.drain()
    if length is not None:
        writer.write_eof()
    status = int((await reader.readline()).split()[1])
    size = 0
    while (line := await reader.readline()).strip():
        name, _, value = line.partition(b":")
        size = int(value) if name.lower() == b"content-length" else size
    return status, await (reader.readexactly(size) if size else reader.read())


async def good_client(port: int, k: int, images: np.ndarray, until: float, found: dict[str, Any]) -> None:
    """One closed loop of good requests on one connection."""
    streams = await asyncio.open_connection("127.0.0.1", port)
    i = 0
    while time.perf_counter() < until:
        name = f"{k}-{i}"
        body, cut = request(images[(k * 101 + i) % len(images)], name)
        i += 1
        begin = time.perf_counter()
        found["sent"] += 1
        try:
            status, answer = await exchange(streams, body, str(cut))
        except (OSError, ValueError, IndexError, asyncio.IncompleteReadError) as problem:
            found["broken"].append(f"{type(problem).__name__}: {problem}")
            streams = await asyncio.open_connection("127.0.0.1", port)
            continue
        found["latencies"].append(time.perf_counter() - begin)
        found["statuses"][status] += 1
        found["mixed_up"] += f'"id":"{name}"'.encode() not in answer
    streams[1].close()


async def bad_client(port: int, k: int, images: np.ndarray, until: float, found: dict[str, Any]) -> None:
    """Bad requests, each on a connection of its own."""
    lots = random.Random(k)
    while time.perf_counter() < until:
        body, cut = request(images[0], "bad")
        kind = lots.choice(["malformed", "oversized", "truncated tensor", "broken off", "wrong length", "no number"])
        image = images[0].astype(np.float32)
        image = image if image.shape[0] == 3 else image.transpose(2, 0, 1).copy()
        image.flat[0] = np.nan
        content, header, length = {
            "malformed": (body[: cut // 2], str(cut // 2), None),
            "oversized": (b" " * (MOST + 1), "10", None),
            "truncated tensor": (body[:-100], str(cut), None),
            "broken off": (body[:-100], str(cut), len(body)),
            "wrong length": (body, str(cut + 10**6), None),
            "no number": (*_with_nan(image), None),
        }[kind]
        streams = await asyncio.open_connection("127.0.0.1", port)
        try:
            status, answer = await exchange(streams, content, header, length)
            sentence = answer.decode(errors="replace")
            good = 400 <= status < 500 and bool(sentence) and "\n" not in sentence and "Traceback" not in sentence
            found["bad"][f"{kind}: {status}"] += 1
            found["bad_not_4xx"] += not good
        except (OSError, ValueError, IndexError, asyncio.IncompleteReadError):
            found["bad"][f"{kind}: no answer"] += 1
            found["bad_not_4xx"] += 1
        streams[1].close()
        await asyncio.sleep(0.05 * lots.random())


def _with_nan(image: np.ndarray) -> tuple[bytes, str]:
    tensor: dict[str, Any] = {"name": "input", "datatype": "FP32", "shape": [1, *image.shape]}
    tensor["parameters"] = {"binary_data_size": image.nbytes}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + image.tobytes(), str(len(head))


async def drive(port: int, clients: int, bad: int, seconds: float) -> dict[str, Any]:
    """All clients for that long."""
    images = inputs()
    found: dict[str, Any] = {
        "sent": 0, "latencies": [], "statuses": Counter(), "broken": [], "mixed_up": 0, "bad": Counter(),
        "bad_not_4xx": 0,
    }  # fmt: skip
    until = time.perf_counter() + seconds
    await asyncio.gather(
        *(good_client(port, k, images, until, found) for k in range(clients)),
        *(bad_client(port, k, images, until, found) for k in range(bad)),
    )
    return found


def one_round(kind: str, bad: int, options: argparse.Namespace) -> dict[str, Any]:
    """Starts a server, drives it, stops it."""
    port = 18_000 + random.randrange(2000)
    process = subprocess.Popen([sys.executable, __file__, "--server", kind, "--port", str(port)])
    try:
        asyncio.run(_until_up(port))
        first = asyncio.run(drive(port, 8, 0, 3))["statuses"]
        assert set(first) == {200}, first
        begin, load = time.perf_counter(), os.getloadavg()[0]
        found = asyncio.run(drive(port, options.clients, bad, options.seconds))
        seconds = time.perf_counter() - begin
        alive = process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    latencies = np.array(found["latencies"]) * 1000
    p50, p99 = np.quantile(latencies, [0.5, 0.99])
    record = {
        "clients": options.clients,
        "seconds": round(seconds, 1),
        "requests": found["sent"],
        "answered": len(latencies),
        "lost": found["sent"] - len(latencies),
        "statuses": {str(k): v for k, v in found["statuses"].items()},
        "answers_mixed_up": found["mixed_up"],
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
        "requests_per_second": round(len(latencies) / seconds, 1),
        "alive_afterwards": alive,
        "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    if bad:
        record |= {"bad": dict(sorted(found["bad"].items())), "bad_without_a_4xx_sentence": found["bad_not_4xx"]}
    return record


async def _until_up(port: int) -> None:
    for _ in range(600):
        try:
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
            return
        except OSError:
            await asyncio.sleep(0.5)
    raise TimeoutError("the server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--server", choices=["bare", "service"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        run_server(options.server, options.port)
        return
    saved()
    record: dict[str, Any] = {
        "network": f"{NAME}, one image a request",
        "machine": f"{platform.machine()}, {os.cpu_count()} processors for server and clients together",
        "versions": versions(),
    }
    for name, (kind, bad) in ROUNDS.items():
        record[name] = one_round(kind, bad, options)
        print(name, json.dumps(record[name]), flush=True)
    for percentile in ("p50", "p99"):
        key = f"{percentile}_ms"
        record[f"{percentile}_ratio_to_bare"] = round(record["service"][key] / record["bare"][key], 2)
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, RESULTS)


if __name__ == "__main__":
    main()
