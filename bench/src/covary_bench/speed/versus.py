"""The published estimator in units of ours: counted in forwards, and measured against its public implementation."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from covary.detector import Detector
from covary.features.gradient import GradientExtractor
from covary.runs.figures.quality import auroc, masked
from covary.scoring.rows import Batch
from covary_bench.images.attacks import TRIGGERS
from covary_bench.images.datasets import load
from covary_bench.images.public import NETWORKS, load_public
from covary_bench.speed.child import environment
from covary_bench.speed.cost import TARGETS, forward, interleaved, laid_out
from covary_bench.speed.images import test_images

DRAWS, TRUSTED, QUERIES, MINIBATCH, IMAGES = 2000, 2500, 5000, 256, 256
PASS_OF_A_STEP = 3


def speedup(peer: Path | None) -> dict[str, Any]:
    """2,000 published draws against one pass of ours, counted and measured, for 2,500 trusted and 5,000 queries.

    A draw evaluates every trusted sample and query once and takes one training step on 256 samples, forward and
    backward, counted as three forwards each. Ours: features of the same samples. The measured side times one draw (of
    devinterp's public sampler where its environment is given, otherwise of a bare evaluation and training step) and
    multiplies out to 2,000.
    """
    found: dict[str, Any] = {"draws": DRAWS, "trusted": TRUSTED, "queries": QUERIES, "multiplied_out": True}
    return found | {name: one_network(name, peer) for name in TARGETS} | {"auroc": first_order_auroc(TARGETS[1])}


def one_network(name: str, peer: Path | None) -> dict[str, Any]:
    """Counted and measured ratios on one network."""
    x, _ = test_images(name, IMAGES)
    network = laid_out(name, torch.channels_last)
    placed = x.contiguous(memory_format=torch.channels_last)
    learner = load_public(name).requires_grad_(True).train()
    moved = laid_out(name, torch.channels_last).requires_grad_(True)
    fast = GradientExtractor(moved, lambda out: out, channels_last=True)

    def step(learner: nn.Module = learner, x: Tensor = x) -> None:
        loss = F.cross_entropy(learner(x), torch.zeros(len(x), dtype=torch.long))
        torch.autograd.grad(loss, list(learner.parameters()))

    times = interleaved(
        {
            "forward": forward(network, placed, IMAGES),
            "step": step,
            "hooks": lambda: fast.rows(Batch([str(i) for i in range(len(x))], x)),
        },
        7,
    )
    wall, processor = (times["hooks"][i] / times["forward"][i] for i in (0, 1))
    samples, feature = TRUSTED + QUERIES, times["hooks"][1] / len(x)
    bare = times["forward"][1] / len(x) * samples + times["step"][1]
    found = {
        "cost_in_forwards": round(processor, 2),
        "cost_in_forwards_wall": round(wall, 2),
        "by_counted_forwards": round(DRAWS * (samples + PASS_OF_A_STEP * MINIBATCH) / (processor * samples)),
        "queries_alone_by_counted_forwards": round(DRAWS / processor),
        "measured_against_a_bare_draw": round(DRAWS * bare / (feature * samples)),
        "feature_seconds_a_sample": feature,
    }
    if peer is None:
        return found | {"measured_against_devinterp": "not measured"}
    draw = peer_draw(name, peer)
    theirs = min(seconds for key, seconds in draw.items() if key.startswith("devinterp"))
    # One draw and 2,800 images there, all of its passes spread over the images; here one pass over the same images.
    return found | {
        "draw": draw,
        "measured_against_devinterp": round(DRAWS * theirs / (feature * draw["images"])),
        "measured_against_our_paper_preset": round(DRAWS * draw["covary paper"] / (feature * draw["images"])),
    }


def peer_draw(name: str, python: Path) -> dict[str, Any]:
    """Seconds a draw of everybody, timed in the peer's environment."""
    command = [str(python), "-m", "covary_bench.speed.draw", name, "2", str(torch.get_num_threads())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment())
    return json.loads(done.stdout.splitlines()[-1])


def first_order_auroc(name: str) -> dict[str, Any]:
    """Masked AUROC of the default detector with 400 trusted test images, 400 clean and 400 triggered queries.

    The roles are those of the sampled benchmark on the same network, which has 2,500 more images to sample on.
    """
    about, images = NETWORKS[name], load(NETWORKS[name].dataset)
    order = np.random.default_rng(0).permutation(len(images))
    trusted, clean, rest = np.split(order[2500:], [400, 800])
    rest = rest[images.y[rest] != about.target][:400]
    assert about.trigger is not None
    assert about.target is not None
    x = np.concatenate([images.x[clean], TRIGGERS[about.trigger](images.x[rest])])
    y = np.concatenate([images.y[clean], images.y[rest]])
    truth = np.repeat([0, 1], [len(clean), len(rest)])
    detector = Detector(load_public(name).requires_grad_(True))
    detector.fit((images.x[trusted], images.y[trusted]), mean=about.mean, std=about.std)
    verdicts = detector.score(x)
    keep = masked(truth, verdicts.predicted, y, about.target, len(truth))
    return {
        "network": name,
        "trusted": len(trusted),
        "queries": int(keep.sum()),
        **{part: auroc(v[keep], truth[keep]) for part, v in {"combined": verdicts.score, **verdicts.parts}.items()},
    }
