"""pytorch-ood's own figures beside ours: the same network, trusted images and inputs, each by its own code.

    python -m covary_bench.studies.peers CACHE [bench/results/peers.json] [TABLE:CELL ...]

Needs `pip install --no-deps pytorch-ood==0.4.0`: its detectors alone, which do without torchvision. A cell that the
record holds is not measured again.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from covary.errors import CovaryError
from covary_bench.baselines.images import Material, baseline
from covary_bench.baselines.images.head import Head
from covary_bench.baselines.images.nac import watched
from covary_bench.case import modality
from covary_bench.cell import Cell
from covary_bench.columns import read_packed, write_packed
from covary_bench.prepared import Prepared
from covary_bench.records import rounded
from covary_bench.settings import chosen
from covary_bench.table import table

CELLS = ("vision:badnets/cifar10/0", "ood:photos/cifar10_resnet20_clean/0", "ood:signs/cifar10_resnet20_clean/0",
         "ood:patches/cifar10_resnet20_clean/0")  # fmt: skip
OURS = ("max softmax", "energy", "KNN on features", "Mahalanobis", "SCALE", "NNGuide", "fDBD", "NAC")
Theirs = dict[str, Callable[[], Any]]


@cache
def package() -> ModuleType:
    """pytorch-ood's detectors, without the rest of the package, which wants torchvision.

    Raises:
        CovaryError: it is not installed.
    """
    spec = importlib.util.find_spec("pytorch_ood")
    if spec is None:
        raise CovaryError("no pytorch-ood", "its detectors", "pip install --no-deps pytorch-ood==0.4.0")
    bare = ModuleType("pytorch_ood")
    bare.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["pytorch_ood"] = bare
    return importlib.import_module("pytorch_ood.detector")


def theirs(material: Material, pixels: torch.Tensor, inputs: torch.Tensor) -> Theirs:
    """Name -> pytorch-ood's scores of the inputs; by its defaults but for what a data set must say.

    `inputs` are last features of the inputs, `pixels` their images. ViM and ODIN have no counterpart of ours.
    """
    pod, probe, head = package(), material.network, Head.of(material.network)
    z = torch.tensor(material.trusted_features).float()
    classes = torch.from_numpy(np.unique(material.trusted.predicted, return_inverse=True)[1])
    linear = nn.Linear(head.weight.shape[1], head.weight.shape[0])
    linear.load_state_dict({"weight": torch.tensor(head.weight), "bias": torch.tensor(head.bias)})
    logits = torch.tensor(head.logits(inputs.numpy())).float()

    def odin() -> Any:
        detector = pod.ODIN(probe.module)
        return torch.cat([detector.predict(probe.normalised(part)) for part in pixels.split(probe.batch)])

    def coverage() -> Any:
        layers = watched(probe.module)
        detector = pod.NACUE(probe.module, layers, device=str(probe.device))
        detector.fit(DataLoader(TensorDataset(probe.normalised(probe.trusted)), batch_size=probe.batch))
        return torch.cat([detector.predict(probe.normalised(part)) for part in pixels.split(probe.batch)])

    with torch.no_grad():
        scale = pod.SCALE(nn.Identity(), nn.Sequential(nn.Flatten(), linear), percentile=0.85)
    return {
        "max softmax": lambda: pod.MaxSoftmax.score(logits),
        "energy": lambda: pod.EnergyBased.score(logits),
        "KNN on features": lambda: pod.KNN(None, k=chosen("KNN on features")["k"]).fit_features(z, classes)
        .predict_features(inputs),
        "Mahalanobis": lambda: pod.Mahalanobis(None).fit_features(z, classes).predict_features(inputs),
        "SCALE": lambda: scale.predict_feature_maps(inputs[:, :, None, None]),
        "NNGuide": lambda: pod.NNGuide(nn.Identity(), linear).fit_features(z, classes).predict_features(inputs),
        "fDBD": lambda: pod.fDBD(nn.Identity(), linear).fit_features(z).predict_features(inputs),
        "NAC": coverage,
        "ViM": lambda: pod.ViM(None, z.shape[1] // 2, linear.weight.detach(), linear.bias.detach())
        .fit_features(z, classes).predict_features(inputs),
        "ODIN": odin,
    }  # fmt: skip


def compared(prepared: Prepared) -> dict[str, dict[str, float | None]]:
    """Masked AUROC by detector: pytorch-ood's own, and ours where there is one."""
    material = prepared.material(0, "network")
    inputs = prepared.inputs
    first = len(material.queries) - len(inputs.truth)  # calibration samples come before

    def area(scores: Any) -> float:
        values = np.asarray(scores.detach() if isinstance(scores, torch.Tensor) else scores, np.float64)
        return float(roc_auc_score(inputs.truth[inputs.masked], values[inputs.masked]))

    features = torch.tensor(material.query_features[first:]).float()
    found = theirs(material, prepared.pixels["inputs"], features)
    return {
        name: {"pytorch-ood": area(scores()),
               "ours": area(baseline(name)(material, **chosen(name))[first:]) if name in OURS else None}
        for name, scores in found.items()
    }  # fmt: skip


def run(folder: Path, out: Path, cells: tuple[str, ...] = CELLS) -> dict[str, Any]:
    """Measures the cells that the record lacks; writes it after each; returns it."""
    record: dict[str, Any] = {"pytorch-ood": importlib.metadata.version("pytorch-ood")}
    if out.is_file():
        record = read_packed(out)
    done = record.setdefault("cells", {})
    for name in cells:
        if name in done:
            continue
        what, cell = name.split(":", 1)
        found = table(what, "small")
        case = modality(found).case(found, Cell.parse(cell), folder)
        case.make("cpu", print)
        done[name] = rounded(compared(case.prepared("cpu")), digits=5)
        write_packed(out, record)
        print(name, done[name], flush=True)
    return record


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *rest = sys.argv[1:]
    run(Path(folder), Path(rest[0] if rest else "bench/results/peers.json"), tuple(rest[1:]) or CELLS)
