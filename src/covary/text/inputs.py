"""Half of `TextExtractor`: which texts are opened, answered, grouped and shown, and what a saved detector keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from covary.data.source import Source
from covary.errors import CovaryError
from covary.models.network import Network
from covary.scoring.rows import Rows
from covary.settings import Settings, TextSettings
from covary.text.completions import completed
from covary.text.features.groups import Grouping
from covary.text.models.pretrained import LanguageModel
from covary.text.records import Text, read_texts
from covary.text.source import TextReader, TextSource, label_numbers
from covary.text.tokens import Tokens, opening, prompt_alone, tokenise, tokenise_prompt, tokens_from_json

if TYPE_CHECKING:
    from covary.text.features.token_evidence import TokenEvidence, TokenExplainer

Roles = dict[str, list[str]]
# A report looks at so many tokens one by one, the most anomalous texts' first.
MAX_TOKENS = 1_500
# Labels group texts where each has this many trusted ones on average.
LEAST_PER_LABEL = 20


class TextInputs:
    """Half of an `Extractor` (see there) whose inputs are texts.

    Attributes:
        grouping: what stands in for the predicted class; None before `learn` and of classifiers.
        labels_known: labels of the trusted texts, in order.
        trusted_texts: reference texts with their answers, by id; trusted_tokens: tokens of all trusted ones.
        answering: called with (texts answered, texts to be answered) while the model is asked; None = nobody watches.
    """

    kind = "text"
    model: LanguageModel
    host: Network
    settings: Settings
    answering: Callable[[int, int], None] | None = None

    def _start(self, host: Network, settings: Settings) -> None:
        self.host, self.settings = host, settings
        self.input_shape: tuple[int, ...] | None = None
        self.class_names: list[str] | None = None
        self.classes = 0
        if self.model.task == "sequence":
            self.class_names, self.classes = self.model.classes, len(self.model.classes)
        self.grouping: Grouping | None = None
        self.labels_known: list[str] = []
        self.summary: dict[str, Any] = {}
        self.statements: list[str] = []
        self.trusted_texts: dict[str, str] = {}
        self.trusted_tokens: list[Tokens] = []
        self._trusted_rows: Rows | None = None
        self._explainers: dict[str, TokenExplainer] = {}

    @property
    def own(self) -> TextSettings:
        """Settings of texts alone."""
        assert isinstance(self.settings.extractor, TextSettings)
        return self.settings.extractor

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to texts, and what stands in for their classes."""
        groups = None if self.grouping is None else self.grouping.name
        return {"folder": self.model.folder, "labels": self.labels_known, "groups": groups}

    def open_trusted(self, inputs: Any, **kwargs: Any) -> Source:
        """See `Extractor`; `label` in each text is all there is to say beside it."""
        if any(value is not None for value in kwargs.values()):
            names = ", ".join(name for name, value in kwargs.items() if value is not None)
            raise CovaryError(f"{names} beside texts", "`label` in each text, no more")
        texts = inputs.texts if isinstance(inputs, TextSource) else read_texts(inputs)
        self.grouping = None
        if self.model.task == "causal":
            self.labels_known = sorted({text.label for text in texts if text.label is not None})
        if isinstance(inputs, TextSource):
            return inputs
        return self._source(texts, str(inputs) if isinstance(inputs, (str, Path)) else "the trusted texts")

    def open(self, inputs: Any, *, truth: Any = None, like_trusted: bool = False) -> Source:
        """See `Extractor`: texts without a completion are answered by the model."""
        if isinstance(inputs, Source):
            return inputs
        if truth is not None:
            raise CovaryError("truth is given beside the texts", "`truth` in each text")
        return self._source(read_texts(inputs), str(inputs) if isinstance(inputs, (str, Path)) else "the texts given")

    def _source(self, texts: Sequence[Text], name: str) -> TextSource:
        own = self.own
        alone = own.judge == "prompt" and self.model.task == "causal"
        if not alone:
            texts = completed(
                self.model, list(texts), max_new_tokens=own.max_new_tokens, max_length=own.max_length,
                progress=self.answering,
            )  # fmt: skip
        names = self.class_names or self.labels_known
        reader = TextReader(texts, label_numbers(texts, names, self.model), names or None)
        begins = opening(self.model)
        read = tokenise_prompt if alone else tokenise
        return TextSource(reader, [read(self.model, text, own.max_length, begins) for text in texts], name)

    def look(self, trusted: Source) -> None:
        """See `Extractor`: a model says of itself how many classes it has."""

    def prepare(
        self, trusted: Source, calibration: Source | None, sampling: Source | None, roles: Roles | None
    ) -> tuple[Source, list[str]]:
        """See `Extractor`."""
        if sampling is not None:
            raise CovaryError("a sampling set beside texts, of which no draws are taken", "no sampling=")
        return trusted, []

    def learn(
        self, trusted: Source, rows: Rows, roles: Callable[[], Roles], *, calibration_apart: bool = False
    ) -> Rows | None:
        """Groups, which stand in for classes where the model predicts none."""
        assert isinstance(trusted, TextSource)
        if self.model.task == "causal":
            self.grouping = Grouping(self._groups(trusted.texts), self.settings.seed).fit(rows, trusted.y)
            rows = self.grouping(rows, trusted.y)
        self.trusted_tokens = [trusted.tokens[i] for i in trusted.index]
        self._trusted_rows, self._explainers = rows, {}
        return rows

    def _groups(self, texts: Sequence[Text]) -> str:
        if self.own.groups != "auto":
            return self.own.groups
        every = all(text.label is not None for text in texts)
        return "label" if every and len(texts) >= LEAST_PER_LABEL * len(self.labels_known) else "none"

    def remember(self, trusted: Source, reference: list[str]) -> None:
        """See `Extractor`: reference texts with their answers."""
        assert isinstance(trusted, TextSource)
        reference_ids = set(reference)
        self.trusted_texts = {
            text.id: text.display_text if text.completion is None else f"{text.display_text}\n→ {text.completion}"
            for text in trusted.texts
            if text.id in reference_ids
        }

    def explain_tokens(self, inputs: Source, of: str = "answer") -> list[TokenEvidence]:
        """Which tokens of each answer, or of each prompt (`of`), trusted texts account for least."""
        assert isinstance(inputs, TextSource)
        texts = [inputs.tokens[i] for i in inputs.index]
        if of == "prompt" and self.own.judge != "prompt":
            texts = [prompt_alone(text) for text in texts]
        explainer = self._explainer(of)
        return [explainer.explain(text) for text in texts]

    def _explainer(self, of: str) -> TokenExplainer:
        from covary.text.features.token_evidence import TokenExplainer

        rows, tokens = self._trusted_rows, self.trusted_tokens
        if rows is None:
            raise CovaryError("the detector has not seen trusted data", "a fitted detector", "call fit(trusted) first")
        if of == "prompt" and self.own.judge != "prompt":
            if rows.prompt is None:
                found = "tokens of prompts, which this detector does not judge"
                raise CovaryError(found, "judge=both or judge=prompt", "fit again")
            rows, tokens = rows.prompt, [prompt_alone(text) for text in tokens]
        if of not in self._explainers:
            extractor: Any = self
            self._explainers[of] = TokenExplainer(extractor, rows, tokens, self.settings.seed)
        return self._explainers[of]

    @property
    def explained(self) -> tuple[str, ...]:
        """Of what single tokens can be explained: `answer`, `prompt`; of nothing where a text has one answer."""
        if self.model.task == "sequence":
            return ()
        judge = self.own.judge if self.model.task == "causal" else "answer"
        return {"answer": ("answer",), "prompt": ("prompt",), "both": ("answer", "prompt")}[judge]

    def cards(self, inputs: Source) -> list[dict[str, Any]]:
        """See `Extractor`: prompt and answer, each with its tokens where they are judged."""
        assert isinstance(inputs, TextSource)
        from covary.text.features.token_evidence import affordable

        found, left = [], affordable(MAX_TOKENS, self.model)
        for i, text in enumerate(inputs.texts):
            tokens: dict[str, Any] = {}
            for of in self.explained if left > 0 else ():
                tokens[of] = self.explain_tokens(inputs.take([i]), of)[0].to_json()
                left -= sum(token["unexplained"] is not None for token in tokens[of])
            found.append({
                "text": text.display_text, "answer": text.completion, "tokens": tokens.get("answer"),
                "prompt_tokens": tokens.get("prompt"),
            })  # fmt: skip
        return found

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any], Callable[[Path], object] | None]:
        """See `Extractor`: the trusted texts; the language model stays in its own folder."""
        tokens = [vars(one) for one in self.trusted_tokens]
        return {}, {**self.preprocessing, "trusted_texts": self.trusted_texts, "trusted_tokens": tokens}, None

    def restore(self, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any], file: Path, trusted: Rows) -> None:
        """See `Extractor`."""
        self.labels_known, self.trusted_texts = record["labels"], record["trusted_texts"]
        self.trusted_tokens = [tokens_from_json(one) for one in record["trusted_tokens"]]
        self._trusted_rows = trusted
        if self.model.task == "causal":
            labels = trusted.predicted if record["groups"] == "label" else None
            self.grouping = Grouping(record["groups"], self.settings.seed).fit(trusted, labels)
