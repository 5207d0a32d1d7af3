"""`covary doctor`: whether this installation works."""

from __future__ import annotations

from typer import Exit

from covary.cli.console import print_findings, print_json
from covary.cli.options import Device, Json


def doctor(device: Device = None, json: Json = False) -> None:
    """Tell versions, devices and extras, and try a small detector; exit 1 where it does not flag what it should.

    **Example**

    `covary doctor`
    """
    from covary.runs.doctor import examine

    report = examine(device or "cpu")
    if json:
        print_json(report.to_json())
    else:
        print_findings(report.to_json()["findings"], everything=True)
    raise Exit(0 if report.ok else 1)
