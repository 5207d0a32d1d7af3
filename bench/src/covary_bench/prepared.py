"""A case ready to be scored: rows and features of its samples, computed once and kept beside it."""

from __future__ import annotations

import time
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped

from covary.data.source import Source, open_data
from covary.detector import Detector
from covary.scoring.calibration.splits import kind_for
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows
from covary.storage import folders
from covary.storage.detector import rows_from_arrays, rows_to_arrays
from covary_bench.baselines.images.knn import last_features
from covary_bench.baselines.material import Material, Probe
from covary_bench.cached import read_cached

# Weights above which baselines that ask the network again do so in bfloat16 on a processor: more than twice as fast.
LARGE = 1_000_000


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs of a case, all (n,).

    Attributes:
        truth: 1 = anomalous. y: original classes. targets: the attacker's label, -1 = none. group: where it came from.
        predicted: the network's answers.
        kind: of the case.
    """

    truth: Int[np.ndarray, " n"]
    y: Int[np.ndarray, " n"]
    targets: Int[np.ndarray, " n"]
    group: Shaped[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"]
    kind: str

    @property
    def masked(self) -> Bool[np.ndarray, " n"]:
        """Clean inputs classified right, anomalous ones that reach what they were made for.

        Triggered inputs reach the attacker's label, adversarial ones any wrong class; foreign ones have no aim.
        """
        reached = np.where(self.targets >= 0, (self.predicted == self.targets) & (self.y != self.targets),
                           (self.predicted != self.y) | (self.y < 0))  # fmt: skip
        return np.where(self.truth == 1, reached, self.predicted == self.y)

    def take(self, index: Bool[np.ndarray, " n"]) -> Inputs:
        """Some of them."""
        return Inputs(self.truth[index], self.y[index], self.targets[index], self.group[index], self.predicted[index],
                      self.kind)  # fmt: skip


class Prepared:
    """Everything detectors may ask of one case."""

    def __init__(self, case: Path, work: Path, fpr: float, device: str = "cpu", evidence: str | None = None) -> None:
        self.case, self.work, self.fpr, self.device, self.evidence = case, work, fpr, device, evidence
        self.facts: dict[str, Any] = read_cached(case / "case.json")
        self.seed = int(self.facts["seed"])
        self.score = "combined"
        self.chosen: Bool[np.ndarray, " n"] | None = None

    @cached_property
    def detector(self) -> Detector:
        """An unfitted detector with default settings."""
        f = self.facts
        settings = {"allow_missing_classes": True, "device": self.device, "fpr": self.fpr, "seed": self.seed}
        settings |= {} if self.evidence is None else {"evidence": self.evidence}
        return Detector(f["model"], weights=f["weights"], **settings)

    def with_evidence(self, evidence: str) -> Prepared:
        """The same case with rows that carry other evidence, as `Detector(evidence=...)` has it."""
        other = Prepared(self.case, self.work, self.fpr, self.device, evidence)
        other.score, other.chosen = self.score, self.chosen
        return other

    def with_score(self, score: str) -> Prepared:
        """The same rows judged by another score, as `Detector(score=...)` has it."""
        other = copy(self)
        other.__dict__.pop("judge", None)
        other.score = score
        return other

    def with_inputs(self, chosen: Bool[np.ndarray, " n"]) -> Prepared:
        """The same case with some of its inputs alone, for ways that judge a pile; baselines' scores are not cut."""
        other = Prepared(self.case, self.work, self.fpr, self.device, self.evidence)
        other.score, other.chosen = self.score, chosen
        return other

    def with_split_seed(self, seed: int) -> Prepared:
        """The same rows, trusted samples dealt to their roles by another seed."""
        rows = self._kept  # computed with the case's own seed, which the projections depend on
        other = copy(self)
        other.__dict__.pop("judge", None)
        other.seed, other._kept = seed, rows
        return other

    def source(self, name: str, *, raw: bool = False) -> Source:
        """Images of `trusted`, `inputs` or `sampling`; `raw` ones are left in [0, 1]."""
        more = {} if raw else {"mean": self.facts["mean"], "std": self.facts["std"]}
        return open_data(str(self.case / f"{name}.npz"), **more)

    @cached_property
    def _stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What `_taken` gives, from its files where they are there."""
        kept = "rows" if self.evidence is None else f"rows-{self.evidence}"
        path, record = self.work / f"{kept}.safetensors", self.work / f"{kept}.json"
        if not record.is_file():
            self.work.mkdir(parents=True, exist_ok=True)
            arrays, parts = self._taken()
            folders.write_arrays(path.with_suffix(".part"), arrays)
            path.with_suffix(".part").rename(path)
            folders.write_json(record.with_suffix(".part"), parts)
            record.with_suffix(".part").rename(record)
        return folders.read_arrays(path), folders.read_json(record, "rows of a case")

    def _taken(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Rows of trusted samples and inputs in arrays, with whatever else one pass gives, and what describes them."""
        # Survival is chosen on trusted inputs, by a fit; everything else is the same before it.
        trusted = self._fitted_rows() if self.evidence == "thorough" else self.detector.rows(self.source("trusted"))
        inputs, more = self._timed(lambda: self.detector.rows(self.source("inputs")))
        known = self._features("trusted")
        queries, forward = self._timed(lambda: self._features("inputs"))
        arrays, parts = {"trusted_features": known, "query_features": queries}, {}
        for name, rows in (("trusted", trusted), ("inputs", inputs)):
            found, parts[name] = rows_to_arrays(rows, name)
            arrays |= found
        arrays["seconds"] = np.array([more / len(inputs), forward / len(inputs)])
        return arrays, parts

    def _fitted_rows(self) -> Rows:
        """Rows of trusted samples as the detector's own fit takes them; its extractor then knows what it chose."""
        rows = self.detector.fit(self.source("trusted")).trusted_rows
        assert rows is not None
        return rows

    @cached_property
    def _kept(self) -> tuple[Rows, Rows, dict[str, np.ndarray]]:
        arrays, parts = self._stored
        trusted, inputs = (rows_from_arrays(arrays, parts[name], name) for name in ("trusted", "inputs"))
        return trusted, inputs if self.chosen is None else inputs.take(self.chosen), arrays

    @staticmethod
    def _timed(work: Any) -> tuple[Any, float]:
        began = time.perf_counter()
        return work(), time.perf_counter() - began

    def _features(self, name: str) -> Float[np.ndarray, "n d"]:
        return last_features(self.detector.network.module, self._placed(self.source(name)))

    def _placed(self, source: Source) -> Any:
        from dataclasses import replace

        return (replace(batch, x=batch.x.to(self.device)) for batch in source.batches(256))

    @property
    def trusted(self) -> Rows:
        """Rows of all trusted samples."""
        return self._kept[0]

    @property
    def queries(self) -> Rows:
        """Rows of the inputs."""
        return self._kept[1]

    @property
    def pass_seconds(self) -> tuple[float, float]:
        """Seconds an input for gradients and activations together, and for a forward pass alone."""
        both = self._kept[2]["seconds"]
        return float(both[0]), float(both[1])

    @cached_property
    def trusted_labels(self) -> Int[np.ndarray, " n"]:
        """True classes of the trusted samples."""
        labels = self.source("trusted").y
        assert labels is not None
        return labels

    @property
    def right(self) -> Bool[np.ndarray, " n"] | None:
        """Which trusted samples the network answers right; None where there are no true classes."""
        return None if self.trusted_labels is None else self.trusted.predicted == self.trusted_labels

    @cached_property
    def inputs(self) -> Inputs:
        """What is known of the inputs."""
        with np.load(self.case / "inputs.npz") as stored:
            arrays = {name: stored[name] for name in ("truth", "y", "group")} | {"targets": stored["wanted"]}
        if self.chosen is not None:
            arrays = {name: values[self.chosen] for name, values in arrays.items()}
        return Inputs(**arrays, predicted=self.queries.predicted, kind=self.facts["kind"])

    @cached_property
    def judge(self) -> Judge:
        """Our default score, fitted; its roles are every baseline's roles."""
        # One split from 330 trusted inputs on, as the kept tables were made, and five times cheaper for baselines.
        kind = kind_for(len(self.trusted), "auto", chosen_on_trusted=True)
        return Judge(self.score, fpr=self.fpr, seed=self.seed, conformal=kind).fit(self.trusted, self.trusted_labels)

    @cached_property
    def pixels(self) -> dict[str, torch.Tensor]:
        """Trusted images and inputs in [0, 1]."""
        return {name: torch.cat([batch.x for batch in self.source(name, raw=True).batches(500)])
                for name in ("trusted", "inputs")}  # fmt: skip

    def folds(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Positions of reference, fit and calibration samples: one split, or five folds where trusted ones are few."""
        place = {name: i for i, name in enumerate(self.trusted.ids)}
        roles = self.judge.roles
        suffixes = [""] if "reference" in roles else [f" {k}" for k in range(len(self.judge.scores_))]

        def at(role: str) -> np.ndarray:
            return np.array([place[name] for name in roles[role]])

        return [(at(f"reference{s}"), at(f"fit{s}"), at(f"calibration{s}")) for s in suffixes]

    def material(self, fold: int, needs: str) -> Material:
        """What a baseline gets of one fold; its queries are the calibration samples, then the inputs."""
        reference, fit, calibration = self.folds()[fold]
        known = np.concatenate([reference, fit])
        rows, queries = self.trusted, Rows.concatenate([self.trusted.take(calibration), self.queries])
        arrays = self._kept[2]
        features = np.concatenate([arrays["trusted_features"][calibration], arrays["query_features"]])
        probe = self._probe(known, calibration, needs) if needs in ("network", "chain") else None
        return Material(
            rows.take(known), queries, arrays["trusted_features"][known], features, rows.take(reference),
            rows.take(fit), probe, self.seed,
        )  # fmt: skip

    def _probe(self, known: np.ndarray, calibration: np.ndarray, needs: str) -> Probe:
        sampling = labels = None
        if needs == "chain" and (self.case / "sampling.npz").is_file():
            source = self.source("sampling", raw=True)
            sampling, labels = torch.cat([batch.x for batch in source.batches(500)]), source.y
        module = self.detector.network.module
        large = sum(weight.numel() for weight in module.parameters()) > LARGE
        return Probe(
            module, self.pixels["trusted"][known],
            torch.cat([self.pixels["trusted"][calibration], self.pixels["inputs"]]), self.trusted_labels[known],
            self.facts["mean"], self.facts["std"], sampling, labels, self.work,
            half=large and self.device == "cpu",
        )  # fmt: skip
