"""A pile over a Ray cluster against the same pile in one process: bits, killed actors, throughput, the cost model.

python -m covary_bench.studies.production.cluster [--work FOLDER]

50,000 inputs: 5,000 MNIST digits, each as it is and nine times shifted and noised, one in a hundred with the demo's
trigger; the demo's network. Every finished part stays in the record, so the script can be killed and run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")

from covary.detector import Detector
from covary.runs import demo
from covary.serving.pile import on_ray
from covary.serving.pile.cost import estimate
from covary.serving.pile.score import score_pile
from covary.serving.pile.worker import limited
from covary.storage.fingerprints import versions

RECORD = Path(__file__).resolve().parents[4] / "results" / "production-cluster.json"
INPUTS, PARTITION, BATCH, SEED, FDR = 50_000, 1_000, 250, 0, 0.1
WAYS: dict[str, dict[str, Any]] = {
    "one process": {},
    "ray, 1 actor": {"ray": "local", "actors": 1},
    "ray, 2 actors": {"ray": "local", "actors": 2},
    "ray, 2 actors, two killed": {"ray": "local", "actors": 2},
}
# After so many finished partitions the actor that finished the last one is killed.
KILLS = (5, 20)
# Pairs of short runs, 1 actor then 2, in one cluster: the load beside them changes less within a pair.
PAIRS = 3
# A cluster to be described: an example for the cost model, not a measurement.
EXAMPLE = {"actors": 512, "bandwidth": 10e9, "failures_per_actor_hour": 0.01, "start_seconds": 60.0}


def material(work: Path) -> None:
    """The demo's network and trusted inputs, a detector, and the pile as ten parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if (work / "pile").exists():
        return
    demo.make_material(work / "demo", SEED)
    detector = Detector("covary.runs.demo:network", weights=work / "demo" / "weights.safetensors")
    detector.fit(str(work / "demo" / "trusted.npz")).save(work / "detector")
    digits, rng = demo.digits()[0], np.random.default_rng(SEED)
    part = work / "pile.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for variant in range(10):
        x = digits
        if variant:
            moved = [np.roll(image, rng.integers(-2, 3, 2), (0, 1)) for image in digits]
            x = np.clip(np.stack(moved) + rng.normal(0, 4 * variant, digits.shape), 0, 255).astype(np.uint8)
        odd = rng.random(len(x)) < 0.01
        x = np.where(odd[:, None, None], demo.trigger(x), x)
        ids = [f"{'marked' if mark else 'digit'}-{variant}-{i}" for i, mark in enumerate(odd)]
        column = pa.array(list(x.reshape(len(x), -1)), pa.list_(pa.uint8(), 784))
        shaped = pa.FixedSizeListArray.from_arrays(column.flatten(), 28)
        column = pa.FixedSizeListArray.from_arrays(shaped, 28)
        pq.write_table(pa.table({"id": ids, "x": column}), part / f"{variant}.parquet", row_group_size=2_500)
    part.rename(work / "pile")


def measure(way: str, work: Path) -> dict[str, Any]:
    """One run, from nothing: its summary, when partitions were done, who was killed, and the load beside it."""
    out = work / way.replace(" ", "-").replace(",", "")
    shutil.rmtree(out, ignore_errors=True)
    times, killed, seen, begun = [], [], set(), time.perf_counter()

    def on_partition(record: dict[str, Any]) -> None:
        times.append(time.perf_counter() - begun)
        seen.add(record["pid"])
        if "killed" in way and len(times) in KILLS:
            os.kill(record["pid"], signal.SIGKILL)
            killed.append(record["pid"])

    load = [os.getloadavg()[0]]
    summary = score_pile(work / "detector", str(work / "pile"), out, fdr=FDR, batch_size=BATCH, trust_code=True,
                         partition_size=PARTITION, on_partition=on_partition, **WAYS[way])  # fmt: skip
    load.append(os.getloadavg()[0])
    steady = (INPUTS - PARTITION) / (times[-1] - times[0])
    keep = ("n", "n_flagged", "rule", "verdicts", "partitions", "scored_now", "seconds", "scoring_seconds",
            "seconds_per_input", "processor_seconds_per_input", "second_pass_seconds", "stored_bytes")  # fmt: skip
    return {
        **{name: summary[name] for name in keep},
        "records": len(times),
        "first_partition_after_seconds": round(times[0], 3),
        "inputs_per_second_after_the_first_partition": steady,
        "workers_seen": len(seen),
        "killed": len(killed),
        "load_average": load,
    }


def pair(work: Path) -> dict[str, Any]:
    """1 and 2 actors on the same 10,000 inputs: what each actor did per second while it worked, added up."""
    found: dict[str, Any] = {"load_average": [os.getloadavg()[0]]}
    for actors in (1, 2):
        out, records = work / "short", []
        shutil.rmtree(out, ignore_errors=True)
        sizes = {"batch_size": BATCH, "partition_size": 2 * BATCH, "trust_code": True}
        some = str(work / "pile" / "[01].parquet")
        score_pile(work / "detector", some, out, ray="local", actors=actors, on_partition=records.append, **sizes)
        rates = []
        for pid in {record["pid"] for record in records}:
            own = [record for record in records if record["pid"] == pid]
            rates.append(sum(record["n"] for record in own) / sum(record["seconds"] for record in own))
        found[str(actors)] = {"inputs_per_second": sum(rates), "actors_at_work": len(rates)}
        found["load_average"].append(os.getloadavg()[0])
    found["ratio"] = found["2"]["inputs_per_second"] / found["1"]["inputs_per_second"]
    return found


def plain(work: Path) -> dict[str, np.ndarray]:
    """The detector's own verdicts on the same inputs, in batches of the same boundaries, without partitions."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(work / "pile" / f"{i}.parquet") for i in range(10)]
    flat = [table["x"].combine_chunks().flatten().flatten().to_numpy() for table in tables]
    x = np.concatenate(flat).reshape(-1, 28, 28)
    with limited(1):
        verdicts = Detector.load(work / "detector", batch_size=BATCH, trust_code=True).score(x, fdr=FDR)
    return {name: getattr(verdicts, name) for name in ("score", "p_value", "flagged", "predicted")}


def compared(work: Path) -> dict[str, Any]:
    """Every way against the detector itself, to the bit, and ids none of which is lost or there twice."""
    import pyarrow.parquet as pq

    expected = plain(work)
    ids = [name for i in range(10) for name in pq.read_table(work / "pile" / f"{i}.parquet")["id"].to_pylist()]
    found: dict[str, Any] = {"inputs": len(ids), "flagged": int(expected["flagged"].sum())}
    for way in WAYS:
        out = work / way.replace(" ", "-").replace(",", "")
        table = pq.ParquetDataset(sorted(out.glob("part-*.parquet"))).read()
        equal = {
            name: values.tobytes() == table[name].combine_chunks().to_numpy(zero_copy_only=False).tobytes()
            for name, values in expected.items()
        }
        found[way] = {"ids": table["id"].to_pylist() == ids, **equal}
    return found


def concluded(record: dict[str, Any]) -> dict[str, Any]:
    """Ratios between the runs, and what the cost model says."""
    runs = record["runs"]
    one, two, killed = (runs[f"ray, {way}"] for way in ("1 actor", "2 actors", "2 actors, two killed"))
    rate = "inputs_per_second_after_the_first_partition"
    c, e = one["seconds_per_input"], float(np.median([found["ratio"] for found in record["pairs"]])) / 2
    # What is left of the run with one actor when its work is taken away; the other run is then told in advance.
    start = one["scoring_seconds"] - INPUTS * c
    predicted = estimate(
        INPUTS, actors=2, seconds_per_input=c, efficiency=min(e, 1.0), partition_size=PARTITION, start_seconds=start,
        second_pass_seconds_per_input=0.0,
    )["seconds"]  # fmt: skip
    example = estimate(
        1e9, seconds_per_input=one["processor_seconds_per_input"], bytes_per_input=one["stored_bytes"] / INPUTS,
        second_pass_seconds_per_input=one["second_pass_seconds"] / INPUTS, **EXAMPLE,
    )  # fmt: skip
    return {
        "same_verdicts_digest": len({run["verdicts"] for run in runs.values()}) == 1,
        "throughput_of_2_actors_to_1_in_pairs": [found["ratio"] for found in record["pairs"]],
        "throughput_of_2_actors_to_1": float(np.median([found["ratio"] for found in record["pairs"]])),
        "throughput_of_2_actors_to_1_in_the_long_runs": two[rate] / one[rate],
        # What other programs take does not enter here: 1 says that a second actor makes no input dearer.
        "processor_seconds_per_input_of_2_actors_to_1": two["processor_seconds_per_input"]
        / one["processor_seconds_per_input"],
        "throughput_of_1_actor_to_one_process": one[rate] / runs["one process"][rate],
        "seconds_with_killed_actors_to_without": killed["scoring_seconds"] / two["scoring_seconds"],
        "cost_model_for_2_actors": {
            "from_1_actor": {"seconds_per_input": c, "start_seconds": start, "efficiency": e},
            "predicted_seconds": predicted,
            "measured_seconds": two["scoring_seconds"],
            "measured_to_predicted": two["scoring_seconds"] / predicted,
        },
        "example_1e9": {"cluster": EXAMPLE, **example},
    }  # fmt: skip


def write(record: dict[str, Any]) -> None:
    """The record so far, whole."""
    part = RECORD.with_name(RECORD.name + ".part")
    part.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    part.replace(RECORD)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("cache/production/cluster"))
    work = parser.parse_args().work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {"runs": {}}
    record |= {"inputs": INPUTS, "partition_size": PARTITION, "batch_size": BATCH, "seed": SEED, "fdr": FDR,
               "network": "covary.runs.demo:network", "cpus": os.cpu_count(), "machine": platform.machine(),
               "versions": versions()}  # fmt: skip
    material(work)
    for way in WAYS:
        if way not in record["runs"]:
            print(way, flush=True)
            record["runs"][way] = measure(way, work)
            write(record)
    pairs = record.setdefault("pairs", [])
    if len(pairs) < PAIRS:
        with on_ray.cluster("local", 2):
            while len(pairs) < PAIRS:
                print("pair", len(pairs), flush=True)
                pairs.append(pair(work))
                write(record)
    if "equal_to_the_detector_to_the_bit" not in record:
        record["equal_to_the_detector_to_the_bit"] = compared(work)
    record["concluded"] = concluded(record)
    write(record)
    print(json.dumps(record["concluded"], indent=1))


if __name__ == "__main__":
    main()
