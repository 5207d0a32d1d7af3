"""What each speed option is worth on independent draws of one public network: time a draw, and how far traces move.

    OMP_NUM_THREADS=1 python -m covary_bench.studies.sampled.options NETWORK OUT [DRAWS] [IMAGES]

One thread, processor time, all options in one run, interleaved, the best of two rounds; compiled code is warmed up.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from covary.features.sampled.draws import draw_bank, to_half
from covary.features.sampled.samplers import SamplingPlan
from covary.features.sampled.traces import evaluate, predictions
from covary.models.functional import functional_network
from covary_bench.images.datasets import load
from covary_bench.images.public import NETWORKS, load_public

OPTIONS: dict[str, dict] = {
    "plain": {},
    "channels last": {"channels_last": True},
    "bf16 autocast": {"autocast": torch.bfloat16},
    "4 draws at once (vmap)": {"at_once": 4},
    "torch.compile": {"compiled": True},
    "torch.compile, channels last": {"compiled": True, "channels_last": True},
    "draws in float16": {"half": True},
}


def main(name: str, out: Path, draws: int = 8, images: int = 128) -> None:
    torch.set_num_threads(1)
    pictures = load(NETWORKS[name].dataset).x[:images]
    x = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float() / 255
    plan = SamplingPlan("gaussian", {"sigma": 0.01}, steps=draws, burn_in=0, batchnorm="frozen")
    bank = draw_bank(functional_network(load_public(name).requires_grad_(True)), plan)
    seconds: dict[str, list[float]] = {option: [] for option in OPTIONS}
    traces: dict[str, np.ndarray] = {}
    warm: dict[str, float] = {}
    made = {}
    for option, chosen in OPTIONS.items():
        kept = {key: value for key, value in chosen.items() if key not in ("at_once", "half")}
        network = functional_network(load_public(name).requires_grad_(True), **kept)
        placed = network.place(x)
        begin = time.process_time()
        labels = predictions(network, placed)
        warm[option] = time.process_time() - begin
        made[option] = (network, placed, labels, to_half(bank) if chosen.get("half") else bank)
    for _ in range(2):
        for option, (network, placed, labels, own) in made.items():
            step = OPTIONS[option].get("at_once", 1)
            begin = time.process_time()
            parts = []
            for i in range(0, draws, step):
                some = [own.at(s, network) for s in range(i, min(i + step, draws))]
                parts.append(evaluate(network, some, placed, labels, ["margin"]))
            seconds[option].append((time.process_time() - begin) / draws)
            traces[option] = torch.cat(parts)[:, 0].double().numpy()
    plain = min(seconds["plain"])

    def couplings(values: np.ndarray) -> np.ndarray:
        return np.corrcoef(values.T)[np.triu_indices(images, 1)]

    found = {
        option: {
            "seconds a draw": round(min(times), 4),
            "times as fast as plain": round(plain / min(times), 3),
            "largest change of a margin": float(np.abs(traces[option] - traces["plain"]).max()),
            "Spearman of couplings": round(
                float(np.corrcoef(*(rankdata(couplings(traces[name])) for name in (option, "plain")))[0, 1]), 5
            ),
            "first pass, seconds": round(warm[option], 2),
        }
        for option, times in seconds.items()
    }
    record = {"network": name, "draws": draws, "images": images, "threads": 1, "clock": "processor", "options": found}
    print(json.dumps(record, indent=1))
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *(int(n) for n in sys.argv[3:]))
