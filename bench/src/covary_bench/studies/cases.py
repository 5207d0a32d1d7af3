"""Cases: a network, trusted data and a pile of inputs with known truth, written as files that `covary scan` takes.

    python -m covary_bench.studies.cases build tune-fgsm --out cache/cases
    python -m covary_bench.studies.cases build held-out --out cache/cases --seed 0

Trusted, clean and anomalous inputs come from different images. Tuning cases and held-out cases share no image of
CIFAR-10 or MNIST either: each role has its own random half of the test images.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from covary.errors import CovaryError, unknown_name
from covary_bench.cached import read_cached
from covary_bench.images import attacks, datasets, public, victims
from covary_bench.images.datasets import Images
from covary_bench.studies.anomalies import (
    N_ANOMALOUS,
    Anomaly,
    AttackedNetwork,
    Pixels,
    Pool,
    adversarial,
    corrupted,
    foreign,
    triggered,
)

N_TRUSTED, N_CLEAN = 1_400, 800
SHARED_WITH_TUNING = ("cifar10-test", "mnist-test")  # tuning and held-out cases each take half of these


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        role: `tuning` cells may be looked at while choosing defaults and judge nothing; `held-out` cells judge.
        kind: what the anomalies are.
        network: name in `public.NETWORKS`, or `victim:ATTACK` for an MNIST network trained here.
        anomaly: makes the anomalous inputs.
        per_class: trusted samples a class instead of 1,400 in all.
    """

    role: Literal["tuning", "held-out"]
    kind: Literal["backdoor", "adversarial", "out-of-distribution", "corruption"]
    network: str
    anomaly: Anomaly
    per_class: int | None = None


CASES: dict[str, Case] = {
    "tune-mnist-badnets": Case("tuning", "backdoor", "victim:badnets", triggered),
    "tune-mnist-wanet": Case("tuning", "backdoor", "victim:wanet", triggered),
    "tune-vgg-badnets": Case("tuning", "backdoor", "cifar10_vggsmall_badnets_t8", triggered),
    "tune-fgsm": Case("tuning", "adversarial", "cifar10_resnet20_clean", adversarial("fgsm")),
    "tune-blur": Case("tuning", "corruption", "cifar10_resnet20_clean", corrupted("blur")),
    "tune-digits": Case("tuning", "out-of-distribution", "cifar10_resnet20_clean", foreign("mnist-test")),
    "grid": Case("held-out", "backdoor", "cifar10_wrn16_1_grid_t5", triggered),
    "grid-10": Case("held-out", "backdoor", "cifar10_wrn16_1_grid_t5", triggered, per_class=10),
    "trojan": Case("held-out", "backdoor", "cifar10_vggsmall_trojan_sq_t2", triggered),
    "trojan-10": Case("held-out", "backdoor", "cifar10_vggsmall_trojan_sq_t2", triggered, per_class=10),
    "signs-badnets": Case("held-out", "backdoor", "gtsrb_vggsmall_badnets_t8", triggered),
    "signs-badnets-10": Case("held-out", "backdoor", "gtsrb_vggsmall_badnets_t8", triggered, per_class=10),
    "mnist-badnets-public": Case("held-out", "backdoor", "mnist_badnet_white5_t1", triggered),
    "mnist-badnets-public-10": Case("held-out", "backdoor", "mnist_badnet_white5_t1", triggered, per_class=10),
    "finetuned-teacher": Case("held-out", "backdoor", "cifar10_wrn16_1_finetuned_teacher", triggered),
    "nad-erased": Case("held-out", "backdoor", "cifar10_wrn16_1_nad_erased", triggered),
    "pgd-linf": Case("held-out", "adversarial", "cifar10_resnet20_clean", adversarial("pgd-linf")),
    "pgd-l2": Case("held-out", "adversarial", "cifar10_resnet20_clean", adversarial("pgd-l2")),
    "photos": Case("held-out", "out-of-distribution", "cifar10_resnet20_clean", foreign("photos")),
    "photos-all": Case("held-out", "out-of-distribution", "cifar10_resnet20_clean", foreign("photos-all")),
    "traffic-signs": Case("held-out", "out-of-distribution", "cifar10_resnet20_clean", foreign("gtsrb-test")),
    "noise": Case("held-out", "corruption", "cifar10_resnet20_clean", corrupted("noise")),
}


def attacked_network(network: str, cache: Path, seed: int) -> AttackedNetwork:
    """The network of a case; a victim is trained into `cache` unless it is there."""
    if network.startswith("victim:"):
        victim = victims.train_victim("mnist", network.removeprefix("victim:"), cache, seed=seed)
        trigger = victims.load_trigger(victim)
        weights = Path(victim.weights)
        module = victims.load_victim(victim)
        assert isinstance(victim.target, int)
        return AttackedNetwork(module, victim.factory, weights, "mnist-test", target=victim.target, trigger=trigger)
    described = public.NETWORKS[network]
    return AttackedNetwork(
        public.Normalised(public.load_public(network), described.mean, described.std).eval(),
        f"covary_bench.images.public:{described.factory.__name__}",
        public.weights_path(network),
        described.dataset,
        described.mean,
        described.std,
        described.target,
        attacks.trigger(described.trigger) if described.trigger else None,
    )


def cut(images: Images, case: Case, dataset: str, seed: int) -> tuple[Images, Images, Images]:
    """Splits test images at random into trusted ones, clean inputs and a pool for the anomalies.

    Clean inputs and pool do not depend on `per_class`: fewer trusted samples are judged on the same inputs.
    """
    order = np.random.default_rng([seed, 1]).permutation(len(images))
    if dataset in SHARED_WITH_TUNING:
        half = len(order) // 2
        order = order[half:] if case.role == "tuning" else order[:half]
    trusted, clean, pool = np.split(order, [N_TRUSTED, N_TRUSTED + N_CLEAN])
    if case.per_class is not None:
        # Rare classes may have too few among the 1,400: images behind those that anomalies are made of help out.
        spare = pool[2 * N_ANOMALOUS :]
        candidates = np.concatenate((trusted, spare))
        labels = images.y[candidates]
        chosen = [np.flatnonzero(labels == label)[: case.per_class] for label in np.unique(images.y)]
        trusted = candidates[np.sort(np.concatenate(chosen))]
    return images.take(trusted), images.take(clean), images.take(pool)


def build(name: str, out: Path, seed: int = 0) -> Path:
    """Writes the folder `out`/`name`: `trusted.npz`, `inputs.npz` and `case.json`; whole or not at all.

    `trusted.npz` has x, y, id; `inputs.npz` has x, y (the original class, -1 = none), id and truth (1 = anomalous), in
    random order. x is uint8 (n, h, w, c), or float32 (n, c, h, w) in [0, 1] in adversarial cases. `case.json` names the
    model's factory, the weights, mean, std and target, and says how the network did on these very inputs.
    """
    if name not in CASES:
        raise unknown_name("case", name, CASES)
    case = CASES[name]
    owner = attacked_network(case.network, out.parent / "victims", seed)
    trusted, clean, pool = cut(datasets.load(owner.dataset), case, owner.dataset, seed)
    x, anomalous = case.anomaly(Pool(owner, pool, seed))
    used = set(anomalous.id)
    overlap = used & set(trusted.id) | used & set(clean.id) | set(trusted.id) & set(clean.id)
    if overlap or len(x) < (N_ANOMALOUS if case.kind != "out-of-distribution" else 1):
        raise CovaryError(f"case {name} has {len(overlap)} images in two roles and {len(x)} anomalies", "none and 800")
    predicted = _predict(owner.network, x)
    right = victims.predictions(owner.network, clean.x) == clean.y
    pixels = np.concatenate((_as_float(clean.x) if x.dtype == np.float32 else clean.x, x))
    truth = np.repeat(np.array([0, 1], dtype=np.int64), [len(clean), len(x)])
    order = np.random.default_rng([seed, 3]).permutation(len(truth))
    inputs = {
        "x": pixels[order],
        "y": np.concatenate((clean.y, anomalous.y))[order],
        "id": np.array([*clean.id, *anomalous.id])[order],
        "truth": truth[order],
    }
    trusted_x = _as_float(trusted.x) if x.dtype == np.float32 else trusted.x
    facts = {
        "name": name,
        "role": case.role,
        "kind": case.kind,
        "seed": seed,
        "model": owner.model,
        "weights": str(owner.weights.resolve()),
        "trusted": str((out / name / "trusted.npz").resolve()),
        "inputs": str((out / name / "inputs.npz").resolve()),
        "mean": owner.mean,
        "std": owner.std,
        "target": owner.target,
        "n_trusted": len(trusted),
        "n_clean": len(clean),
        "n_anomalous": len(x),
        "accuracy": float(right.mean()),
        "attack_success": float((predicted == owner.target).mean()) if case.kind == "backdoor" else None,
        "misclassified": float((predicted != anomalous.y).mean()) if case.kind != "out-of-distribution" else None,
    }
    _write(out / name, {"x": trusted_x, "y": trusted.y, "id": np.array(trusted.id)}, inputs, facts)
    return out / name


def _as_float(x: np.ndarray) -> np.ndarray:
    return victims.to_input(x).numpy()


@torch.no_grad()
def _predict(network: nn.Module, x: Pixels) -> np.ndarray:
    if x.dtype == np.uint8:
        return victims.predictions(network, x)
    return np.concatenate([network(part).argmax(1).numpy() for part in torch.from_numpy(x).split(500)])


def _write(home: Path, trusted: Mapping[str, Any], inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    part = home.with_name(f"{home.name}-{os.getpid()}.part")
    part.mkdir(parents=True)
    np.savez(part / "trusted.npz", **trusted)
    np.savez(part / "inputs.npz", **inputs)
    (part / "case.json").write_text(json.dumps(facts, indent=2) + "\n")
    if home.exists():
        shutil.rmtree(home)
    part.rename(home)


def scan_arguments(folder: Path) -> list[str]:
    """What to pass to `covary scan` for the case in `folder`, without `--out`."""
    facts = read_cached(folder / "case.json")
    arguments = ["--model", facts["model"], "--weights", facts["weights"]]
    arguments += ["--trusted", facts["trusted"], "--inputs", facts["inputs"]]
    for option in ("mean", "std"):
        if facts[option] is not None:
            arguments += [f"--{option}", ",".join(str(value) for value in facts[option])]
    return arguments + (["--target", str(facts["target"])] if facts["target"] is not None else [])


def select(what: str) -> list[str]:
    """Names of cases: one name, a role, or `all`."""
    if what in CASES:
        return [what]
    names = [name for name, case in CASES.items() if what in ("all", case.role)]
    if not names:
        raise unknown_name("case", what, [*CASES, "tuning", "held-out", "all"])
    return names


def main(arguments: list[str] | None = None) -> int:
    """Builds or lists cases; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m covary_bench.studies.cases", description="Build the cases.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names, roles and networks")
    builder = commands.add_parser("build", help="write the files of one or more cases")
    builder.add_argument("name", help="a case, `tuning`, `held-out` or `all`")
    builder.add_argument("--out", type=Path, default=datasets.cache_folder() / "cases")
    builder.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.command == "list":
        for name, case in CASES.items():
            print(f"{name:24} {case.role:9} {case.kind:20} {case.network}")
        return 0
    try:
        for name in select(options.name):
            facts = read_cached(build(name, options.out, options.seed) / "case.json")
            figures = {
                key: facts[key] for key in ("n_trusted", "n_anomalous", "accuracy", "attack_success", "misclassified")
            }
            print(f"{name}: {figures}", flush=True)
    except CovaryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
