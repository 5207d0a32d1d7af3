"""From a batch of inputs to rows along draws: what a detector with a sampled estimator looks at a network through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from covary.data.source import Source
from covary.errors import CovaryError
from covary.features.arrays import ArrayInputs, Roles
from covary.features.observables import OBSERVABLES, observable_named
from covary.features.sampled.chains import SamplingData
from covary.features.sampled.diagnostics import ranking_is_stable
from covary.features.sampled.draws import Bank, draw_bank, load_bank, save_bank, to_half
from covary.features.sampled.rows import rows_on_draws, with_chosen_sigma
from covary.features.sampled.samplers import SamplingPlan, preset_named, sampler_named
from covary.features.sampled.traces import Traces, evaluate, predictions, rows_from_traces
from covary.models.functional import Buffers, Params, functional_network
from covary.models.network import as_logits, load_network
from covary.scoring.rows import Batch, Rows
from covary.scoring.scores import score_named
from covary.settings import SampledSettings, Settings, estimator_named

# Trusted inputs that sigma is chosen on, and that early stopping and half precision are judged by.
LOOKED_AT, TRIED_ON = 500, 240
FEWEST_DRAWS = 40

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, None: None}


def own_settings(settings: Settings) -> SampledSettings:
    """The settings of the draws.

    Raises:
        CovaryError: those of an estimator that takes none.
    """
    if not isinstance(settings.extractor, SampledSettings):
        raise CovaryError(f"the estimator {settings.estimator} takes no draws", "a sampled estimator")
    return settings.extractor


def plan_of(settings: Settings) -> SamplingPlan:
    """The sampling plan that the settings ask for; what they leave open is the estimator's own.

    Raises:
        CovaryError: an unknown constant of the sampler.
    """
    own = own_settings(settings)
    estimator = estimator_named(own.estimator)
    assert estimator.preset is not None
    preset = preset_named(estimator.preset)
    draws = estimator.draws if own.draws is None else own.draws
    burn_in = estimator.burn_in if own.burn_in is None else own.burn_in
    thinning = estimator.thinning if own.thinning is None else own.thinning
    sigma = {} if own.sigma is None else {"sigma": own.sigma}
    return replace(
        preset,
        settings={**preset.settings, **own.constants, **sigma},
        steps=burn_in + draws * thinning,
        burn_in=burn_in,
        thinning=thinning,
        chains=own.chains,
        batchnorm=own.batchnorm or preset.batchnorm,
        seed=settings.seed,
    )


def trial_scores(rows: Rows, score: str, coupling: str) -> np.ndarray:
    """Scores of a third of trusted rows, by another third as reference and the last for fitting: a rehearsal."""
    third = len(rows) // 3
    reference, fit, queries = (rows.take(np.arange(i, 3 * third, 3)) for i in range(3))
    return score_named(score, coupling).fit(reference, fit).measure(queries).score


class SampledExtractor(ArrayInputs):
    """Turns batches into `Rows` along draws that are taken once, by `draw`, or handed over, by `take`.

    Args:
        module: the network, in evaluation mode.
        choose_logits: picks logits (n, C) out of what the network returns.
        settings: of the detector; `plan` is what they amount to, sigma included once it is chosen.

    `notes` says in words what was chosen; `told` is the same, with the diagnostics, as plain JSON values.
    """

    kind = "sampled"
    one_tensor, by_gradients = True, False

    def __init__(self, module: nn.Module, choose_logits: Callable[[Any], Tensor], settings: Settings) -> None:
        self.settings, self.plan, self.own = settings, plan_of(settings), own_settings(settings)
        self.observable = observable_named(settings.observable)
        self.network = functional_network(
            module,
            space=settings.space,
            choose_logits=choose_logits,
            autocast=DTYPES[settings.amp],
            compiled=self.own.compiled,
            channels_last=self.own.channels_last,
        )
        self.layers = self.network.layers
        self.notes: list[str] = []
        self.summary: dict[str, Any] = {}
        self.bank: Bank | None = None

    @classmethod
    def of(cls, settings: Settings, model: Any, weights: Any = None, function: Any = None) -> SampledExtractor:
        """See `Extractor`."""
        check_observable(settings.observable if function is None else function, settings)
        host = load_network(model, weights, device=settings.device, output=own_settings(settings).output)
        self = cls(host.module, lambda out: as_logits(out, host.output), settings)
        self._start(host)
        return self

    def prepare(
        self, trusted: Source, calibration: Source | None, sampling: Source | None, roles: Roles | None
    ) -> tuple[Source, list[str]]:
        """Takes the draws (see `take_draws`)."""
        from covary.features.sampled.fit import take_draws

        return take_draws(self, trusted, sampling, calibration, roles)

    def learn(
        self, trusted: Source, rows: Rows, roles: Callable[[], Roles], *, calibration_apart: bool = False
    ) -> Rows | None:
        """Adds what the trusted rows say of the draws."""
        from covary.features.sampled.fit import add_diagnostics

        add_diagnostics(self, rows)
        return rows

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any], Callable[[Path], object] | None]:
        """See `Extractor`: the bank of draws has a file of its own."""
        assert self.bank is not None
        return {}, {"sampling": self.summary}, partial(save_bank, self.bank)

    def restore(self, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any], file: Path, trusted: Rows) -> None:
        """See `Extractor`."""
        self.take(load_bank(file, self.network), record["sampling"])

    @property
    def needs_sampling(self) -> bool:
        """Whether the chains need labelled data of their own."""
        return sampler_named(self.plan.sampler).needs_gradient

    @property
    def passes(self) -> int:
        """Forward passes an input."""
        return 1 + self.plan.draws * self.plan.chains * (len(self.layers) if self.own.layerwise else 1)

    def draw(self, trusted: Sequence[Batch], sampling: SamplingData | None) -> SampledExtractor:
        """Takes the draws; `trusted` inputs, none of which calibrates, choose sigma and when to stop.

        Raises:
            CovaryError: a chain that diverges, or a network that stands no sigma of the grid.
        """
        if not self.needs_sampling and "sigma" not in self.plan.settings:
            self.plan = with_chosen_sigma(self.network, self.plan, trusted)
            self.notes.append(
                f"Draws move every weight by sigma = {self.plan.resolved().sigma:g}, the largest of the grid that "
                "costs at most 5 points of accuracy on trusted data."
            )
        watch = None
        if self.own.stop_when_stable is not None:
            x = torch.cat([self.network.place(batch.x) for batch in trusted])[:TRIED_ON]
            watch = Watch(self, x, self.own.stop_when_stable)
        bank = draw_bank(
            self.network,
            self.plan,
            sampling,
            watch=None if watch is None else watch.add,
            stop=None if watch is None else watch.stable,
        )
        taken = len(bank) // self.plan.chains
        if taken < self.plan.draws:
            self.notes.append(
                f"Drawing stopped after {taken} of {self.plan.draws} draws a chain: half of them rank trusted inputs "
                f"as all do (Spearman at least {self.own.stop_when_stable:g})."
            )
            steps = self.plan.burn_in + taken * self.plan.thinning
            self.plan = replace(self.plan, steps=steps)
        size = {"bytes": bank.bytes, "precision": "float32", "full_bytes": bank.bytes}
        if self.own.half_draws:
            full, bank = bank, to_half(bank)
            size |= {"bytes": bank.bytes, "precision": "float16", **self._cost(full, bank, trusted)}
            self.notes.append(
                f"Draws are kept in float16, {bank.bytes / 2**20:,.1f} MB in place of {full.bytes / 2**20:,.1f}: "
                f"couplings move by at most {size['coupling_error']:.2g}, scores by {size['score_error']:.2g} "
                f"(Spearman {size['spearman']:.4f} on {size['on']} trusted inputs)."
            )
        return self.take(bank, {"bank": size})

    def take(self, bank: Bank, summary: dict[str, Any]) -> SampledExtractor:
        """Takes over draws that are there already."""
        self.summary, self.notes = summary, list(summary.get("notes", self.notes))
        if self.network.device.type == "cuda" and bank.bytes < torch.cuda.mem_get_info(self.network.device)[0] / 2:
            bank = bank.to(self.network.device)
        self.bank = bank
        return self

    def rows(self, batch: Batch) -> Rows:
        """The rows of one batch, in order; independent of how samples are grouped into batches up to rounding."""
        if self.bank is None:
            raise CovaryError("no draws were taken", "a fitted detector", "call fit(trusted) first")
        return self._rows_on(self.bank, batch)

    def _rows_on(self, bank: Bank, batch: Batch) -> Rows:
        s = self.settings
        return rows_on_draws(
            self.network,
            bank,
            batch,
            observable=s.observable,
            layerwise=self.own.layerwise,
            batch_size=s.batch_size,
            draws_at_once=self.own.draws_at_once,
        )

    def _cost(self, full: Bank, half: Bank, trusted: Sequence[Batch]) -> dict[str, Any]:
        """What half precision does to couplings and scores, on some trusted inputs."""
        from scipy.stats import spearmanr

        from covary.scoring.couplings import couple

        s = self.settings
        some = first_of(trusted, TRIED_ON)
        one, other = (Rows.concatenate([self._rows_on(bank, batch) for batch in some]) for bank in (full, half))
        a, b = (trial_scores(rows, s.score, s.coupling) for rows in (one, other))
        moved = np.abs(couple(s.coupling, one, one) - couple(s.coupling, other, other)).max()
        correlation = float(spearmanr(a, b)[0])  # pyright: ignore[reportArgumentType]
        return {
            "coupling_error": float(moved),
            "score_error": float(np.abs(a - b).max()),
            "spearman": correlation,
            "on": len(one),
        }


class Watch:
    """Follows trusted inputs along a chain, to say when more draws would no longer change how they rank."""

    def __init__(self, extractor: SampledExtractor, x: Tensor, level: float) -> None:
        self.network, self.settings, self.x, self.level = extractor.network, extractor.settings, x, level
        self.labels = predictions(self.network, x)
        self.names = list(dict.fromkeys([self.settings.observable, "margin"]))
        start = (self.network.moving, self.network.buffers)
        found = evaluate(self.network, [start], x, self.labels, self.names)[0].double().cpu().numpy()
        self.at_w_star = dict(zip(self.names, found, strict=True))
        self.values: list[Tensor] = []

    def add(self, weights: Params, buffers: Buffers) -> None:
        """One more draw."""
        self.values.append(evaluate(self.network, [(weights, buffers)], self.x, self.labels, self.names)[0])

    def stable(self) -> bool:
        """Whether scores from the first half of the draws rank inputs as those from all of them do."""
        if len(self.values) < FEWEST_DRAWS:
            return False
        full = torch.stack(self.values, 1).cpu().numpy()
        half = full[:, : full.shape[1] // 2]
        return ranking_is_stable(self._scores(half), self._scores(full), self.level)

    def _scores(self, values: np.ndarray) -> np.ndarray:
        ids = [str(i) for i in range(len(self.x))]
        stored = {name: own[None] for name, own in zip(self.names, values, strict=True)}
        traces = Traces(ids, self.labels.cpu().numpy().astype(np.int64), self.at_w_star, stored)
        rows = rows_from_traces(traces, self.settings.observable)
        return trial_scores(rows, self.settings.score, self.settings.coupling)


def first_of(batches: Iterable[Batch], n: int) -> list[Batch]:
    """The batches that hold the first n inputs, the last one cut."""
    kept, left = [], n
    for batch in batches:
        if left <= 0:
            break
        part = batch if len(batch) <= left else replace(batch, ids=batch.ids[:left], x=batch.x[:left])
        kept.append(part)
        left -= len(part)
    return kept


def check_observable(observable: Any, settings: Settings) -> None:
    """Sampled estimators record the table's observables alone."""
    if not isinstance(observable, str):
        found = f"a function as the observable of the estimator {settings.estimator}"
        raise CovaryError(found, f"one of: {', '.join(OBSERVABLES)}", "or use estimator=first-order")
