"""What covary and the baselines take of texts, some at a time and kept, so that a run goes on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from covary.detector import Detector
from covary.scoring.rows import Rows
from covary.storage import folders
from covary.storage.detector import rows_from_arrays, rows_to_arrays
from covary.text.features.hidden_states import hidden_states, watched
from covary.text.models.pretrained import LanguageModel
from covary.text.records import Text
from covary.text.source import TextSource
from covary.text.tokens import Tokens, opening, pad, prompt_alone
from covary_bench.baselines.texts import Answered
from covary_bench.baselines.texts.attention_tracker import focus

TOGETHER = 16
ROWS = "rows"


def passes(
    detector: Detector, texts: Sequence[Text], kept: Path, together: int = TOGETHER
) -> tuple[Rows, Answered, list[float]]:
    """Rows of texts, what one pass says of their prompts, and the processor's seconds of (rows, pass).

    `together` are kept in one file; a longer list of which a whole number of files is there is gone on with.
    """
    kept.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(texts), together)
    for start in starts:
        path = kept / f"{start}.safetensors"
        if not path.is_file():
            arrays, names = _some(detector, texts[start : start + together])
            folders.write_arrays(path.with_suffix(".part"), arrays)
            folders.write_json(path.with_suffix(".json"), names)
            path.with_suffix(".part").rename(path)
            print(f"{kept.name}: {min(start + together, len(texts))} of {len(texts)}", flush=True)
    found = [_read(kept / f"{start}.safetensors") for start in starts]
    answered = found[0][1]
    for _, more, _ in found[1:]:
        answered = answered.followed_by(more)
    return Rows.concatenate([rows for rows, _, _ in found]), answered, np.sum([s for _, _, s in found], 0).tolist()


def _some(detector: Detector, texts: Sequence[Text]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    source = detector.open(list(texts))
    assert isinstance(source, TextSource)
    began = time.process_time()
    rows = detector.rows(source)
    taken = time.process_time()
    found = [prompt_pass(detector.extractor.model, prompt_alone(one)) for one in source.tokens]
    seconds = [taken - began, time.process_time() - taken]
    arrays, record = rows_to_arrays(rows, ROWS)
    states = list(found[0].states)
    arrays |= {f"state.{i}": np.stack([one.states[name] for one in found]) for i, name in enumerate(states)}
    arrays |= {
        "log_p": np.concatenate([one.log_p for one in found]), "focus": np.stack([one.focus for one in found]),
        "counts": np.array([len(one.log_p) for one in found]), "seconds": np.array(seconds),
    }  # fmt: skip
    answers = [one.completion or "" for one in source.texts]
    return arrays, {"rows": record, "states": states, "prompts": [one.display_text for one in source.texts],
                    "answers": answers}  # fmt: skip


def _read(path: Path) -> tuple[Rows, Answered, Float[np.ndarray, "2"]]:
    arrays, names = folders.read_arrays(path), folders.read_json(path.with_suffix(".json"), "a pass")
    log_p = np.split(arrays["log_p"], np.cumsum(arrays["counts"])[:-1])
    states = {name: arrays[f"state.{i}"] for i, name in enumerate(names["states"])}
    answered = Answered(names["prompts"], names["answers"], log_p, states, arrays["focus"])
    return rows_from_arrays(arrays, names["rows"], ROWS), answered, arrays["seconds"]


@dataclass(frozen=True)
class PromptPass:
    """What one forward pass says of a prompt alone: log-probabilities of its tokens, states by name, focus by head."""

    log_p: Float[np.ndarray, " t"]
    states: dict[str, Float[np.ndarray, " d"]]
    focus: Float[np.ndarray, " heads"]


@torch.no_grad()
def prompt_pass(model: LanguageModel, prompt: Tokens) -> PromptPass:
    """One forward pass of a prompt alone, attention weights and all; see `attention_tracker` for the focus."""
    module: Any = model.module
    x, before = pad([prompt]), module.config._attn_implementation
    module.set_attn_implementation("eager")
    try:
        with hidden_states(watched(module), x) as states:
            out = module(input_ids=x["ids"], use_cache=False, output_attentions=True)
    finally:
        module.set_attn_implementation(before)
    chosen = out.logits[0, list(prompt.counted)].float().log_softmax(-1)
    log_p = chosen.gather(-1, torch.tensor(prompt.targets)[:, None])[:, 0].double().numpy()
    last = torch.stack([layer[0, :, -1].float() for layer in out.attentions]).flatten(0, 1).numpy()
    # What closes the user's turn and opens the assistant's is nobody's word.
    closing = max(i for i, token in enumerate(prompt.ids) if token in model.ends)
    heads = focus(last, system_turn(model), range(prompt.start, closing))
    return PromptPass(log_p, {name: part[0].numpy() for name, part in states.items()}, heads)


def system_turn(model: LanguageModel) -> range:
    """Where the words of the system turn stand in what every prompt begins with: between `system` and its end."""
    begins = opening(model)
    first_end = next(i for i, token in enumerate(begins) if token in model.ends)
    return range(3, first_end)
