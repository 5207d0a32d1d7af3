"""Tables and a plot of docs/pile.md and docs/speed.md: what judging a pile together is worth, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covary_bench.style import GREY, STYLE

WAYS = ("together, thorough", "together", "alone, thorough", "alone")
COLOURS = ("#0b6e4f", "#5fb49c", "#b3541e", "#e3a57a")
NETWORKS = {
    "as trained": "as trained",
    "hidden from activations": "hidden from activations",
    "hidden from gradients": "hidden from activations and gradients",
    "hidden from piles": "hidden from these, survival and piles",
    "hidden from piles, at any price": "the same, at any price",
    "sharpened": "5 % of clean inputs made overconfident",
}
RATED = {
    "cifar10-badnets-t0-s0": "BadNets victim, CIFAR-10",
    "mnist_badnet_white5_t1": "public backdoored LeNet, MNIST",
}


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _near(mean: float | None, error: float | None, digits: int = 2) -> str:
    """A mean with 1.96 standard errors."""
    if mean is None:
        return "–"
    spread = f"{1.96 * (error or 0):.{digits}f}"
    return f"{mean:.{digits}f}" + (f" ± {spread}" if float(spread) else "")


def _percent(mean: float, error: float | None = None) -> str:
    return f"{100 * mean:.2f}" + ("" if error is None else f" ± {196 * error:.2f}") + " %"


def sizes(record: dict[str, Any]) -> str:
    """Markdown: share caught at 1 % by size and share of the pile, one table an attack."""
    text = ""
    for name, own in record.items():
        shares = list(next(iter(own["ways"].values()))["9000"])
        rows = []
        for size in own["ways"][WAYS[0]]:
            for way in WAYS:
                found = own["ways"][way][size]
                every = [_near(*found[share][:2]) if share in found else "–" for share in shares if float(share)]
                rows.append([f"{int(size):,}", way, *every])
        heads = ["pile", "judged", *(f"{100 * float(share):g} %" for share in shares if float(share))]
        text += f"{name}, {own['deals']} deals:\n\n{_table(heads, rows)}\n"
    return text.rstrip("\n") + "\n"


def alarms(record: dict[str, Any]) -> str:
    """Markdown: realised false alarms at 1 and 5 % asked for; mean over sizes at every share of anomalies."""
    rows = []
    for name, own in record.items():
        for way in WAYS:
            found = own["ways"][way]
            cells = []
            for share in found["9000"]:
                of = [size[share] for size in found.values() if share in size]
                means = [sum(figures[i] for figures in of) / len(of) for i in (2, 3)]
                cells.append(", ".join(f"{100 * mean:.2f}" for mean in means))
            rows.append([name, way, *cells])
    shares = next(iter(record.values()))["ways"][WAYS[0]]["9000"]
    return _table(["attack", "judged", *(f"{100 * float(share):g} %" for share in shares)], rows)


def validity(record: dict[str, Any]) -> str:
    """Markdown: realised rates of simulated piles, and whether they keep to their law."""
    rows = []
    for network, own in record.items():
        split = own["split"]
        for j, rate in enumerate((0.01, 0.05)):
            expected = split["law"][j]
            title, inside = RATED.get(network, network), f"{100 * expected[1]:.1f} %"
            rows.append([title, f"law at {100 * rate:g} %", "", _percent(expected[0]), inside, "1.63"])
            for way in ("together", "from the pile alone", "alone"):
                for share, figures in zip(("none", "1 %", "20 %"), split[way], strict=False):
                    mean, error, inside, gap = figures[j]
                    share = "any" if way == "alone" else share
                    rows.append(["", way, share, _percent(mean, error), f"{100 * inside:.1f} %", f"{gap:.2f}"])
    return _table(["network", "judged", "anomalies", "realised", "inside the 99 % band", "distance from the law"], rows)


def crossed(record: dict[str, Any]) -> str:
    """Markdown: the same of cross-conformal calibration, which has a bound and no law."""
    rows = []
    for network, own in record.items():
        for way in ("together", "from the pile alone", "alone"):
            for share, figures in zip(("none", "1 %", "20 %"), own["cross"][way], strict=False):
                share = "any" if way == "alone" else share
                rows.append([RATED.get(network, network), way, share, *(_percent(*figures[j][:2]) for j in (0, 1))])
    return _table(["network", "judged", "anomalies", "asked 1 %", "asked 5 %"], rows)


def texts(record: dict[str, Any]) -> str:
    """Markdown: the classifiers of passages; what the score catches and what every part alone could tell."""
    rows = []
    for case, found in record.items():
        title = f"{case}: right on {found['accuracy']:.2f}, success {found['attack_success']:.2f}"
        for name in (name for name in found if isinstance(found[name], dict)):
            (caught, *rates), errors = found[name]["rates"][0], found[name]["rates"][1]
            parts = found[name]["parts"]
            each = ", ".join(f"{part} {value:.3f}" for part, value in parts.items() if part != "score")
            told = ", ".join(f"{100 * rate:.1f}" for rate in rates)
            rows.append([title, name, _near(caught, errors[0]), f"{told} %", f"{parts['score']:.4f}", each])
            title = ""
    heads = ["classifier", "pile", "caught at 1 %", "false alarms at 1, 5 %", "AUROC", "AUROC of parts"]
    return _table(heads, rows)


def attackers(record: dict[str, Any]) -> str:
    """Markdown: what every attacker paid, and what each way of judging sees of it."""
    rows = []
    for label, title in NETWORKS.items():
        if label not in record["networks"]:
            continue
        own = record["networks"][label]
        paid = f"{own['paid']['clean_accuracy']:.3f}, {own['paid']['attack_success']:.3f}"
        for way in WAYS:
            (half, caught, few_auroc, few, one, five), error = own["ways"][way]
            rows.append([title, paid, way, f"{half:.4f}", _near(caught, error[1]), f"{few_auroc:.4f}",
                         _near(few, error[3]), f"{100 * one:.2f}, {100 * five:.2f} %"])  # fmt: skip
            title = paid = ""
    heads = ["network", "clean accuracy, attack success", "judged", "half: AUROC", "caught at 1 %", "26 in 526: AUROC",
             "caught at 1 %", "false alarms at 1, 5 %"]  # fmt: skip
    return _table(heads, rows)


def salted(record: dict[str, Any]) -> str:
    """Markdown: an attack in a pile that holds ever more inputs that are odd but harmless."""
    rows = []
    for found in record["salted"]:
        title = f"{NETWORKS[found['network']]}, {found['attack']} triggered"
        for way in ("together", "alone"):
            means, errors = found[way]
            for n, mean, error in zip(found["salts"], means, errors, strict=True):
                what = f"{n} {found['salt']}" if n else "none"
                alarms = ", ".join(f"{100 * rate:.2f}" for rate in mean[1:3])
                rows.append([title, way, what, _near(mean[0], error[0]), f"{alarms} %", _near(mean[3], error[3])])
                title = ""
    heads = ["network", "judged, thorough", "salt", "attack caught at 1 %", "false alarms at 1, 5 %", "salt flagged"]
    return _table(heads, rows)


def cost(record: dict[str, Any]) -> str:
    """Markdown: what thorough evidence, a look at a pile and a million inputs cost; what was not measured says so."""
    rows: list[list[str]] = []

    def told(what: str, aim: str, of: str, figure: str | None) -> None:
        load = " to ".join(f"{value:g}" for value in record[of]["load"]) if of in record else ""
        rows.append([what, aim, "not measured" if figure is None else figure, load])

    times, compiled, million = (record.get(name, {}) for name in ("times", "compiled", "million"))
    told("Rows, fast, in forwards", "at most 3.3", "times", _figure(times, "fast"))
    told("Rows, thorough, in forwards", "at most 6.5", "times", _figure(times, "thorough"))
    alone, together = (times.get(f"judging {way}, of thorough rows") for way in ("alone", "together"))
    told("Judging each input alone, of thorough rows", "", "times", None if alone is None else f"{100 * alone:.1f} %")
    more = None if alone is None or together is None else f"{100 * (together - alone):.1f} %"
    told("A look at a pile of 1,000, on top", "at most 10 %", "times", more)
    told(
        "`torch.compile`: a forward over a plain one", "", "compiled", _figure(compiled, "forward, compiled over plain")
    )
    told("`torch.compile`: rows over those of the plain network", "", "compiled",
         compiled.get("rows of a compiled network", _figure(compiled, "rows, compiled over plain")))  # fmt: skip
    whole = f"{million['inputs']:,} inputs" if million else "A million inputs"
    peak = None if not million else f"{million['MB']:,} MB, {million['processor seconds']:,} processor seconds"
    told(f"{whole} in partitions judged together: peak memory", "at most 1,500 MB", "million", peak)
    return _table(["what", "aim", "found", "load of the machine"], rows)


def _figure(found: dict[str, Any], name: str) -> str | None:
    return f"{found[name]:.2f}" if name in found else None


def plot(record: dict[str, Any], path: Path) -> None:
    """Curves of the share caught at 1 %, a row an attack, a column a size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    every = list(next(iter(record.values()))["ways"][WAYS[0]])
    figure, axes = plt.subplots(len(record), len(every), figsize=(10, 2.9 * len(record)), sharey=True, squeeze=False)
    for row, (name, own) in zip(axes, record.items(), strict=True):
        for axis, size in zip(row, every, strict=True):
            for way, colour in zip(WAYS, COLOURS, strict=True):
                found = [(float(s), *figures[:2]) for s, figures in own["ways"][way][size].items() if float(s)]
                x, y, error = ([100 * of[0] for of in found], [of[1] for of in found], [1.96 * of[2] for of in found])
                axis.plot(x, y, marker="o", markersize=3, color=colour, label=way)
                low, high = ([a + sign * b for a, b in zip(y, error, strict=True)] for sign in (-1, 1))
                axis.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
            axis.axhline(0.01, color=GREY, linewidth=0.8)
            axis.set_xscale("log")
            axis.set_ylim(-0.02, 1.05)
            axis.set_title(f"{name}, a pile of {int(size):,}", fontsize=10)
        row[0].set_ylabel("caught at 1 %")
    for axis in axes[-1]:
        axis.set_xlabel("anomalous, % of the pile")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
