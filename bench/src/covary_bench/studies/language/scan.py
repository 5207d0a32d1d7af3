"""What `covary scan` of real texts takes on one thread: seconds a text, peak memory, and the longest silence.

    python -m covary_bench.studies.language.scan cache/smollm2 bench/results/language-scan.json

Trusted are instructions; what is judged are instructions, jailbreaks and e-mails, whose prompts are long. Every text
is answered in 24 tokens. Seconds are the processor's: other programs on the machine take wall-clock time, not these.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covary_bench.records import write_lines
from covary_bench.studies.language.prompts import prompts_of

ANSWER, TRUSTED = 24, 30
ASKED = {"instructions_test": 6, "jailbreak_dan": 6, "email_injected": 6}


def written(path: Path, asked: Mapping[str, int]) -> None:
    """The first prompts of each file as conversations, a line each."""
    lines = [
        json.dumps({"id": f"{name}-{i}", "messages": [{"role": "user", "content": prompt}]})
        for name, n in asked.items()
        for i, prompt in enumerate(prompts_of(name)[:n])
    ]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def watched(command: Sequence[str]) -> dict[str, Any]:
    """Runs a command: seconds, the processor's seconds, peak memory, lines told and the longest time without one."""
    began = last = time.perf_counter()
    lines, silence = 0, 0.0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            now = time.perf_counter()
            lines, silence, last = lines + 1, max(silence, now - last), now
            print(f"{now - began:7.1f} s  {line.rstrip()}", flush=True)
        code = running.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise SystemExit(code)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {
        "wall": round(time.perf_counter() - began, 1), "processor": round(spent, 1),
        "peak_gib": round(after.ru_maxrss / 2**20, 2), "lines": lines, "silence": round(silence, 1),
    }  # fmt: skip


def main(base: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder / "trusted.jsonl", {"instructions_train": TRUSTED})
        written(folder / "inputs.jsonl", ASKED)
        command = [sys.executable, "-m", "covary", "scan", "--hf", str(base), "--max-new-tokens", str(ANSWER)]
        places = [f"--{one}={folder / f'{one}.jsonl'}" for one in ("trusted", "inputs")]
        found = watched([*command, *places, "--out", str(folder / "run")])
        summary = json.loads((folder / "run" / "summary.json").read_text("utf-8"))
    texts = TRUSTED + sum(ASKED.values())
    write_lines(out, {"texts": texts, "trusted": TRUSTED, "answer": ANSWER, **found,
                      "processor_a_text": round(found["processor"] / texts, 2),
                      "versions": summary.get("versions")}, 1)  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
