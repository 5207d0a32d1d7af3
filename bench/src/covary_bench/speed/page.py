"""The speed record as a page: a Markdown table of what was aimed at and found, and a chart of AUROC against cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covary_bench.style import STYLE

NOT_MEASURED = "not measured"


def measure(
    sections: Sequence[str], out: Path, cases: Path, peer: Path | None, threads: int, again: bool, quiet: bool
) -> dict[str, Any]:
    """`covary-bench speed`: measures what `out`/speed-MACHINE.json lacks, and prints it."""
    from covary_bench.speed import Options, machine, run

    options = Options(cases=cases, peer=peer)
    record = run(sections, out / f"speed-{machine()}.json", options, threads=threads, again=again)
    if not quiet:
        print(markdown(record))
    return record


def rows(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, aim, found), one for each aim; whatever a section lacks is `not measured`."""
    cost, speed = record.get("feature_cost_in_forwards", {}), record.get("first_order_speedup", {})
    found = [
        (f"Features in forwards, {name} (wall; processor)", "at most 3.5", f"{c['ratio_wall']}; {c['ratio_processor']}")
        for name, c in cost.items()
        if isinstance(c, dict)
    ]
    for name, c in cost.items():
        if isinstance(c, dict) and "exact_processor" in c:
            found.append((f"Exact per-sample gradients in forwards, {name}", "", f"{c['exact_processor']}"))
    for name, s in speed.items():
        if not isinstance(s, dict) or "by_counted_forwards" not in s:
            continue
        measured = s["measured_against_devinterp"]
        found += [
            (
                f"2,000 published draws over ours, counted forwards, {name}",
                "at least 700",
                f"{s['by_counted_forwards']}",
            ),
            (f"The same, a query alone, {name}", "at least 700", f"{s['queries_alone_by_counted_forwards']}"),
            (f"The same by time against devinterp 1.3.2, multiplied out, {name}", "", f"{measured}"),
        ]
    for name, f in record.get("fidelity", {}).items():
        if isinstance(f, dict):
            found += [
                (
                    f"Couplings of compressed rows, least layer, {name}",
                    "r at least 0.95",
                    f"{f['covariance_layer_least']}",
                ),
                (
                    f"Of as many dense Gaussian numbers, least layer, {name}",
                    "",
                    f"{dense(f, 'covariance_layer_least')}",
                ),
                (f"The same, all layers, {name}", "r at least 0.98", f"{f['covariance_all_layers']}"),
                (f"Masked AUROC lost by compression, {name}", "at most 0.003", f"{f['auroc_loss']}"),
            ]
    score, stream = record.get("score_only", {}), record.get("stream", {})
    if score:
        profile, combined = (score[f"{part}_microseconds_processor"] for part in ("profile", "combined"))
        found += [
            ("Profile of a stored row, microseconds of processor time", "at most 100", f"{profile}"),
            ("Combined verdict on a stored row, microseconds", "", f"{combined}"),
        ]
    if stream:
        found += [
            ("A million queries: second half over first", "0.9 to 1.1", f"{stream['second_half_over_first']}"),
            ("Growth of memory after the first tenth, MB", "flat", f"{stream['growth_after_a_tenth_mb']}"),
        ]
    for name, m in record.get("memory", {}).items():
        if isinstance(m, dict) and "features_mb" in m:
            what = (
                f"Peak memory of features over a forward and backward pass, {name} ({m['weights'] / 1e9:.2f} billion)"
            )
            found.append((what, "1", f"{m['features_over_activations']}"))
    return [
        *found,
        ("A data-centre GPU, PreActResNet-18, 12,000 images", "at least 700", record.get("gpu", NOT_MEASURED)),
    ]


def dense(fidelity: dict[str, Any], what: str) -> str:
    """A figure of unstructured projections, where measured."""
    return str(fidelity.get("unstructured", {}).get(what, NOT_MEASURED))


def curve(record: dict[str, Any]) -> str:
    """Correlation of compressed with exact couplings against the numbers a layer keeps: all layers, mean, least."""
    cases = {name: f["curve"] for name, f in record.get("fidelity", {}).items() if isinstance(f, dict)}
    if not cases:
        return f"{NOT_MEASURED}\n"
    sizes = list(next(iter(cases.values())))
    lines = ["| case | " + " | ".join(f"k = {k}" for k in sizes) + " |", "| --- " * (len(sizes) + 1) + "|"]
    keys = ("covariance_all_layers", "covariance_layer_mean", "covariance_layer_least")
    for name, found in cases.items():
        lines.append(
            f"| {name} | " + " | ".join(", ".join(f"{found[k][key]:.3f}" for key in keys) for k in sizes) + " |"
        )
    return "\n".join(lines) + "\n"


def markdown(record: dict[str, Any]) -> str:
    """The table."""
    lines = ["| what | aim | found |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {what} | {aim} | {found} |" for what, aim, found in rows(record))]) + "\n"


def points(record: dict[str, Any], sampled: dict[str, Any], network: str) -> dict[str, list[tuple[float, float]]]:
    """(milliseconds a query, masked AUROC) of every way there is a figure for, on one network."""
    speed = record["first_order_speedup"]
    own = speed[network]
    found = {"first order, combined": [(own["feature_seconds_a_sample"] * 1e3, speed["auroc"]["combined"])]}
    draw = own.get("draw")
    if draw is None or network not in sampled:
        return found
    theirs = min(seconds for key, seconds in draw.items() if key.startswith("devinterp"))
    ways = {
        "devinterp 1.3.2": ("devinterp 1.3.2", theirs),
        "paper": ("covary, preset paper", draw["covary paper"]),
        "gaussian 0.01": ("covary, independent draws", draw["covary gaussian"]),
    }
    for row in sampled[network]["rows"]:
        if row["source"] in ways and row["observable"] == "margin" and row["images"] == "all":
            label, seconds = ways[row["source"]]
            # As published every step is a draw; chains here were read at every tenth, which changes nothing.
            cost = row.get("steps", row["draws"]) * seconds / draw["images"] * 1e3
            found.setdefault(f"{label}, class-max CCC", []).append((cost, row["class_max_ccc"]))
    return {name: sorted(values) for name, values in found.items()}


def chart(record: dict[str, Any], sampled: dict[str, Any], out: Path) -> None:
    """AUROC against milliseconds a query, the latter on a logarithmic axis, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    from covary_bench.speed.cost import TARGETS

    plt.rcParams.update(STYLE)
    network = TARGETS[1]
    figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    for name, values in points(record, sampled, network).items():
        x, y = zip(*values, strict=True)
        axes.plot(x, y, marker="o", linewidth=1.2, markersize=8 if len(values) == 1 else 4, label=name)
    axes.set(xscale="log", xlabel="milliseconds a query, one core", ylabel="masked AUROC", title=network)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(out, metadata={"Date": None})
    plt.close(figure)


def scales(record: dict[str, Any]) -> str:
    """Cost against the number of queries, trusted samples, classes and parameters."""
    found, stream = record.get("scaling"), record.get("stream")
    lines = []
    if stream is not None:
        lines += ["| queries | processor seconds | memory, MB |", "| --- | --- | --- |"]
        lines += [f"| {m['queries']:,} | {m['processor_seconds']} | {m['resident_mb']} |" for m in stream["marks"]]
    if found is not None:
        for axis in ("trusted", "classes"):
            title = "trusted samples (10 classes)" if axis == "trusted" else "classes (5,000 trusted samples)"
            lines += ["", f"| {title} | seconds to fit | microseconds a query |", "| --- | --- | --- |"]
            lines += [f"| {n} | {v['fit_seconds']} | {v['microseconds_a_query']} |" for n, v in found[axis].items()]
        lines += ["", "| network | parameters | milliseconds a sample | in forwards |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {name} | {v['parameters']:,} | {v['milliseconds_a_sample']} | {v['in_forwards']} |"
            for name, v in found["parameters"].items()
        ]
    return "\n".join(lines) + "\n" if lines else f"{NOT_MEASURED}\n"
