"""Tables of more networks and attacks, and of what others published: aims, losses and differences as they are."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from covary_bench.case import modality
from covary_bench.cell import Cell
from covary_bench.docs import networks, published
from covary_bench.scoring import BOTH
from covary_bench.studies import peers
from covary_bench.table import from_toml, read, table


def masked(auroc, caught=0.96):
    return {"masked": {"auroc": auroc, "tpr_at_1": caught, "der_calibrated": 0.9, "der_right": 0.9, "der_best": 0.98,
                       "fpr": 0.05}}  # fmt: skip


def cell(auroc, success=0.9, **others):
    found = {way: masked(auroc) for way in networks.WAYS} | {"survival": masked(0.5)}
    found |= {name: masked(one) for name, one in others.items()}
    return {"victim": {"clean_accuracy": 0.7, "attack_success": success}, "detectors": found}


RECORD = {"cells": {
    "bpp/cifar10/0": cell(0.999, energy=0.2), "tact/cifar10/0": cell(0.98, energy=0.99),
    "wanet/tiny20/0": cell(0.1, success=0.5, energy=0.9), "sig/tiny20/0": {"missing": "not run"},
}, "tuning": {"cells": []}}  # fmt: skip


def test_aims_are_said_to_be_met_or_missed_over_cells_whose_attack_works():
    rows = networks.aims(RECORD).splitlines()
    assert rows[2].startswith("| AUROC | 0.995 | 0.9895, **missed** |")
    assert rows[3].startswith("| TPR at 1 % | 0.95 | 0.9600, met |")
    assert rows[4].startswith("| DER best | 0.985 | 0.9800, **missed** |")
    assert rows[-1] == "2 cells."
    assert "| energy | 0.5950 (0.2000–0.9900) |" in networks.means(RECORD)


def test_every_loss_is_told_and_absent_cells_are_named():
    rows = networks.losses(RECORD).splitlines()
    assert rows[2:] == ["| tact/cifar10/0 | 0.9800 | energy 0.9900 | 0.0100 | 0.960 | 0.960 |"]
    only = {"cells": {"bpp/cifar10/0": RECORD["cells"]["bpp/cifar10/0"]}}
    assert networks.losses(only).startswith("Nobody is ahead")
    text = networks.cells(RECORD)
    assert "| wanet/tiny20/0 (attack failed) | 0.700 | 0.500 |" in text
    assert text.endswith("Not measured yet: tiny20: sig.\n")
    for made in (networks.aims, networks.losses, networks.means, networks.cells):
        assert not made({"cells": {"a/x/0": {"missing": "not run"}}})


def test_published_figures_name_their_source_and_our_cells():
    content, names = read("published"), {"vision-small", "networks-small", "ood-small"}
    for entry in content["figures"]:
        assert entry["record"] in names
        assert bool(entry["figure"]) == (entry["source"] in content["sources"]), entry["detector"]
        assert entry["reason"] in content["reasons"]
        known = {str(one) for one in table(entry["record"].removesuffix("-small"), "small").cells}
        assert set(entry["cells"]) <= known
    cells = {f"{what}/cifar10/0": cell(0.9, **{"TED++": v}) for what, v in (("adaptive-patch", 0.985), ("tact", 0.9))}
    records = {"vision-small": None, "ood-small": None, "networks-small": {"cells": cells}}
    rows = {row.split(" | ")[1]: row for row in published.compared(records).splitlines() if row[:7] == "| TED++"}
    assert "| 0.990 | poster | adaptive-patch / cifar10/0 | 0.985 | -0.005 | yes |  |" in rows["Ada-Patch, CIFAR-10"]
    assert "| 0.900 | -0.100 | no | ResNet-18" in rows["TaCT, CIFAR-10"]
    assert "| not measured |  |  |" in rows["BadNets, CIFAR-10"]
    assert "| covary together, thorough | table `networks`, 2 cells | 0.980 |" in published.method(records)


@pytest.mark.skipif(importlib.util.find_spec("pytorch_ood") is None, reason="pytorch-ood is not installed")
def test_pytorch_oods_own_figures_are_ours_where_the_formula_is(tmp_path):
    half = {"what": ["badnets"], "datasets": ["digits"], "trusted": 340, "clean": 60, "anomalous": 60}
    found = from_toml("vision", "ci", {**read("vision"), "ci": half})
    case = modality(found).case(found, Cell.parse("badnets/digits/0"), tmp_path)
    case.make("cpu", print)
    measured = peers.compared(case.prepared("cpu"))
    for name in ("energy", "KNN on features", "SCALE", "NNGuide", "fDBD"):
        assert measured[name]["ours"] == pytest.approx(measured[name]["pytorch-ood"], abs=2e-3), name
    assert measured["ViM"]["ours"] is None
    assert np.isfinite([own["pytorch-ood"] for own in measured.values()]).all()
    text = published.peers({"pytorch-ood": "0.4.0", "cells": {"vision:badnets/digits/0": measured}})
    assert text.splitlines()[0] == "| pytorch-ood 0.4.0, ours | badnets/digits/0 | largest difference |"
    assert BOTH not in text


def test_foreign_sets_are_held_against_the_best_of_all_others():
    near = {"cells": 2, **dict.fromkeys(networks.WAYS, 0.9), "energy": 0.904, "survival": 0.1}
    far = {**near, "survival": 0.91}
    rows = networks.distances({"by_distance": {"far": far, "near": near, "unknown": {"cells": 1}}}).splitlines()
    assert rows[2].endswith("| survival 0.9100 | -0.0100 | **missed** |")
    assert rows[3].endswith("| energy 0.9040 | -0.0040 | met |")
    assert len(rows) == 4
