"""Whether this installation works: versions, devices, extras, and a small detector that must flag what it should."""

from __future__ import annotations

import importlib.util
import platform
import re
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from covary.detector import Detector
from covary.runs.check import CheckReport, Finding
from covary.scoring.calibration.conformal import false_alarm_interval
from covary.storage.fingerprints import versions

TRAINED, TRUSTED, CLEAN, ODD, EPOCHS, RATE = 700, 400, 100, 60, 12, 0.05
FPR = 0.05
# Of the odd digits at least this share must be flagged; all but a few are, on every machine it was seen on.
LEAST_CAUGHT = 0.9
Digits = UInt8[np.ndarray, "n 8 8"]


def examine(device: str = "cpu") -> CheckReport:
    """All findings, in the order they are made; an error among them where the self-test fails."""
    started = time.perf_counter()
    found = [_versions(), _devices(device), *_extras()]
    try:
        more, figures = self_test(device)
    except Exception as problem:
        text = f"It ended with {type(problem).__name__}: {problem}"
        return CheckReport([*found, Finding("error", "Self-test", text, "Install covary and torch again.")])
    figures["seconds"] = round(time.perf_counter() - started, 3)
    return CheckReport([*found, *more], figures)


def _versions() -> Finding:
    known = {"python": platform.python_version(), **versions()}
    return Finding("ok", "Versions", ", ".join(f"{name} {version}" for name, version in known.items()) + ".")


def _devices(device: str) -> Finding:
    found = [f"cpu ({torch.get_num_threads()} threads)"]
    found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    change = ""
    if "+cu" in torch.__version__ and not torch.cuda.is_available():
        change = "This torch was built for CUDA, and no such device is here: the CPU wheel is much smaller."
    return Finding("note" if change else "ok", "Devices", f"{', '.join(found)}; {device} is used.", change)


def _extras() -> list[Finding]:
    """Which extras have all they need; what is missing only matters where it is used."""
    needed: dict[str, list[str]] = {}
    try:
        requirements = metadata.requires("covary") or []
    except metadata.PackageNotFoundError:
        return [Finding("note", "Extras", "covary was not installed by pip, so nobody knows of extras.")]
    for requirement in requirements:
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"]([\w-]+)", requirement)
        if name and extra and extra[1] != "dev" and name[0] != "covary":
            needed.setdefault(extra[1], []).append(name[0])
    missing = {extra: [name for name in names if not _installed(name)] for extra, names in needed.items()}
    there = [extra for extra, names in missing.items() if not names]
    absent = [f"{extra} ({', '.join(names)})" for extra, names in missing.items() if names]
    findings = [Finding("ok", "Extras", f"Installed: {', '.join(there) or 'none'}.")]
    if absent:
        text = f"Not installed: {', '.join(absent)}."
        findings.append(Finding("note", "Extras", text, "Where you need one: pip install 'covary[NAME]'."))
    return findings


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return importlib.util.find_spec(package.replace("-", "_")) is not None
    return True


def toy_network() -> nn.Module:
    """The toy: a classifier of scikit-learn's 8 x 8 digits."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 10),
    )  # fmt: skip


def self_test(device: str = "cpu") -> tuple[list[Finding], dict[str, float]]:
    """Trains the toy, trusts some digits, and judges others, of which some carry a checkerboard."""
    x, y = _digits()
    train, trusted, clean, rest = np.split(np.arange(len(x)), np.cumsum([TRAINED, TRUSTED, CLEAN]))
    odd = np.where(np.indices((8, 8)).sum(0) % 2 == 1, 255 - x[rest[:ODD]], x[rest[:ODD]])
    detector = Detector(_trained(x[train], y[train], device), fpr=FPR, conformal="split", device=device)
    detector.fit((x[trusted], y[trusted]))
    judged = np.concatenate([x[clean], odd.astype(np.uint8)])
    verdicts = detector.score(judged)
    caught, alarms = float(verdicts.flagged[CLEAN:].mean()), float(verdicts.flagged[:CLEAN].mean())
    most = false_alarm_interval(detector.judge.fpr_in_force, len(detector.judge.calibration_scores), CLEAN, 0.999)[1]
    with tempfile.TemporaryDirectory() as place:
        again = Detector.load(detector.save(Path(place) / "detector"), detector.network.module, device=device)
        # The same batch: another number of inputs at once may round otherwise in the last digit.
        same = bool(np.array_equal(again.score(judged).score, verdicts.score))
    return findings(caught, alarms, most, same), {"caught": caught, "false_alarms": alarms}


def findings(caught: float, alarms: float, most: float, same: bool) -> list[Finding]:
    """What the self-test's shares mean: of odd digits flagged, of clean ones, and of these at most by chance."""
    tests = [
        ("odd inputs are flagged", caught >= LEAST_CAUGHT, f"{caught:.0%} of {ODD} digits under a checkerboard"),
        ("clean ones pass", alarms <= most, f"{alarms:.0%} of {CLEAN} flagged, {most:.0%} at most by chance"),
        ("a saved detector judges alike", same, "the same scores" if same else "other scores"),
    ]
    return [
        Finding("ok" if passed else "error", f"Self-test: {name}", f"{found}.",
                "" if passed else "Try another version of torch, and tell us of this one.")
        for name, passed, found in tests
    ]  # fmt: skip


def _digits() -> tuple[Digits, Int[np.ndarray, " n"]]:
    x, y = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(x))
    return (x.reshape(-1, 8, 8) * 15).astype(np.uint8)[order], y.astype(np.int64)[order]


def _trained(x: Digits, y: Int[np.ndarray, " n"], device: str) -> nn.Module:
    inputs, labels = torch.from_numpy(x).float().div(255).unsqueeze(1).to(device), torch.from_numpy(y).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = toy_network().to(device).train()
        orders = [torch.randperm(len(x)) for _ in range(EPOCHS)]
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(p) for p in parameters]
    for order in orders:
        for some in order.to(device).split(32):
            loss = F.cross_entropy(model(inputs[some]), labels[some])
            for p, velocity, gradient in zip(
                parameters, velocities, torch.autograd.grad(loss, parameters), strict=True
            ):
                velocity.mul_(0.9).add_(gradient)
                p.data.sub_(velocity, alpha=RATE)
    return model.eval()
