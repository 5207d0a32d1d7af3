"""Whether what a network does depends on the numbers it is given: branches and shapes, not results."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
# Shapes that depend on values: how many rows an expert or an exit gets.
_SHAPES = {_aten.nonzero.default, _aten.masked_select.default, _aten._unique2.default, _aten.unique_dim.default,
           _aten.bincount.default, _aten.repeat_interleave.Tensor}  # fmt: skip
# Values that leave the tensors: an `if`, an `.item()`, a comparison.
_BRANCHES = {_aten._local_scalar_dense.default, _aten.equal.default}
_INDEX = {_aten.index.Tensor}
# How far a tensor depends on the inputs: not at all, by whole numbers such as masks, by anything that is computed.
_APART, _INTEGER, _COMPUTED = 0, 1, 2


class ValueDependence(TorchDispatchMode):
    """Notes what depends on the values of its inputs: `shapes`, `branches`.

    Whole numbers given (token ids, masks) may be branched on: `if mask.all()` skips work that changes nothing. A
    branch on anything computed, or floats given, may send a batch another way than each of its samples.
    """

    def __init__(self, inputs: Any) -> None:
        super().__init__()
        self.shapes = self.branches = False
        self._level: dict[int, int] = {}
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                self._set(leaf, _COMPUTED if leaf.is_floating_point() else _INTEGER)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else the first call imports the compiler, which takes longer than most checks.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = {_key(leaf) for leaf in leaves}
        level = max((self._level.get(_key(leaf), _APART) for leaf in leaves), default=_APART)
        if level == _INTEGER and func is _aten.embedding.default:
            level = _COMPUTED
        boolean = func in _INDEX and any(leaf.dtype in (torch.bool, torch.uint8) for leaf in leaves[1:])
        self.shapes |= level > _APART and (func in _SHAPES or boolean)
        self.branches |= level == _COMPUTED and func in _BRANCHES
        output = func(*args, **kwargs)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                # A view or a tensor changed in place keeps what it depended on before.
                kept = self._level.get(_key(leaf), _APART) if _key(leaf) in before else _APART
                self._set(leaf, max(level, kept))
        return output

    def _set(self, leaf: Tensor, level: int) -> None:
        self._level[_key(leaf)] = level


def _key(leaf: Tensor) -> int:
    try:
        return leaf.untyped_storage().data_ptr() or id(leaf)
    except (RuntimeError, NotImplementedError):
        return id(leaf)
