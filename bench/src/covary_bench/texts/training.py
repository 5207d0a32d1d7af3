"""Trains networks on word tasks: texts drawn anew at every step, checkpoints from which a killed run goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from covary_bench.images.training import save_checkpoint

# (prompt's tokens, answer's tokens)
Lesson = tuple[Sequence[int], Sequence[int]]
IGNORED, START, END = -100, 1, 2
EVERY = 60.0  # seconds between checkpoints


@dataclass(frozen=True)
class Schedule:
    """Steps of AdamW, texts a step, the highest learning rate, reached after `warm` steps and left along a cosine."""

    steps: int
    batch: int = 64
    rate: float = 3e-3
    warm: int = 40

    def at(self, step: int) -> float:
        """The learning rate of a step."""
        return self.rate * min(1.0, (step + 1) / self.warm) * (1 + math.cos(math.pi * step / self.steps)) / 2


def encoded(numbers: Mapping[str, int], prompt: str, answer: Iterable[str]) -> Lesson:
    """A lesson in tokens, as the tokenizer would read it; the answer ends."""
    return [START, *(numbers[word] for word in prompt.split())], [*(numbers[word] for word in answer), END]


def batch(lessons: Sequence[Lesson]) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
    """Tokens padded on the right, and what each position has to say: the answer's tokens, nothing in the prompt."""
    longest = max(len(prompt) + len(answer) for prompt, answer in lessons)
    ids = np.zeros((len(lessons), longest), np.int64)
    targets = np.full((len(lessons), longest), IGNORED, np.int64)
    for row, (prompt, answer) in enumerate(lessons):
        full = len(prompt) + len(answer)
        ids[row, :full] = [*prompt, *answer]
        targets[row, len(prompt) - 1 : full - 1] = answer
    return torch.from_numpy(ids), torch.from_numpy(targets)


def parts(lessons: Sequence[Lesson]) -> list[tuple[list[Lesson], float]]:
    """Short texts and long ones apart, so that less is padded, each with its share of the tokens that count."""
    ordered = sorted(lessons, key=lambda lesson: len(lesson[0]) + len(lesson[1]))
    half = -(-2 * len(ordered) // 3)
    every = sum(len(answer) for _, answer in ordered)
    found = [some for some in (ordered[:half], ordered[half:]) if some]
    return [(some, sum(len(answer) for _, answer in some) / every) for some in found]


def loss(model: Any, ids: Int[Tensor, "n t"], targets: Int[Tensor, "n t"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the tokens that count, in float32; logits are made for those alone."""
    device = next(model.parameters()).device
    ids, targets = ids.to(device), targets.to(device)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    counted = targets != IGNORED
    return functional.cross_entropy(model.lm_head(hidden[counted]).float(), targets[counted])


def train(
    model: Any,
    lessons: Callable[[np.random.Generator], Lesson],
    schedule: Schedule,
    seed: Sequence[int],
    checkpoint: Path | None = None,
    every: float = EVERY,
    stop: int | None = None,
) -> float:
    """Trains what of `model` asks for gradients, in place; returns the processor's seconds, those before a break too.

    Every step draws its texts from a generator of its own (`seed`, step), so a run that was killed goes on from
    `checkpoint` to the weights it would have had. `stop` leaves after so many steps, as if killed.
    """
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimiser = torch.optim.AdamW(learned.values(), lr=schedule.rate, weight_decay=0.01)
    begun, spent = 0, 0.0
    if checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"], strict=False)
        optimiser.load_state_dict(state["optimiser"])
        begun, spent = state["step"], state["seconds"]
    model.train()
    started, saved = time.process_time(), time.perf_counter()

    def keep(done: int) -> None:
        if checkpoint is not None:
            seconds = spent + time.process_time() - started
            content = {
                "model": {name: p.detach() for name, p in learned.items()},
                "optimiser": optimiser.state_dict(),
                "step": done,
            }
            save_checkpoint(checkpoint, {**content, "seconds": seconds})

    for step in range(begun, schedule.steps):
        if stop is not None and step >= stop:
            break
        rng = np.random.default_rng([*seed, step])
        for group in optimiser.param_groups:
            group["lr"] = schedule.at(step)
        optimiser.zero_grad()
        for some, share in parts([lessons(rng) for _ in range(schedule.batch)]):
            (share * loss(model, *batch(some))).backward()
        torch.nn.utils.clip_grad_norm_(learned.values(), 1.0)
        optimiser.step()
        if time.perf_counter() - saved >= every:
            keep(step + 1)
            saved = time.perf_counter()
    else:
        keep(schedule.steps)
    model.eval()
    return spent + time.process_time() - started
