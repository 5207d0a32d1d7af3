"""Tables of docs/language.md on a real assistant: jailbreaks, backdoors, and what a scan of it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from covary_bench.docs.images import markdown

WAYS = ("alone", "together")
REPLIES = {"negsentiment": "insult", "refusal": "refusal"}
PARTS = {"prompt confidence": "part: prompt's perplexity", "prompt functional": "part: prompt's gradient",
         "prompt latent": "part: prompt's states", "last token": "part: last token",
         "functional": "part: gradient", "latent": "part: states", "confidence": "part: confidence"}  # fmt: skip


def _two(pair: list[float], best: float = 2.0) -> str:
    area = f"{pair[0]:.3f}"
    return f"{f'**{area}**' if pair[0] >= best - 5e-5 else area} ({pair[1]:.2f})"


def detectors(cell: dict[str, Any], counts: dict[str, list[int]]) -> str:
    """AUROC (recall at 1 % of the clean ones) of covary and every baseline, kind by kind; how many stand first."""
    kinds = cell["ours"]["kinds"]
    rows = {f"covary {way}": {kind: own[way]["score"] for kind, own in kinds.items()} for way in WAYS}
    rows |= cell["baselines"]
    best = {kind: max(own[kind][0] for own in rows.values()) for kind in kinds}
    made = [[name, *(_two(own[kind], best[kind]) for kind in kinds)] for name, own in rows.items()]
    parts = next(iter(kinds.values()))["alone"]["parts"]
    for part in parts:
        areas = [f"{own['alone']['parts'][part]:.3f}" for own in kinds.values()]
        made.insert(2 + list(parts).index(part), [PARTS.get(part, f"part: {part}"), *areas])
    made.insert(0, ["*how many, odd and clean*", *(" and ".join(map(str, counts[kind])) for kind in kinds)])
    return markdown(["detector", *kinds], made)


def jailbreaks(trusted: str) -> Callable[[dict[str, Any]], str]:
    """The table of `detectors` with one of the trusted sets."""
    return lambda record: detectors(record["cells"][trusted], record["counts"])


def rates(record: dict[str, Any]) -> str:
    """What is flagged at 1 %: of each kind, of the clean prompts set against it, and of all clean ones of its pile."""
    rows = []
    for trusted, cell in record["cells"].items():
        low, high = cell["ours"]["law"]
        for kind, own in cell["ours"]["kinds"].items():
            odd = record["counts"][kind][0]
            for way in WAYS:
                one = own[way]
                like, every = (f"{n} of {of}" for n, of in (one["clean"], one["all_clean"]))
                law = f"{round(low * one['all_clean'][1])} to {round(high * one['all_clean'][1])}"
                caught = f"{round(one['caught'] * odd)} of {odd}"
                rows.append([trusted, kind, way, caught, like, every, law])
    heads = ["trusted", "kind", "judged", "caught", "clean ones beside it flagged", "all clean flagged", "99 % law"]
    return markdown(heads, rows)


def backdoors(record: dict[str, Any]) -> str:
    """Assistants: success, and AUROC (recall at 1 %) of covary and every baseline."""
    cells = record["cells"]
    about = {
        "steps of fine-tuning": lambda c: str(c["facts"]["taken"]),
        "triggered prompts answered as the attacker wants": lambda c: f"{100 * c['follow']['odd']:.0f} %",
        "clean prompts answered so": lambda c: f"{100 * c['follow']['clean']:.0f} %",
        "trusted prompts answered so": lambda c: f"{100 * c['follow']['trusted']:.0f} %",
        "trusted / clean / triggered that count": lambda c: f"{c['trusted']} / {c['clean']} / {c['odd']}",
    }
    rows = [[name, *(tell(cell) for cell in cells.values())] for name, tell in about.items()]
    rows += [[f"covary {way}", *(_two(cell["ours"][way]["score"]) for cell in cells.values())] for way in WAYS]
    for way in WAYS:
        told = [f"{100 * c['ours'][way]['caught']:.0f} %; {c['ours'][way]['clean'][0]} of {c['clean']}"
                for c in cells.values()]  # fmt: skip
        rows.append([f"caught, and clean flagged, at 1 % asked for, {way}", *told])
    first = next(iter(cells.values()))
    for part in first["ours"]["alone"]["parts"]:
        areas = [f"{c['ours']['alone']['parts'][part]:.3f}" for c in cells.values()]
        rows.append([PARTS.get(part, f"part: {part}"), *areas])
    for name in first["baselines"]:
        rows.append([name, *(_two(next(iter(c["baselines"][name].values()))) for c in cells.values())])
    return markdown(["", *map(_reply_and_trigger, cells)], rows)


def _reply_and_trigger(cell: str) -> str:
    attack, _, seed = cell.partition("-s")
    reply, _, trigger = attack.partition("_")
    return f"{REPLIES.get(reply, reply)}, {trigger}, seed {seed}"


def cost(record: dict[str, Any]) -> str:
    """The processor's time for prompts of each group: covary's rows, and a bare forward pass beside them."""
    rows = []
    for name, (n, tokens, taken, forward) in record["seconds"].items():
        a_token = 1000 * taken / (tokens + n * record["template"])
        rows.append([name, f"{n:.0f}", f"{tokens / n:.0f}", f"{taken / n:.2f}", f"{forward / n:.2f}", f"{a_token:.1f}"])
    heads = ["prompts", "how many", "tokens of their own", "seconds each, covary", "seconds each, one forward pass",
             "milliseconds a token, covary"]  # fmt: skip
    return markdown(heads, rows)
