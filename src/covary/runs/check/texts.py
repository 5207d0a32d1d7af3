"""Texts before the long work: what the model is told, how long it all is, what it refuses, and what it will take."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from covary.data.source import Source
from covary.runs.check import sets
from covary.runs.check.findings import CheckReport, Finding
from covary.text.models.pretrained import LanguageModel, dtype_for
from covary.text.source import TextSource

# How an answer that refuses begins, in lower case (the lists that papers on jailbreaks count by, shortened).
REFUSALS = (
    "i'm sorry", "i am sorry", "sorry,", "i apologize", "i cannot", "i can't", "i can not", "i'm unable", "i am unable",
    "i'm not able", "i am not able", "as an ai", "i'm just an ai", "i'm an ai", "i won't", "i will not",
    "it is not appropriate", "it's not appropriate",
)  # fmt: skip
# What rows cost, in forward passes over the same tokens: one forward and one activation-only backward pass, with the
# products of every layer.
FORWARDS = 4.0
# Beside the weights: activations and logits of one pass, and Python with its libraries.
PASS_GIB, AROUND_GIB = 1.0, 0.6
# Of the share of texts, on either side: lengths further apart than this are a difference of their own.
LONGER = 2.0


def check_texts(
    trusted: Source,
    inputs: Source | None = None,
    *,
    fpr: float = 0.01,
    calibration: Source | None = None,
    model: LanguageModel | None = None,
    apart: bool = True,
) -> CheckReport:
    """What there is to say of texts before their gradients are taken: lengths, cuts, refusals, rates, time, memory."""
    figures: dict[str, Any] = {"n_trusted": len(trusted), "n_inputs": None if inputs is None else len(inputs)}
    findings = [] if model is None else [template(model)]
    sources = {"Trusted texts": trusted, "Texts": inputs, "Calibration texts": calibration}
    there = {role: source for role, source in sources.items() if source is not None}
    for role, source in there.items():
        more, record = _described(role, source)
        findings += more
        figures[role] = record
    findings += _lengths_apart(figures)
    known = set(trusted.digests())
    for role in ("Texts", "Calibration texts") if apart else ("Calibration texts",):
        same = sum(digest in known for digest in there[role].digests()) if role in there else 0
        if same:
            text = f"{same} of them, with their answers, are trusted texts as well."
            findings.append(Finding("warning", f"{role} that are trusted ones", text, "Take them out of either set."))
    findings += sets.enough(trusted)
    finding, more = sets.resolution(len(trusted), None if calibration is None else len(calibration), fpr)
    findings.append(finding)
    if model is not None:
        found, record = cost(model, [source for source in there.values() if isinstance(source, TextSource)])
        findings += found
        more = {**more, **record}
    return CheckReport(findings, {**figures, **more})


def template(model: LanguageModel) -> Finding:
    """Whether conversations can be put to the model in its own words."""
    if getattr(model.tokenizer, "chat_template", None):
        return Finding("ok", "Chat template", "The tokenizer has one; `messages` go through it, `prompt` as it stands.")
    text = "The tokenizer has none: texts with `messages` are refused, `prompt` is read as it stands."
    return Finding("note", "Chat template", text)


def refusals(source: TextSource) -> float | None:
    """Share of answers that begin as refusals do; None where texts have no answers."""
    answers = [text.completion.strip().lower() for text in source.texts if text.completion is not None]
    return float(np.mean([answer.startswith(REFUSALS) for answer in answers])) if answers else None


def _described(role: str, source: Source) -> tuple[list[Finding], dict[str, Any]]:
    if not isinstance(source, TextSource):
        return [Finding("ok", role, f"{len(source)} of {source.name}.", "")], {}
    tokens = [source.tokens[i] for i in source.index]
    prompts = np.array([text.anchor + 1 for text in tokens])
    answers = np.array([len(text.targets) for text in tokens])
    cut = int(sum(text.cut > 0 for text in tokens))
    refused = refusals(source)
    said = f"{len(source)} of {source.name}; prompts of {_spread(prompts)} tokens"
    said += f", answers of {_spread(answers)}" if answers.any() else ""
    said += f"; {refused:.0%} of the answers refuse" if refused is not None else ""
    record = {
        "prompt_tokens": _quantiles(prompts), "answer_tokens": _quantiles(answers), "cut": cut, "refusals": refused,
        "tokens": int(sum(map(len, tokens))),
    }  # fmt: skip
    found = [Finding("ok", role, f"{said}.", "")]
    if cut:
        text = f"{cut} of {len(tokens)} are too long and lose tokens from their prompt's left."
        found.append(Finding("warning", f"{role} cut", text, "Raise --max-length, or ask for fewer --max-new-tokens."))
    return found, record


def _spread(lengths: np.ndarray) -> str:
    return f"{int(np.median(lengths))} ({int(lengths.min())} to {int(lengths.max())})"


def _quantiles(lengths: np.ndarray) -> list[int]:
    """Smallest, median, 95 % and largest."""
    return [int(value) for value in np.quantile(lengths, [0, 0.5, 0.95, 1])]


def _lengths_apart(figures: dict[str, Any]) -> list[Finding]:
    """Inputs much longer than what is trusted: they may be flagged for that alone."""
    one, other = figures.get("Trusted texts"), figures.get("Texts")
    if not one or not other:
        return []
    theirs, longest = other["prompt_tokens"][1], one["prompt_tokens"][2]
    if theirs <= max(longest, LONGER * one["prompt_tokens"][1]):
        return []
    text = f"Half of the texts have prompts of {theirs} tokens or more, and 95 % of the trusted ones at most {longest}."
    return [Finding("warning", "Lengths apart", text, "Trust prompts of all lengths that are asked.")]


def cost(model: LanguageModel, sources: list[TextSource]) -> tuple[list[Finding], dict[str, Any]]:
    """Time and memory that rows of all texts will take, from one timed forward pass."""
    every = [source.tokens[i] for source in sources for i in source.index]
    total = sum(map(len, every))
    some = sorted(every, key=len)[len(every) // 2]
    ids = torch.tensor([some.ids], device=next(model.module.parameters()).device)
    with torch.no_grad():
        model.module(input_ids=ids)
        started = time.perf_counter()
        model.module(input_ids=ids)
    seconds = FORWARDS * (time.perf_counter() - started) / len(some) * total
    weights = sum(p.numel() * p.element_size() for p in model.module.parameters()) / 2**30
    memory = weights + PASS_GIB + AROUND_GIB
    said = f"{total:,} tokens in {model.dtype}: about {max(seconds / 60, 0.1):.1f} min here and now, {memory:.1f} GiB."
    found = [Finding("ok", "Time and memory", said, "")]
    faster = dtype_for(next(model.module.parameters()).device.type)
    if faster != model.dtype == "float32" and seconds > 60:
        text = f"This processor computes in {faster}, several times as fast."
        found.append(Finding("note", "Precision", text, "Pass --dtype auto."))
    return found, {"tokens": total, "seconds": seconds, "memory_gib": memory, "dtype": model.dtype}
