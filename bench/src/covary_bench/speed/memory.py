"""Peak memory of the engine on large transformers, against a bare forward and backward over activations."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from covary_bench.speed.child import environment

CHILD = """
import sys, torch
from covary_bench.speed.cost import Transformer
torch.set_num_threads({threads})
what, width, depth, samples, positions, dtype = sys.argv[1], *map(int, sys.argv[2:6]), getattr(torch, sys.argv[6])
torch.manual_seed(0)
torch.set_default_dtype(dtype)
with torch.device("meta"):
    network = Transformer(width, depth, llama=True)
network = network.to_empty(device="cpu").eval()
for weight in network.parameters():
    torch.nn.init.normal_(weight, std=0.02) if weight.ndim > 1 else torch.nn.init.ones_(weight)
torch.set_default_dtype(torch.float32)
weights = sum(p.numel() for p in network.parameters())
x = torch.randint(0, 512, (samples, positions))
if what == "activations":
    network.requires_grad_(False)
    held = network.embed.register_forward_hook(lambda m, i, out: out.requires_grad_(True))
    network(x).float().logsumexp(-1).sum().backward()
elif what == "training":
    network(x).float().logsumexp(-1).sum().backward()
elif what == "features":
    from covary.features.gradient import GradientExtractor
    from covary.scoring.rows import Batch
    extractor = GradientExtractor(network, lambda out: out)
    rows = extractor.rows(Batch([str(i) for i in range(samples)], x))
    print(sum(r.shape[1] for r in rows.functional.values()), len(rows.functional), *extractor.notes, sep="|")
from covary_bench.speed.stream import megabytes
print(weights, megabytes("VmHWM"))
"""

# The last has about 1.1 billion weights, in bfloat16.
SHAPES: dict[str, dict[str, Any]] = {
    "0.1 billion, float32": {"width": 768, "depth": 12, "samples": 8, "positions": 128, "dtype": "float32"},
    "1 billion, bfloat16": {"width": 2048, "depth": 16, "samples": 4, "positions": 128, "dtype": "bfloat16"},
}


def peaks() -> dict[str, Any]:
    """Peak resident megabytes of processes that only load, run both passes, train, or extract features.

    Beyond what this machine holds the sum is computed: weights, activations of one pass, and k numbers a layer, a
    sample, in float32 (4 bytes).
    """
    return {name: one(shape) for name, shape in SHAPES.items()} | {"computed": computed()}


def one(shape: dict[str, Any]) -> dict[str, Any]:
    """One network size; the kinds of pass run one after the other."""
    import torch

    code = CHILD.format(threads=torch.get_num_threads())
    found: dict[str, Any] = dict(shape)
    for what in ("load", "activations", "training", "features"):
        command = [sys.executable, "-c", code, what, *map(str, shape.values())]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment())
        lines = done.stdout.splitlines()
        weights, peak = lines[-1].split()
        found |= {"weights": int(weights), f"{what}_mb": round(float(peak))}
        if len(lines) > 1:
            numbers, layers, *notes = lines[0].split("|")
            found |= {"numbers_a_sample": int(numbers), "layers": int(layers), "notes": notes}
    found["features_over_activations"] = round(found["features_mb"] / found["activations_mb"], 3)
    return found


def computed(parameters: float = 7e9, layers: int = 32, width: int = 4096, tokens: int = 512) -> dict[str, float]:
    """Gigabytes for a 7-billion-parameter decoder in bfloat16, a sample of 512 tokens at a time; nothing measured.

    Activations kept for the backward pass: about 34 numbers a token, a layer, a unit of width (Korthikanti et al. 2022,
    section 4.1, in bytes at 16 bits), without checkpointing. Projections: for seven matrices a layer the output's side
    (256 rows) and the second stage (64 x 4,096), in float32.
    """
    from covary.features.projections import numbers_per_layer

    matrices = 7 * layers
    k = numbers_per_layer(matrices)
    return {
        "parameters": parameters,
        "weights_gb": parameters * 2 / 1e9,
        "activations_gb": 34 * tokens * layers * width / 1e9,
        "projections_gb": 4 * matrices * (256 * width + k * 4096 + 16 * width) / 1e9,
        "rows_of_1000_samples_gb": 4 * 1000 * k * matrices / 1e9,
    }
