"""Ten thousand bad requests over the wire: how many of each status, none of them a 5xx, no traceback in the log.

    nice -n 10 python -m covary_bench.studies.production.bad_requests [--requests 10000] [--seed 0]

Sends `covary serve` on this machine what a seeded generator makes of a good request, each on a connection of its own:
garbage, broken heads, wrong lengths and encodings, hosts, origins and keys of others, giant shapes, texts among
numbers, half characters, requests cut off anywhere, several at once. Writes
`bench/results/production-bad-requests.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

from covary_bench.studies.production.service_process import INFER, ServiceProcess, keep, machine

SIZES = [0, 1, 8, 64, -1, 2**31, 2**39, 2**40, 2**63, 2**64, 1e300, True, None, "8"]
TEXTS = ["", "x", "\ud800", "é", "a\nb", "\0", "9" * 5000, "0" * 40 + "9" * 5000, "x" * 20_000, "-1", "1e3", "NaN"]
NUMBERS = [float("nan"), float("inf"), -0.0, 1e308, 10**400]
PATHS = [INFER, "/v2/models/detector/versions/1/infer", "/v2/models/detector", "/v2/models/x/infer", "/v2", "/",
         "/metrics", "/live.json", "/v2/health/ready", "/v2/models/detector/acknowledge", f"{INFER}/", "*", "//",
         "/%00", "/%ff%fe", "http://x/y", "/?" + "a" * 3000]  # fmt: skip
METHODS = ["POST", "GET", "HEAD", "PUT", "OPTIONS", "CONNECT", "TRACE", "PATCH", "post", "P\0ST", "X" * 300]
HOSTS = ["LOCALHOST", "127.0.0.1", "[::1]:8000", "", "evil.example", "[evil]:80", "[", "localhost:99999999",
         "localhost:x", "a@localhost", "localhost/", "é"]  # fmt: skip
VERSIONS = ["HTTP/1.1"] * 12 + ["HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.1 ", "HTP/1.1", "", "http/1.1"]
LENGTHS = [None, None, None, None, 5, -5, "-1", "x", "9" * 30, "+5"]
BODIES = [b"", b"[" * 5000, b"{", b"\xff" * 20, b"1" * 6000, b'"' + b"x" * 3000, b" " * 70_000]
HEADERS = {
    "Origin": ["http://evil.example", "null", "http://localhost", "x", "http://[", "é"],
    "Connection": ["close", "upgrade", "keep-alive", "x"],
    "Upgrade": ["websocket", "h2c"],
    "Authorization": ["Bearer", "Bearer é", "Basic x", ""],
    "X-API-Key": TEXTS[:6],
    "Content-Encoding": ["gzip", "", "identity", "x" * 300],
    "Expect": ["100-continue", "x"],
    "X-Forwarded-For": ["1.2.3.4", "é", "x" * 500, ", ,"],
    "Content-Type": ["text/plain", "multipart/form-data", "application/json; charset=ÿ"],
    "X" * 5000: ["y"],
    "X" * 20_000: ["y"],
    "Cookie": ["a=" + "b" * 3000],
    "Bad Name": ["x"],
    "Accept": ["\x01"],
}


def value(lots: Random, depth: int = 0) -> Any:
    """Some JSON value."""
    kind = lots.randrange(9 if depth < 3 else 6)
    if kind < 6:
        plain = [lots.choice(TEXTS), lots.choice(SIZES), lots.choice(NUMBERS), None, True, lots.randrange(-300, 300)]
        return plain[kind]
    if kind < 8:
        return [value(lots, depth + 1) for _ in range(lots.randrange(4))]
    names = ["name", "data", "shape", "binary_data_size", "parameters", "id"]
    return {lots.choice(names): value(lots, depth + 1) for _ in range(lots.randrange(4))}


def document(lots: Random) -> dict[str, Any]:
    """An inference request with one or two things wrong in it."""
    data: list[Any] = [lots.randrange(256) for _ in range(64)]
    tensor: dict[str, Any] = {"name": "input", "datatype": "UINT8", "shape": [1, 8, 8], "data": data}
    request: dict[str, Any] = {"id": "a", "inputs": [tensor]}
    for _ in range(lots.randrange(1, 3)):
        match lots.randrange(12):
            case 0:
                tensor["shape"] = [lots.choice(SIZES) for _ in range(lots.randrange(10))]
            case 1:
                tensor["data"] = value(lots)
            case 2:
                data[lots.randrange(64)] = value(lots)
            case 3:
                types = ["FP32", "FP16", "INT64", "UINT64", "BOOL", "BYTES", "FP64", value(lots)]
                tensor["datatype"] = lots.choice(types)
            case 4:
                request["id"] = value(lots)
            case 5:
                request["outputs"] = lots.choice([value(lots), [{"name": "evidence"}], [{"name": value(lots)}]])
            case 6:
                tensor["parameters"] = lots.choice([value(lots), {"binary_data_size": value(lots)}])
            case 7:
                request["parameters"] = lots.choice([value(lots), {"binary_data_output": value(lots)}])
            case 8:
                request["inputs"] = value(lots)
            case 9:
                del tensor[lots.choice(sorted(tensor))]
                tensor.setdefault("data", data)
            case 10:
                sizes = [lots.choice([2**39, 2**20, 0]) for _ in range(lots.randrange(5))]
                tensor["shape"], tensor["data"] = [0, *sizes], []
            case _:
                tensor["data"] = [data] * lots.randrange(3)
    return request


def request(lots: Random) -> bytes:
    """A request as it is sent."""
    if lots.randrange(10) == 0:
        return lots.choice([b"", b"\x16\x03\x01"]) + lots.randbytes(lots.randrange(1, 400))
    body = json.dumps(document(lots)).encode() if lots.random() < 0.8 else lots.choice([*BODIES, lots.randbytes(50)])
    headers: list[tuple[str, str]] = []
    if lots.random() < 0.25:
        cuts = [str(len(body)), str(len(body)), str(len(body) + 1), *TEXTS[6:]]
        headers.append(("Inference-Header-Content-Length", lots.choice(cuts)))
        body += lots.choice([b"", b"\x01" * 64, lots.randbytes(30)])
    if chunked := lots.random() < 0.1:
        codings = ["chunked", "chunked", "gzip", "chunked, chunked", "identity"]
        headers.append(("Transfer-Encoding", lots.choice(codings)))
        end = lots.choice([b"", b"", b";x=y", b"\0"])
        body = b"".join(b"%x%s\r\n%s\r\n" % (len(part), end, part) for part in (body[:99], b"abc"))
        body += lots.choice([b"0\r\n\r\n", b"", b"0\r\nX: y\r\n\r\n", b"-1\r\n", b"no size\r\n"])
    if not chunked or lots.random() < 0.2:
        length = lots.choice(LENGTHS)
        length = max(0, len(body) + (length or 0)) if not isinstance(length, str) else length
        headers.append(("Content-Length", str(length)))
    for name in lots.sample(sorted(HEADERS), lots.randrange(3)):
        headers.append((name, lots.choice(HEADERS[name])))
    lots.shuffle(headers)
    if lots.random() < 0.95:
        headers.insert(0, ("Host", lots.choice(HOSTS) if lots.random() < 0.3 else "localhost"))
    method, path = (lots.choice(METHODS), lots.choice(PATHS)) if lots.random() < 0.3 else ("POST", INFER)
    head = f"{method} {path} {lots.choice(VERSIONS)}\r\n" + "".join(f"{name}: {text}\r\n" for name, text in headers)
    full = f"{head}\r\n".encode("utf-8", "replace") + body
    if lots.random() < 0.1:
        full = full[: lots.randrange(1, len(full))]
    if lots.random() < 0.05:
        full = bytes(byte if lots.random() > 0.01 else lots.randrange(256) for byte in full)
    return full * (lots.randrange(2, 5) if lots.random() < 0.05 else 1)


def send(port: int, content: bytes) -> tuple[bytes, str]:
    """All that is answered, and the error that ended it."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(2**16):
                found += part
        except OSError as problem:
            return found, type(problem).__name__
    return found, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    statuses: Counter[str] = Counter()
    begin = time.perf_counter()
    with ServiceProcess("--max-bytes", "60000") as service:
        assert service.healthy()
        before = service.descriptors, service.mebibytes

        def one(i: int) -> tuple[bytes, bytes, str]:
            content = request(Random(f"{options.seed}/{i}"))
            return content, *send(service.port, content)

        with ThreadPoolExecutor(4) as pool:
            for content, found, error in pool.map(one, range(options.requests)):
                answers = [status.decode() for status in re.findall(rb"HTTP/1\.1 ([2-5]\d\d) ", found)]
                statuses.update(answers or [error or "closed without an answer"])
                if any(status >= "500" for status in answers) or error:
                    print(error, found[:200], content[:200], file=sys.stderr)
        alive = service.healthy()
        time.sleep(2)
        after, log = (service.descriptors, service.mebibytes), service.log
    record = {
        **machine(),
        "requests": options.requests,
        "seed": options.seed,
        "statuses": dict(sorted(statuses.items())),
        "server_errors": sum(n for status, n in statuses.items() if status[0] == "5"),
        "tracebacks": log.count("Traceback"),
        "log_bytes": len(log),
        "descriptors_before_and_after": [before[0], after[0]],
        "mebibytes_before_and_after": [before[1], after[1]],
        "alive_afterwards": alive,
        "seconds": round(time.perf_counter() - begin),
    }
    keep(record, "production-bad-requests.json")


if __name__ == "__main__":
    main()
