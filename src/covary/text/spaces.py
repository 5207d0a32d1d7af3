"""Which weights of a language model may move: the spaces of any network, and `lora`."""

from __future__ import annotations

from torch import nn

from covary.errors import CovaryError
from covary.models.spaces import layer_of, select_parameters

LORA = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


def text_parameters(module: nn.Module, space: str = "all") -> dict[str, list[str]]:
    """Parameters of a space by layer, in the module's own order.

    `lora`: the adapters' matrices A and B. Of fresh adapters (B = 0) A has no gradient and is left out, and that of B
    is the weight's gradient G projected by a random A: s G A^T (arXiv 2106.09685, section 4.1). Other spaces as in
    `select_parameters`; `all` of a model with adapters is every weight, frozen ones too.

    Raises:
        CovaryError: an unknown space, or one that selects nothing.
    """
    if space == "lora":
        moving = [name for name, _ in module.named_parameters() if any(f".{part}." in name for part in LORA)]
        if not moving:
            raise CovaryError("the model has no LoRA adapters", "adapter=fresh:8, or an adapter's folder")
        own = dict(module.named_parameters())
        fresh = all(not own[name].any() for name in moving if "_B." in name)
        chosen = [name for name in moving if "_B." in name] if fresh else moving
        layers: dict[str, list[str]] = {}
        for name in chosen:
            layers.setdefault(layer_of(name), []).append(name)
        return layers
    trains = {name: p.requires_grad for name, p in module.named_parameters()}
    if space == "all" and any(trains.values()) and not all(trains.values()):
        layers = {}
        for name, parameter in module.named_parameters():
            if parameter.is_floating_point():
                layers.setdefault(layer_of(name), []).append(name)
        return layers
    return select_parameters(module, space)
