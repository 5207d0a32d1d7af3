"""What people see in the terminal: progress, tables, errors. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from covary.cli.verbosity import QUIET, VERBOSE, level
from covary.runs.display import SILENT, Display, Progress

PATIENCE = 2.0
# Seconds between lines where no terminal shows a bar.
EVERY, VERBOSE_EVERY = 30.0, 5.0
_MARKS = {
    "ok": "[green]ok     [/]",
    "note": "[cyan]note   [/]",
    "warning": "[yellow]warning[/]",
    "error": "[red]error  [/]",
}

stdout = Console(highlight=False, soft_wrap=True)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


class _Bar:
    """A progress bar with rate and time left that appears only once the work has taken two seconds."""

    def __init__(self, what: str) -> None:
        self.what, self.started, self.bar, self.task = what, time.monotonic(), None, None

    def __call__(self, done: int, total: int) -> None:
        elapsed = time.monotonic() - self.started
        if self.bar is None:
            if elapsed < PATIENCE:
                return
            self.bar = Bars(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=stderr, transient=True,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=total, rate="")
        assert self.task is not None
        self.bar.update(self.task, completed=done, total=total, rate=f"{done / max(elapsed, 1e-9):.0f}/s")


class _Lines:
    """Progress where nobody watches a terminal: a line every half minute, so that a log shows the work is alive.

    Also while a step takes longer than that: a thread of its own then says how far the work was.
    """

    def __init__(self, what: str) -> None:
        self.what, self.started = what, time.monotonic()
        self.next = self.started + every()
        self.done, self.total = 0, 0

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if time.monotonic() >= self.next:
            self.say()

    def say(self) -> None:
        """One line."""
        now = time.monotonic()
        self.next = now + every()
        if not self.total:
            stderr.print(f"{self.what}: {duration(now - self.started)} so far")
            return
        if self.done >= self.total:
            gone = duration(now - self.started)
            stderr.print(f"{self.what}: all {self.total:,} read, working out the rest; {gone} so far", highlight=False)
            return
        rate = self.done / max(now - self.started, 1e-9)
        left = f", about {duration((self.total - self.done) / rate)} left" if self.done else ""
        share = f" ({100 * self.done / self.total:.0f} %)"
        stderr.print(f"{self.what}: {self.done:,} of {self.total:,}{share}, {rate:.3g}/s{left}", highlight=False)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Says a line whenever none was said for as long as that."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(max(self.next - time.monotonic(), 0.01)):
                if time.monotonic() >= self.next:
                    self.say()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def every() -> float:
    """Seconds between two lines."""
    return VERBOSE_EVERY if level() >= VERBOSE else EVERY


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Terminal(Display):
    """Bars and spinners on stderr for work that takes longer than two seconds; lines where stderr is no terminal."""

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress | None]:
        """A callback (done, total) that tells rate and time left."""
        if not stderr.is_terminal:
            lines = _Lines(what)
            with lines.alive():
                yield lines
            return
        bar = _Bar(what)
        try:
            yield bar
        finally:
            if bar.bar is not None:
                bar.bar.stop()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """The time gone by."""
        started = time.monotonic()
        if level() >= VERBOSE:
            stderr.print(f"{what} ...")
        with self._spinner(what) if stderr.is_terminal else _Lines(what).alive():
            yield
        if level() >= VERBOSE:
            stderr.print(f"{what}: {time.monotonic() - started:.1f} s")

    @contextmanager
    def _spinner(self, what: str) -> Iterator[None]:
        spinner = Bars(SpinnerColumn(), TextColumn(what), TimeElapsedColumn(), console=stderr, transient=True)
        spinner.add_task(what, total=None)
        timer = threading.Timer(PATIENCE, spinner.start)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            if spinner.live.is_started:
                spinner.stop()

    def findings(self, findings: list[dict[str, Any]]) -> None:
        """What needs attention."""
        print_findings(findings, everything=False)


def terminal(quiet: bool) -> Display:
    """What a command shows on stderr while it works; nothing with `--quiet`, nor with `--json` unless `-v` asks."""
    return SILENT if level() <= QUIET or (quiet and level() < VERBOSE) else Terminal()


def print_json(value: Any) -> None:
    """One JSON document on stdout and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def as_flags(message: str, flags: Mapping[str, str]) -> str:
    """Python's arguments in a sentence as options of the command line: `space=last` becomes `--space last`.

    The library names arguments `name=` or `name=value`; `flags` gives the option of each name, and that of
    `name=False` where it has one of its own.
    """

    def flag(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name not in flags:
            return found[0]
        if value == "False" and f"{name}=False" in flags:
            return flags[f"{name}=False"]
        return flags[name] if value in ("", "True") else f"{flags[name]} {value}"

    return re.sub(r"(?<![\w-])([a-z][a-z_]*)=([\w./:\[-]*)", flag, message)


def print_error(message: str) -> None:
    """One sentence on stderr."""
    stderr.print(f"[red]error[/]: {escape(message)}")


def print_warning(message: str) -> None:
    """One sentence on stderr that stops nothing."""
    stderr.print(f"[yellow]warning[/]: {escape(message)}")


def print_findings(findings: list[dict[str, Any]], *, everything: bool) -> None:
    """What a check found, on stdout; in the course of other work what needs attention alone, on stderr."""
    from covary.cli.main import option_names  # which prints with this module

    console, flags = stdout if everything else stderr, option_names()
    for finding in findings:
        if everything or finding["level"] in ("warning", "error"):
            mark = _MARKS.get(finding["level"], finding["level"])
            console.print(f"{mark} [bold]{escape(finding['title'])}[/]: {escape(as_flags(finding['text'], flags))}")
            if finding.get("change"):
                console.print(f"        [dim]{escape(as_flags(finding['change'], flags))}[/]")


def print_differences(found: Mapping[str, Any]) -> None:
    """Whether a folder is what its receipt says, and what differs."""
    for difference in found["differences"]:
        stdout.print(f"[red]differs[/] [bold]{escape(difference['name'])}[/] {escape(difference['what'])}")
    if found["intact"]:
        signed = f", signed with the key {found['signed_by']}" if found["signed_by"] else ""
        stdout.print(f"[green]intact[/] {escape(found['folder'])}: receipt {found['receipt']}{signed}")
    for note in found["notes"]:
        stdout.print(f"  [dim]{escape(as_flags(note, {'public_key': '--public-key'}))}[/]")


def print_gate(found: Mapping[str, Any]) -> None:
    """Each rule with what was found, then the decision."""
    for rule in found["rules"]:
        mark = "[green]passed[/]" if rule["passed"] else "[red]failed[/]"
        stdout.print(f"{mark} [bold]{escape(rule['rule'])}[/]: {escape(rule['found'])}")
    stdout.print(f"[bold]{'passed' if found['passed'] else 'failed'}[/] {escape(found['run'])}")


def print_record(record: Mapping[str, Any]) -> None:
    """What a folder holds, one line a fact."""
    table = Table(show_header=False, box=None, padding=(0, 2), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(record):
        table.add_row(name, escape(value))
    stdout.print(table)


def _facts(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            yield from _facts(inner, f"{name}.")
        elif isinstance(inner, list) and inner and all(isinstance(item, str) for item in inner):
            yield name, "\n".join(inner)
        elif inner is not None and inner != []:
            yield name, str(inner)


def _percent(value: float | None) -> str:
    return "not known" if value is None else f"{100 * value:.2f} %"


def print_summary(summary: dict[str, Any], where: Any) -> None:
    """The answer first, then what it rests on."""
    rule = (
        f"an expected share of false alarms of {summary['fdr']:g}"
        if summary.get("fdr")
        else f"a false-alarm rate of {100 * summary['fpr_in_force']:.3g} %"
    )
    stdout.print(f"[bold]{summary['n_flagged']:,} of {summary['n']:,} inputs flagged[/] at {rule}.")
    for statement in summary["statements"]:
        stdout.print(f"  {escape(statement)}")
    for row in summary.get("highest", []):
        stdout.print(f"  highest: {escape(row['id'])}, score {row['score']:.2f}, p-value {row['p_value']:.2g}")
    table = Table(show_header=False, box=None, padding=(0, 2))
    n = summary
    table.add_row("trusted", f"{n['n_reference']} reference, {n['n_fit']} fit, {n['n_calibration']} calibration"
                  f" ({n['calibration']}); smallest p-value {n['p_min']:.4g}")  # fmt: skip
    if summary.get("n_clean"):
        low, high = summary["fpr_interval"]
        table.add_row("false alarms", f"{_percent(summary['fpr'])} of {summary['n_clean']} clean inputs "
                      f"(99 % of the time within {_percent(low)} to {_percent(high)})")  # fmt: skip
    if summary.get("fpr_right") is not None:
        table.add_row("  answered right", f"{_percent(summary['fpr_right'])} of {summary['n_clean_right']}")
    if summary.get("n_anomalous"):
        table.add_row("caught", f"{_percent(summary['tpr'])} of {summary['n_anomalous']} anomalous inputs")
    if summary.get("auroc") is not None:
        which, kind = ("auroc", "all inputs") if summary["auroc_masked"] is None else ("auroc_masked", "masked")
        table.add_row("AUROC", f"{summary[which]:.4f} ({kind})")
        parts = ", ".join(f"{k} {v:.4f}" for k, v in summary["auroc_parts"].items() if v is not None)
        if parts:
            table.add_row("  of each part", parts)
    if summary.get("der") is not None:
        ceiling, only = summary["der_ceiling"], summary["der_masked"]
        table.add_row("DER", f"{summary['der']:.4f} (ceiling {ceiling:.4f}), masked {only:.4f}")
    if summary.get("replay") is not None:
        changed = ", ".join(summary["replay"]["changed"])
        same = "identical" if summary["replay"]["identical"] else "different"
        table.add_row("replay", f"{same} results" + (f"; changed: {changed}" if changed else ""))
    table.add_row("time", f"{summary['seconds']:.1f} s")
    table.add_row("written to", str(where))
    stdout.print(table)
