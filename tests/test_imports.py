"""What is imported when: no torch for `--help`, no extra for the base install, and imports that go downwards."""

from __future__ import annotations

import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import covary

ROOT = Path(__file__).parents[1]
EXTRAS = (
    "cryptography", "mkdocs",
    "mlxtend", "matplotlib", "pytorch_lightning", "mlflow", "wandb", "datasets",
    "pandas", "pyarrow", "ray", "xarray", "zarr", "arviz_stats", "hypothesis", "pytest",
    "selenium", "fastapi", "starlette", "uvicorn", "prometheus_client", "tritonclient", "httpx",
)  # fmt: skip
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(covary.__path__, "covary.")
    if module.name != "covary.__main__"
)

BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def python(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)


def test_import_and_help_load_no_torch():
    code = """
import sys
import covary
from covary.cli import main as cli
for arguments in (["--help"], ["scan", "--help"], ["--version"]):
    sys.argv = ["covary", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        assert ended.code == 0
heavy = {"torch", "numpy", "scipy", "sklearn", "jinja2"} & set(sys.modules)
assert not heavy, heavy
assert covary.Detector.__name__ == "Detector"
assert "torch" in sys.modules
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    for name in covary.__all__:
        assert getattr(covary, name) is not None
    assert not hasattr(covary, "nothing")


def test_the_base_install_needs_no_extra():
    assert len(MODULES) > 60
    imports = "\n".join(f"import {name}" for name in MODULES)
    done = python(BLOCK + imports)
    assert done.returncode == 0, done.stderr


def test_what_an_extra_would_bring_is_said(tmp_path):
    code = BLOCK + "sys.argv = ['covary', 'demo', '--out', 'run']\nfrom covary.cli.main import main\nmain()"
    done = python(code, cwd=tmp_path)
    assert done.returncode == 2
    assert "mlxtend is not installed; expected the extra `demo`; run: pip install 'covary[demo]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_imports_go_downwards():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_file_in_the_root_has_no_place_until_it_is_given_one(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "bench" / "src", tmp_path / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "src" / "covary" / "helpers.py").write_text('"""Anything."""\n')
    lint = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}{os.pathsep}{tmp_path / 'bench'}"}
    done = subprocess.run([lint, "--no-cache"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode != 0
    assert "helpers" in done.stdout
