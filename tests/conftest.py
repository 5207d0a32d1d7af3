"""Fixtures that several test modules share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tiny
from browsers import CHROMIUM, DRIVER, FLAGS
from covary.cli import main as cli
from covary.detector import Detector
from threads import one_thread  # noqa: F401

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory) -> Path:
    """A folder with weights.safetensors, weights.pt, trusted.npz and inputs.npz; not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write_files(folder)
    return folder


@pytest.fixture(scope="session")
def fitted() -> Detector:
    """A detector fitted on the trusted digits, one split; not to be changed."""
    return Detector("tiny:trained", conformal="split").fit(tiny.trusted())


@pytest.fixture(scope="session")
def saved_folder(fitted, tmp_path_factory) -> Path:
    """The same detector in a folder; not to be changed."""
    return fitted.save(tmp_path_factory.mktemp("saved") / "detector")


@pytest.fixture
def detector_folder(saved_folder, tmp_path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(saved_folder, tmp_path / "detector"))


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Runs `covary ARGUMENTS` in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["covary", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """Chromium without a window, its log of requests and complaints kept."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()
