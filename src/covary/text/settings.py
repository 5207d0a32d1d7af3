"""What is asked of texts beyond the settings every detector has."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from covary.settings import wrong_value


class TextSettings(BaseModel):
    """Settings of a language detector that decide scores; saved with it.

    Attributes:
        pooling: `root`, `sum` or `mean` of the answer's tokens (see `pooled`): directions of gradients are the same,
            lengths are not.
        groups: what takes the place of the predicted class: `none`, `label` or `nearest` (see `Grouping`); `auto` =
            label where all trusted texts have one, twenty a label on average, else none.
        max_new_tokens: length of answers that the model is asked for.
        max_length: positions a text may take; None = as many as the model was made for.
        dtype: of the weights.
        adapter: `fresh:R` or a folder of peft's, or None.
        side: where batches are padded; changes no score.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pooling: Literal["root", "sum", "mean"] = "root"
    groups: Literal["auto", "none", "label", "nearest"] = "auto"
    max_new_tokens: int = Field(default=64, ge=1)
    max_length: int | None = Field(default=None, ge=2)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    adapter: str | None = None
    side: Literal["right", "left"] = "right"

    @staticmethod
    def checked(**values: Any) -> TextSettings:
        """Settings from loose values; a wrong one is told in one sentence."""
        try:
            return TextSettings(**values)
        except ValidationError as problem:
            raise wrong_value(problem) from None
