"""A GGUF file, as llama.cpp keeps a model: its quantised weights multiplied out, once a load or once for all.

`python -m covary.text.models.gguf MODEL.gguf FOLDER` writes them as `save_pretrained` does; a folder loads in a
tenth of the time.
"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import nn

from covary.errors import CovaryError, missing_extra
from covary.storage import folders

ENDING = ".gguf"


def is_gguf(place: str | Path) -> bool:
    """Whether a place is a file that ends in `.gguf`."""
    return Path(place).suffix == ENDING and Path(place).is_file()


def read_gguf(file: str | Path, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """The causal model in a GGUF file and its tokenizer, with the chat template that the file holds.

    Weights are what the file's numbers stand for, so a Q4 file gives the model that llama.cpp would run, not the one
    it was made from.

    Raises:
        CovaryError: the extra `language` is missing, or transformers cannot read the file.
    """
    try:
        import gguf  # noqa: F401
        import transformers
    except ImportError as missing:
        raise missing_extra(missing.name or "gguf", "language") from None
    transformers.utils.logging.disable_progress_bar()
    path, auto = Path(file), transformers
    place = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    try:
        # It draws a bar of its own, which no setting turns off.
        with redirect_stderr(io.StringIO()), torch.random.fork_rng(devices=[]):
            quantised = auto.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
            config = quantised.config
            # Weights are plain now; with its note on quantisation the model could be neither moved nor saved.
            del config.quantization_config
            module = auto.AutoModelForCausalLM.from_config(config, dtype=dtype)
            module.load_state_dict(quantised.state_dict())
            module.generation_config = quantised.generation_config
            tokenizer = auto.AutoTokenizer.from_pretrained(**place)
    except Exception as problem:  # a file from anywhere: what is wrong with it shows in any of a dozen libraries
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        expected = "a GGUF file of a text model whose architecture transformers knows"
        raise CovaryError(f"{file} cannot be read ({reason[:200]})", expected) from None
    return module, tokenizer


def to_folder(file: str | Path, folder: str | Path) -> Path:
    """Writes a GGUF file's model as a folder in Hugging Face's format (float32), whole or not at all."""
    if not is_gguf(file):
        raise CovaryError(f"no GGUF file at {file}", f"a file that ends in {ENDING}", "check the path")
    with folders.atomic_folder(Path(folder), "model") as part:
        module: Any
        module, tokenizer = read_gguf(file)
        module.save_pretrained(part)
        tokenizer.save_pretrained(part)
    return Path(folder)


if __name__ == "__main__":
    try:
        if len(sys.argv) != 3:
            raise CovaryError(f"{len(sys.argv) - 1} arguments", "python -m covary.text.models.gguf MODEL.gguf FOLDER")
        to_folder(*sys.argv[1:])
    except CovaryError as problem:
        sys.exit(f"error: {problem}")
