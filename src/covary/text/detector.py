"""The detector of texts: `Detector` with a language model before the waist and nothing else after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covary.data.source import Source
from covary.detector import CHANGEABLE, Detector, Progress
from covary.errors import CovaryError
from covary.models.network import Network
from covary.scoring.rows import Batch, Rows
from covary.settings import Settings
from covary.storage import detector as saved
from covary.text.completions import completed
from covary.text.extractor import TextExtractor
from covary.text.groups import Grouping
from covary.text.pretrained import LanguageModel, load_language_model
from covary.text.records import Text, read_texts
from covary.text.settings import TextSettings
from covary.text.source import TextReader, TextSource, label_numbers
from covary.text.token_evidence import TokenEvidence, TokenExplainer
from covary.text.tokens import Tokens, tokenise, tokens_from_json

# A report looks at so many tokens one by one, the most anomalous texts' first.
SHOWN_TOKENS = 1_500
# Labels group texts where each has this many trusted ones on average.
LEAST_PER_LABEL = 20


class LanguageDetector(Detector):
    """Tells, for each answer of a language model, whether the mechanism behind it is one seen on trusted texts.

    >>> detector = LanguageDetector("models/assistant").fit("trusted.jsonl")      # doctest: +SKIP
    >>> detector.score("inputs.jsonl").flagged                                    # doctest: +SKIP

    Args:
        model: a local folder in Hugging Face's format, or a `LanguageModel`.
        text: a `TextSettings`, or a mapping of its values.
        settings: see `Settings`.
    """

    def __init__(
        self, model: LanguageModel | str | Path, *, text: TextSettings | dict[str, Any] | None = None, **settings: Any
    ) -> None:
        self.settings = Settings.checked(**settings)
        self.text = text if isinstance(text, TextSettings) else TextSettings.checked(**(text or {}))
        s, t = self.settings, self.text
        if s.sampled or s.metric != "identity":
            found = f"estimator {s.estimator!r} on texts" if s.sampled else f"metric {s.metric!r} on texts"
            raise CovaryError(found, "the first-order estimator and metric identity")
        if not isinstance(model, LanguageModel):
            model = load_language_model(model, dtype=t.dtype, device=s.device, adapter=t.adapter)
        self.model = model
        self.input_shape, self.class_names = None, None
        self.classes = 0
        if model.task == "sequence":
            self.class_names, self.classes = model.classes, len(model.classes)
        self.trusted_fingerprint = ""
        self.thumbnails: dict[str, np.ndarray] = {}
        self.dealt_before = None
        self.labels_known: list[str] = []
        self.trusted_texts: dict[str, str] = {}
        self.trusted_tokens: list[Tokens] = []
        self._token_explainer: TokenExplainer | None = None
        self.metric = None
        self._transform = None
        self.network = Network(model.module)
        self.grouping: Grouping | None = None
        self.extractor: Any = TextExtractor(
            model, observable=s.observable, pooling=t.pooling, space=s.space, seed=s.seed, engine=s.engine, amp=s.amp,
            side=t.side,
        )  # fmt: skip
        self._remember()

    def _remember(self) -> None:
        self.preprocessing: dict[str, Any] = {
            "language": self.text.model_dump(), "folder": self.model.folder, "labels": self.labels_known,
            "groups": None if self.grouping is None else self.grouping.name,
        }  # fmt: skip

    def save(self, folder: str | Path, *, weights: bool = False) -> Path:
        """Writes the detector, its trusted texts included; the language model stays in its own folder.

        With `weights` they are stored as well, though loading takes them from there.
        """
        told = self.preprocessing
        tokens = [vars(one) for one in self.trusted_tokens]
        self.preprocessing = {**told, "trusted_texts": self.trusted_texts, "trusted_tokens": tokens}
        try:
            return super().save(folder, weights=weights)
        finally:
            self.preprocessing = told

    def fit(
        self,
        trusted: Any,
        y: Any = None,
        *,
        calibration: Any = None,
        sampling: Any = None,
        mean: Any = None,
        std: Any = None,
        transform: Any = None,
        progress: Progress | None = None,
    ) -> LanguageDetector:
        """Learns from trusted texts: a file of them, or a list of strings, mappings or `Text`s.

        Texts without a completion are answered by the model first. `label` tells a classifier's wrong answers apart,
        and groups texts where `groups` says so.
        """
        if any(value is not None for value in (y, sampling, mean, std, transform)):
            raise CovaryError("labels, a sampling set or preprocessing beside texts", "`label` in each text, no more")
        texts = read_texts(trusted)
        if self.model.task == "causal":
            self.labels_known = sorted({text.label for text in texts if text.label is not None})
        source = self._source(texts, str(trusted) if isinstance(trusted, (str, Path)) else "the trusted texts")
        held = None if calibration is None else self.open(calibration)
        self.trusted_fingerprint = source.fingerprint()
        self.grouping = None
        rows = self.rows(source, progress)
        self._check_missing_classes(rows)
        held_rows = None if held is None else self.rows(held, progress)
        if self.model.task == "causal":
            self.grouping = Grouping(self._groups(texts), self.settings.seed).fit(rows, source.y)
            rows = self.grouping(rows, source.y)
            held_rows = None if held is None or held_rows is None else self.grouping(held_rows, held.y)
        labels = source.y if self.classes else None
        labels = None if labels is None else np.where(labels < 0, rows.predicted, labels)
        self.fit_rows(rows, labels, held_rows)
        wanted = {*self.judge.reference.ids, *(holder.id for holder in self.judge.holders)}
        self.trusted_texts = {
            text.id: text.shown if text.completion is None else f"{text.shown}\n→ {text.completion}"
            for text in source.texts
            if text.id in wanted
        }
        self.trusted_tokens, self._token_explainer = source.tokens, None
        self._remember()
        return self

    def _groups(self, texts: Sequence[Text]) -> str:
        if self.text.groups != "auto":
            return self.text.groups
        every = all(text.label is not None for text in texts)
        return "label" if every and len(texts) >= LEAST_PER_LABEL * len(self.labels_known) else "none"

    def explain_tokens(self, inputs: Any) -> list[TokenEvidence]:
        """Which tokens of each answer trusted texts account for least."""
        self._fitted()
        if self._token_explainer is None:
            self._token_explainer = TokenExplainer(
                self.extractor, self.trusted_rows, self.trusted_tokens, self.settings.seed
            )
        source = self.open(inputs)
        assert isinstance(source, TextSource)
        return [self._token_explainer.explain(source.tokens[i]) for i in source.index]

    def cards(self, inputs: Source) -> list[dict[str, Any]]:
        """What a report shows of texts beyond the evidence: prompt, answer with its tokens, trusted texts by id."""
        assert isinstance(inputs, TextSource)
        found, left = [], SHOWN_TOKENS
        for i, text in enumerate(inputs.texts):
            tokens = None
            if self.model.task != "sequence" and left > 0:
                tokens = self.explain_tokens(inputs.take([i]))[0].to_json()
                left -= len(tokens)
            found.append({"text": text.shown, "answer": text.completion, "tokens": tokens})
        return found

    def _passes(self, source: Source, progress: Progress | None = None) -> Iterator[tuple[Batch, Rows]]:
        for batch, rows in super()._passes(source, progress):
            yield batch, rows if self.grouping is None else self.grouping(rows, batch.y)

    def open(self, inputs: Any, *, truth: Any = None) -> Source:
        """Texts to be judged; those without a completion are answered by the model."""
        if isinstance(inputs, Source):
            return inputs
        if truth is not None:
            raise CovaryError("truth is given beside the texts", "`truth` in each text")
        return self._source(read_texts(inputs), str(inputs) if isinstance(inputs, (str, Path)) else "the texts given")

    def _source(self, texts: list[Any], name: str) -> TextSource:
        t = self.text
        texts = completed(self.model, texts, max_new_tokens=t.max_new_tokens, max_length=t.max_length)
        names = self.class_names or self.labels_known
        reader = TextReader(
            texts, label_numbers(texts, names, self.model), self.class_names or self.labels_known or None
        )
        return TextSource(reader, [tokenise(self.model, text, t.max_length) for text in texts], name)

    @staticmethod
    def load(
        folder: str | Path, model: Any = None, *, weights: str | Path | None = None, **changes: Any
    ) -> LanguageDetector:
        """A saved detector; the language model comes from its own folder, or is passed in.

        Raises:
            CovaryError: no detector of texts, or another model than it was fitted on.
        """
        record = saved.open_record(Path(folder))
        what = saved.read_detector(Path(folder), record)
        told = what.preprocessing
        if "language" not in told:
            raise CovaryError(f"{folder} holds a detector of arrays", "one of texts", "use Detector.load")
        if forbidden := set(changes) - CHANGEABLE:
            raise CovaryError(f"{', '.join(sorted(forbidden))} cannot change after fitting", ", ".join(CHANGEABLE))
        if model is None and told["folder"] is None:
            raise CovaryError(f"{folder} does not know where its language model is", "the model itself")
        detector = LanguageDetector(
            told["folder"] if model is None else model, text=told["language"], **{**what.settings, **changes}
        )
        detector.labels_known, detector.trusted_texts = told["labels"], told["trusted_texts"]
        detector.trusted_tokens = [tokens_from_json(one) for one in told["trusted_tokens"]]
        detector._take_over(what, record["versions"]["torch"])
        if detector.model.task == "causal":
            labels = what.trusted.predicted if told["groups"] == "label" else None
            detector.grouping = Grouping(told["groups"], detector.settings.seed).fit(what.trusted, labels)
        return detector
