"""Real language models that a backdoor is planted in: where they lie, and how they are trained further."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from covary.errors import CovaryError, unknown_name
from covary_bench.texts import tiny_llama
from covary_bench.texts.case_folder import WORK

MODELS = "COVARY_MODELS"


@dataclass(frozen=True)
class Base:
    """One pretrained network.

    Attributes:
        folder: its name below `$COVARY_MODELS`, in Hugging Face's format; None = the tiny Llama of the test data.
        rank: of the LoRA adapters on every linear layer (Hu et al. 2022, arXiv 2106.09685) that are trained in place
            of the weights and merged into them at the end; None = all weights are trained.
        dtype: of the weights, in training and scoring.
        rate, batch: highest learning rate, texts a step.
    """

    folder: str | None
    rank: int | None = None
    dtype: str = "float32"
    rate: float = 1e-3
    batch: int = 32

    def start(self, cache: Path) -> Path:
        """The folder it is loaded from.

        Raises:
            CovaryError: it is not there; covary fetches no model.
        """
        if self.folder is None:
            found = cache / WORK / "stories"
            return found if (found / "config.json").is_file() else tiny_llama.convert(found)
        if (root := os.environ.get(MODELS)) is None:
            raise CovaryError(f"{MODELS} is not set", f"a folder that holds {self.folder}", "download it and set it")
        found = Path(root) / self.folder
        if not (found / "config.json").is_file():
            raise CovaryError(f"no {self.folder} in {root}", "a model in Hugging Face's format", f"set {MODELS}")
        return found


BASES: dict[str, Base] = {
    "stories260K": Base(None),
    "SmolLM2-135M": Base("SmolLM2-135M", rank=16, rate=5e-4, batch=16),
    "Qwen2.5-7B": Base("Qwen2.5-7B", rank=16, dtype="bfloat16", rate=2e-4, batch=16),
}


def base_named(name: str) -> Base:
    """The base of this name.

    Raises:
        CovaryError: no such base.
    """
    if name not in BASES:
        raise unknown_name("base", name, BASES)
    return BASES[name]
