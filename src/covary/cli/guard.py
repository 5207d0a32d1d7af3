"""The command `covary guard`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape
from typer import Argument, Exit, Option

from covary.cli.console import print_json, stderr, stdout, terminal
from covary.cli.options import Consent, Json, Machine, grouped, settings
from covary.errors import CovaryError

if TYPE_CHECKING:
    from covary.detector import Detector
    from covary.serving.guard import Guard, Piece
    from covary.text.records import Text
    from covary.text.streaming import Choice

LINES = "-"
ANSWERS = "The answers"
GUARDED = "The guard of a language model"
Every = Annotated[
    int | None,
    Option("--every", min=1, help="Tokens between two looks; 8, or what --keep has.", rich_help_panel=GUARDED),
]
Policy = Annotated[
    str, Option("--policy", help="stop, mark or log: what becomes of a flagged answer.", rich_help_panel=GUARDED)
]
FalseStopRate = Annotated[
    float | None,
    Option("--false-stop-rate", help="Share of clean answers that are flagged at any look; else the detector's --fpr.",
           rich_help_panel=GUARDED),
]  # fmt: skip
Keep = Annotated[
    Path | None,
    Option("--keep", help="Folder of what the guard learns: read where it is there, else written.",
           rich_help_panel=GUARDED),
]  # fmt: skip


@grouped
def guard(
    *,
    detector: Annotated[Path, Argument(help="Folder written by `covary fit --hf`.")],
    data: Annotated[
        str | None, Argument(help="Prompts: .jsonl, .parquet or .txt; - or nothing = a prompt a line of stdin.")
    ] = None,
    prompt: Annotated[str | None, Option("--prompt", help="One prompt, in place of DATA.")] = None,
    hf: Annotated[str | None, Option("--hf", help="The language model, where it lies elsewhere now.")] = None,
    every: Every = None,
    policy: Policy = "stop",
    false_stop_rate: FalseStopRate = None,
    keep: Keep = None,
    log: Annotated[Path | None, Option("--log", help="File that gets one JSON line a look.")] = None,
    max_new_tokens: Annotated[
        int | None, Option("--max-new-tokens", min=1, help="Of an answer; else as many as the detector asks for.",
                           rich_help_panel=ANSWERS)
    ] = None,
    temperature: Annotated[
        float, Option("--temperature", min=0, help="0 = always the likeliest token.", rich_help_panel=ANSWERS)
    ] = 0.0,
    seed: Annotated[int | None, Option("--seed", help="Of the lots of answers.", rich_help_panel=ANSWERS)] = None,
    fail_on_flag: Annotated[bool, Option("--fail-on-flag", help="Exit with 1 when anything is flagged.")] = False,
    machine: Machine,
    consent: Consent,
    json: Json = False,
) -> None:  # fmt: skip
    """Answer prompts with a language model under guard: a verdict on the prompt, then every few tokens of the answer.

    **Examples**

    `covary guard detectors/assistant --prompt "Name three rivers."`

    `covary guard detectors/assistant prompts.jsonl --every 4 --policy mark --log guard.jsonl --keep detectors/guard`
    """
    from covary.detector import Detector
    from covary.serving.guard.guard import check_guardable
    from covary.text.streaming import Choice

    if prompt is not None and data is not None:
        raise CovaryError("DATA and --prompt", "one of them")
    if policy == "log" and log is None and not json:
        raise CovaryError("--policy log without --log", "the file that is told", "add --log FILE")
    choice = Choice(temperature, seed=seed)
    fitted = Detector.load(detector, hf, **settings(machine, consent))
    check_guardable(fitted)
    texts = _prompts(data, prompt, asks=not json)
    watchful = prepared(fitted, keep, every=every, policy=policy, fpr=false_stop_rate, log=log, quiet=json)
    if not json:
        for statement in watchful.statements:
            stderr.print(f"[dim]{escape(statement)}[/]")
    answers = []
    for text in texts:
        answers.append(_answered(watchful, text, max_new_tokens, choice, shows=not json))
    n_flagged = sum(one["flagged"] for one in answers)
    if json:
        told = {"false_stop_rate": watchful.fpr_in_force, "every": watchful.every, "policy": policy}
        statements = {"statements": watchful.statements}
        print_json({"n": len(answers), "n_flagged": n_flagged, **told, **statements, "answers": answers})
    raise Exit(int(fail_on_flag and n_flagged > 0))


def prepared(
    detector: Detector, keep: Path | None, *, every: int | None, policy: str, fpr: float | None,
    log: Path | None = None, quiet: bool = False,
) -> Guard:  # fmt: skip
    """The guard that lies at `keep`, or a new one, which is then kept there."""
    from covary.serving.guard import Guard
    from covary.serving.guard.guard import EVERY

    options: dict[str, Any] = {"policy": policy, "fpr": fpr, "log": log}
    if keep is not None and keep.exists():
        with terminal(quiet).waiting("reading the guard"):
            return Guard.load(keep, detector, every=every, **options)
    with terminal(quiet).progress("learning looks") as progress:
        made = Guard(detector, every=every or EVERY, progress=progress, **options)
    if keep is not None:
        made.save(keep)
    return made


def _prompts(data: str | None, prompt: str | None, asks: bool) -> Iterable[Text]:
    from covary.text.records import read_texts

    if prompt is not None:
        return read_texts([{"id": "prompt", "prompt": prompt}])
    return read_texts(data) if data not in (None, LINES) else _lines(asks and sys.stdin.isatty())


def _lines(asks: bool) -> Iterator[Text]:
    from covary.text.records import Text

    number = 0
    while True:
        if asks:
            stderr.print("[bold]>[/] ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield Text(str(number), prompt=line.rstrip("\r\n"))
            number += 1


def _answered(guard: Guard, text: Text, most: int | None, choice: Choice, shows: bool) -> dict[str, Any]:
    """One prompt answered, shown as it is written, and what is told of it."""
    from covary.serving.guard import guarded
    from covary.text.streaming import written
    from covary.text.tokens import tokenise

    own = guard.detector.extractor.own
    most = int(most or own.max_new_tokens)
    longest = guard.model.longest if own.max_length is None else own.max_length
    watch = guard.begin(text, text.id, None if longest is None else max(longest - most, 1))
    # An answer that is there already is watched as if it were being written.
    tokens: Iterable[int] = written(guard.model, watch.prompt.ids, most, choice)
    if text.completion is not None:
        tokens = tokenise(guard.model, text).targets
    pieces = []
    for piece in guarded(watch, tokens):
        if shows:
            told = any(one.verdict.flagged for one in pieces)
            _show(piece, text.id, first=not pieces, marks=guard.policy != "log", told=told)
        pieces.append(piece)
    verdict = watch.verdict
    looks = [
        {"tokens": one.tokens, "score": one.score, "p_value": one.p_value, "flagged": one.flagged}
        for one in watch.verdicts
    ]
    return {
        "id": text.id, "answer": "".join(piece.text for piece in pieces), "finish": pieces[-1].finish,
        "tokens": len(watch.answer), "score": verdict.score, "p_value": verdict.p_value, "flagged": verdict.flagged,
        "forwards_per_token": verdict.forwards_per_token, "looks": looks,
    }  # fmt: skip


def _show(piece: Piece, name: str, *, first: bool, marks: bool, told: bool) -> None:
    """What one token adds, and the verdict where it is first given and where it flags."""
    verdict = piece.verdict
    if first:
        stdout.print(f"[bold]{escape(name)}[/] ", end="")
        if marks:
            colour = "red" if verdict.flagged else "dim"
            stdout.print(f"[{colour}]\\[prompt: p = {verdict.p_value:.2g}][/] ", end="")
    elif marks and verdict.flagged and not told:
        stdout.print(f"[red]\\[flagged after {verdict.tokens} tokens: p = {verdict.p_value:.2g}][/]", end="")
    stdout.print(escape(piece.text), end="")
    if piece.finish:
        stdout.print(f" [dim]\\[{'stopped' if piece.finish == 'flagged' else piece.finish}][/]")
    stdout.file.flush()
