"""`covary clean`: which samples of a training set to train without."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from covary.cli.console import print_json, stdout, terminal
from covary.cli.options import (
    DATA,
    Calibration,
    Chosen,
    Consent,
    Force,
    Hf,
    Json,
    MaybeModel,
    MaybeTrusted,
    Out,
    Preparation,
    Sampling,
    Weights,
    grouped,
    judge_together_by_default,
    of_texts,
)
from covary.errors import CovaryError
from covary.settings import VERDICTS


@grouped
def clean(
    *,
    model: MaybeModel = None,
    weights: Weights = None,
    trusted: MaybeTrusted = None,
    training: Annotated[
        str | None,
        Option("--training", help="The training set to clean, in any of the same forms; labels in it are what it says.",
               rich_help_panel=DATA),
    ] = None,
    detector: Annotated[
        Path | None, Option("--detector", help="Folder written by `covary fit`, in place of trusted inputs.")
    ] = None,
    out: Out,
    remove_at: Annotated[
        float | None,
        Option("--remove-at", help="Rate of clean samples to give up; by default --fpr.", rich_help_panel=VERDICTS),
    ] = None,
    cards: Annotated[
        bool, Option("--cards", help="Remove the members of the pile's cards instead, shift-like cards aside.",
                     rich_help_panel=VERDICTS)
    ] = False,
    drop_mislabelled: Annotated[
        bool, Option("--drop-mislabelled", help="Remove samples whose label the network surely contradicts, too.",
                     rich_help_panel=VERDICTS)
    ] = False,
    calibration: Calibration = None,
    sampling: Sampling = None,
    chosen: Chosen,
    preparation: Preparation,
    hf: Hf = None,
    consent: Consent,
    force: Force = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Say which samples of a training set taught another mechanism than trusted samples did.

    Writes a RUN with clean.csv, keep.txt, remove.txt and mislabelled.txt. Trust a part of the training set itself,
    which somebody has looked at.

    **Examples**

    `covary clean --model nets:resnet --weights w.pt --trusted seen.npz --training train.npz --out runs/clean`

    `covary clean --detector detectors/resnet --training train/ --out runs/clean --remove-at 0.05 --trust-code`
    """
    from covary.training import sanitisation

    if training is None:
        raise CovaryError("no training set", "--training", "pass the data that the network was trained on")
    decided: dict[str, Any] = {"cards": cards, "drop_mislabelled": drop_mislabelled}
    requested = {**chosen.to_settings()}
    rate = remove_at if remove_at is not None else requested.get("fpr", sanitisation.REMOVE_AT)
    more = {"display": terminal(json), "force": force}
    if detector is not None:
        more |= {name: requested[name] for name in ("device", "batch_size") if name in requested}
        summary = sanitisation.clean_by_detector(
            detector, training, out, remove_at=rate, model=model, weights=weights, trust_code=consent.trust_code,
            public_key=consent.public_key, **decided, **more,
        )  # fmt: skip
    else:
        if (hf or model) is None or trusted is None:
            expected = "--model (or --hf) and --trusted, or --detector"
            raise CovaryError("no network, or no trusted samples", expected)
        requested |= of_texts(
            hf, model=model, weights=weights, sampling=sampling, mean=preparation.mean, std=preparation.std,
            transform=preparation.transform,
        )  # fmt: skip
        names: dict[str, Any] = {"offline": False}
        judge_together_by_default(names, requested)
        plan = sanitisation.ScanPlan.checked(
            model=hf or model, weights=weights and str(weights), trusted=trusted, calibration=calibration,
            sampling=sampling, inputs=training, **names, **preparation.arguments(),
            settings={**requested, "fpr": rate},
        )  # fmt: skip
        summary = sanitisation.clean_by_plan(plan, out, **decided, **more)
    print_json(summary) if json else _print(summary, out)


def _print(summary: dict[str, Any], out: Path) -> None:
    found = summary["clean"]
    why = "on the pile's cards" if found["by_cards"] else f"at {100 * found['rate']:.3g} % of clean ones given up"
    stdout.print(f"[bold]{found['n_remove']:,} of {found['n']:,} training samples to remove[/], {why}.")
    if found["labels_tested"]:
        where = "among them" if found["drop_mislabelled"] else "kept"
        stdout.print(f"  mislabelled: {found['n_mislabelled']:,}, {where}; the network surely answers otherwise")
    for statement in [*found["statements"], *summary["statements"]]:
        stdout.print(f"  {statement}", markup=False)
    stdout.print(f"  keep.txt, remove.txt, mislabelled.txt, clean.csv and report.html are in {out}", markup=False)
