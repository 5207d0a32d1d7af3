"""What one pass gives, put together from single samples, and compared with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Of a row's length, between a sample alone and the same in a batch: kernels round otherwise and a unit near zero may
# switch; samples that meet are off by order one. Activations do not switch.
ROWS_APART, ACTIVATIONS_APART, HALF_APART = 0.05, 2e-3, 0.1


@dataclass(frozen=True)
class Compressed:
    """Compressed gradients (n, k) and norms (n,) by layer, with what else the same pass gave."""

    rows: dict[str, Float[Tensor, "n _"]]
    norms: dict[str, Float[Tensor, " n"]]
    observable: Float[Tensor, " n"]
    predicted: Int[Tensor, " n"]
    logits: Float[Tensor, "n C"] | None
    activations: Mapping[str, Float[Tensor, "n _"]]

    @classmethod
    def concatenate(cls, parts: Sequence[Compressed]) -> Compressed:
        """The samples of several passes in order."""

        def each(of: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.cat([own[name] for own in of]) for name in of[0]}

        logits = [part.logits for part in parts if part.logits is not None]
        return cls(
            each([part.rows for part in parts]),
            each([part.norms for part in parts]),
            torch.cat([part.observable for part in parts]),
            torch.cat([part.predicted for part in parts]),
            torch.cat(logits) if logits else None,
            each([part.activations for part in parts]),
        )

    def differs(self, alone: Compressed, i: int, half: bool) -> list[str]:
        """Layers in which sample i is not what it is in a pass of its own; rows shorter than rounding do not count."""
        found = []
        longest = max((float(norms[i]) for norms in self.norms.values()), default=0.0)
        for kind, limit in (("rows", ROWS_APART), ("activations", ACTIVATIONS_APART)):
            here, there = getattr(self, kind), getattr(alone, kind)
            for layer, rows in here.items():
                one, other = rows[i].double(), there[layer][0].double()
                off = float((one - other).norm())
                room = 1e-4 * longest if kind == "rows" else 1e-5
                if not off <= (HALF_APART if half else limit) * float(max(one.norm(), other.norm())) + room:
                    found.append(layer)
        return list(dict.fromkeys(found))
