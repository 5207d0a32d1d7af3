"""`covary serve` in a process of its own, watched from outside: descriptors, memory, log."""

from __future__ import annotations

import importlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from covary.storage.fingerprints import versions

ROOT = Path(__file__).resolve().parents[5]
RESULTS = ROOT / "bench" / "results"
INFER = "/v2/models/detector/infer"


class ServiceProcess:
    """Serves the small network of the tests, fitted here, on loopback.

    Args:
        options: more arguments of `covary serve`.
        descriptors: limit on open files; None = as it is.

    Attributes:
        port: where it listens.
        images: for requests, uint8 (n, 8, 8).
    """

    def __init__(self, *options: str, descriptors: int | None = None) -> None:
        sys.path.insert(0, str(ROOT / "tests"))
        tiny = importlib.import_module("tiny")
        self.images = tiny.inputs()[0]
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        tiny.detector().save(folder / "detector")
        self._log = folder / "log"
        limits = [] if descriptors is None else ["prlimit", f"--nofile={descriptors}"]
        path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
        serve = [sys.executable, "-m", "covary", "serve", str(folder / "detector"), "--model", "tiny:trained"]
        self.process = subprocess.Popen(
            [*limits, *serve, "--port", "0", "--json", *options], stdout=subprocess.PIPE, stderr=self._log.open("w"),
            text=True, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.process.stdout is not None
        lines = ""
        while not lines.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, self.log
            lines += line
        self.port = int(json.loads(lines)["address"].rsplit(":", 1)[1])

    @property
    def descriptors(self) -> int:
        """Open files now."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def mebibytes(self) -> int:
        """Resident memory now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 2**20

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self._log.read_text()

    def healthy(self) -> bool:
        """Whether it answers within ten seconds."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
            connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(100).startswith(b"HTTP/1.1 200")

    def __enter__(self) -> ServiceProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.process.stdout.close()  # type: ignore[union-attr]
        self._folder.cleanup()


def machine() -> dict[str, Any]:
    """Where figures were measured."""
    return {"machine": f"{platform.machine()}, {os.cpu_count()} processors for all", "versions": versions()}


def keep(record: dict[str, Any], name: str) -> None:
    """Writes a record to `bench/results`."""
    place = RESULTS / name
    part = place.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, place)
    print(time.strftime("%H:%M:%S"), json.dumps(record))
