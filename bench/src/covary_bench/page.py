"""One HTML page for a table: the figures and the plots, with nothing fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment

from covary_bench import plots
from covary_bench.scoring import OURS

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }} – covary bench</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0 2rem }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } tr.ours td { font-weight: 600 }
figure { margin: 1.5rem 0; overflow-x: auto } figure svg { max-width: 100%; height: auto } .mark { color: #a33 }
</style></head><body>
<h1>{{ title }}</h1>
<p>Scale {{ scale }}; {{ cells|length }} cells, calibrated at a false-alarm rate of {{ fpr }}.
{% if marked %}<span class="mark">Counted 0.5: {% for name, why in marked.items() %}{{ name }} ({{ why }}){{ ", " if not loop.last }}{% endfor %}; means that count them stand in brackets.</span> {% endif %}
{% if tuning %}Settings were chosen on {{ tuning|join(", ") }}, which the means leave out.{% endif %}</p>
<table><thead><tr><th>detector</th>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr></thead><tbody>
{% for name, values in rows %}<tr{% if name == ours %} class="ours"{% endif %}><td>{{ name }}</td>{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% for caption, drawing in figures %}<figure>{{ drawing|safe }}<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
<h2>Cells</h2>
<table><thead><tr><th>cell</th>{% for head in cell_heads %}<th>{{ head }}</th>{% endfor %}</tr></thead><tbody>
{% for name, values in cell_rows %}<tr><td>{{ name }}</td>{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
</body></html>
"""  # noqa: E501

MEANS = ("der_calibrated", "der_best", "auroc_masked", "auroc_all", "tpr_at_1", "tpr_at_5")


def page(record: Mapping[str, Any]) -> str:
    """The page; drawings are inline SVG, made by matplotlib, and left out where that is not installed."""
    environment = Environment(autoescape=True, trim_blocks=True)
    detectors = {OURS: record, **record["baselines"]}
    rows = [
        (name, [_mean(record, own, f"mean_{key}") for key in MEANS]
         + [str(own.get("cells", "")) if name != OURS else str(cells_of_ours(record)),
            _milliseconds(own.get("seconds_a_query"))])
        for name, own in detectors.items()
    ]  # fmt: skip
    cell_heads = [
        "AUROC masked",
        "same class",
        "end to end",
        "DER calibrated",
        "DER best",
        "accuracy",
        "attack success",
    ]
    return environment.from_string(_TEMPLATE).render(
        title=record["title"], scale=record["scale"], cells=record["cells"], fpr=record["fpr"],
        marked=record["marked"], tuning=record["tuning"]["cells"], heads=[*(m.replace("_", " ") for m in MEANS),
        "cells", "ms a query"], rows=rows, ours=OURS, figures=plots.drawings(record), cell_heads=cell_heads,
        cell_rows=[(name, _cell(cell)) for name, cell in record["cells"].items()],
    )  # fmt: skip


def cells_of_ours(record: Mapping[str, Any]) -> int:
    """How many held-out cells ours has figures in."""
    tuned = record["tuning"]["cells"]
    return sum("detectors" in cell for name, cell in record["cells"].items() if name not in tuned)


def _mean(record: Mapping[str, Any], own: Mapping[str, Any], figure: str) -> str:
    """A mean over measured cells; where cells count 0.5, the mean that counts them behind it."""
    if not record["marked"] or own[figure] is None:
        return _number(own[figure])
    plain = own["measured"][figure]
    return ("" if plain is None else f"{plain:.3f} ") + f"({own[figure]:.3f})"


def _cell(cell: Mapping[str, Any]) -> list[str]:
    if "missing" in cell:
        return [f"missing: {cell['missing']}", *[""] * 6]
    ours = cell["detectors"][OURS]
    same, rating = ours["same_class"] or {}, ours["der"] or {}
    values = [ours["masked"]["auroc"], same.get("auroc"), ours["end_to_end"]["auroc"],
              ours["masked"]["der_calibrated"], ours["masked"]["der_best"], rating.get("accuracy"),
              rating.get("attack_success")]  # fmt: skip
    return [_number(value) for value in values]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.1f}"
