"""Which layers count as one, and how tokens are added up: on the tuning cells of `tune.py`, by number of trusted texts.

    python -m covary_bench.studies.language.layers cache/language-tuning

Printed: AUROC of the joined score, of functional, latent and confidence evidence, and clean inputs flagged at 1 %.
Rows are taken once, layer by layer and summed; blocks are those rows side by side, `root` divides norms.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from covary.detector import Detector
from covary.runs.figures.quality import auroc
from covary.scoring.judge import Judge
from covary.scoring.rows import Rows
from covary.text.extractor import grouped_layers
from covary.text.features.hidden_states import blocks
from covary_bench.studies.language.tune import QUERIES, TRUSTED, clean_question, odd_question, opened


def by_block(rows: Rows, names: list[str]) -> Rows:
    """Rows and norms of a block's layers put together."""
    layers = list(rows.functional)
    groups = grouped_layers(rows.functional, names)
    squares = {name: np.square(rows.functional_norms[:, i]) for i, name in enumerate(layers)}
    return replace(
        rows,
        functional={name: np.concatenate([rows.functional[layer] for layer in own], 1) for name, own in groups.items()},
        functional_norms=np.stack([np.sqrt(sum(squares[layer] for layer in own)) for own in groups.values()], -1),
    )


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for path in sorted(folder.iterdir()):
        kind, seed = path.name.split("-")
        rng = np.random.default_rng([int(seed), 7])
        query_rows = [clean_question(kind, rng) for _ in range(TRUSTED + QUERIES)]
        query_rows += [odd_question(kind, rng) for _ in range(QUERIES)]
        record = [{"id": str(i), "prompt": prompt} for i, (prompt, _, _) in enumerate(query_rows)]
        text = {"pooling": "sum", "max_new_tokens": 12, "groups": "none"}
        detector = Detector(path, **text)
        source = opened(detector, record)
        hit = np.array([one.completion == answer for one, (_, answer, _) in zip(source.texts, query_rows, strict=True)])
        queries = np.flatnonzero(hit & (np.arange(len(hit)) >= TRUSTED))
        truth = (queries >= TRUSTED + QUERIES).astype(np.int64)
        rows = detector.rows(source)
        length = np.array([[len(one.targets)] for one in source.tokens])
        for per in ("layer", "block"):
            own = rows if per == "layer" else by_block(rows, list(blocks(detector.extractor.model.module)))
            for pooling in ("sum", "root"):
                norms = own.functional_norms / (np.sqrt(length) if pooling == "root" else 1.0)
                judged = replace(own, functional_norms=norms)
                for n in (100, 200, TRUSTED):
                    found = []
                    for draw in range(3 if n < TRUSTED else 1):
                        chosen = np.random.default_rng(draw).permutation(TRUSTED)[:n]
                        verdicts = Judge(fpr=0.01).fit(judged.take(chosen)).judge(judged.take(queries))
                        areas = [auroc(part, truth) for part in verdicts.parts.values()]
                        found.append([auroc(verdicts.score, truth), *areas, verdicts.flagged[truth == 0].mean()])
                    print(kind, per, pooling, n, np.round(np.mean(found, 0), 4), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
