"""Tables and plots of docs/results.md, docs/trusted-data.md and docs/speed.md, from the records of the studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from covary_bench.style import GREY, STYLE

PARTS = ("combined", "functional", "latent", "confidence")
COMPARED = ("gradient norm", "max softmax", "energy", "KNN on features", "class-max cosine")


def false_alarms(found: dict[str, Any]) -> str:
    """Markdown: realised false alarms by situation."""
    lines = ["| tried | trusted | splits | asked 1 % | asked 5 % | FDR asked 5 % |", "| --- " * 6 + "|"]
    for name, one in found.items():
        rates = [f"{100 * one[rate][0]:.2f} ± {100 * one[rate][1]:.2f} %" for rate in ("0.01", "0.05")]
        lines.append(
            f"| {name} | {one['trusted']:,} | {one['splits']:,} | {' | '.join(rates)} | {100 * one['fdr']:.1f} % |"
        )
    return "\n".join(lines)


def deals_of_trusted(results: dict[str, Any]) -> str:
    """Markdown: mean, standard deviation and least of the caught share over deals, and realised false alarms."""
    lines = [
        "| cell | AUROC | caught, one split | least | caught, crossed | least | false alarms, split | crossed |",
        "| --- " * 8 + "|",
    ]
    for network, deals in results.items():
        for group in [name for name, found in deals["split"].items() if isinstance(found, dict)]:
            row = [f"{network.split('+')[-1]}, {group}", f"{np.mean(deals['cross'][group]['auroc']):.3f}"]
            for kind in ("split", "cross"):
                caught = 100 * np.array(deals[kind][group]["tpr"])
                row += [f"{caught.mean():.1f} ± {caught.std():.1f} %", f"{caught.min():.0f} %"]
            for kind in ("split", "cross"):
                alarms = 100 * np.array(deals[kind]["fpr"])
                row.append(f"{alarms.mean():.2f} ± {alarms.std():.2f} %")
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def core(record: dict[str, Any], role: str) -> str:
    """Markdown: one row a case of that role, masked AUROC of every score, the best in bold."""
    names = [*PARTS, *COMPARED]
    lines = ["| case | " + " | ".join(names) + " | TPR at 1 % | FPR (99 % law) |", "| --- " * (len(names) + 3) + "|"]
    for case, own in record["cells"].items():
        if own["about"]["role"] != role:
            continue
        values = {name: own["scores"][name][0] for name in names if name in own["scores"]}
        best = max(values.values())
        cells = [f"**{v:.4f}**" if v >= best - 5e-5 else f"{v:.4f}" for v in (values[name] for name in names)]
        _, tpr, _, low, high = own["scores"]["combined"]
        cells[0] += f" ({low:.4f} to {high:.4f})"
        least, most = own["about"]["fpr_interval"]
        lines.append(f"| {case} | " + " | ".join(cells)
                     + f" | {tpr:.3f} | {own['about']['fpr']:.4f} ({least:.4f} to {most:.4f}) |")  # fmt: skip
    return "\n".join(lines) + "\n"


def sizes(trusted: dict[str, Any]) -> str:
    """Markdown: masked AUROC / true-positive rate at 1 % false positives, by case and number of trusted samples."""
    every = sorted({int(size) for cell in trusted.values() for size in cell})
    lines = ["| case | " + " | ".join(map(str, every)) + " |", "| --- " * (len(every) + 1) + "|"]
    for name, cell in trusted.items():
        found = [cell.get(str(size)) for size in every]
        entries = [f"{own['auroc']:.3f} / {own['tpr_at_1']:.2f}" if own else "not measured" for own in found]
        lines.append(f"| {name} | " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def rates(cells: dict[str, Any]) -> str:
    """Markdown: mean realised rate over the splits, what to expect of it, and how often it fell inside its law."""
    every = list(next(iter(cells.values()))["mean"])
    heads = " | ".join(f"asked {100 * float(rate):g} %" for rate in every)
    lines = [f"| case | {heads} |", "| --- " * (len(every) + 1) + "|"]
    for name, cell in cells.items():
        parts = []
        for rate in every:
            mean, expected, inside = cell["mean"][rate], cell["expected"][rate], cell["inside_law"][rate]
            parts.append(f"{100 * mean:.2f} % (law {100 * expected:.2f} %), {100 * inside:.0f} % of splits inside")
        lines.append(f"| {name} | " + " | ".join(parts) + " |")
    return "\n".join(lines) + "\n"


def plot(record: dict[str, Any], docs: Path) -> None:
    """Two figures for the docs: realised rates beside their law, and quality by number of trusted samples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    every = list(next(iter(record["rates"].values()))["mean"])
    figure, axes = plt.subplots(1, len(every), figsize=(10, 3.4))
    for axis, rate in zip(axes, every, strict=True):
        for position, cell in enumerate(record["rates"].values()):
            values = np.array(cell["realised"][rate])
            across = position + np.linspace(-0.25, 0.25, len(values))
            axis.scatter(across, 100 * values, s=7, alpha=0.6)
            low, high = cell["law_99"][rate]
            axis.vlines(position, 100 * low, 100 * high, color=GREY, alpha=0.35, linewidth=18, zorder=0)
        axis.axhline(100 * float(rate), color=GREY, linewidth=0.8)
        axis.set_xticks(range(len(record["rates"])), list(record["rates"]), rotation=25, ha="right", fontsize=8)
        axis.set_title(f"asked for {100 * float(rate):g} %", fontsize=10)
    axes[0].set_ylabel("realised false alarms, %")
    figure.tight_layout()
    figure.savefig(docs / "false-alarms.svg", metadata={"Date": None})
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
    counts = sorted({int(size) for cell in record["trusted"].values() for size in cell})
    for name, cell in record["trusted"].items():
        for axis, key in zip(axes, ("auroc", "tpr_at_1"), strict=True):
            axis.plot(counts, [cell[str(n)][key] for n in counts], marker="o", label=name)
    for axis, title in zip(axes, ("masked AUROC", "TPR at 1 % FPR"), strict=True):
        axis.set_xscale("log")
        axis.set_xticks(counts, [str(n) for n in counts])
        axis.set_xlabel("trusted samples")
        axis.set_title(title, fontsize=10)
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(docs / "trusted-size.svg", metadata={"Date": None})


def preconditioners(record: dict[str, Any]) -> str:
    """Functional and combined AUROC of every cell and metric; what was not measured says so."""
    every = sorted({variant for cell in record.values() for variant in cell} - {"identity"})
    variants = ["identity", *every]
    lines = ["| cell | " + " | ".join(variants) + " |", "| --- " * (len(variants) + 1) + "|"]
    for name, cell in record.items():
        found = [cell.get(variant) for variant in variants]
        cells = [f"{f['functional_auroc']:.4f}, {f['combined_auroc']:.4f}" if f else "not measured" for f in found]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
