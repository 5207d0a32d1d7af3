"""Linear layers and what is common to all products: G = sum_t d_t a_t^T over the positions t of a sample."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from covary.features.engine.accumulator import BlockSlot, GradientAccumulator
from covary.features.engine.calls import Call


def full_is_cheaper(place: BlockSlot, rows: int, columns: int, dearer: int = 1) -> bool:
    """Whether forming G takes no more multiplications a position than projecting the input first.

    rows * columns, `dearer` times, against q * columns + q * rows; the output's projection comes after the sum over
    positions and costs next to nothing.
    """
    return place.block.right is None or dearer * rows * columns <= place.block.right.shape[0] * (rows + columns)


def fits(place: BlockSlot, rows: int, columns: int) -> bool:
    """Whether the block's matrix has the layer's own shape (a layer of one output is laid out otherwise)."""
    return place.block.rows == rows and place.stop - place.start == columns


def columns_of(
    call: Call, place: BlockSlot, ledger: GradientAccumulator, like: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """P_I cut into the weight's part (q, columns) and the bias's (q,); None where it has none or is not projected."""
    right = place.block.cast("right", like)
    if right is None:
        return None, None
    weight = right[:, place.start : place.stop]
    bias = ledger.places.get(call.names.get("bias", ""))
    joint = bias is not None and bias.block is place.block
    return weight, right[:, bias.start] if joint and bias is not None else None


def linear_rule(call: Call, ledger: GradientAccumulator) -> None:
    """y = W a + b at every position."""
    # A single vector has no dimension of samples.
    d, a = (leaf.unsqueeze(0) if leaf.ndim == 1 else leaf for leaf in (call.d, call.inputs[0]))
    product(call, ledger, call.fold(d).flatten(1, -2), call.fold(a).flatten(1, -2).to(d.dtype))


def product(call: Call, ledger: GradientAccumulator, d: Float[Tensor, "n t o"], a: Float[Tensor, "n t i"]) -> None:
    """Adds sum_t d_t [a_t, 1]^T for the call's `weight` and `bias`, compressed where that is cheaper."""
    place = ledger.places.get(call.names.get("weight", ""))
    bias = ledger.places.get(call.names.get("bias", ""))
    rows, columns = d.shape[-1], a.shape[-1]
    several = d.shape[1] != 1 or ledger.positions_vary
    if place is None or not fits(place, rows, columns) or (several and full_is_cheaper(place, rows, columns)):
        if place is not None:
            ledger.add_gradient(call.names["weight"], d.transpose(1, 2) @ a)
        if bias is not None:
            ledger.add_gradient(call.names["bias"], d.sum(1))
        return
    joint = bias is not None and bias.block is place.block
    if bias is not None and not joint:
        ledger.add_gradient(call.names["bias"], d.sum(1))
    left = place.block.cast("left", d)
    weight_part, bias_part = columns_of(call, place, ledger, d)
    if weight_part is None:
        v = torch.cat([a, a.new_ones(*a.shape[:2], 1)], -1) if joint else a
    else:
        v = a @ weight_part.T
        v = v if bias_part is None else v + bias_part
    if several:
        # The short side first: batched products on the CPU prefer it by a factor of two to seven.
        share = (v.transpose(1, 2) @ d).transpose(1, 2)
        ledger.add_block(place, share if left is None else left @ share)
        return
    u = d if left is None else d @ left.T
    # One position: |d a^T| = |d| |a|.
    squares = d[:, 0].float().square().sum(-1) * (a[:, 0].float().square().sum(-1) + float(joint))
    ledger.add_block(place, u.transpose(1, 2) * v, squares)
