"""A guard inside transformers' `generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from covary.serving.guard.guard import Guard
    from covary.serving.guard.watch import Watch


def logits_processor(guard: Guard, name: str) -> Any:
    """See `Guard.processor`."""
    from transformers import LogitsProcessor

    class GuardProcessor(LogitsProcessor):
        watches: list[Watch]

        def __init__(self) -> None:
            self.watches = []

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            told = input_ids.tolist()
            if not self.watches:
                fill = guard.model.tokenizer.pad_token_id
                for i, ids in enumerate(told):
                    first = next((k for k, token in enumerate(ids) if token != fill), 0)
                    self.watches.append(guard.begin(ids[first:], name if len(told) == 1 else f"{name}-{i}"))
                    self.watches[-1].look()
            else:
                for watch, ids in zip(self.watches, told, strict=True):
                    watch.add(ids[-1])
            halted = [i for i, watch in enumerate(self.watches) if watch.stopped]
            if halted and guard.model.end is not None:
                scores = scores.clone()
                scores[halted] = -torch.inf
                scores[halted, guard.model.end] = 0.0
            return scores

    return GuardProcessor()
