"""The work behind the service: inputs prepared as the trusted ones were, one pass, verdicts, evidence, records."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from covary.data.preprocessing import picture
from covary.data.readers.base import canonical
from covary.detector import Detector
from covary.errors import CovaryError
from covary.features.guards import check_shape, network_at_work
from covary.models.network import select_output
from covary.runs.folder.cards import data_uri
from covary.scoring.evidence import Evidence
from covary.scoring.judge import Verdicts
from covary.scoring.rows import Batch
from covary.scoring.scores.parts import PARTS
from covary.serving.http import protocol
from covary.serving.http.batching import Batcher, Job
from covary.serving.http.live.recent import Recent
from covary.serving.http.recording import Recording
from covary.serving.http.refusals import Refused
from covary.serving.http.settings import ServeSettings
from covary.serving.monitor import Monitor, MonitorResult

log = logging.getLogger("covary")
# Flagged inputs of one batch that the live page gets evidence on; the next batch waits meanwhile.
EVIDENCE_PER_BATCH = 2


class Service(Recording):
    """A detector at work for many clients at once.

    Args:
        detector: a fitted detector.
        settings: see `ServeSettings`.
    """

    def __init__(self, detector: Detector, settings: ServeSettings) -> None:
        super().__init__(settings)
        self.detector = detector
        self.monitor = Monitor(detector, level=settings.level, window=settings.window)
        self.recent = Recent()
        self.batcher = Batcher(self._work, settings.max_batch, settings.max_wait_ms / 1000)
        self._alarm_logged = False
        self.known = protocol.OUTPUTS if self.verdicts_visible else protocol.NETWORK_OUTPUTS

    def prepare(self, raw: np.ndarray) -> Tensor:
        """Inputs as the network takes them; a client's mistake is refused with one sentence."""
        if len(raw) == 0:
            raise Refused(400, "a request without inputs", "at least one")
        if len(raw) > self.settings.max_inputs:
            raise Refused(413, f"{len(raw)} inputs in one request", f"at most {self.settings.max_inputs}")
        image = self.detector.input_shape is not None
        if image and raw.dtype.kind != "f" and raw.dtype != np.uint8:
            raise Refused(400, f"inputs of {raw.dtype}", "UINT8 images (n, h, w, c) or floats (n, c, h, w)")
        if not image and raw.dtype.kind not in "iu":
            raise Refused(400, f"inputs of {raw.dtype}", "integer token ids (n, length)")
        if raw.dtype == np.uint8 and raw.ndim not in (3, 4):
            raise Refused(400, f"UINT8 inputs of shape {list(raw.shape)}", "images (n, h, w) or (n, h, w, c)")
        with np.errstate(over="ignore", invalid="ignore"):
            array = canonical(raw, "the request")
        x = next(self.detector.open(array).batches(len(array))).x
        check_shape(x, self.detector.input_shape, "the request")
        return x

    async def infer(self, name: str, raw: np.ndarray, evidence: bool) -> dict[str, Any]:
        """Every output of one request by name, and the hashes and verdicts for the audit log under `audit`."""
        loop = asyncio.get_running_loop()
        x = await loop.run_in_executor(None, self.prepare, raw) if raw.nbytes > 2**16 else self.prepare(raw)
        self.write_down("accepted", request=name, inputs=len(raw))
        return await self.batcher.submit(Job(name, x, raw, evidence, loop.create_future()))

    def start(self) -> None:
        """Begins; in a running event loop."""
        self.batcher.start()

    async def close(self) -> None:
        """Ends once every accepted request is answered."""
        await self.batcher.close()

    @property
    def seen(self) -> int:
        """Inputs since the start."""
        return self.monitor.counts.seen

    async def acknowledge(self, **facts: Any) -> dict[str, Any]:
        """An operator has seen the stream alarm: it starts anew; what it had grown on.

        Raises:
            Refused: 409, it was not raised; 503, see `write_down`.
        """
        return await self.batcher.between(lambda: self._acknowledge(facts))

    def _acknowledge(self, facts: dict[str, Any]) -> dict[str, Any]:
        if not self.monitor.stream.alarmed:
            raise Refused(409, "the stream alarm is not raised", "an alarm to acknowledge")
        account = self.monitor.stream.account().to_json()
        self.write_down("alarm acknowledged", **facts, **account)
        self.monitor.restart_stream()
        self._alarm_logged = False
        self.metrics.restarted()
        self.recent.restarted()
        return account

    def _work(self, jobs: Sequence[Job]) -> None:
        begin = time.perf_counter()
        try:
            watched = self._pass(jobs)
        except Exception as problem:
            if len(jobs) > 1:
                # One request must not spoil the others'.
                for job in jobs:
                    self._work([job])
                return
            if not isinstance(problem, CovaryError):
                log.exception("a batch failed")
            _resolve(jobs[0], None, problem)
            return
        verdicts = watched.verdicts
        if verdicts is None and self.verdicts_visible:
            for job in jobs:
                _resolve(job, None, Refused(500, "the inputs could not be examined", "", "the log says why"))
            return
        seconds, start = time.perf_counter() - begin, 0
        logits = select_output(watched.outputs, self.detector.network.output).detach().cpu()
        numbers = (logits.float() if logits.is_floating_point() and logits.dtype != torch.float64 else logits).numpy()
        for job in jobs:
            own = slice(start, start + len(job.x))
            start += len(job.x)
            try:
                _resolve(job, self._outputs(job, own, numbers, watched), None)
            except Exception as problem:
                log.exception("an answer could not be written")
                _resolve(job, None, problem)
        if verdicts is None:
            return
        by_window = 0 if watched.window is None else int(watched.window.flagged.sum())
        self.metrics.judged(verdicts, seconds, self.monitor.stream, by_window)
        self.recent.judged(verdicts, self.monitor.stream)
        self._log_alarm()
        try:
            self._show(jobs, watched)
        except Exception:
            log.exception("the live page got no evidence")

    def _pass(self, jobs: Sequence[Job]) -> MonitorResult:
        ids = [f"{job.id}/{i}" for job in jobs for i in range(len(job.x))]
        batch = Batch(ids, torch.cat([job.x for job in jobs]) if len(jobs) > 1 else jobs[0].x)
        with network_at_work(batch):
            return self.monitor.watch(self.detector.network.inputs(batch.x), ids)

    def _outputs(self, job: Job, own: slice, logits: np.ndarray, watched: MonitorResult) -> dict[str, Any]:
        verdicts = watched.verdicts
        hashes = [hashlib.sha256(np.ascontiguousarray(one).tobytes()).hexdigest() for one in job.raw]
        if verdicts is None:
            audit = [{"id": f"{job.id}/{i}", "sha256": sha256, "verdict": None} for i, sha256 in enumerate(hashes)]
            return {"logits": logits[own], "predicted": logits[own].argmax(1), "audit": audit}
        found: dict[str, Any] = {
            "logits": logits[own],
            "predicted": verdicts.predicted[own],
            "score": np.minimum(verdicts.score[own], np.finfo(np.float64).max),
            "p_value": verdicts.p_value[own],
            "flagged": verdicts.flagged[own],
        }
        if job.evidence:
            explained = self._evidence(watched, np.arange(own.start, own.stop))
            found["evidence"] = [
                json.dumps(explained[i].to_json() if i in explained else None) for i in range(own.start, own.stop)
            ]
        found["audit"] = [
            {
                "id": verdicts.ids[i],
                "sha256": hashes[i - own.start],
                "predicted": int(verdicts.predicted[i]),
                "score": float(found["score"][i - own.start]),
                "p_value": float(verdicts.p_value[i]),
                "flagged": bool(verdicts.flagged[i]),
                **({"window_p_value": float(verdicts.window_p[i])} if len(verdicts.window_p) else {}),
            }
            for i in range(own.start, own.stop)
        ]
        if not self.verdicts_visible:
            # A network's own answer, also where the verdict is that there was none to judge.
            found["predicted"] = logits[own].argmax(1)
        return found

    def _evidence(self, watched: MonitorResult, positions: np.ndarray) -> dict[int, Evidence]:
        """Evidence on the inputs at `positions` that were judged, by position."""
        verdicts, rows, judged = watched.verdicts, watched.rows, watched.judged
        if verdicts is None or rows is None or judged is None:
            return {}
        place = {int(position): i for i, position in enumerate(judged)}
        known = [int(i) for i in positions if int(i) in place]
        if not known:
            return {}
        some = rows.take([place[i] for i in known])
        own = self.monitor.judge.judge(some)
        # Scores and p-values as they were told, to the last bit.
        own_verdicts = {name: getattr(verdicts, name)[known] for name in ("score", "p_value", "flagged")}
        own = replace(own, **own_verdicts)
        return dict(zip(known, self.detector.explainer.explain(some, own), strict=True))

    def _log_alarm(self) -> None:
        if self.monitor.stream.alarmed and not self._alarm_logged:
            self._alarm_logged = True
            account = self.monitor.stream.account()
            log.warning("stream alarm: %s", account.text)
            self.audit("stream alarm", **account.to_json())

    def _show(self, jobs: Sequence[Job], watched: MonitorResult) -> None:
        verdicts = watched.verdicts
        assert verdicts is not None
        flagged = np.flatnonzero(verdicts.flagged)
        chosen = flagged[np.argsort(verdicts.p_value[flagged], kind="stable")][:EVIDENCE_PER_BATCH]
        explained = self._evidence(watched, chosen)
        raws = [raw for job in jobs for raw in job.raw] if len(chosen) else []
        for i in map(int, chosen[::-1]):
            self.recent.flagged(self._card(verdicts, i, explained.get(i), raws[i]))

    def _card(self, verdicts: Verdicts, i: int, evidence: Evidence | None, raw: np.ndarray) -> dict[str, Any]:
        raw = raw.astype(np.float32) if raw.dtype.kind == "f" else raw
        card: dict[str, Any] = {
            "id": verdicts.ids[i],
            "predicted": self.class_name(int(verdicts.predicted[i])),
            "p_value": float(verdicts.p_value[i]),
            "score": None if np.isinf(verdicts.score[i]) else float(verdicts.score[i]),
            "picture": data_uri(picture(raw)),
            "raised_by": "",
            "layer": "",
            "unexplained": None,
            "near": [],
        }
        if evidence is not None:
            card |= {
                "raised_by": PARTS[evidence.raised_by].source if evidence.raised_by else "",
                "layer": evidence.least_explained_layer,
                "unexplained": evidence.unexplained,
                "near": [
                    {
                        "id": witness.id,
                        "weight": witness.weight,
                        "predicted": self.class_name(witness.predicted),
                        "picture": data_uri(self.detector.thumbnails.get(witness.id)),
                    }
                    for witness in evidence.explained_by[:3]
                ],
            }
        return card

    def class_name(self, label: int) -> str:
        """A class by name where the trusted data have names, else by number."""
        names = self.detector.class_names
        return names[label] if names is not None and 0 <= label < len(names) else "–" if label < 0 else str(label)

    def live(self) -> dict[str, Any]:
        """What the live page shows."""
        counts, judge = self.monitor.counts, self.monitor.judge
        return {
            "name": self.settings.name,
            "seen": counts.seen,
            "judged": counts.judged,
            "flagged": counts.flagged,
            "fpr": judge.fpr_in_force,
            "calibration": len(judge.calibration_scores),
            "window": None if (window := self.monitor.window) is None else {
                "size": window.size, "n": window.n, "fpr": window.fpr_in_force, "flagged": counts.flagged_by_window,
            },
            **self.recent.to_json(self.monitor.stream),
        }


def _resolve(job: Job, result: Any, problem: Exception | None) -> None:
    def settle() -> None:
        # A client that went away leaves a cancelled future behind.
        if not job.done.done():
            job.done.set_result(result) if problem is None else job.done.set_exception(problem)

    job.done.get_loop().call_soon_threadsafe(settle)
