"""What a check has to say: findings in plain words, and the figures behind them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from covary.errors import CovaryError

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One thing a check found.

    Attributes:
        level: `ok`, `note` (worth knowing), `warning` (results may mean little) or `error` (no scan can work).
        title: what it is about, a few words.
        text: what was found, in a sentence or two.
        change: what to do about it; empty where there is nothing to do.
    """

    level: Level
    title: str
    text: str
    change: str = ""


def refusal(title: str, error: CovaryError) -> Finding:
    """An error as a finding: what was found and expected in one sentence, the remedy as the change."""
    text = error.found[:1].upper() + error.found[1:] + (f"; expected {error.expected}." if error.expected else ".")
    return Finding("error", title, text, error.remedy[:1].upper() + error.remedy[1:])


@dataclass(frozen=True)
class CheckReport:
    """All findings of a check, in the order they were made, and the figures they rest on."""

    findings: list[Finding]
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether a scan can work: no finding is an error. Warnings deserve a look all the same."""
        return not any(finding.level == "error" for finding in self.findings)

    @property
    def worst(self) -> Level:
        """The gravest level among the findings."""
        return LEVELS[max((LEVELS.index(finding.level) for finding in self.findings), default=0)]

    def of_level(self, *levels: Level) -> Iterator[Finding]:
        """The findings of these levels."""
        return (finding for finding in self.findings if finding.level in levels)

    def __str__(self) -> str:
        """One finding a line, with what to change below it."""
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.level:8}{finding.title}: {finding.text}")
            lines += [f"{'':8}{finding.change}"] if finding.change else []
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        findings = [asdict(finding) for finding in self.findings]
        return {"ok": self.ok, "worst": self.worst, "findings": findings, "figures": self.figures}


def listed(values: list[Any], most: int = 5) -> str:
    """A few values in words, and how many more there are.

    >>> listed([1, 2, 3], most=2)
    '1, 2 and 1 more'
    """
    text = ", ".join(str(value) for value in values[:most])
    return f"{text} and {len(values) - most} more" if len(values) > most else text
