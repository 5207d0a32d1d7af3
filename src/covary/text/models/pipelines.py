"""What is judged of a `transformers.pipeline`: its network, with the tokenizer or what its processor does."""

from __future__ import annotations

from typing import Any

from covary.data.presets import Preset, preset_of
from covary.errors import CovaryError
from covary.text.models.pretrained import LanguageModel

# A pipeline's task -> the task of its language model.
PIPELINES = {"text-generation": "causal", "text-classification": "sequence", "token-classification": "token"}
IMAGES = "image-classification"


def is_pipeline(model: Any) -> bool:
    """Whether a model is a pipeline of transformers, which need not be imported for that."""
    kinds = [kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers.")]
    return any(kind.__name__ == "Pipeline" for kind in kinds)


def of_pipeline(pipeline: Any) -> tuple[Any, Preset | None]:
    """The model inside a pipeline, sharing its weights, and what its processor does to images.

    A language model of texts; of `image-classification` the network itself.

    Raises:
        CovaryError: a pipeline of another task, or a processor that does more than resize, crop and normalise.
    """
    if pipeline.task == IMAGES:
        return pipeline.model.eval(), preset_of(pipeline.image_processor)
    task = PIPELINES.get(pipeline.task)
    if task is None:
        remedy = "pass pipeline.model, and to fit what its processor does: mean=, std=, transform="
        raise CovaryError(f"a pipeline for {pipeline.task}", f"one for {', '.join([*PIPELINES, IMAGES])}", remedy)
    folder = getattr(pipeline.model.config, "_name_or_path", "") or None
    return LanguageModel(pipeline.model.eval(), pipeline.tokenizer, task, folder), None
