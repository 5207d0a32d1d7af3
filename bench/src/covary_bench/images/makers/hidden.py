"""A backdoored victim whose attacker trained it further to hide: from activations, or from covary's own profile.

A cell is `badnets:hidden=activations/cifar10/0` or `...:hidden=gradients...`; `steps` of each attempt is an option.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from safetensors.torch import load_file

from covary.errors import unknown_name
from covary_bench.cell import Cell
from covary_bench.hiding import adaptive
from covary_bench.images import victims
from covary_bench.images.case_files import Group, write_case
from covary_bench.images.ingredients import attacked_network, test_images
from covary_bench.images.makers.backdoor import triggered
from covary_bench.table import Size

HIDDEN: tuple[adaptive.Hidden, ...] = ("activations", "gradients")


def make(cell: Cell, size: Size, cache: Path, folder: Path, device: str = "cpu") -> Path:
    """The case of `backdoor` on the attacker's choice: the last attempt that still works at a price it will pay.

    `attempts` in the facts tells what each one paid, `strength` which one it is.
    """
    hidden: adaptive.Hidden | None = next((name for name in HIDDEN if name == cell.options.get("hidden")), None)
    if hidden is None:
        raise unknown_name("place to hide from", cell.options.get("hidden", ""), HIDDEN)
    owner = attacked_network(cell, cell.what, cache, device)
    victim = victims.read_victim(owner.weights.parent)
    budget = adaptive.Budget(steps=int(cell.number("steps", adaptive.Budget().steps)))
    home = cache / ("adaptive" if budget == adaptive.Budget() else f"adaptive-{budget.steps}")
    attempts = adaptive.escalate(victim, home, hidden, budget=budget)
    last = adaptive.choice(attempts, float(owner.facts["clean_accuracy"]))
    weights = home / f"{owner.weights.parent.name}-hidden-{hidden}" / f"{last.strength:g}" / "weights.safetensors"
    owner.network.load_state_dict(load_file(weights))
    paid = {
        "before": owner.facts, "clean_accuracy": last.clean_accuracy, "attack_success": last.attack_success,
        "attempts": [asdict(attempt) for attempt in attempts], "content": last.content,
        "strength": last.strength,
    }  # fmt: skip
    owner = replace(owner, weights=weights, facts=paid)
    cutter = test_images(owner.dataset, cell.seed)
    trusted, clean = cutter.balanced(size.trusted), cutter.first(size.clean)
    odd = triggered(owner, cutter, size.anomalous)
    groups = [Group("clean", clean, False), odd]
    return write_case(folder, owner, "backdoor", trusted, groups, cell.seed, cutter.first(size.sampling))
