"""From texts in tokens to rows: one forward and one backward pass, k numbers a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from covary.errors import CovaryError, unknown_name
from covary.features.activations import compress
from covary.features.engine.fast import KEPT, PASS_BYTES, FastEngine
from covary.features.exact import exact_gradients
from covary.features.projections import LayerProjection, numbers_per_layer, orthogonal_rows
from covary.models.network import Network
from covary.scoring.rows import Batch, Rows
from covary.settings import Settings, TextSettings
from covary.text.features.answers import Answer, Answers
from covary.text.features.hidden_states import blocks, hidden_states, looked_up_per_text, watched
from covary.text.inputs import TextInputs
from covary.text.models.pretrained import AUTO, LanguageModel, load_language_model
from covary.text.spaces import text_parameters
from covary.text.tokens import Side, Tokens, pad, prompt_alone

ENGINES = ("hooks", "exact")
# What functional evidence counts as one layer.
PER = ("auto", "block", "layer")
# What is judged.
JUDGED = ("answer", "prompt", "both")
# States over a prompt's tokens, called by what they are of.
AS_PROMPT = ("@ answer", "@ prompt")
# More layers than this count by block: their numbers would outgrow trusted sets of a few hundred texts.
MOST_LAYERS = 64
# Numbers kept of every hidden state; it takes part in latent evidence alone, which has few layers.
STATE_NUMBERS = 64


class TextExtractor(TextInputs):
    """Turns batches whose inputs are `Tokens` into `Rows`.

    Functional rows are the compressed gradients of the answer's observable, layer by layer; latent rows the hidden
    states over the answer and at the prompt's last position; confidence the mean margin and energy of its tokens.
    Padding never enters: rows do not depend on how texts are grouped, up to rounding.

    Args:
        model: the language model.
        observable: `margin` or `nll`; `pooling`: `root`, `sum` or `mean` over the answer's tokens.
        space: which weights may move (see `text_parameters`).
        seed: of the projections; rows of different seeds do not compare.
        engine: `hooks` (one forward and one backward pass) or `exact` (torch.func, the oracle).
        amp: `bf16` or `fp16` autocast, or None.
        side: where batches are padded.
        per: `block` puts the rows of a transformer block's layers side by side as one layer; `layer` leaves them
            apart; `auto` = block where there are more than 64.
        judge: `answer`; `prompt`, which gives the rows of prompts alone; or `both`, which keeps those of prompts
            beside those of answers (`Rows.prompt`). A prompt is read as an answer is: the gradient of its own
            log-odds, hidden states over its tokens and at its last one, its mean margin and energy.
        at_equal_length: whether rows tell the lengths of prompt and answer, at which numbers are then compared.

    Attributes:
        layers: parameters by layer, as projected.
        groups: layers by the name under which their rows are kept.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        observable: str = "margin",
        pooling: str = "root",
        space: str = "all",
        seed: int = 0,
        engine: str = "hooks",
        amp: str | None = None,
        side: Side = "right",
        per: str = "auto",
        judge: str = "answer",
        at_equal_length: bool = False,
    ) -> None:
        for kind, name, table in (("engine", engine, ENGINES), ("layers", per, PER), ("judge", judge, JUDGED)):
            if name not in table:
                raise unknown_name(kind, name, table)
        self.model, self.seed, self.engine, self.amp = model, seed, engine, amp
        self.side: Side = side
        # A classifier's one pass is all there is.
        self.judge, self.at_equal_length = (judge, at_equal_length) if model.task == "causal" else ("answer", False)
        self.observable = None
        self.answers = Answers(model, observable, pooling)
        self.layers = text_parameters(model.module, space)
        by_block = per == "block" or (per == "auto" and len(self.layers) > MOST_LAYERS)
        self.groups = grouped_layers(self.layers, list(blocks(model.module)) if by_block else [])
        self.k = numbers_per_layer(len(self.layers))
        shapes = {name: tuple(parameter.shape) for name, parameter in model.module.named_parameters()}
        self.projections = {
            layer: LayerProjection(layer, {name: shapes[name] for name in names}, self.k, seed)
            for layer, names in self.layers.items()
        }
        self.notes: list[str] = []
        self.grouping = None
        self._watched = watched(model.module)
        self._state_projections: dict[int, Tensor | None] = {}
        self._last: tuple[Answer, dict[str, Tensor]] | None = None
        self._fast = FastEngine(
            model.module, self.layers, self.projections, observable=None, choose_logits=lambda out: out,
            user_observable=self._observe, pooled=False,
        )  # fmt: skip
        if engine == "hooks":
            self.notes = self._fast.notes
        self._bytes_per_token = 0.0

    @classmethod
    def of(cls, settings: Settings, model: Any, weights: Any = None, function: Any = None) -> TextExtractor:
        """See `Extractor`: a `LanguageModel`, or the local folder of one."""
        own = settings.extractor
        assert isinstance(own, TextSettings)
        if function is not None and not isinstance(function, str):
            raise CovaryError("a function as the observable of texts", "margin or nll")
        if weights is not None:
            raise CovaryError("weights beside a language model", "a folder that holds them", "leave weights= away")
        if not isinstance(model, LanguageModel):
            model = load_language_model(model, dtype=own.dtype, device=settings.device, adapter=own.adapter)
        if own.dtype == AUTO:
            # What is kept must be the same elsewhere.
            pinned = own.model_copy(update={"dtype": model.dtype})
            settings = settings.model_copy(update={"extractor": pinned})
        self = cls(
            model, observable=settings.observable, pooling=own.pooling, space=settings.space, seed=settings.seed,
            engine=own.engine, amp=settings.amp, side=own.side, judge=own.judge, at_equal_length=own.at_equal_length,
        )  # fmt: skip
        self._start(Network(model.module), settings)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.module.parameters()).device

    def rows(self, batch: Batch) -> Rows:
        """The rows of one batch of `Tokens`, in order."""
        rows = replace(self.judged(batch.x, self.judge), ids=list(batch.ids))
        return rows if self.grouping is None else self.grouping(rows, batch.y)

    def judged(self, texts: Sequence[Tokens], judge: str) -> Rows:
        """Rows of texts by what is judged of them (see `JUDGED`), all in one group."""
        if judge == "prompt":
            return self._prompt_rows(texts)
        rows = self._rows(texts)
        if self.at_equal_length:
            rows = replace(rows, lengths=np.array([[_long(one), len(one.targets)] for one in texts], np.float64))
        return replace(rows, prompt=self._prompt_rows(texts)) if judge == "both" else rows

    def _prompt_rows(self, texts: Sequence[Tokens]) -> Rows:
        """Rows of what was asked alone."""
        rows = self._rows([prompt_alone(text) for text in texts])
        latent = {name.replace(*AS_PROMPT): states for name, states in rows.latent.items()}
        lengths = np.array([[_long(text)] for text in texts], np.float64) if self.at_equal_length else None
        return replace(rows, latent=latent, lengths=lengths)

    def _rows(self, texts: Sequence[Tokens]) -> Rows:
        # Texts of like length share a pass: less padding, and logits over a narrower window.
        order = sorted(range(len(texts)), key=lambda i: (texts[i].anchor, len(texts[i])))
        parts, some = [], []
        for i in order:
            longest = max([len(texts[i]), *(len(texts[j]) for j in some)])
            if some and (len(some) + 1) * longest > self._tokens_at_once(texts[i]):
                parts.append(self._pass_rows([texts[j] for j in some]))
                some = []
            some.append(i)
        parts.append(self._pass_rows([texts[j] for j in some]))
        return Rows.concatenate(parts).take(np.argsort(order))

    def token_values(self, texts: Sequence[Tokens]) -> list[dict[str, Float[np.ndarray, " m"]]]:
        """Per text, `margin`, `nll` and `energy` of every token that counts, in nats."""
        found = []
        for text in texts:
            x = self._padded([text])
            with torch.no_grad(), self._autocast():
                answer = self.answers.answer(*self._held(), x)
            margin = _numpy(answer.margin).astype(np.float64)
            energy = _numpy(answer.energy).astype(np.float64)
            found.append({"margin": margin, "nll": np.logaddexp(0.0, -margin), "energy": energy})
        return found

    @property
    def latent_layers(self) -> list[str]:
        """Names of the layers whose states are kept."""
        return list(self._watched)

    def _tokens_at_once(self, first: Tokens) -> float:
        """Tokens that one pass may hold, by the bytes that the first texts took per token."""
        if self.engine == "exact" or self._fast.one_by_one:
            return 1.0
        if not self._bytes_per_token:
            # With logits at every position, as prompts have them.
            x = self._padded([first if self.judge == "answer" else prompt_alone(first)])
            self._fast.samples_at_once(x)
            self._bytes_per_token = self._fast.bytes_per_sample / x["ids"].shape[1]
        # Half of what other networks may hold: logits over a large vocabulary and their slopes come beside it.
        room = PASS_BYTES["cpu" if self.device.type == "cpu" else "gpu"] / 2
        return room / (KEPT * max(self._bytes_per_token, 1.0))

    def _padded(self, texts: Sequence[Tokens]) -> dict[str, Tensor]:
        fill = self.model.tokenizer.pad_token_id
        padded = pad(texts, self.side, self.model.end or 0 if fill is None else fill)
        return {name: tensor.to(self.device) for name, tensor in padded.items()}

    def _held(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        module = self.model.module
        return {name: p.detach() for name, p in module.named_parameters()}, dict(module.named_buffers())

    def _autocast(self) -> Any:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.amp or "")
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    def _observe(self, parameters: Any, buffers: Any, x: Any) -> Float[Tensor, " n"]:
        with hidden_states(self._watched, x) as states, looked_up_per_text(self.model.module, len(x["ids"])):
            answer = self.answers.answer(parameters, buffers, x)
        # The first run of a pass is the whole batch; parameters without a rule ask again, text by text.
        self._last = self._last or (answer, states)
        return answer.value

    def _pass_rows(self, texts: Sequence[Tokens]) -> Rows:
        x = self._padded(texts)
        rows, norms = self._gradients(x)
        if self._fast.one_by_one and len(texts) > 1:
            # Texts meet in the network, as this batch has shown.
            return Rows.concatenate([self._pass_rows([text]) for text in texts])
        assert self._last is not None
        answer, states = self._last
        self._last = None
        value = _numpy(answer.value).astype(np.float64)
        result = Rows(
            ids=[text.id for text in texts],
            predicted=_numpy(answer.predicted).astype(np.int64),
            observable=value,
            functional={
                name: np.concatenate([_numpy(rows[layer]).astype(np.float32) for layer in own], 1)
                for name, own in self.groups.items()
            },
            functional_norms=np.stack(
                [np.sqrt(sum(np.square(_numpy(norms[layer])) for layer in own)) for own in self.groups.values()], -1
            ),
            latent={name: self._state(name, rows) for name, rows in states.items()},
            confidence={
                "margin": _numpy(answer.per_text(answer.margin)).astype(np.float64),
                "energy": _numpy(answer.per_text(answer.energy)).astype(np.float64),
            },
        )
        _check_non_finite(result)
        return result

    def _gradients(self, x: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self.engine == "hooks":
            self._fast.samples_at_once(x)
            self._last = None
            got = self._fast(x, self._autocast)
            return got.rows, got.norms
        self._last = None
        with torch.no_grad(), self._autocast():
            self._observe(*self._held(), x)
        with self._autocast():
            exact = exact_gradients(
                self.model.module, [name for names in self.layers.values() for name in names], x,
                user_observable=self.answers, vectorised=False,
            ).parameters  # fmt: skip
        rows, norms = {}, {}
        for layer, names in self.layers.items():
            own = {name: exact[name].float() for name in names}
            rows[layer] = self.projections[layer](own)
            norms[layer] = torch.stack([g.double().flatten(1).square().sum(-1) for g in own.values()]).sum(0).sqrt()
        return rows, norms

    def _state(self, name: str, states: Float[Tensor, "n C"]) -> np.ndarray:
        wide = states.shape[-1]
        if wide not in self._state_projections:
            narrow = wide > STATE_NUMBERS
            made = orthogonal_rows(STATE_NUMBERS, wide, self.seed, "hidden states") if narrow else None
            self._state_projections[wide] = made
        projection = self._state_projections[wide]
        if projection is not None and states.device.type != "mps":
            # What every prompt ends with has the same state, which must stay the same number in any company: rounding
            # that differs with the batch would be all that such a layer tells.
            states, projection = states.double(), projection.to(states.device).double()
            return _numpy((states @ projection.T).float())
        return _numpy(compress(states, projection))


def _long(text: Tokens) -> int:
    """Tokens of the prompt's own."""
    return text.anchor + 1 - text.start


def grouped_layers(layers: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    """Layers by the block they lie in, in order; those outside every block stand for themselves."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        own = next((name for name in names if layer == name or layer.startswith(f"{name}.")), layer)
        found.setdefault(own, []).append(layer)
    return found


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().cpu().numpy()


def _check_non_finite(rows: Rows) -> None:
    bad = ~np.isfinite(rows.observable) | ~np.isfinite(rows.functional_norms).all(-1)
    if bad.any():
        name = rows.ids[int(np.flatnonzero(bad)[0])]
        raise CovaryError(
            f"the model's output or gradient on text {name!r} is not finite", "finite logits and gradients",
            "load it with dtype=float32",
        )  # fmt: skip
