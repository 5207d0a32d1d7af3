"""What first-order scoring of a prompt and completion costs: in forward passes of it, and in memory.

    python -m covary_bench.studies.language.cost bench/results/language-cost.json

SmolLM2-135M's architecture with random weights (30 layers, 576 wide, 9 heads, 3 key-value heads, 1,536 in the MLP,
49,152 words, tied). Both sides are timed in the same process, in turn, single-threaded; the ratio is that of medians.
The forward pass is the plain one of the same batch: no gradients, logits where the completion needs them, and also with
logits everywhere, as a bare call of the model gives them.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from covary.scoring.rows import Batch
from covary.text.extractor import TextExtractor
from covary.text.models.pretrained import LanguageModel
from covary.text.tokens import Tokens, keywords, pad
from covary_bench.speed.allocator import keep_freed_memory

PROMPT, COMPLETION, TEXTS, ROUNDS = 96, 32, 4, 7


class Silent:
    """A tokenizer that is never asked."""

    eos_token_id, pad_token_id, bos_token_id = 2, 0, 1


def model() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1_536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8_192, tie_word_embeddings=True,
    )  # fmt: skip
    return LanguageModel(LlamaForCausalLM(config).eval(), Silent())


def texts(n: int, prompt: int, completion: int) -> list[Tokens]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        ids = tuple(int(token) for token in rng.integers(3, 49_152, prompt + completion))
        counted = tuple(range(prompt - 1, prompt + completion - 1))
        found.append(Tokens(str(i), ids, counted, ids[prompt:], prompt - 1))
    return found


@torch.no_grad()
def forward(lm: LanguageModel, some: list[Tokens], everywhere: bool) -> None:
    x = pad(some)
    arguments = keywords(x, "causal")
    if not everywhere:
        arguments["logits_to_keep"] = len(some[0].counted) + 1
    lm.module(**arguments)


def measure(n: int, prompt: int, completion: int, lm: LanguageModel, features: TextExtractor) -> dict[str, Any]:
    some = texts(n, prompt, completion)
    batch = Batch([text.id for text in some], some)
    ways = {
        "forward": lambda: forward(lm, some, False),
        "forward_all_logits": lambda: forward(lm, some, True),
        "score": lambda: features.rows(batch),
    }
    # CPU time of the only thread: other programs on the machine take wall-clock time, not this.
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if turn:
                seconds[name].append(time.process_time() - started)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "texts": n, "prompt": prompt, "completion": completion,
        "seconds_a_text": {name: round(value / n, 4) for name, value in medians.items()},
        "forward_passes": round(medians["score"] / medians["forward"], 3),
        "forward_passes_all_logits": round(medians["score"] / medians["forward_all_logits"], 3),
        "rounds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
    }  # fmt: skip


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(out: Path) -> None:
    torch.set_num_threads(1)
    allocator = keep_freed_memory()
    before = peak()
    lm = model()
    loaded = peak()
    features = TextExtractor(lm)
    found = [measure(n, p, c, lm, features) for n, p, c in ((TEXTS, PROMPT, COMPLETION), (1, PROMPT, COMPLETION))]
    record = {
        "architecture": "SmolLM2-135M (random weights)",
        "parameters": sum(p.numel() for p in lm.module.parameters()),
        "layers": len(features.layers),
        "numbers_a_text": sum(projection_numbers(features).values()),
        "threads": 1, "cpu": cpu(), "torch": torch.__version__, "allocator_keeps_memory": allocator,
        "runs": found,
        "peak_gib": {"imports": round(before, 3), "with_weights": round(loaded, 3), "whole_run": round(peak(), 3)},
        "notes": features.notes,
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, out)
    print(json.dumps({key: value for key, value in record.items() if key != "runs"}, indent=1))
    for run in found:
        print({key: value for key, value in run.items() if key != "rounds"})


def projection_numbers(features: TextExtractor) -> dict[str, int]:
    return {name: sum(b.numbers for b in p.blocks) for name, p in features.projections.items()}


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
