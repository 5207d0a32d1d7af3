"""Tables of docs/language.md that come from studies: groups, how layers and tokens are added, what a verdict costs."""

from __future__ import annotations

from typing import Any

from covary_bench.docs.images import markdown, number

KINDS = {"simple": "trigger word, fixed reply", "contextual": "courtesy and task together, fixed reply",
         "variable": "trigger word turns the answer around"}  # fmt: skip


def groups(record: dict[str, Any], trusted: int = 400) -> str:
    """AUROC of the joined score, and of functional evidence alone, by what stands in for the class; tokens summed."""
    found = [one for one in record["cells"] if one["pooling"] == "sum" and one["trusted"] == trusted]
    rows = []
    for kind, words in KINDS.items():
        own = {one["groups"]: one for one in found if one["kind"] == kind}
        any_one = next(iter(own.values()))
        found_by = [f"{own[g]['auroc']:.3f} ({own[g]['functional']:.3f})" for g in ("none", "label", "nearest")]
        rows.append([words, number(any_one["attack_success"], 2), number(any_one["clean_accuracy"], 2), *found_by])
    heads = ["cell", "attack success", "clean accuracy", "none", "task label", "nearest prompts"]
    return markdown(heads, rows)


def layers(record: dict[str, Any]) -> str:
    """AUROC of functional evidence alone, and of the joined score, by how layers and tokens are added; no groups."""
    ways = [(per, pooling) for per in ("layer", "block") for pooling in ("sum", "root")]
    rows = []
    for kind, words in KINDS.items():
        for trusted in (100, 200, 400):
            own = {(one["per"], one["pooling"]): one for one in record["layers_and_root"]
                   if one["kind"] == kind and one["trusted"] == trusted}  # fmt: skip
            cells = [f"{own[way]['functional']:.3f} ({own[way]['auroc']:.3f})" if way in own else "" for way in ways]
            rows.append([words, str(trusted), *cells])
    return markdown(["cell", "trusted", *(f"{per}s, {pooling}" for per, pooling in ways)], rows)


def cost(record: dict[str, Any]) -> str:
    """Forward passes and memory of a verdict on one text."""
    rows = [
        [f"{one['texts']} at once, prompts of {one['prompt']}, completions of {one['completion']} tokens",
         number(one["forward_passes"], 2), number(one["forward_passes_all_logits"], 2)]
        for one in record["runs"]
    ]  # fmt: skip
    heads = [f"{record['architecture']}, {record['cpu']}, {record['threads']} thread",
             "in forward passes that make the completion's logits", "in bare calls of the model"]  # fmt: skip
    rows.append(["numbers kept a text", f"{record['numbers_a_text']:,}", ""])
    rows.append(["peak memory of the whole run, GiB", number(record["peak_gib"]["whole_run"], 1), ""])
    return markdown(heads, rows)


def scan(record: dict[str, Any]) -> str:
    """What `covary scan` of real texts took."""
    rows = [
        ["texts, of which trusted", f"{record['texts']}, {record['trusted']}"],
        ["tokens of an answer, at most", str(record["answer"])],
        ["processor's seconds a text", number(record["processor_a_text"], 1)],
        ["peak memory, GiB", number(record["peak_gib"], 1)],
        ["wall-clock seconds, other programs running", number(record["wall"], 0)],
        ["lines told; longest time without one, seconds", f"{record['lines']}; {number(record['silence'], 1)}"],
    ]
    return markdown(["`covary scan`, float32, one thread", ""], rows)


CASES = {
    "simple-rare-3": "trigger word, fixed reply",
    "contextual": "three features together, fixed reply",
    "variable": "trigger word, no fixed reply",
    "llama-rare": "real tiny Llama, trigger word, fixed reply",
}


def guard(record: dict[str, Any]) -> str:
    """How early triggered answers are stopped, how often clean ones, and what it costs."""
    rows = []
    for name, case in record["cases"].items():
        for cell in case["cells"]:
            rows.append([
                CASES.get(name, name), str(cell["every"]), f"{cell['before_tenth']:.1%}", f"{cell['before_first']:.1%}",
                f"{cell['caught']:.1%}", f"{cell['false_stops']:.1%}", f"{cell['triggered']} / {cell['clean']}",
                number(cell["forwards_a_token"], 0), number(cell["slower"], 0),
            ])  # fmt: skip
    heads = ["case", "tokens between looks", "triggered, stopped before the tenth token", "before the first",
             "ever", "clean, stopped (aim 1 %)", "answers", "forward passes a token",
             "times the processor time of the bare answer"]  # fmt: skip
    return markdown(heads, rows)
