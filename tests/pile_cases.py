"""The tiny digits as piles of every kind, and what is needed to look at the partitions written for them."""

from __future__ import annotations

import base64
import io
import json
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tiny

# Small partitions, so that a few inputs make several.
SIZES = {"partition_size": 32, "batch_size": 16, "trust_code": True}
X = tiny.inputs()[0]
IDS = [f"{i:03}.png" for i in range(len(X))]


def slowly(image: torch.Tensor) -> torch.Tensor:
    """A transform that changes nothing and takes its time where Ray runs it, so that a worker can be killed at work."""
    time.sleep(0.05 if Path(sys.argv[0]).name == "default_worker.py" else 0)
    return image


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def write_npz(folder: Path) -> str:
    np.savez(folder / "pile.npz", x=X, id=IDS)
    return str(folder / "pile.npz")


def write_images(folder: Path) -> str:
    (folder / "images").mkdir()
    for name, image in zip(IDS, X, strict=True):
        (folder / "images" / name).write_bytes(png(image))
    return str(folder / "images")


def write_zip(folder: Path) -> str:
    with zipfile.ZipFile(folder / "pile.zip", "w") as archive:
        for name, image in zip(IDS, X, strict=True):
            archive.writestr(name, png(image))
    return f"zip://::file://{folder / 'pile.zip'}"


def write_parquet(folder: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    x = pa.array(X.tolist(), pa.list_(pa.list_(pa.uint8())))
    # Row groups that no partition's boundary meets.
    pq.write_table(pa.table({"id": IDS, "x": x, "other": [0] * len(X)}), folder / "pile.parquet", row_group_size=23)
    return str(folder / "pile.parquet")


def write_encoded_parquet(folder: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = pa.array([{"bytes": png(image), "path": None} for image in X])
    pq.write_table(pa.table({"image": images, "id": IDS}), folder / "encoded.parquet")
    return f"file://{folder / 'encoded.parquet'}"


def write_jsonl(folder: Path) -> str:
    lines = [json.dumps({"id": name, "x": x.tolist(), "dtype": "uint8"}) for name, x in zip(IDS, X, strict=True)]
    lines[3:3] = [""]
    (folder / "pile.jsonl").write_text("\n".join(lines))
    return str(folder / "pile.jsonl")


def write_encoded_jsonl(folder: Path) -> str:
    with open(folder / "encoded.jsonl", "w") as file:
        for name, x in zip(IDS, X, strict=True):
            file.write(json.dumps({"image": base64.b64encode(png(x)).decode(), "id": name}) + "\n")
    return str(folder / "encoded.jsonl")


def write_tar(folder: Path, arrays: bool = False) -> str:
    """One shard for every 32 inputs, as `--partition-size 32` cuts the others."""
    (folder / "shards").mkdir(exist_ok=True)
    for start in range(0, len(X), 32):
        with tarfile.open(folder / "shards" / f"shard-{start // 32:03}.tar", "w") as tar:
            for name, x in zip(IDS[start : start + 32], X[start : start + 32], strict=True):
                data = io.BytesIO()
                np.save(data, x)
                content, suffix = (data.getvalue(), "npy") if arrays else (png(x), "png")
                for extension, blob in (("cls", b"3"), (suffix, content), ("json", b"{}")):
                    info = tarfile.TarInfo(f"{name.removesuffix('.png')}.{extension}")
                    info.size = len(blob)
                    tar.addfile(info, io.BytesIO(blob))
    return str(folder / "shards" / "shard-{000..004}.tar")


WRITERS = {
    "npz": write_npz,
    "images": write_images,
    "zip": write_zip,
    "parquet": write_parquet,
    "encoded parquet": write_encoded_parquet,
    "jsonl": write_jsonl,
    "encoded jsonl": write_encoded_jsonl,
    "tar": write_tar,
    "tar of arrays": lambda folder: write_tar(folder, arrays=True),
}


def columns(out: Path) -> dict[str, list]:
    """Every column of all partitions, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(path).replace_schema_metadata(None) for path in sorted(Path(out).glob("part-*.parquet"))]
    return pa.concat_tables(tables).to_pydict()


def same(one: Path, other: Path) -> None:
    """Both hold the same verdicts to the bit: Python's floats compare bit by bit but for zeros and NaN."""
    a, b = columns(one), columns(other)
    assert list(a) == list(b)
    for name in a:
        assert a[name] == b[name], name
