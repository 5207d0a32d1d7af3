"""A network's outputs and the detector's rows from one pass over a copy that shares the network's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from covary.detector import Detector
from covary.features.gradient import GradientExtractor
from covary.models.network import as_logits, sharing_weights
from covary.scoring.rows import Batch, Rows

# Shapes of batches whose outputs were compared with the bare network's; beyond that many, none is compared any more.
COMPARED = 512
# The engine checks itself on the first samples it sees; a few of them are enough.
WARM = 4


class OnePass:
    """Runs a detector's network so that outputs and rows come from the same pass where that changes no bit.

    The pass runs on a copy of the network that shares its weights, so the network itself, which other threads may be
    using, never carries a hook. The first batch of every shape also goes through the bare network; where a single bit
    differs (fused attention, reduced precision, another memory format) batches of that shape get their outputs from
    the bare network from then on, at the price of one more forward pass.

    Attributes:
        notes: in words, why outputs need a pass of their own, if they do.
        apart: whether the bare network may run while a pass is under way without one disturbing the other.
    """

    def __init__(self, detector: Detector) -> None:
        self.module, self.selector = detector.network.module, detector.network.output
        self.notes: list[str] = []
        self._seen: list[Any] = []
        self._expected: int | None = None
        self._same: dict[Any, bool] = {}
        self._warm = self._joint = False
        self.apart = not any(isinstance(child, nn.MultiheadAttention) for child in self.module.modules())
        if not self.apart:
            # Hooked passes turn the fused path off for every thread.
            self.notes.append("The network has fused attention: outputs wait for a pass that is under way.")
        self.extractor: Any = detector.extractor
        if not isinstance(self.extractor, GradientExtractor):
            self.apart = False
            self.notes.append("A sampled estimator runs passes of its own: outputs come from one more.")
            return
        twin = sharing_weights(self.module, trainable=False).eval()
        if twin is self.module:
            self.apart = False
            self.notes.append("The network is spread over devices: outputs wait for a pass that is under way.")
        self.extractor = self.extractor.for_module(twin, self._choose)
        self._joint = self.extractor.engine == "hooks"
        if not self._joint:
            self.notes.append("The exact engine runs sample by sample: outputs come from a pass of their own.")

    def __call__(self, batch: Batch) -> tuple[Any, Rows]:
        """What the bare network returns, bit for bit, and the rows of the batch; one call at a time."""
        if not self._joint:
            return self.bare(batch.x), self.extractor.rows(batch)
        if not self._warm:
            self.extractor.rows(Batch(batch.ids[:WARM], tree_map(lambda leaf: leaf[:WARM], batch.x)))
            self._warm = True
        self._seen, self._expected = [], len(batch)
        try:
            rows = self.extractor.rows(batch)
        finally:
            seen, self._seen, self._expected = self._seen, [], None
        shape = tuple((tuple(leaf.shape), leaf.dtype) for leaf in tree_leaves(batch.x) if isinstance(leaf, Tensor))
        same = self._same.get(shape, len(self._same) >= COMPARED)
        if seen and (same or shape not in self._same):
            outputs = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, seen[0])
            if same:
                return outputs, rows
            bare = self.bare(batch.x)
            self._same[shape] = same_bits(outputs, bare)
            if not self._same[shape]:
                self.notes.append(
                    f"Outputs on inputs of shape {shape[0][0] if shape else '?'} come from a second pass."
                )
            return bare, rows
        return self.bare(batch.x), rows

    @torch.no_grad()
    def bare(self, x: Any) -> Any:
        """What the network itself returns."""
        return self.module(x)

    def _choose(self, output: Any) -> Tensor:
        logits = as_logits(output, self.selector)
        # The first forward pass over the whole batch. Slices see other numbers of samples; passes in which the engine
        # only looks where samples are ask without gradients; those of latent evidence, with.
        looks = torch.is_grad_enabled() == getattr(self.extractor, "latent", False)
        if self._expected == len(logits) and not self._seen and not looks:
            self._seen.append(output)
        return logits


def same_bits(one: Any, other: Any) -> bool:
    """Whether two outputs have the same structure and every tensor in them the same dtype, shape and bits."""
    leaves, structure = tree_flatten(one)
    others, structure_of_other = tree_flatten(other)
    return structure == structure_of_other and all(map(_same_leaf, leaves, others))


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
            return False
        a, b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
        return bool(torch.equal(a, b))
    plain = (int, float, str, bool, type(None))
    return isinstance(a, plain) and isinstance(b, plain) and a == b
