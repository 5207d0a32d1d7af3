"""The labelled skin of traces: a Zarr store (chain, draw, sample), written block by block, resumed after a kill."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from covary.errors import CovaryError, missing_extra
from covary.features.sampled.chains import Chain, SamplingData
from covary.features.sampled.samplers import SamplingPlan
from covary.features.sampled.traces import Traces
from covary.models.functional import FunctionalNetwork
from covary.storage.fingerprints import digest_arrays, digest_json, digest_tensors

Place = tuple[int, slice]


def _xarray() -> Any:
    try:
        import xarray
        import zarr  # noqa: F401
    except ImportError:
        raise missing_extra("xarray and zarr", "sampling") from None
    return xarray


class TraceStore:
    """A folder with `traces.zarr` and one checkpoint a chain.

    A block of draws is written first, the checkpoint that points behind it second, each whole or not at all: a kill
    in between costs the block, which is then written again with the same bits.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.zarr, self.xarray = folder, folder / "traces.zarr", _xarray()

    @classmethod
    def open(
        cls,
        folder: Path,
        plan: SamplingPlan,
        traces: Traces,
        network: FunctionalNetwork,
        x: Tensor,
        data: SamplingData | None,
        block: int,
    ) -> TraceStore:
        """A new store, or the one that was begun there for the same plan, network and data.

        Raises:
            CovaryError: the folder holds traces of something else; names what differs, with both sides.
        """
        store = cls(folder)
        now = {
            "plan": json.loads(json.dumps({**asdict(plan), "settings": asdict(plan.resolved())})),
            "observables": list(traces.values),
            "block": block,
            "network": digest_tensors({**network.still, **network.moving, **network.buffers}),
            "moving": list(network.moving),
            "samples": digest_tensors({"x": x}),
            "ids": digest_json(list(traces.ids)),
            "sampling data": digest_tensors({"x": data.x, "y": data.y}) if data is not None else "none",
            "predicted": digest_arrays({"predicted": traces.predicted}),
        }
        if store.zarr.exists():
            then = json.loads(store._dataset().attrs["made of"])
            for what in now:
                if now[what] != then.get(what):
                    found = f"{folder} holds traces whose {what} is {then.get(what)}"
                    raise CovaryError(found, str(now[what]), "choose another folder")
        else:
            store._create(traces, now, block)
        return store

    def _dataset(self) -> Any:
        return self.xarray.open_zarr(self.zarr, consolidated=False)

    def _create(self, traces: Traces, made_of: dict[str, Any], block: int) -> None:
        dims = ("chain", "draw", "sample")
        variables: dict[str, Any] = {name: (dims, values) for name, values in traces.values.items()}
        for name, values in traces.at_w_star.items():
            variables[f"{name}_at_w_star"] = ("sample", values)
        variables["predicted"] = ("sample", traces.predicted)
        variables["loss"] = (("chain", "step"), traces.loss)
        variables["accuracy"] = (("chain", "step"), traces.accuracy)
        ids = np.array(list(traces.ids), dtype=object)
        dataset = self.xarray.Dataset(variables, {"sample": ids}, {"made of": json.dumps(made_of)})
        chunks = {name: {"chunks": (1, block, len(traces.ids))} for name in traces.values}
        part = self.folder / "traces.zarr.part"
        shutil.rmtree(part, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        dataset.to_zarr(part, mode="w", consolidated=False, encoding=chunks)
        part.rename(self.zarr)

    def _checkpoint_path(self, number: int) -> Path:
        return self.folder / f"chain-{number}.safetensors"

    def checkpoint(self, number: int) -> dict[str, Tensor] | None:
        """The tensors of a chain's last checkpoint, or None where it has none."""
        path = self._checkpoint_path(number)
        if not path.exists():
            return None
        try:
            return load_file(path)
        except SafetensorError as problem:
            found = f"{path} is damaged: {problem}"
            raise CovaryError(found, "a checkpoint", "delete the folder and begin again") from problem

    def fill(self, traces: Traces, number: int) -> int:
        """Reads a chain's finished draws into `traces`; how many there are."""
        saved = self.checkpoint(number)
        assert saved is not None
        done = int(saved["draws"])
        stored = self._dataset().isel(chain=number)
        for name, values in traces.values.items():
            values[number, :done] = stored[name].isel(draw=slice(0, done)).values
        steps = slice(0, int(saved["step"]))
        traces.loss[number, steps] = stored["loss"].isel(step=steps).values
        traces.accuracy[number, steps] = stored["accuracy"].isel(step=steps).values
        return done

    def write(self, traces: Traces, chain: Chain, draws: Place, steps: Place) -> None:
        """Writes one block of draws and then the chain's checkpoint."""
        number, stretch = draws
        which = slice(number, number + 1)
        dims = ("chain", "draw", "sample")
        block = {name: (dims, values[which, stretch]) for name, values in traces.values.items()}
        region = {"chain": which, "draw": stretch}
        everyone = {"sample": slice(0, len(traces.ids))}
        self.xarray.Dataset(block).to_zarr(self.zarr, region={**region, **everyone}, consolidated=False)
        along = {
            "loss": (("chain", "step"), traces.loss[which, steps[1]]),
            "accuracy": (("chain", "step"), traces.accuracy[which, steps[1]]),
        }
        self.xarray.Dataset(along).to_zarr(self.zarr, region={"chain": which, "step": steps[1]}, consolidated=False)
        path = self._checkpoint_path(number)
        part = path.with_suffix(".part")
        save_file({**chain.tensors(), "draws": _scalar(stretch.stop)}, part)
        os.replace(part, path)


def _scalar(value: int) -> Tensor:
    import torch

    return torch.tensor(value)


def read_traces(folder: str | Path) -> Traces:
    """Traces from a store, cut to the draws that every chain has finished.

    Raises:
        CovaryError: no store there, or the extra `sampling` is missing.
    """
    store = TraceStore(Path(folder))
    if not store.zarr.exists():
        raise CovaryError(f"no traces at {folder}", "a folder written by record_traces")
    stored = store._dataset()
    names = [name for name, variable in stored.data_vars.items() if variable.dims == ("chain", "draw", "sample")]
    finished = [store.checkpoint(number) for number in range(stored.sizes["chain"])]
    done = min(0 if saved is None else int(saved["draws"]) for saved in finished)
    steps = min(0 if saved is None else int(saved["step"]) for saved in finished)
    predicted: Int[np.ndarray, " n"] = stored["predicted"].values
    return Traces(
        [str(name) for name in stored["sample"].values],
        predicted,
        {str(name): stored[f"{name}_at_w_star"].values for name in names},
        {str(name): stored[name].isel(draw=slice(0, done)).values for name in names},
        stored["loss"].isel(step=slice(0, steps)).values,
        stored["accuracy"].isel(step=slice(0, steps)).values,
    )
