"""What is shipped: a wheel and an sdist that build, install into an environment of their own, and run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from fake_run import write_fake_run

ROOT = Path(__file__).parents[1]
VERSION = metadata.version("covary")


def run(*command: object, **options) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel made from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The programs of an environment that has the wheel; what it depends on is borrowed, since torch is large."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home)
    wheel = next(built.glob("*.whl"))
    run(sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    packages = run(home / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A folder named in a .pth file lends its packages, not its own .pth files: not the editable install.
    (Path(packages) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_the_wheel_holds_all_the_package_and_nothing_else(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    shipped = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "covary").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    page = {f"covary/runs/report/report.{kind}" for kind in ("html.jinja", "css", "js")}
    assert page <= shipped
    assert shipped <= names
    assert all(name in shipped or ".dist-info/" in name for name in names)


def test_the_sdist_holds_tests_and_no_rubbish(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames()]
    assert {"pyproject.toml", "README.md", "Makefile", "constraints.txt", "tests/conftest.py"} <= set(names)
    made = [name for name in names if not name.startswith("tests/former/")]
    assert not [name for name in made if re.search(r"__pycache__|\.venv|^cache/|^runs/|\.npz$|\.safetensors$", name)]


def test_it_runs_in_an_environment_of_its_own(installed, tmp_path):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = run(installed / "python", "-c", "import covary; print(covary.__file__)", cwd=tmp_path, env=clean)
    assert str(ROOT) not in where
    assert "covary" in run(installed / "covary", "--help", cwd=tmp_path, env=clean)
    assert VERSION in run(installed / "covary", "--version", cwd=tmp_path, env=clean)
    write_fake_run(tmp_path / "run")
    message = run(installed / "covary", "report", "run", "--json", cwd=tmp_path, env=clean)
    assert "report.html" in message
    assert "<title>" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_one_version():
    import covary

    assert covary.__version__ == VERSION


def test_every_dependency_is_pinned_for_make_and_none_is_pinned_for_users():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    known = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    for requirement in metadata.requires("covary") or []:
        name = re.match(r"[\w.-]+", requirement)[0]
        assert "==" not in requirement.partition(";")[0]
        if re.search(r"extra == ['\"]vision", requirement):
            continue  # installed by no make target: not every build of torch has its twin
        assert name == "covary" or ">=" in requirement
        assert name == "covary" or re.sub(r"[-_.]+", "-", name).lower() in known, name
