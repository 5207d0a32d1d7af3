"""From a batch of inputs to rows: the gradient, the activations and the confidence of every sample."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from covary.data.source import Source
from covary.errors import CovaryError, unknown_name
from covary.features.activations import LAST_FEATURES, compress, watched_layers
from covary.features.arrays import ArrayInputs, Roles
from covary.features.engine.compressed import Compressed
from covary.features.engine.fast import FastEngine, Observe, some_of
from covary.features.engine.latent import LatentEngine
from covary.features.exact import ChooseLogits, Gradients, exact_gradients, where_vmap_fails
from covary.features.layouts import Layout
from covary.features.memory_format import takes_channels_last
from covary.features.observables import UserObservable, energy, margin, observable_named
from covary.features.preconditioner import GradientMoments, Metric, metric_from_arrays, metric_to_arrays, under_metric
from covary.features.projections import LayerProjection, numbers_per_layer, orthogonal_rows
from covary.features.survival import Survival
from covary.models.network import as_logits, load_network
from covary.models.spaces import complex_parameters, select_parameters
from covary.scoring.calibration.splits import LEAST_SPLIT, chosen_on, never_calibrating
from covary.scoring.rows import Batch, Rows
from covary.settings import GradientSettings, Settings

# Per-sample gradients of one slice of a batch may take this many bytes.
GRADIENT_BYTES = 512 * 2**20

ENGINES = ("hooks", "exact")
# Trusted inputs that the layers to amplify are chosen on.
CHOSEN_ON = 200
LATENT = (
    "Evidence of a forward pass alone: nothing is known of how answers depend on the weights, and which trusted inputs "
    "account for an input is read from activations."
)
# Numbers kept of what the last linear layer takes.
FEATURE_NUMBERS = 256


class GradientExtractor(ArrayInputs):
    """Turns batches into `Rows` with one forward and one backward pass a sample.

    Args:
        module: the network, in evaluation mode.
        choose_logits: picks logits (n, C) out of what the network returns.
        observable: a name from `OBSERVABLES`, or a user's function of (parameters, buffers, batch).
        space: which parameters may move (see `select_parameters`).
        seed: of the random projections; rows of different seeds are not comparable.
        device: where the network lives.
        amp: `bf16` or `fp16` runs the pass under autocast; observables are always float32.
        channels_last: whether four-dimensional inputs lie channels last in any case; by default where that is faster
            and answers stay the same (see `takes_channels_last`).
        engine: `hooks` (layer inputs and output gradients, see `engine`) or `exact` (`vmap(grad)`, the oracle).
        survival: what measures survival under amplification, whose passes are then made as well; None = not measured.
        latent: whether a forward pass alone is made: rows without gradients, their activations the same.
        metric: roots of Sigma that are multiplied into the projections (see `preconditioner`); None = identity.

    The same projections in both engines: rows agree up to rounding. `notes` says, in words, which parameters the fast
    engine left to the exact one, and whether a network that cannot run under `vmap` was run sample by sample.
    `norm_kinds` says per layer whether norms are `exact` or those of the compressed rows (`projected`).
    """

    kind = "gradient"
    settings: Settings

    def __init__(
        self,
        module: nn.Module,
        choose_logits: ChooseLogits,
        *,
        observable: str | UserObservable = "margin",
        space: str = "all",
        seed: int = 0,
        device: str = "cpu",
        amp: str | None = None,
        channels_last: bool = False,
        engine: str = "hooks",
        metric: Metric | None = None,
        survival: Survival | None = None,
        latent: bool = False,
    ) -> None:
        if engine not in ENGINES:
            raise unknown_name("engine", engine, ENGINES)
        self.module = module
        self.choose_logits = choose_logits
        self.observable = observable_named(observable) if isinstance(observable, str) else None
        self.user_observable = None if isinstance(observable, str) else observable
        self.layers = select_parameters(module, space)
        self.device, self.amp = device, amp
        # None: settled with the first inputs.
        self.channels_last = None if engine == "hooks" and not channels_last else channels_last
        self.dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
        self.k = numbers_per_layer(len(self.layers))
        self.latent, self.by_gradients = latent, not latent
        if latent:
            if self.observable is None:
                raise CovaryError("evidence latent without the network's own classes", "evidence fast")
            self.layers = {}
        shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        self._shapes = shapes
        self.metric = metric
        self.seed, self.engine, self.survival = seed, engine, survival
        self.notes: list[str] = []
        self._vectorised = True
        self._activation_projections: dict[str, Tensor | None] = {}
        moved = sum(np.prod(shapes[name]) for names in self.layers.values() for name in names)
        self._slice = max(1, int(GRADIENT_BYTES // (4 * max(moved, 1))))
        self._project()
        self._attach()

    def _project(self) -> None:
        """The seed's projections, under the preconditioner if there is one."""
        self.projections = {
            layer: LayerProjection(layer, {name: self._shapes[name] for name in names}, self.k, self.seed)
            for layer, names in self.layers.items()
        }
        if self.metric is not None:
            self.projections = under_metric(self.projections, self.metric)

    @classmethod
    def of(cls, settings: Settings, model: Any, weights: Any = None, function: Any = None) -> GradientExtractor:
        """See `Extractor`."""
        own = settings.extractor
        assert isinstance(own, GradientSettings)
        host = load_network(model, weights, device=settings.device, output=own.output)
        observable = settings.observable if function is None else function
        self = cls(
            host.module,
            lambda out: as_logits(out, host.output),
            observable=observable,
            space=settings.space,
            seed=settings.seed,
            device=settings.device,
            amp=settings.amp,
            channels_last=own.channels_last,
            # A user's function may run another copy of the network, which hooks on this one never see.
            engine=own.engine if isinstance(observable, str) else "exact",
            latent=own.evidence == "latent",
        )
        self._start(host)
        self.settings = settings
        return self

    def learn(
        self, trusted: Source, rows: Rows, roles: Callable[[], Roles], *, calibration_apart: bool = False
    ) -> Rows | None:
        """What is amplified for survival, and a preconditioner from the reference inputs, where they are asked for.

        Rows get their survival; with a preconditioner they are taken again.
        """
        own = self.settings.extractor
        assert isinstance(own, GradientSettings)
        if own.evidence == "thorough":
            rows = self._with_survival(trusted, rows, calibration_apart)
        if own.preconditioner == "identity":
            return rows
        # Of reference inputs alone: calibration and queries must meet one that has seen neither.
        splits = roles()
        if "reference" not in splits:
            raise CovaryError(
                f"preconditioner {own.preconditioner!r} with {len(trusted)} trusted inputs",
                f"at least {LEAST_SPLIT} and one split, since its own inputs may not calibrate",
                "trust more inputs, leave conformal at auto, or the preconditioner at identity",
            )
        reference_ids = set(splits["reference"])
        chosen = trusted.take([i for i, name in enumerate(trusted.ids) if name in reference_ids])
        moments = self.moments(chosen.batches(self.settings.batch_size), own.preconditioner)
        self.take_metric(moments.metric(own.damping))
        return None

    def _with_survival(self, trusted: Source, rows: Rows, calibration_apart: bool) -> Rows:
        """Chooses what is amplified, on trusted inputs that need not calibrate; the rows with their survival."""
        if not self.classes:
            raise CovaryError("evidence thorough without the network's own classes", "evidence fast")
        size = self.settings.batch_size
        if calibration_apart:
            positions = np.arange(len(rows))
        elif self.previous_split is not None:
            positions = never_calibrating(rows.ids, self.previous_split)
        else:
            positions = chosen_on(rows.ids, rows.predicted, self.seed, self.settings.calibrates_by(len(rows)))
        chosen = trusted.take(positions[:CHOSEN_ON].tolist()).batches(size)
        self.survival = Survival(self.module, self.choose_logits).choose(self.placed(batch) for batch in chosen)
        self.statements = []
        if not self.survival.depths:
            self.statements.append(
                "Survival says nothing here: amplified layers change the answer of at most "
                f"{self.survival.changed:.0%} of reference inputs, at a factor of {self.survival.factor:g}."
            )
        found: list[np.ndarray] = []
        done = 0
        for batch in trusted.batches(size):
            part = self.survived(batch, rows.predicted[done : done + len(batch)])
            found += [] if part is None else [part]
            done += len(batch)
        return replace(rows, survival=np.concatenate(found)) if found else rows

    def take_metric(self, metric: Metric) -> None:
        """Puts the roots of a preconditioner into the projections."""
        self.metric = metric
        self._project()
        self._attach()

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any], Callable[[Path], object] | None]:
        """See `Extractor`: arrays of the preconditioner, and what `Survival` has chosen."""
        arrays = {} if self.metric is None else metric_to_arrays(self.metric)
        return arrays, {"survival": {} if self.survival is None else self.survival.state}, None

    def restore(self, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any], file: Path, trusted: Rows) -> None:
        """See `Extractor`."""
        if found := {name: array for name, array in arrays.items() if name.startswith("metric.")}:
            self.take_metric(metric_from_arrays(found, self.layers))
        if record["survival"]:
            self.survival = Survival(self.module, self.choose_logits, record["survival"])

    def _attach(self) -> None:
        """The fast engine on the module, and its notes where it is the one that runs."""
        if self.latent:
            assert self.observable is not None
            self._fast: FastEngine = LatentEngine(
                self.module, choose_logits=self.choose_logits, observable=self.observable
            )
        else:
            self._fast = FastEngine(
                self.module,
                self.layers,
                self.projections,
                observable=self.observable,
                choose_logits=self.choose_logits,
                user_observable=self.user_observable,
            )
        if self.engine == "hooks":
            self.notes = self._fast.notes
        if self.latent:
            self.notes.append(LATENT)
            return
        if left := complex_parameters(self.module):
            self.notes.append(f"Parameters of complex numbers take no part: {some_of(left, 8)}.")

    def for_module(self, module: nn.Module, choose_logits: ChooseLogits) -> GradientExtractor:
        """The same extractor on another copy of the network, such as one that shares its weights: same projections."""
        other = copy.copy(self)
        other.module, other.choose_logits, other.notes = module, choose_logits, []
        if self.survival is not None:
            other.survival = Survival(module, choose_logits, self.survival.state)
        other._activation_projections = dict(self._activation_projections)
        other._attach()
        return other

    @property
    def norm_kinds(self) -> dict[str, str]:
        """Per layer, `exact` or `projected`; of the hooks engine known after the first batch."""
        if self.engine == "exact":
            return {name: "projected" if p.weighted else "exact" for name, p in self.projections.items()}
        return dict(self._fast.norm_kinds)

    def moments(self, batches: Iterable[Batch], kind: str) -> GradientMoments:
        """Second moments of whole gradients, from which a metric is made; exact gradients, a slice at a time."""
        moments = GradientMoments(self.projections, kind)
        for batch in batches:
            x = self.placed(batch)
            for start in range(0, len(batch), self._slice):
                part = tree_map(lambda t, s=start: t[s : s + self._slice], x)
                moments.add(self._gradients(part).parameters)
        return moments

    def rows(self, batch: Batch) -> Rows:
        """The rows of one batch, in order; independent of how samples are grouped into batches up to rounding."""
        x = self.placed(batch)
        leaf = tree_leaves(x)[0]
        step = self._slice if self.engine == "exact" else self._fast.samples_at_once(x)
        parts = [
            self._slice_rows(batch.ids[start : start + step], tree_map(lambda t, s=start: t[s : s + step], x))
            for start in range(0, len(leaf), step)
        ]
        return parts[0] if len(parts) == 1 else Rows.concatenate(parts)

    def several(self, batch: Batch, observables: Sequence[str]) -> dict[str, Rows]:
        """Rows for several observables out of one forward pass (hooks engine), with a backward pass each.

        Raises:
            CovaryError: an unknown observable, or an extractor of a user's own.
        """
        if self.user_observable is not None:
            raise CovaryError("several observables of an extractor made for one of its own", "names of observables")
        functions = {name: observable_named(name) for name in observables}
        x = self.placed(batch)
        step = self._slice if self.engine == "exact" else self._fast.samples_at_once(x)
        parts: dict[str, list[Rows]] = {name: [] for name in functions}
        for start in range(0, len(batch), step):
            some = tree_map(lambda t, s=start: t[s : s + step], x)
            if self.engine == "hooks":
                found = self._fast.several(some, list(functions.values()), self._autocast)
            else:
                found = [self._compressed(self._gradients(some, observable)) for observable in functions.values()]
            for name, got in zip(functions, found, strict=True):
                parts[name].append(self._finished(batch.ids[start : start + step], got))
        return {name: own[0] if len(own) == 1 else Rows.concatenate(own) for name, own in parts.items()}

    def _place(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        # Inputs follow the weights: a network in float64, bfloat16 or float16 takes no float32.
        return leaf.to(self.device, self.dtype if leaf.is_floating_point() else leaf.dtype, non_blocking=True)

    def _autocast(self) -> Any:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.amp or "")
        return torch.autocast(self.device.partition(":")[0], dtype=dtype) if dtype else nullcontext()

    def _gradients(self, x: Any, observable: Observe | None = None) -> Gradients:
        def run(vectorised: bool) -> Gradients:
            with self._autocast():
                return exact_gradients(
                    self.module,
                    [name for names in self.layers.values() for name in names],
                    x,
                    observable=observable or self.observable,
                    choose_logits=self.choose_logits,
                    user_observable=self.user_observable,
                    vectorised=vectorised,
                )

        if not self._vectorised:
            return run(False)
        result, problem = where_vmap_fails(run)
        if problem is not None:
            self._vectorised = False
            self.notes.append(f"The network does not run under vmap ({_first_line(problem)}); samples go one by one.")
        return result

    def _compressed(self, got: Gradients) -> Compressed:
        rows, norms = {}, {}
        for layer, names in self.layers.items():
            own = {name: got.parameters[name].float() for name in names}
            rows[layer] = self.projections[layer](own)
            if self.projections[layer].weighted:
                norms[layer] = rows[layer].double().norm(dim=-1)
                continue
            norms[layer] = torch.stack([g.double().flatten(1).square().sum(-1) for g in own.values()]).sum(0).sqrt()
        return Compressed(rows, norms, got.observable, got.predicted, got.logits, got.activations)

    def _slice_rows(self, ids: list[str], x: Any) -> Rows:
        got = self._fast(x, self._autocast) if self.engine == "hooks" else self._compressed(self._gradients(x))
        rows = self._finished(ids, got)
        return rows if self.survival is None else replace(rows, survival=self._survived(x, got.predicted))

    def survived(self, batch: Batch, predicted: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n depths"] | None:
        """Survival alone, of inputs whose answers are known; None where it is not measured or says nothing."""
        x = self.placed(batch)
        return self._survived(x, torch.from_numpy(predicted).to(self.device))

    def placed(self, batch: Batch) -> Any:
        """A batch's inputs as the network takes them."""
        x = tree_map(self._place, batch.x)
        if self.channels_last is None:
            # By the network alone, never by a clock: the same rows in every run.
            self.channels_last = takes_channels_last(self.module, x, self.choose_logits)
        return tree_map(_channels_last, x) if self.channels_last else x

    def _survived(self, x: Any, predicted: Tensor) -> Float[np.ndarray, "n depths"] | None:
        if self.survival is None or not self.survival.depths:
            return None
        with self._autocast():
            return _numpy(self.survival(x, predicted)).astype(np.float64)

    def _finished(self, ids: list[str], got: Compressed) -> Rows:
        latent = {}
        for layer, rows in got.activations.items():
            k = FEATURE_NUMBERS if layer == LAST_FEATURES else self.k
            if layer not in self._activation_projections:
                wide = rows.shape[-1]
                self._activation_projections[layer] = (
                    orthogonal_rows(k, wide, self.seed, layer, "activations") if wide > k else None
                )
            latent[layer] = _numpy(compress(rows, self._activation_projections[layer]))
        features = latent.pop(LAST_FEATURES, None)
        confidence: dict[str, np.ndarray] = {}
        if got.logits is not None:
            confidence["margin"] = _numpy(margin(got.logits, got.predicted)).astype(np.float64)
            confidence["energy"] = _numpy(energy(got.logits)).astype(np.float64)
        else:
            confidence["observable"] = _numpy(got.observable).astype(np.float64)
        norms = np.empty((len(ids), 0))
        if self.layers:
            norms = np.stack([_numpy(got.norms[layer]) for layer in self.layers], -1)
        rows = Rows(
            ids=list(ids),
            predicted=_numpy(got.predicted).astype(np.int64),
            observable=_numpy(got.observable).astype(np.float64),
            functional={layer: _numpy(got.rows[layer]) for layer in self.layers},
            functional_norms=norms,
            latent=latent,
            confidence=confidence,
            features=features,
        )
        _check_non_finite(rows)
        return rows

    @property
    def activation_projections(self) -> dict[str, Tensor | None]:
        """What pooled activations are multiplied with, by layer, after a first batch; None where they stay whole."""
        return {name: p for name, p in self._activation_projections.items() if name != LAST_FEATURES}

    @property
    def layouts(self) -> dict[str, list[Layout | None]]:
        """Where the samples are in the output of every call of a layer; after a first batch of two that differ."""
        places = self._fast.hooked.places or {}
        return {name: [call.outputs[0] for call in calls] for name, calls in places.items() if calls[0].outputs}

    @property
    def one_by_one(self) -> str:
        """Why samples go one by one, in words; empty where they go in batches."""
        return self._fast.notes[0] if self._fast.one_by_one else ""

    @property
    def latent_layers(self) -> list[str]:
        """Names of the layers whose activations are pooled."""
        return list(watched_layers(self.module))


def _channels_last(leaf: Any) -> Any:
    image = isinstance(leaf, Tensor) and leaf.ndim == 4
    return leaf.contiguous(memory_format=torch.channels_last) if image else leaf


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:160]


def _check_non_finite(rows: Rows) -> None:
    # A silent NaN would rank as "not anomalous"; better no answer than that one.
    bad = ~np.isfinite(rows.observable) | ~np.isfinite(rows.functional_norms).all(-1)
    if bad.any():
        name = rows.ids[int(np.flatnonzero(bad)[0])]
        raise CovaryError(
            f"the network's output or gradient on input {name!r} is not finite",
            "finite logits and gradients",
            "check the input's scaling, or run without AMP",
        )
