"""Peak memory of the engine on a transformer of 10^8 weights, against a bare forward and backward over activations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

CHILD = """
import sys, resource
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads({threads})
from torch import nn
from speed_parts.cost import Transformer
what, width, depth, samples, positions = sys.argv[1], *map(int, sys.argv[2:6])
torch.manual_seed(0)
network = Transformer(width, depth, llama=True).eval()
weights = sum(p.numel() for p in network.parameters())
x = torch.randint(0, 512, (samples, positions))
if what == "activations":
    network.requires_grad_(False)
    held = network.embed.register_forward_hook(lambda m, i, out: out.requires_grad_(True))
    network(x).logsumexp(-1).sum().backward()
elif what == "training":
    network(x).logsumexp(-1).sum().backward()
elif what == "features":
    from covary.features import FeatureExtractor
    from covary.types import Batch
    extractor = FeatureExtractor(network, lambda out: out)
    extractor.rows(Batch([str(i) for i in range(samples)], x))
print(weights, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

SHAPE = {"width": 768, "depth": 12, "samples": 8, "positions": 128}


def peaks() -> dict[str, Any]:
    """Peak resident megabytes of processes that only load, run both passes, train, or extract features."""
    import torch

    code = CHILD.format(here=str(Path(__file__).parents[1]), threads=torch.get_num_threads())
    found: dict[str, Any] = dict(SHAPE)
    for what in ("load", "activations", "training", "features"):
        command = [sys.executable, "-c", code, what, *map(str, SHAPE.values())]
        weights, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        found |= {"weights": int(weights), f"{what}_mb": round(float(peak))}
    found["features_over_activations"] = round(found["features_mb"] / found["activations_mb"], 3)
    return found
