"""What every sampler shares: explicit state, one generator per chain, white noise that no batch size can disturb."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Params = dict[str, Tensor]
# A flat dict of tensors, `w/NAME` for positions and `v/NAME` for whatever else a sampler remembers of a parameter:
# it goes into safetensors as it is, which is all that resuming needs.
State = dict[str, Tensor]


def generator_for(seed: int, chain: int, stream: int = 0) -> torch.Generator:
    """The CPU generator of one chain, seeded by (seed, chain) and, for streams beside the noise, a stream number.

    Always on the CPU, so that every device, batch size and number of workers sees the same numbers.
    """
    words = np.random.SeedSequence([seed, chain, stream]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


def members(state: Mapping[str, Tensor], kind: str) -> Params:
    """The tensors of one kind (`w`, `v`) of a flat state, by parameter name."""
    prefix = f"{kind}/"
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def labelled(kind: str, names: Mapping[str, Tensor], values: list[Tensor] | tuple[Tensor, ...]) -> State:
    """The inverse of `members`: tensors in the order of `names`, under that kind."""
    return {f"{kind}/{name}": value for name, value in zip(names, values, strict=True)}


def white_noise(like: Mapping[str, Float[Tensor, "..."]], generator: torch.Generator) -> list[Tensor]:
    """Independent standard normal numbers shaped like each tensor, in order, from one draw of the generator."""
    sizes = [tensor.numel() for tensor in like.values()]
    flat = torch.randn(sum(sizes), generator=generator)
    return [
        part.view(tensor.shape).to(tensor.device, tensor.dtype, non_blocking=True)
        for part, tensor in zip(flat.split(sizes), like.values(), strict=True)
    ]
