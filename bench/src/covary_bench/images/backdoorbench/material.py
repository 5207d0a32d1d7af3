"""From a record to files that `covary scan` takes: weights, trusted inputs, a pile of clean and triggered inputs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from covary.data.readers import open_reader
from covary.errors import CovaryError, unknown_name
from covary.storage import folders
from covary_bench.images import datasets
from covary_bench.images.backdoorbench.models import factory_name
from covary_bench.images.backdoorbench.records import Record, read_record

N_TRUSTED, N_CLEAN, N_TRIGGERED = 2_500, 2_500, 2_500

# What BackdoorBench normalises with after scaling to [0, 1].
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
CLEAN = {"cifar10": "cifar10-test", "cifar100": "cifar100-test", "tiny": "tiny-test", "gtsrb": "gtsrb-test"}


@dataclass(frozen=True)
class Material:
    """What to tell `covary scan`; truth is inside `inputs`."""

    model: str
    weights: str
    trusted: str
    inputs: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    target: int | str


def prepare(
    folder: Path, home: Path, *, trusted: str | None = None, inputs: str | None = None, seed: int = 0
) -> Material:
    """Writes the material of a record to the folder `home`, whole or not at all.

    Without `trusted` the clean test images of the record's data set are taken where a reader finds them: 2,500 trusted,
    2,500 clean inputs and 2,500 triggered ones (a quarter of the set where it is small), all of different images. With
    it all triggered images are judged, beside the clean ones of `inputs` where these are given.

    Raises:
        CovaryError: a record that cannot be read, a data set or network nobody here knows, no clean images at hand.
    """
    record = read_record(folder)
    if record.clean_data not in NORMALISATION:
        raise unknown_name("data set of a record", record.clean_data, NORMALISATION)
    model, target = factory_name(record.model_name, record.num_classes), record.target
    arrays = _from_inputs(record, trusted, inputs) if trusted is not None else _split(record, seed)
    mean, std = NORMALISATION[record.clean_data]
    found = Material(
        model, str(home / "weights.safetensors"), str(home / "trusted.npz"), str(home / "inputs.npz"), mean, std, target
    )
    with folders.atomic_folder(home, "record's material") as part:
        folders.write_tensors(part / "weights.safetensors", record.model)
        for name, content in zip(("trusted", "inputs"), arrays, strict=True):
            np.savez(part / f"{name}.npz", allow_pickle=False, **content)
        facts = {"record": str(folder.resolve()), **asdict(found)}
        (part / "record.json").write_text(json.dumps(facts, indent=1) + "\n")
    return found


def names_of_record(folder: Path, out: Path, names: dict[str, Any], seed: int) -> dict[str, Any]:
    """A scan's names (`model`, `weights`, `trusted`, `inputs`, `mean`, `std`, `target`) filled from a record.

    The material goes beside the RUN `out`, to `OUT-material`. What was given stays: trusted and clean inputs, another
    normalisation, another target. A record brings network, weights and truth itself.
    """
    if names.get("truth") is not None:
        raise CovaryError("--truth beside a record, which brings its own", "one or the other", "leave --truth away")
    home = out.with_name(out.name + "-material")
    folders.check_replaceable(out, "RUN")
    folders.check_replaceable(home, "record's material")
    found = prepare(folder, home, trusted=names["trusted"], inputs=names["inputs"], seed=seed)
    for name, value in asdict(found).items():
        if names.get(name) is None or name in ("trusted", "inputs"):
            names = names | {name: list(value) if isinstance(value, tuple) else value}
    return names


Arrays = dict[str, np.ndarray]


def _split(record: Record, seed: int) -> tuple[Arrays, Arrays]:
    """Trusted, clean and triggered inputs from different images of the clean test set."""
    try:
        clean = datasets.load(CLEAN[record.clean_data])
    except CovaryError as error:
        message = f"the clean images of {record.clean_data} are not at hand ({error.found})"
        raise CovaryError(message, "trusted inputs", "pass --trusted with clean images of that data set") from error
    row_of = {datasets.position(name): i for i, name in enumerate(clean.id)}
    known = np.array([row_of.get(int(row), -1) for row in record.bd_test.rows])
    there = np.flatnonzero(known >= 0)
    if not len(there) or not np.array_equal(clean.y[known[there]], record.bd_test.original[there]):
        raise CovaryError(
            f"rows of {record.folder} do not count in the {record.clean_data} images at hand", "the same order",
            "pass --trusted with clean images of that data set",
        )  # fmt: skip
    order = np.random.default_rng([seed, 23]).permutation(len(clean))
    a, b = min(N_TRUSTED, len(clean) // 4), min(N_CLEAN, len(clean) // 4)
    rest = set(order[a + b :].tolist())
    chosen = np.array([i for i in there if int(known[i]) in rest], dtype=np.int64)
    if not len(chosen):
        raise CovaryError(
            f"{record.folder} has triggered versions of trusted and clean inputs only", "some of other images",
            "pass --trusted with clean images of that data set",
        )  # fmt: skip
    chosen = np.sort(np.random.default_rng([seed, 29]).permutation(chosen)[:N_TRIGGERED])
    trusted, harmless = clean.take(order[:a]), clean.take(order[a : a + b])
    first = {"x": trusted.x, "y": trusted.y, "id": np.array(list(trusted.id))}
    return first, _pile(record, chosen, harmless.x, harmless.y, list(harmless.id))


def _from_inputs(record: Record, trusted: str, inputs: str | None) -> tuple[Arrays, Arrays]:
    """Trusted and clean inputs as they were given; all triggered images."""
    x, y, ids = _read(trusted)
    every = np.arange(len(record.bd_test))
    size = record.bd_test.image(0).shape
    harmless = (np.zeros((0, *size), np.uint8), np.zeros(0, np.int64), [])
    if inputs is not None:
        pixels, labels, names = _read(inputs)
        harmless = (pixels, np.full(len(pixels), -1) if labels is None else labels, [f"clean-{name}" for name in names])
    first = {"x": x, "id": np.array(ids)} | ({} if y is None else {"y": y})
    return first, _pile(record, every, *harmless)


def _read(spec: str) -> tuple[UInt8[np.ndarray, "n h w c"], np.ndarray | None, list[str]]:
    reader = open_reader(spec)
    index = np.arange(len(reader.ids))
    x = reader.read(index)
    x = x if isinstance(x, np.ndarray) else np.stack(x)
    if x.dtype != np.uint8 or x.ndim != 4:
        raise CovaryError(f"{spec} holds {x.dtype} values of shape {x.shape}", "uint8 images, as the record's are")
    return x, reader.labels(index), reader.ids


def _pile(record: Record, chosen: np.ndarray, x: np.ndarray, y: np.ndarray, ids: list[str]) -> Arrays:
    """Clean inputs, then the chosen triggered ones; y is the original class."""
    triggered = record.bd_test.images(chosen)
    if len(x) and x.shape[1:] != triggered.shape[1:]:
        raise CovaryError(f"clean images of shape {x.shape[1:]}", f"{triggered.shape[1:]}, as the triggered ones")
    names = [f"triggered-{int(row):05d}" for row in record.bd_test.rows[chosen]]
    return {
        "x": np.concatenate((x, triggered)),
        "y": np.concatenate((y, record.bd_test.original[chosen])),
        "id": np.array([*ids, *names]),
        "truth": np.repeat(np.array([0, 1], dtype=np.int64), [len(x), len(triggered)]),
    }
