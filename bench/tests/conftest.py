"""Fixtures of the benchmark's tests; tiny networks and data are those of covary's own (folder `tests`)."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from covary.cli import main as covary_cli
from covary_bench import cli
from covary_bench.images.victims import VICTIMS
from threads import one_thread  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def short_training():
    """Victims on digits are trained for two fifths of their epochs: backdoored all the same, right on 96 %."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VICTIMS, "digits", replace(VICTIMS["digits"], epochs=8))
        yield


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Runs `covary-bench ARGUMENTS`, or `covary ARGUMENTS` with covary=True, in this process: code, stdout, stderr."""

    def run(*arguments: object, covary: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["covary" if covary else "covary-bench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            (covary_cli if covary else cli).main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run
