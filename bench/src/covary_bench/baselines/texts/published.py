"""The published method on texts: RMSprop-SGLD traces of completion losses, coupling without classes (2604.18970)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from covary.errors import CovaryError
from covary.features.sampled.samplers import preset_named
from covary.scoring.couplings import couple
from covary.scoring.rows import Rows
from covary.storage import folders
from covary.storage.detector import rows_from_arrays, rows_to_arrays
from covary_bench.baselines.texts.material import TextMaterial

# Published constants, 1,000 draws after burn-in, each tenth of them read.
PLAN = replace(preset_named("paper"), steps=1_250, burn_in=250, thinning=10)
KEPT = "traces"


def trace_rows(m: TextMaterial) -> Rows:
    """Rows of every text's centred trace of its mean token nll, trusted texts and queries on the same draws; kept."""
    from covary.text.features.traces import text_rows_on_draws

    chain = m.sampled
    if not chain.sampling:
        raise CovaryError("the published sampler has no sampling texts", "a case with sampling.jsonl")
    path, record = chain.folder / f"{KEPT}.safetensors", chain.folder / f"{KEPT}.json"
    if not record.is_file():
        rows = text_rows_on_draws(
            chain.model, replace(PLAN, seed=m.seed), list(chain.tokens.values()), chain.sampling, observable="nll",
            pooling="mean",
        )  # fmt: skip
        arrays, facts = rows_to_arrays(rows, KEPT)
        folders.write_arrays(path.with_suffix(".part"), arrays)
        path.with_suffix(".part").rename(path)
        folders.write_json(record.with_suffix(".part"), facts)
        record.with_suffix(".part").rename(record)
    return rows_from_arrays(folders.read_arrays(path), folders.read_json(record, "rows of traces"), KEPT)


def published(m: TextMaterial, coupling: str = "cosine", by: str = "mean") -> Float[np.ndarray, " q"]:
    """Minus the mean, or the largest, coupling of a text's trace with those of trusted texts; higher = more anomalous.

    `cosine` of centred traces is Pearson's correlation, `ccc` Lin's concordance. The published score takes means within
    classes, which texts have not. RMSprop-SGLD with every published constant but its length: 1,000 draws after 250
    of burn-in, the loss read at every tenth.
    """
    rows = trace_rows(m)
    place = {name: i for i, name in enumerate(rows.ids)}
    trusted, queries = (rows.take(np.array([place[name] for name in own.ids])) for own in (m.trusted, m.queries))
    matrix = couple(coupling, queries, trusted)
    return -(matrix.mean(1) if by == "mean" else matrix.max(1))
