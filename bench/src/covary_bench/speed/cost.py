"""Cost of features in units of a plain forward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from covary.features.gradient import GradientExtractor
from covary.scoring.rows import Batch
from covary_bench.images.public import load_public
from covary_bench.speed.images import test_images

IMAGES, REPEATS = 256, 11
TARGETS = ("cifar10_resnet20_clean", "cifar10_wrn16_1_grid_t5")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def interleaved(todo: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median (wall, processor) seconds of each function, called in turn after one call to warm up."""
    for run in todo.values():
        run()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in todo}
    for _ in range(repeats):
        for name, run in todo.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            taken[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return {
        name: (statistics.median(t[0] for t in times), statistics.median(t[1] for t in times))
        for name, times in taken.items()
    }


def forward(network: nn.Module, x: Tensor, size: int) -> Callable[[], None]:
    """A plain forward of all samples in batches of `size`."""

    def run() -> None:
        with torch.inference_mode():
            for start in range(0, len(x), size):
                network(x[start : start + size])

    return run


def ratios(times: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Every engine's time over the fastest forward's, wall and processor apart."""
    found: dict[str, Any] = {}
    for kind, position in (("wall", 0), ("processor", 1)):
        best = min(t[position] for name, t in times.items() if name.startswith("forward"))
        found[kind] = {name: round(t[position] / best, 2) for name, t in times.items()}
        found[f"{kind}_forward_seconds"] = round(best, 4)
    fast = [name for name in times if name.startswith("hooks")]
    found["ratio_wall"] = min(found["wall"][name] for name in fast)
    found["ratio_processor"] = min(found["processor"][name] for name in fast)
    return found


def laid_out(name: str, layout: torch.memory_format) -> nn.Module:
    """A public network in a memory format."""
    return load_public(name).to(memory_format=layout)  # pyright: ignore[reportCallIssue]  # missing in torch's stubs


def image_networks() -> dict[str, Any]:
    """Both networks: forwards of 64, 128 and 256 at a time in both formats, features in both, exact on 64 images."""
    return {name: image_network(name) for name in TARGETS}


def image_network(name: str) -> dict[str, Any]:
    """One of them."""
    x, _ = test_images(name, IMAGES)
    ids = [str(i) for i in range(len(x))]
    todo: dict[str, Callable[[], Any]] = {}
    kept = 0
    for label, layout in FORMATS.items():
        network = laid_out(name, layout)
        placed = x.contiguous(memory_format=layout)
        for size in (64, 128, 256):
            todo[f"forward {label} {size}"] = forward(network, placed, size)
        moved = laid_out(name, layout).requires_grad_(True)
        fast = GradientExtractor(moved, lambda out: out, channels_last=label == "channels_last")
        kept = fast.k
        todo[f"hooks {label}"] = lambda fast=fast: fast.rows(Batch(ids, x))
    found = ratios(interleaved(todo, REPEATS)) | {"images": len(x), "numbers_per_layer": kept}
    exact = GradientExtractor(load_public(name).requires_grad_(True), lambda out: out, engine="exact")
    few = {"forward": forward(load_public(name), x[:64], 64), "exact": lambda: exact.rows(Batch(ids[:64], x[:64]))}
    times = interleaved(few, 3)
    return found | {"exact_processor": round(times["exact"][1] / times["forward"][1], 2)}


class Block(nn.Module):
    """A transformer block with fused attention; `llama` = RMSNorm and SwiGLU, otherwise LayerNorm and GELU."""

    def __init__(self, width: int, heads: int, llama: bool) -> None:
        super().__init__()
        norm = nn.RMSNorm if llama else nn.LayerNorm
        self.heads, self.llama, hidden = heads, llama, 4 * width
        self.norm1, self.norm2 = norm(width), norm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=not llama), nn.Linear(width, width, bias=not llama)
        self.up, self.down = nn.Linear(width, hidden, bias=not llama), nn.Linear(hidden, width, bias=not llama)
        self.gate = nn.Linear(width, hidden, bias=False) if llama else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.llama)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        inner = self.norm2(x)
        up = self.up(inner)
        return x + self.down(F.silu(self.gate(inner)) * up if self.gate is not None else F.gelu(up))


class Transformer(nn.Module):
    """Patches or tokens, blocks, the mean or the last position, a head."""

    def __init__(self, width: int, depth: int, llama: bool, classes: int = 64) -> None:
        super().__init__()
        self.llama = llama
        self.embed = nn.Embedding(512, width) if llama else nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(*(Block(width, 4, llama) for _ in range(depth)))
        self.head = nn.Linear(width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.blocks(x if self.llama else x.flatten(2).transpose(1, 2))
        return self.head(x[:, -1] if self.llama else x.mean(1))


def transformer_blocks() -> dict[str, Any]:
    """Random weights, 64 positions: 192 wide and 4 deep, as a ViT and as a Llama."""
    found: dict[str, Any] = {}
    for name, llama in (("vit_like", False), ("llama_like", True)):
        torch.manual_seed(0)
        network = Transformer(192, 4, llama).eval()
        x = torch.randint(0, 512, (64, 64)) if llama else torch.rand(64, 3, 32, 32)
        fast = GradientExtractor(network, lambda out: out)
        todo = {f"forward {size}": forward(network, x, size) for size in (16, 32, 64)}
        full: Callable[[], Any] = lambda fast=fast, x=x: fast.rows(Batch([str(i) for i in range(len(x))], x))  # noqa: E731
        found[name] = ratios(interleaved({**todo, "hooks": full}, 7)) | {"samples": len(x), "notes": fast.notes}
    return found
