"""Settings of the baselines: what `covary-bench tune` chose on the tuning cells, in `tables/baselines.toml`."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from covary.errors import unknown_name
from covary_bench.baselines.images import baseline
from covary_bench.table import tomllib


def settings_file() -> Path:
    """Where they are kept in an installation from source."""
    return Path(str(resources.files("covary_bench").joinpath("tables", "baselines.toml")))


@cache
def _all() -> dict[str, dict[str, Any]]:
    found = tomllib.loads(settings_file().read_text(encoding="utf-8"))
    for name, values in found.items():
        grid = baseline(name).grid
        for key in values:
            if key not in grid:
                raise unknown_name(f"setting of {name}", key, grid)
    return found


def chosen(name: str) -> dict[str, Any]:
    """The settings of one baseline; empty where it has none or keeps its defaults."""
    values = _all().get(name, {})
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def as_toml(settings: dict[str, dict[str, Any]]) -> str:
    """Settings as TOML."""

    def word(value: Any) -> str:
        return json.dumps(list(value) if isinstance(value, tuple) else value)

    head = "# Settings of the baselines, by `covary-bench tune`: best mean masked AUROC over the tuning cells.\n"
    parts = ["\n".join([f'["{name}"]', *(f"{key} = {word(value)}" for key, value in values.items())])
             for name, values in settings.items()]  # fmt: skip
    return head + "\n" + "\n\n".join(parts) + "\n"
