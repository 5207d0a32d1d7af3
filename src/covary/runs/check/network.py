"""Does the network run on these inputs, and does it answer the same whatever else is in the batch?"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map

from covary.errors import CovaryError
from covary.models.blame import first_line, is_their_own, line_of
from covary.models.network import Network, select_output
from covary.runs.check.findings import Finding, listed

SIDES = (28, 32, 64, 96, 128, 160, 192, 224, 256, 299, 384)
# Answers may differ by rounding from batch to batch, by this much of their size.
TOLERANCE = 1e-3


def answer(network: Network, x: Any) -> tuple[Tensor | None, list[Finding]]:
    """Logits of a first batch, or None and, in one sentence, why there are none."""
    entered: list[tuple[str, nn.Module, Any]] = []

    def note(name: str) -> Any:
        return lambda module, inputs: entered.append((name, module, inputs[0] if inputs else None))

    leaves = [(name, m) for name, m in network.module.named_modules() if not list(m.children())]
    hooks = [module.register_forward_pre_hook(note(name)) for name, module in leaves]
    try:
        logits = network.logits(x)
    except CovaryError as error:
        return None, [Finding("error", "Output", f"{error.found}; expected {error.expected}.", error.remedy)]
    except Exception as error:
        return None, [failure(network, x, error, entered)]
    finally:
        for hook in hooks:
            hook.remove()
    return logits, outputs(logits)


def failure(network: Network, inputs: Any, error: Exception, entered: list[tuple[str, nn.Module, Any]]) -> Finding:
    """The layer a batch failed in and what it expected, or the line of the network's own code, in one sentence."""
    x = tree_leaves(inputs)[0]
    shape = "x".join(map(str, x.shape[1:]))
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if is_their_own(error):
        text = f"The network's own code fails with {first_line(error)}; at {line_of(error)}."
        return Finding("error", "Network", text, "Mend it, or bring inputs to what it was trained on.")
    if "out of memory" in str(error).lower():
        return Finding("error", "Memory", f"A batch of {len(x)} inputs does not fit: {reason}.", "Lower --batch-size.")
    if not entered:
        text = f"The network fails on inputs of shape {shape}: {reason}."
        return Finding("error", "Input shape", text, "Bring inputs to the shape the network was trained on.")
    name, module, got = entered[-1]
    got_shape = tuple(got.shape) if isinstance(got, Tensor) else ()
    if isinstance(module, _ConvNd) and len(got_shape) > 1 and got_shape[1] != module.in_channels:
        takes = module.in_channels
        channels = f"{takes} channel{'s' if takes > 1 else ''}"
        text = f"Layer `{name}` takes {channels}, and inputs have shape {shape} (channels first)."
        if got_shape[-1] == takes:
            change = "Put the channels first: x.transpose(0, 3, 1, 2) for floats."
        elif takes == 3 and got_shape[1] == 1:
            change = "Repeat the grey channel: --transform package.module:function with x.repeat(3, 1, 1)."
        else:
            change = f"Pass --transform package.module:function that makes {channels}."
        return Finding("error", "Input shape", text, change)
    if isinstance(module, nn.Embedding) and not x.is_floating_point():
        text = f"Token ids run from {int(x.min())} to {int(x.max())}, and `{name}` holds {module.num_embeddings}."
        return Finding("error", "Input range", text, "Use the tokenizer the network was trained with.")
    if x.dtype in (torch.int64, torch.int32) and not isinstance(module, nn.Embedding):
        text = f"Inputs are integers, which are taken as token ids, and layer `{name}` ({type(module).__name__}) fails."
        return Finding("error", "Input type", text, "Store pixels as uint8 or uint16, and other numbers as floats.")
    if isinstance(module, nn.Linear) and got_shape and got_shape[-1] != module.in_features:
        text = f"Layer `{name}` takes {module.in_features} features and gets {got_shape[-1]} from inputs of {shape}."
        sides = [side for side in SIDES if runs(network, x, side)]
        change = f"Resize to {sides[0]}x{sides[0]}, which it takes, with --transform." if sides else ""
        return Finding("error", "Input shape", text, change or "Bring inputs to the shape the network was trained on.")
    line = line_of(error)
    at = f", called at {line}" if line else ""
    text = f"Layer `{name}` ({type(module).__name__}) fails on inputs of shape {shape}: {reason}{at}."
    return Finding("error", "Input shape", text, "Bring inputs to the shape and type the network was trained on.")


def runs(network: Network, x: Any, side: int) -> bool:
    """Whether the network takes square images of that side."""
    if x.ndim != 4:
        return False
    try:
        network.logits(torch.zeros(1, x.shape[1], side, side))
    except Exception:
        return False
    return True


# What to do where answers are no classes that exclude each other.
OBSERVABLE = "If it answers otherwise, pass --observable package.module:function, one number an input."


def meaning(network: Network, x: Any, logits: Tensor, labels: np.ndarray | None) -> Finding:
    """What the output is taken for: classes that exclude each other, or the log-odds of one class against another."""
    with torch.no_grad():
        shape = tuple(select_output(network.module(network.inputs(x)), network.output).shape[1:])
    known = np.arange(0) if labels is None else labels[labels >= 0]
    if math.prod(shape) == 1:
        odd = known[known > 1]
        if len(odd):
            text = f"The network has one output, and labels go up to {odd.max()}: it predicts a number, or one class."
            return Finding("error", "Output", text, "Pass --observable package.module:function, one number an input.")
        text = "One output an input, read as the log-odds of class 1 against class 0."
        if len(known):
            return Finding("ok", "Output", text)
        return Finding("note", "Output", f"{text} Without labels nobody can tell it from a regression.", OBSERVABLE)
    read = f"read as logits of {logits.shape[1]} classes that exclude each other"
    if len(shape) > 1:
        return Finding("note", "Output", f"Outputs of shape {shape} an input, {read}.", OBSERVABLE)
    if bool(((logits >= 0) & (logits <= 1)).all()) and not bool((logits.sum(1) - 1).abs().max() < 1e-3):
        text = "Every output lies between 0 and 1 and they do not sum to 1, as if classes did not exclude each other"
        return Finding("warning", "Output", f"{text}; {read}.", OBSERVABLE)
    return Finding("ok", "Output", f"{logits.shape[1]} numbers an input, {read}.")


def outputs(logits: Tensor) -> list[Finding]:
    """What is wrong with logits as logits."""
    if not torch.isfinite(logits).all():
        text = "The network answers finite inputs with NaN or infinite logits."
        return [Finding("error", "Output", text, "Check the weights; in half precision, load the network in float32.")]
    sums = logits.sum(1)
    if logits.shape[1] > 1 and bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        text = "Every output is non-negative and sums to 1: these are probabilities, not logits."
        change = "Take the softmax off the end of the network; margins of probabilities say little."
        return [Finding("warning", "Output", text, change)]
    return []


def modes(network: Network) -> list[Finding]:
    """Layers that behave differently in training, and weights that look untrained."""
    named = list(network.module.named_modules())
    found = []
    training = [name for name, m in named if m.training and (isinstance(m, _BatchNorm | nn.modules.dropout._DropoutNd))]
    if training:
        text = f"{len(training)} layers are in training mode ({listed(training)}): answers change from run to run."
        found.append(Finding("error", "Training mode", text, "Call network.eval() after whatever called train()."))
    fresh = [name for name, m in named if isinstance(m, _BatchNorm) and is_fresh(m)]
    if fresh:
        text = f"{len(fresh)} BatchNorm layers ({listed(fresh, 3)}) still have the statistics they were made with."
        found.append(Finding("warning", "Weights", text, "Pass --weights, and check that they are the trained ones."))
    parameters = list(network.module.parameters())
    frozen = sum(not p.requires_grad for p in parameters)
    if parameters and frozen:
        if frozen == len(parameters):
            text = "No parameter requires gradients: the network was frozen as a whole, and all of them may move."
        else:
            text = f"{frozen} of {len(parameters)} parameters do not require gradients and stay as they are."
        change = "Set requires_grad in the factory for the layers whose mechanism should be looked at."
        found.append(Finding("note", "Frozen parameters", text, change))
    return found


def is_fresh(norm: Any) -> bool:
    """Whether a BatchNorm layer never saw data."""
    if norm.running_mean is None:
        return False
    return bool((norm.running_mean == 0).all() and (norm.running_var == 1).all())


def steadiness(network: Network, x: Any, logits: Tensor) -> list[Finding]:
    """Whether an input gets the same answer twice, and alone as well as in company."""
    allowed = TOLERANCE * (1 + float(logits.abs().max()))
    if float((network.logits(x) - logits).abs().max()) > allowed:
        text = "The same batch gets different answers twice: something random stays on in eval mode."
        change = "Look for functional.dropout without training=self.training, or for sampling in forward()."
        return [Finding("error", "Random answers", text, change)]
    n = len(logits)
    alone = torch.cat([network.logits(tree_map(lambda leaf, i=i: leaf[i : i + 1], x)) for i in range(min(4, n))])
    if n > 1 and float((alone - logits[: len(alone)]).abs().max()) > allowed:
        named = network.module.named_modules()
        guilty = [name for name, m in named if isinstance(m, _BatchNorm) and not m.track_running_stats]
        where = f" ({listed(guilty)} use the statistics of the batch)" if guilty else ""
        text = f"An input's answer depends on the other inputs of its batch{where}, so no input has a score of its own."
        return [Finding("error", "Answers depend on the batch", text, "Use stored statistics in eval mode.")]
    return []


def gradients(network: Network, x: Any) -> list[Finding]:
    """Whether the logits depend on the weights in a way that gradients follow."""
    if network.differentiable(tree_map(lambda leaf: leaf[:1], x)):
        return []
    text = "No gradient reaches the weights: forward runs under torch.no_grad(), or detaches what it returns."
    change = "Take torch.no_grad() and .detach() out of forward, or choose evidence=latent."
    return [Finding("error", "Gradients", text, change)]


def cost(
    network: Network,
    x: Any,
    n: int,
    batch_size: int,
    forwards_per_input: float,
    budget: int | None,
    draws: int = 0,
    evidence: Mapping[str, float] | None = None,
    by_gradients: bool = True,
) -> tuple[Finding, dict[str, Any]]:
    """Estimated time and memory of exact first-order features of `n` inputs.

    Time = n x forwards_per_input x measured seconds of a forward pass; gradients take 4 bytes a trainable parameter
    and input, for as many inputs at once as stay under `budget` bytes (None: a whole batch), at least one. With
    `draws` of the weights there are no gradients of inputs, and 4 bytes a parameter and draw instead; without
    `by_gradients` nothing of the kind. `evidence` gives the forward passes of every kind of evidence that may be asked
    for; each is told with its time.
    """
    network.logits(x)  # the first pass is slower and says nothing
    start = time.perf_counter()
    network.logits(x).cpu()
    forward = (time.perf_counter() - start) / len(tree_leaves(x)[0])
    moving = [p for p in network.module.parameters() if p.requires_grad] or list(network.module.parameters())
    parameters = sum(p.numel() for p in moving)
    one = 4 * parameters
    at_once = min(batch_size, max(1, budget // max(one, 1))) if budget else batch_size
    seconds, peak = n * forwards_per_input * forward, one * (draws or at_once * by_gradients)
    what = f"{draws:,} draws of the weights" if draws else f"the gradients of {at_once} inputs at once"
    memory = f", and {peak / 2**20:,.0f} MB for {what}" if peak else ""
    text = (
        f"About {duration(seconds)} for {n:,} inputs ({1e3 * forward:.2g} ms a forward pass, {forwards_per_input:g} "
        f"of them an input){memory}."
    )
    figures: dict[str, Any] = {
        "forward_seconds": forward, "estimated_seconds": seconds, "gradient_bytes": float(peak),
    }  # fmt: skip
    if evidence:
        figures["seconds_by_evidence"] = {kind: n * forwards * forward for kind, forwards in evidence.items()}
        kinds = [
            f"{kind} {evidence[kind]:g} forward passes an input, about {duration(took)}"
            for kind, took in figures["seconds_by_evidence"].items()
        ]
        text += f" By --evidence: {'; '.join(kinds)}."
    free = available_memory()
    if free is not None and peak > free / 2 and network.device.type == "cpu":
        text += f" Only {free / 2**20:,.0f} MB are free."
        lower = "draws" if draws else "batch-size"
        change = f"Lower --{lower}, or look at fewer weights, such as the last layer (--space)."
        return Finding("warning", "Time and memory", text, change), figures
    return Finding("ok", "Time and memory", text), figures


def available_memory() -> int | None:
    """Free bytes of main memory, or None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(150)
    '3 minutes'
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} second{'s' if round(seconds) > 1 else ''}"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
