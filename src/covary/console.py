"""What people see in the terminal: progress, tables, errors. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

PATIENCE = 2.0
_MARKS = {"ok": "[green]ok[/]", "note": "[cyan]note[/]", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}

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
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=stderr, transient=True,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=total, rate="")
        assert self.task is not None
        self.bar.update(self.task, completed=done, total=total, rate=f"{done / max(elapsed, 1e-9):.0f}/s")


@contextmanager
def progress(what: str) -> Iterator[_Bar]:
    """A callback (done, total) that draws a bar on stderr when the work is long."""
    bar = _Bar(what)
    try:
        yield bar
    finally:
        if bar.bar is not None:
            bar.bar.stop()


def print_json(value: Any) -> None:
    """One JSON document on stdout and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_error(message: str) -> None:
    """One sentence on stderr."""
    stderr.print(f"[red]error[/]: {escape(message)}")


def print_findings(findings: list[dict[str, Any]], *, everything: bool) -> None:
    """What a check found; only what needs attention unless `everything`."""
    for finding in findings:
        if everything or finding["level"] in ("warning", "error"):
            mark = _MARKS.get(finding["level"], finding["level"])
            stderr.print(f"{mark:>8} [bold]{escape(finding['title'])}[/] {escape(finding['text'])}")
            if finding.get("change"):
                stderr.print(f"         [dim]{escape(finding['change'])}[/]")


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
    table = Table(show_header=False, box=None, padding=(0, 2))
    n = summary
    table.add_row("trusted", f"{n['n_reference']} reference, {n['n_fit']} fit, {n['n_calibration']} calibration"
                  f" ({n['calibration']}); smallest p-value {n['p_min']:.4g}")  # fmt: skip
    if summary.get("auroc") is not None:
        low, high = summary["fpr_interval"]
        which = "auroc_masked" if summary.get("auroc_masked") is not None else "auroc"
        kind = "masked" if which == "auroc_masked" else "all inputs"
        table.add_row("AUROC", f"{summary[which]:.4f} ({kind})")
        table.add_row("  of each part", ", ".join(f"{k} {v:.4f}" for k, v in summary["auroc_parts"].items() if v is not None))
        table.add_row("false alarms", f"{_percent(summary['fpr'])} of {summary['n_clean']} clean inputs "
                      f"(99 % of the time within {_percent(low)} to {_percent(high)})")  # fmt: skip
        table.add_row("caught", f"{_percent(summary['tpr'])} of {summary['n_anomalous']} anomalous inputs")
        if summary.get("der") is not None:
            table.add_row("DER", f"{summary['der']:.4f} (ceiling {summary['der_ceiling']:.4f}), masked {summary['der_masked']:.4f}")
    table.add_row("time", f"{summary['seconds']:.1f} s")
    table.add_row("written to", str(where))
    stdout.print(table)
