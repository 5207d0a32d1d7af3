"""A language model from a local folder in Hugging Face's format or a GGUF file, with an adapter where one is wanted."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from covary.errors import CovaryError, missing_extra, unknown_name
from covary.text.models.gguf import is_gguf, read_gguf

# task -> (how architectures of that task are called, transformers' class that loads one)
TASKS: dict[str, tuple[str, str]] = {
    "causal": ("ForCausalLM", "AutoModelForCausalLM"),
    "sequence": ("ForSequenceClassification", "AutoModelForSequenceClassification"),
    "token": ("ForTokenClassification", "AutoModelForTokenClassification"),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"
FRESH_SEED = 0


@dataclass(frozen=True)
class LanguageModel:
    """A network in evaluation mode with its tokenizer.

    Attributes:
        module: what transformers (or peft) calls, keyword arguments only.
        tokenizer: its tokenizer.
        task: a name from `TASKS`.
        folder: where it came from, or None.
        adapter: `fresh:R`, an adapter's folder, or None.
    """

    module: nn.Module
    tokenizer: Any
    task: str = "causal"
    folder: str | None = None
    adapter: str | None = None

    @property
    def config(self) -> Any:
        """The network's configuration."""
        return self.module.config

    @property
    def longest(self) -> int | None:
        """Positions the network was made for, where its configuration says."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def end(self) -> int | None:
        """The token that ends an answer, if there is one."""
        return self.tokenizer.eos_token_id

    @property
    def ends(self) -> set[int]:
        """Tokens that end an answer."""
        eos = getattr(getattr(self.module, "generation_config", None), "eos_token_id", None)
        every = set(eos) if isinstance(eos, (list, tuple)) else {eos}
        return {int(end) for end in every | {self.end} if end is not None}

    @property
    def dtype(self) -> str:
        """Name of its weights' precision."""
        kind = next(self.module.parameters()).dtype
        return next((name for name, own in DTYPES.items() if own == kind), str(kind).removeprefix("torch."))

    @property
    def classes(self) -> list[str]:
        """Names of a classifier's classes, in order."""
        names = self.config.id2label
        return [str(names[i]) for i in range(len(names))]


def load_language_model(
    folder: str | Path,
    *,
    task: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    adapter: str | None = None,
) -> LanguageModel:
    """The language model in a local folder; nothing is fetched and no code of the folder is run.

    Args:
        folder: what `save_pretrained` wrote: configuration, safetensors and tokenizer; or a GGUF file, whose quantised
            weights are multiplied out (see `read_gguf`).
        task: a name from `TASKS`; None reads it off the configuration.
        dtype: of the weights, a name from `DTYPES`, or `auto` (see `dtype_for`).
        device: where it runs.
        adapter: a folder of peft's, whose trained adapter goes on top; or `fresh:R`, new LoRA adapters of rank R on
            every linear layer of the frozen base (Hu et al. 2022, arXiv 2106.09685).

    Raises:
        CovaryError: no such folder, an architecture of no known task, weights that cannot be read.
    """
    try:
        import transformers
    except ImportError:
        raise missing_extra("transformers", "language") from None
    transformers.utils.logging.disable_progress_bar()
    path = Path(folder)
    of_file = is_gguf(path)
    if not of_file and not (path / "config.json").is_file():
        expected = "a local folder in Hugging Face's format, or a .gguf file"
        raise CovaryError(f"no config.json in {folder}", expected, "check the path")
    dtype = dtype_for(device) if dtype == AUTO else dtype
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, [AUTO, *DTYPES])
    task = ("causal" if of_file else _task(path)) if task is None else task
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    module, tokenizer = read_gguf(path, DTYPES[dtype]) if of_file else _read(transformers, path, task, dtype)
    if adapter is not None:
        module = with_adapter(module, adapter)
    return LanguageModel(module.to(device).eval(), tokenizer, task, str(folder), adapter)


def _read(transformers: Any, path: Path, task: str, dtype: str) -> tuple[Any, Any]:
    try:
        loader = getattr(transformers, TASKS[task][1])
        module = loader.from_pretrained(path, dtype=DTYPES[dtype], local_files_only=True, use_safetensors=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as problem:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        found = f"{path} cannot be loaded ({reason[:200]})"
        raise CovaryError(found, "configuration, safetensors, tokenizer") from None
    return module, tokenizer


def dtype_for(device: str = "cpu") -> str:
    """`bfloat16` where the processor computes in it (AVX512-BF16, AMX, NVIDIA from Ampere on), else `float32`.

    Elsewhere it would be half the memory for none of the speed.
    """
    kind = device.partition(":")[0]
    if kind == "cuda":
        return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
    capabilities = getattr(torch.cpu, "get_capabilities", dict) if kind == "cpu" else dict
    able = capabilities()
    return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


def with_adapter(module: nn.Module, adapter: str) -> nn.Module:
    """The network with LoRA adapters: fresh ones (`fresh:R`, B = 0, so no answer changes), or those of a folder."""
    try:
        import peft
    except ImportError:
        raise missing_extra("peft", "language") from None
    with warnings.catch_warnings():
        # peft asks transformers for properties that it has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        return _with_adapter(peft, module, adapter)


def _with_adapter(peft: Any, module: nn.Module, adapter: str) -> nn.Module:
    if adapter.startswith("fresh:"):
        rank = adapter.removeprefix("fresh:")
        if not rank.isdigit() or int(rank) < 1:
            raise CovaryError(f"adapter {adapter!r} has rank {rank!r}", "fresh:R with a whole number R >= 1")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(FRESH_SEED)
            made = peft.LoraConfig(r=int(rank), lora_alpha=int(rank), target_modules="all-linear")
            return peft.get_peft_model(module, made)
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise CovaryError(f"no adapter_config.json in {adapter}", "fresh:R, or a folder written by peft")
    return peft.PeftModel.from_pretrained(module, adapter, is_trainable=True)


def _task(path: Path) -> str:
    try:
        names = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (ValueError, AttributeError):
        raise CovaryError(f"{path / 'config.json'} is not readable JSON", "a configuration of transformers") from None
    found = [task for task, (ending, _) in TASKS.items() if any(str(name).endswith(ending) for name in names)]
    if len(found) != 1:
        ways = ", ".join(f"{task} (...{ending})" for task, (ending, _) in TASKS.items())
        raise CovaryError(f"{path} holds {', '.join(map(str, names)) or 'no architecture'}", f"a model for {ways}")
    return found[0]
