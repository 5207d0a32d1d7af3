"""A real tiny Llama: llama2.c's legacy weights and tokenizer, written as a folder of transformers.

`python -m covary_bench.texts.tiny_llama models/stories` converts the model that lies with the test data.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from covary.errors import CovaryError, missing_extra
from covary.storage import folders

HEADER = ("dim", "hidden", "layers", "heads", "kv_heads", "vocabulary", "positions")
THETA, EPSILON = 10_000.0, 1e-5
START, END = 1, 2
FILES = ("stories260K.bin", "tok512.bin")


def data_folder() -> Path:
    """Where weights and tokenizer lie: `$COVARY_DATA/text`, by default beside the project's root."""
    root = Path(__file__).resolve().parents[4]
    return Path(os.environ.get("COVARY_DATA", root.parent / "shared" / "data")) / "text"


def read_weights(path: Path) -> tuple[dict[str, int], dict[str, Float[np.ndarray, "..."]]]:
    """Sizes and arrays of a llama2.c file in its legacy layout: seven int32, then float32 arrays one after the other.

    Raises:
        CovaryError: a file of another length than its sizes ask for.
    """
    raw = path.read_bytes()
    sizes: dict[str, int] = dict(zip(HEADER, struct.unpack("7i", raw[:28]), strict=True))
    # A negative number of words says that the output has weights of its own.
    tied, sizes["vocabulary"] = sizes["vocabulary"] > 0, abs(sizes["vocabulary"])
    d, h, n, v = (sizes[key] for key in ("dim", "hidden", "layers", "vocabulary"))
    head = d // sizes["heads"]
    kv = head * sizes["kv_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (v, d), "norm1": (n, d), "wq": (n, d, d), "wk": (n, kv, d), "wv": (n, kv, d), "wo": (n, d, d),
        "norm2": (n, d), "w1": (n, h, d), "w2": (n, d, h), "w3": (n, h, d), "norm": (d,),
        # Tables of the rotation, which anyone can compute.
        "cosines": (sizes["positions"], head // 2), "sines": (sizes["positions"], head // 2),
    }  # fmt: skip
    if not tied:
        shapes["output"] = (v, d)
    arrays: dict[str, np.ndarray] = {}
    at = 28
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        if at + 4 * count <= len(raw):
            arrays[name] = np.frombuffer(raw, "<f4", count, at).reshape(shape)
        at += 4 * count
    if at != len(raw) or len(arrays) < len(shapes):
        raise CovaryError(f"{path} has {len(raw)} bytes", f"{at} of a llama2.c file with sizes {sizes}")
    return sizes, arrays


def read_pieces(path: Path, count: int) -> list[tuple[bytes, float]]:
    """The tokenizer's pieces with their scores, in order of their numbers."""
    raw = path.read_bytes()
    at, pieces = 4, []
    for _ in range(count):
        score, length = struct.unpack_from("<fi", raw, at)
        pieces.append((raw[at + 8 : at + 8 + length], score))
        at += 8 + length
    return pieces


def rotated(weights: Float[np.ndarray, "rows d"], head: int) -> Float[np.ndarray, "rows d"]:
    """Rows of a query or key projection re-ordered within each head: rotation of neighbours becomes that of halves."""
    rows, d = weights.shape
    return weights.reshape(rows // head, head // 2, 2, d).swapaxes(1, 2).reshape(rows, d)


def state(sizes: dict[str, int], arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The weights under the names of `LlamaForCausalLM`."""
    head = sizes["dim"] // sizes["heads"]
    made = {"model.embed_tokens.weight": arrays["embedding"], "model.norm.weight": arrays["norm"]}
    made["lm_head.weight"] = arrays.get("output", arrays["embedding"])
    for i in range(sizes["layers"]):
        at = f"model.layers.{i}."
        made |= {
            f"{at}input_layernorm.weight": arrays["norm1"][i],
            f"{at}post_attention_layernorm.weight": arrays["norm2"][i],
            f"{at}self_attn.q_proj.weight": rotated(arrays["wq"][i], head),
            f"{at}self_attn.k_proj.weight": rotated(arrays["wk"][i], head),
            f"{at}self_attn.v_proj.weight": arrays["wv"][i],
            f"{at}self_attn.o_proj.weight": arrays["wo"][i],
            f"{at}mlp.gate_proj.weight": arrays["w1"][i],
            f"{at}mlp.down_proj.weight": arrays["w2"][i],
            f"{at}mlp.up_proj.weight": arrays["w3"][i],
        }
    return {name: torch.from_numpy(np.array(array)) for name, array in made.items()}


def tokenizer(pieces: list[tuple[bytes, float]]) -> Any:
    """The same byte-pair encoding in transformers' form: merges in the order of the merged piece's score."""
    try:
        from tokenizers import Tokenizer, decoders, models, normalizers, processors
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise missing_extra("transformers", "language") from None
    special = {0: "<unk>", START: "<s>", END: "</s>"}
    names = [special.get(i) or piece.decode().replace(" ", "\u2581") for i, (piece, _) in enumerate(pieces)]
    numbers = {name: i for i, name in enumerate(names)}
    merges = []
    for i, name in enumerate(names):
        if i not in special and not name.startswith("<0x") and len(name) > 1:
            splits = [(name[:j], name[j:]) for j in range(1, len(name))]
            merges += [(pieces[i][1], pair) for pair in splits if all(half in numbers for half in pair)]
    ordered = [pair for _, pair in sorted(merges, key=lambda merge: -merge[0])]
    made = Tokenizer(models.BPE(numbers, ordered, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])  # type: ignore
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START)])  # type: ignore
    made.decoder = decoders.Sequence(  # type: ignore
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def convert(out: Path, weights: Path | None = None, pieces: Path | None = None) -> Path:
    """Writes the model and its tokenizer to `out`, whole or not at all.

    Raises:
        CovaryError: files that are not there or of another layout.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise missing_extra("transformers", "language") from None
    weights, pieces = weights or data_folder() / FILES[0], pieces or data_folder() / FILES[1]
    for path in (weights, pieces):
        if not path.is_file():
            raise CovaryError(f"nothing at {path}", "llama2.c weights and tokenizer", "set COVARY_DATA")
    sizes, arrays = read_weights(weights)
    config = LlamaConfig(
        vocab_size=sizes["vocabulary"], hidden_size=sizes["dim"], intermediate_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"], num_attention_heads=sizes["heads"], num_key_value_heads=sizes["kv_heads"],
        max_position_embeddings=sizes["positions"], rms_norm_eps=EPSILON, tie_word_embeddings="output" not in arrays,
        bos_token_id=START, eos_token_id=END, rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.load_state_dict(state(sizes, arrays))
    logging.disable_progress_bar()
    with folders.atomic_folder(out, "model") as part:
        model.save_pretrained(part)
        tokenizer(read_pieces(pieces, sizes["vocabulary"])).save_pretrained(part)
    return out


if __name__ == "__main__":
    convert(Path(sys.argv[1] if len(sys.argv) > 1 else "models/stories"))
