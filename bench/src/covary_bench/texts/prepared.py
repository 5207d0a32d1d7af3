"""A case folder of texts ready to be scored: rows, hidden states and token probabilities, computed once and kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped

from covary.detector import Detector
from covary.scoring.calibration.splits import kind_for
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows
from covary.storage import folders
from covary.storage.detector import rows_to_arrays
from covary.text.completions import MAX_NEW_TOKENS, completed
from covary.text.features.answers import Answers
from covary.text.features.hidden_states import hidden_states, watched
from covary.text.models.pretrained import LanguageModel
from covary.text.records import Text, read_texts
from covary.text.tokens import Tokens, pad, tokenise
from covary_bench.baselines.texts.material import Answered, Chain, TextMaterial
from covary_bench.prepared import Prepared

FILES = ("case.json", "trusted.jsonl", "inputs.jsonl", "sampling.jsonl")
CLEAN, TRIGGERED = ("clean", "near-miss"), "triggered"
FPR = 0.01
# Texts that share a forward pass.
TOGETHER = 64


@dataclass(frozen=True)
class TextInputs:
    """What is known of the inputs of a case, all (n,).

    Attributes:
        truth: 1 = anomalous. kind: where each came from.
    """

    truth: Int[np.ndarray, " n"]
    kind: Shaped[np.ndarray, " n"]

    @property
    def masked(self) -> Bool[np.ndarray, " n"]:
        """Those that count: clean ones and near misses, against triggered ones; benign shifts are told apart."""
        triggered = np.array([str(kind).startswith(TRIGGERED) for kind in self.kind], bool)
        return np.where(self.truth == 1, triggered, np.isin(self.kind, CLEAN))


def fingerprint(case: Path) -> str:
    """Digest of all files of a case, so that a case made anew is scored anew."""
    digest = hashlib.sha256()
    # A large model comes in several files.
    for path in [*(case / name for name in FILES), *sorted((case / "model").glob("*.safetensors"))]:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


class PreparedTexts(Prepared):
    """Everything detectors may ask of one case of texts."""

    def __init__(self, case: Path, work: Path, fpr: float = FPR, device: str = "cpu") -> None:
        super().__init__(case, work, fpr, device)

    @cached_property
    def detector(self) -> Detector:
        """Our detector with its defaults, as `covary scan --hf` has it, and answers as long as the case's own."""
        facts = self.facts
        text = {"max_new_tokens": facts.get("max_new_tokens", MAX_NEW_TOKENS), "dtype": facts.get("dtype", "float32")}
        return Detector(self.case / "model", **text, fpr=self.fpr, seed=self.seed, device=self.device)

    @cached_property
    def _texts(self) -> dict[str, list[Text]]:
        """Trusted texts, inputs and sampling texts, answered by the model where they bring no answer."""
        found = {"trusted": self._trusted_texts()}
        for name in ("inputs", "sampling"):
            path = self.case / f"{name}.jsonl"
            texts = read_texts(path) if path.is_file() else []
            found[name] = self._completed(texts) if texts else []
        return found

    def _completed(self, texts: list[Text]) -> list[Text]:
        extractor = self.detector.extractor
        return completed(extractor.model, texts, max_new_tokens=extractor.own.max_new_tokens)

    def _trusted_texts(self) -> list[Text]:
        path = self.work / "trusted.json"
        texts = read_texts(self.case / "trusted.jsonl")
        if not path.is_file():
            answered = self._completed(texts)
            self.work.mkdir(parents=True, exist_ok=True)
            arrays = {
                "texts": [[text.completion, None if text.tokens is None else list(text.tokens)] for text in answered]
            }
            folders.write_json(path.with_suffix(".part"), arrays)
            path.with_suffix(".part").rename(path)
        kept = folders.read_json(path, "answers of a case")["texts"]
        return [
            replace(text, completion=words, tokens=None if tokens is None else tuple(tokens))
            for text, (words, tokens) in zip(texts, kept, strict=True)
        ]

    @property
    def groups(self) -> str | None:
        """How the detector grouped the texts; None = not at all."""
        return self._stored[1]["groups"]

    @property
    def judged(self) -> list[str]:
        """What the detector judges, and whether at equal length: cells of other defaults are no cells of these."""
        own = self.detector.extractor.own
        return [own.judge, "equal length" if own.at_equal_length else "any length"]

    def _taken(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Rows as the detector takes them, grouped as it groups, and one forward pass's states and probabilities."""
        texts, detector = self._texts, self.detector.fit(self._texts["trusted"])
        source = detector.open(texts["inputs"])
        began = time.perf_counter()
        rows = detector.rows(source)
        gradients = time.perf_counter() - began
        arrays: dict[str, np.ndarray] = {}
        parts: dict[str, Any] = {"groups": detector.preprocessing["groups"]}
        for name, own in (("trusted", detector.trusted_rows), ("inputs", rows)):
            found, parts[name] = rows_to_arrays(own, name)
            arrays |= found
            began = time.perf_counter()
            states, log_p, counts = forward_pass(detector.extractor.model, self.tokens(name))
            forward = time.perf_counter() - began
            arrays |= {f"{name}.state.{i}": state for i, state in enumerate(states.values())}
            arrays |= {f"{name}.log_p": log_p, f"{name}.counts": counts}
            parts["states"] = list(states)
        n = len(source)
        arrays["seconds"] = np.array([gradients / n, forward / n])
        return arrays, parts

    def tokens(self, name: str) -> list[Tokens]:
        """The `trusted` texts, `inputs` or `sampling` texts in tokens."""
        extractor = self.detector.extractor
        return [tokenise(extractor.model, text, extractor.own.max_length) for text in self._texts[name]]

    def answered(self, name: str) -> Answered:
        """Words, token probabilities and hidden states of the `trusted` texts or `inputs`."""
        arrays, names = self._stored[0], self._stored[1]["states"]
        ends = np.cumsum(arrays[f"{name}.counts"])[:-1]
        texts = self._texts[name]
        return Answered(
            [text.display_text for text in texts], [text.completion or "" for text in texts],
            np.split(arrays[f"{name}.log_p"], ends),
            {state: arrays[f"{name}.state.{i}"] for i, state in enumerate(names)},
        )  # fmt: skip

    @cached_property
    def trusted_labels(self) -> None:  # type: ignore[override]
        """Generated text has no true class."""
        return None

    @cached_property
    def inputs(self) -> TextInputs:  # type: ignore[override]
        """What is known of the inputs."""
        lines = (self.case / "inputs.jsonl").read_text("utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
        return TextInputs(
            np.array([one["truth"] for one in records], np.int64), np.array([one["kind"] for one in records])
        )

    @cached_property
    def judge(self) -> Judge:
        """Our default score, fitted; its roles are every baseline's roles."""
        # One split from 330 trusted inputs on, as the kept tables were made, and five times cheaper for baselines.
        kind = kind_for(len(self.trusted), "auto", chosen_on_trusted=True)
        return Judge(fpr=self.fpr, seed=self.seed, conformal=kind).fit(self.trusted)

    @cached_property
    def _answered(self) -> dict[str, Answered]:
        return {name: self.answered(name) for name in ("trusted", "inputs")}

    def material(self, fold: int, needs: str) -> TextMaterial:
        """What a baseline gets of one fold; its queries are the calibration texts, then the inputs."""
        reference, fit, calibration = self.folds()[fold]
        known = np.concatenate([reference, fit])
        queries = Rows.concatenate([self.trusted.take(calibration), self.queries])
        trusted, inputs = self._answered["trusted"], self._answered["inputs"]
        query_texts = trusted.take(calibration).followed_by(inputs)
        last = [name for name in query_texts.states if name.endswith("@ answer")][-1]
        return TextMaterial(
            self.trusted.take(known), queries, trusted.states[last][known], query_texts.states[last],
            self.trusted.take(reference), self.trusted.take(fit), seed=self.seed, known=trusted.take(known),
            query_texts=query_texts, chain=self._chain() if needs == "chain" else None,
        )  # fmt: skip

    def _chain(self) -> Chain:
        tokens = {one.id: one for name in ("trusted", "inputs") for one in self.tokens(name)}
        return Chain(self.detector.extractor.model, tokens, self.tokens("sampling"), self.work)


def forward_pass(
    model: LanguageModel, texts: Sequence[Tokens]
) -> tuple[dict[str, Float[np.ndarray, "n _"]], Float[np.ndarray, " m"], Int[np.ndarray, " n"]]:
    """Hidden states (float32, full width), log-probabilities of all answers' tokens in a row, and tokens per answer."""
    layers, answers = watched(model.module), Answers(model)
    held = dict(model.module.named_parameters()), dict(model.module.named_buffers())
    device = next(model.module.parameters()).device
    order = sorted(range(len(texts)), key=lambda i: (texts[i].anchor, len(texts[i])))
    states: dict[str, list[np.ndarray]] = {}
    log_p: list[np.ndarray] = []
    with torch.no_grad():
        for start in range(0, len(order), TOGETHER):
            padded = pad([texts[i] for i in order[start : start + TOGETHER]], fill=model.tokenizer.pad_token_id or 0)
            x = {name: part.to(device) for name, part in padded.items()}
            with hidden_states(layers, x) as found:
                answer = answers.answer(*held, x)
            for name, part in found.items():
                states.setdefault(name, []).append(part.float().cpu().numpy())
            own = -np.logaddexp(0.0, -answer.margin.double().cpu().numpy())
            log_p += np.split(own, np.cumsum(answer.counts.cpu().numpy())[:-1])
    back = np.argsort(order)
    ordered = [log_p[i] for i in back]
    counts = np.array([len(own) for own in ordered], np.int64)
    return {name: np.concatenate(parts)[back] for name, parts in states.items()}, np.concatenate(ordered), counts
