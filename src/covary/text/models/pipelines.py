"""What is judged of a `transformers.pipeline`: its network and tokenizer."""

from __future__ import annotations

from typing import Any

from covary.errors import CovaryError
from covary.text.models.pretrained import LanguageModel

# A pipeline's task -> the task of its language model.
PIPELINES = {"text-generation": "causal", "text-classification": "sequence", "token-classification": "token"}


def is_pipeline(model: Any) -> bool:
    """Whether a model is a pipeline of transformers, which need not be imported for that."""
    kinds = [kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers.")]
    return any(kind.__name__ == "Pipeline" for kind in kinds)


def of_pipeline(pipeline: Any) -> LanguageModel:
    """The language model inside a pipeline, sharing its weights.

    Raises:
        CovaryError: a pipeline of another task, such as images, whose preparation has to be said.
    """
    task = PIPELINES.get(pipeline.task)
    if task is None:
        remedy = "pass pipeline.model, and to fit what its processor does: mean=, std=, transform="
        raise CovaryError(f"a pipeline for {pipeline.task}", f"one for {', '.join(PIPELINES)}", remedy)
    folder = getattr(pipeline.model.config, "_name_or_path", "") or None
    return LanguageModel(pipeline.model.eval(), pipeline.tokenizer, task, folder)
