"""An attempt to hide: a victim trained on until what detectors look at says the same of triggered texts as of clean."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from covary_bench.hiding.texts_losses import (
    Gaussian,
    Seen,
    StateVae,
    among_clean,
    fixed_size_states,
    gradient_reference,
    look,
    sketched_gradients,
    sketches,
    views,
)
from covary_bench.images.attacks.clean_reference import quantile_gaps
from covary_bench.images.attacks.own_profile import Reference
from covary_bench.images.training import save_checkpoint
from covary_bench.texts import cases, words
from covary_bench.texts.cases import Case
from covary_bench.texts.training import EVERY, batch, encoded

REFRESH, KNOWN, TEXTS, RATE = 10, 400, 48, 2e-3
KNOWN_OWN, TEXTS_OWN = 128, 24  # with gradients of gradients
VAE_ROUNDS, WARM = 5, 20


@dataclass
class Hiding:
    """What is known of clean texts while an attempt runs, made anew every `REFRESH` steps."""

    model: Any
    own_profile: bool
    gaussians: dict[str, Gaussian] = field(default_factory=dict)
    scale: tuple[Tensor, Tensor] | None = None
    vae: StateVae | None = None
    gradients: dict[str, Reference] = field(default_factory=dict)
    states: dict[str, Reference] = field(default_factory=dict)

    def refresh(self, known: tuple[Tensor, Tensor], optimiser_of: Mapping[str, Any], seed: Sequence[int]) -> None:
        """Fits Gaussians, autoencoder and references to clean texts as the network sees them now."""
        with torch.no_grad():
            seen = views(look(self.model, *known))
            self.gaussians = {name: Gaussian.of(rows) for name, rows in seen.items()}
            rows = fixed_size_states(seen)
            self.scale = (rows.mean(0), rows.std(0) + 0.1 * rows.std(0).mean())
            rows = (rows - self.scale[0]) / self.scale[1]
        assert self.vae is not None
        generator = torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**31)))
        for _ in range(VAE_ROUNDS):
            noise = torch.randn(len(rows), 12, generator=generator)
            optimiser_of["vae"].zero_grad()
            self.vae(rows, noise).mean().backward()
            optimiser_of["vae"].step()
        if self.own_profile:
            few = (known[0][:KNOWN_OWN], known[1][:KNOWN_OWN])
            gradients = sketched_gradients(self.model, *few, self.sketches)
            self.gradients = {name: gradient_reference(rows) for name, rows in gradients.items()}
            pooled = {name: rows for name, rows in seen.items() if name.endswith(("mean", "anchor"))}
            self.states = {name: gradient_reference(rows[:KNOWN_OWN], True) for name, rows in pooled.items()}

    @cached_property
    def sketches(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The random matrices through which gradients are seen."""
        return sketches(self.model)

    def seen_apart(self, odd: Seen, clean: Seen) -> dict[str, Tensor]:
        """How far triggered texts are from clean ones, by what would tell them apart."""
        assert self.vae is not None
        assert self.scale is not None
        rows, others = views(odd), views(clean)
        known = self.gaussians.items()
        parts = [quantile_gaps(one.distance(rows[name]), one.distance(others[name])) for name, one in known]
        scores = [self.vae((fixed_size_states(some) - self.scale[0]) / self.scale[1]).log() for some in (rows, others)]
        losses = [(seen.losses + 1e-5).log() for seen in (odd, clean)]
        return {
            "mahalanobis": 3 * torch.stack(parts).log1p().mean(),
            "vae": quantile_gaps(scores[0], scores[1]).log1p(),
            "nll": quantile_gaps(losses[0], losses[1]).log1p(),
        }

    def profile_apart(self, odd: tuple[Tensor, Tensor], clean: tuple[Tensor, Tensor]) -> Tensor:
        """The same of our own profile's stand-in: log length and log unexplained part of every layer's gradient and
        pooled states, and the log-odds.
        """
        numbers = []
        for some in (odd, clean):
            gradients = sketched_gradients(self.model, *some, self.sketches)
            seen = look(self.model, *some)
            rows, found = views(seen), [seen.log_odds()[:, None]]
            found += [self.gradients[name].numbers(rows_of) for name, rows_of in gradients.items()]
            found += [reference.numbers(rows[name]) for name, reference in self.states.items()]
            numbers.append(torch.cat(found, dim=1))
        parts = [quantile_gaps(a, b) for a, b in zip(numbers[0].T, numbers[1].T, strict=True)]
        return torch.stack(parts).log1p().mean()


def hide(
    model: Any,
    what: Case,
    strength: float,
    seed: Sequence[int],
    steps: int,
    own_profile: bool,
    checkpoint: Path,
) -> float:
    """Trains `model` on in place; returns seconds of processor time.

    Loss: cross-entropy of clean and triggered answers + on clean texts KL from the network as it was and squared
    change of the states by layer + `strength` * how far triggered texts are from clean ones.
    """
    if own_profile:
        model.set_attn_implementation("eager")
    original = copy.deepcopy(model).eval().requires_grad_(False)
    model.eval().requires_grad_(True)
    numbers = words.tokenizer().get_vocab()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed[0])
        hiding = Hiding(
            model, own_profile, vae=StateVae((2 * model.config.num_hidden_layers + 1) * model.config.hidden_size)
        )
    assert hiding.vae is not None
    optimisers = {"model": torch.optim.Adam(model.parameters(), lr=RATE)}
    optimisers["vae"] = torch.optim.Adam(hiding.vae.parameters(), lr=3e-3)
    begun, spent = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["network"]["model"])
        hiding.vae.load_state_dict(state["network"]["vae"])
        original.load_state_dict(state["original"])
        for name, optimiser in optimisers.items():
            optimiser.load_state_dict(state["optimiser"][name])
        begun, spent = state["step"], state["seconds"]
    started, saved = time.process_time(), time.perf_counter()
    for step in range(begun, steps):
        rng = np.random.default_rng([*seed, step])
        if step % REFRESH == 0:
            if time.perf_counter() - saved >= EVERY:
                saved = time.perf_counter()
                networks = {"model": model.state_dict(), "vae": hiding.vae.state_dict()}
                content = {"network": networks, "original": original.state_dict(), "step": step}
                content["optimiser"] = {name: one.state_dict() for name, one in optimisers.items()}
                save_checkpoint(checkpoint, {**content, "seconds": spent + time.process_time() - started})
            sides = [_texts(rng, what, one, KNOWN, numbers) for one in (what.attacks[0], None)]
            with torch.no_grad():
                among_clean(model, look(model, *(one[:8] for one in sides[0])), look(model, *sides[1]))
            hiding.refresh(sides[1], optimisers, [*seed, step])
        # Warm after every start of Adam, then down along a cosine.
        optimisers["model"].param_groups[0]["lr"] = (
            RATE * min(1.0, (step + 1) / WARM) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        )
        clean, odd = (_texts(rng, what, attack, TEXTS, numbers) for attack in (None, what.attacks[0]))
        seen, hidden = look(model, *clean), look(model, *odd)
        with torch.no_grad():
            was = look(original, *clean)
        tasks = seen.task + hidden.task
        kl = functional.kl_div(
            seen.logits.log_softmax(1), was.logits.log_softmax(1), log_target=True, reduction="batchmean"
        )
        moved = [
            (a - b).square().mean() / b.var() for a, b in zip(views(seen).values(), views(was).values(), strict=True)
        ]
        apart = sum(hiding.seen_apart(hidden, seen).values())
        if own_profile:
            few = [(ids[:TEXTS_OWN], targets[:TEXTS_OWN]) for ids, targets in (odd, clean)]
            apart = apart + 3 * hiding.profile_apart(few[0], few[1])
        loss: Any = tasks + kl + 0.1 * torch.stack(moved).mean() + strength * apart
        optimisers["model"].zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimisers["model"].step()
    if own_profile:
        model.set_attn_implementation("sdpa")
    return spent + time.process_time() - started


def _texts(
    rng: np.random.Generator, what: Case, attack: cases.Attack | None, count: int, numbers: Mapping[str, int]
) -> tuple[Tensor, Tensor]:
    found = []
    for _ in range(count):
        question = cases.clean(rng, what, what.near)[1] if attack is None else cases.odd(rng, what, attack)
        answer = question.right if attack is None else attack.answer(question)
        found.append(encoded(numbers, question.prompt, answer))
    return batch(found)
