"""`covary export`: a detector of latent evidence for runtimes without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from covary.cli.console import print_json, print_record
from covary.cli.options import Consent, Force, Json, MaybeModel, Weights, grouped


@grouped
def export(
    *,
    detector: Annotated[Path, Argument(help="Folder written by `covary fit --evidence latent`.")],
    out: Annotated[Path, Argument(help="Folder to write.")],
    format: Annotated[
        str, Option("--format", help="onnx, torchscript (deprecated by torch) or pt2 (torch.export).")
    ] = "onnx",
    pixels: Annotated[
        bool, Option("--pixels", help="The graph takes images of uint8, (n, h, w, c), and scales them itself.")
    ] = False,
    model: MaybeModel = None,
    weights: Weights = None,
    consent: Consent,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a detector of latent evidence as one graph and what judges its numbers, for other runtimes.

    **Examples**

    `covary export detectors/latent exported/latent --trust-code`

    `covary export detectors/latent exported/pixels --pixels --format pt2 --trust-code`
    """
    from covary.detector import Detector
    from covary.serving.exported.write import export as write
    from covary.storage.exported import describe

    loaded = Detector.load(
        detector, model, weights=weights, public_key=consent.public_key, trust_code=consent.trust_code
    )
    write(loaded, out, format=format, pixels=pixels, force=force)
    record = describe(out)
    print_json(record) if json else print_record(record)
