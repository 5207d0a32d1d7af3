"""Ten thousand bad bodies, made by hypothesis, against the service: how many of each status, none of them 5xx.

    nice -n 10 python -m covary_bench.studies.production.fuzz [--bodies 10000] [--seed 0]

Bodies come from `tests/bad_bodies.py`; the service runs in this process on a small network, its HTTP layer included but
for the socket. Writes `bench/results/production-fuzz.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from starlette.testclient import TestClient

ROOT = Path(__file__).resolve().parents[5]
sys.path.insert(0, str(ROOT / "tests"))

import bad_bodies  # noqa: E402
import tiny  # noqa: E402
from covary.serving.http import ServeSettings, make_app  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "production-fuzz.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    statuses: Counter[int] = Counter()
    sentences: set[str] = set()
    begin = time.perf_counter()
    app = make_app(tiny.detector(), ServeSettings(max_bytes=60_000))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:

        @seed(options.seed)
        @settings(
            max_examples=options.bodies, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(bad_bodies.requests())
        def send(request: tuple[bytes, dict[str, str]]) -> None:
            answer = client.post("/v2/models/detector/infer", content=request[0], headers=request[1])
            statuses[answer.status_code] += 1
            if answer.status_code != 200:
                told = answer.json()
                assert list(told) == ["error"], told
                assert "\n" not in told["error"], told
                sentences.add(told["error"][:24])
            if answer.status_code >= 500:
                print("5xx on", request, file=sys.stderr)

        send()
        alive = client.get("/v2/health/ready").status_code == 200
    record = {
        "bodies": sum(statuses.values()),
        "seed": options.seed,
        "statuses": {str(status): n for status, n in sorted(statuses.items())},
        "server_errors": sum(n for status, n in statuses.items() if status >= 500),
        "kinds_of_sentences_at_least": len(sentences),
        "alive_afterwards": alive,
        "seconds": round(time.perf_counter() - begin),
    }
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, RESULTS)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
