"""Which inputs a RUN shows, and what it shows of them: evidence, and pictures beside those of trusted inputs."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from covary.data.source import Source
from covary.detector import Detector
from covary.runs.folder.columns import column_cards
from covary.scoring.evidence import Evidence

MAX_FLAGGED_CARDS, MAX_CLEAN_CARDS, MAX_HOLDER_CARDS = 60, 6, 12


def build_cards(
    detector: Detector, inputs: Source, scores: Float[np.ndarray, " n"], flagged: Bool[np.ndarray, " n"]
) -> dict[str, Any]:
    """Evidence on the most anomalous flagged inputs, and on a few ordinary ones for comparison.

    Where nothing is flagged, on those with the highest scores.
    """
    order = np.argsort(-scores, kind="stable")
    odd = order[flagged[order]][:MAX_FLAGGED_CARDS]
    ordinary = order[~flagged[order]]
    middle = len(ordinary) // 2
    highest = not flagged.any()
    first = 0 if highest else max(middle - MAX_CLEAN_CARDS // 2, 0)
    ordinary = ordinary[first : MAX_CLEAN_CARDS if highest else middle + MAX_CLEAN_CARDS // 2]
    return {
        "highest": highest,
        "flagged": _cards(detector, inputs, odd, flagged),
        "clean_examples": _cards(detector, inputs, ordinary, flagged),
    }


def holders(detector: Detector) -> list[dict[str, Any]]:
    """The calibration inputs that hold the threshold, highest score first, with pictures of those that have some."""
    judge = detector.judge
    return [
        {
            "id": holder.id,
            "score": holder.score,
            "predicted": holder.predicted,
            "thumbnail": data_uri(detector.thumbnails.get(holder.id) if detector.calibration_rows is None else None),
            **_text_of(detector, holder.id),
        }
        for holder in judge.holders[:MAX_HOLDER_CARDS]
    ]


def _cards(
    detector: Detector, inputs: Source, positions: Int[np.ndarray, " k"], flagged: Bool[np.ndarray, " n"]
) -> list[dict[str, Any]]:
    if not len(positions):
        return []
    some = inputs.take(positions)
    cards = [
        _card(detector, evidence, some.thumbnail(i), int(positions[i]), bool(flagged[positions[i]]))
        for i, evidence in enumerate(detector.explain(some))
    ]
    columns = column_cards(detector, some)
    if columns is not None:
        cards = [{**card, **own} for card, own in zip(cards, columns, strict=True)]
    # Inputs other than pictures are shown in their own way.
    return [{**card, **own} for card, own in zip(cards, detector.cards(some), strict=True)]


def _card(
    detector: Detector, evidence: Evidence, picture: np.ndarray | None, row: int, flagged: bool
) -> dict[str, Any]:
    layers = evidence.layers
    return {
        **evidence.to_json(),
        "row": row,
        "flagged": flagged,
        "thumbnail": data_uri(picture),
        "explained_by": [
            {
                **vars(witness),
                "thumbnail": data_uri(detector.thumbnails.get(witness.id)),
                **_text_of(detector, witness.id),
            }
            for witness in evidence.explained_by
        ],
        "classes": [[label, value] for label, value in evidence.classes.items()],
        "layers": {kind: list(values.values()) for kind, values in layers.items()},
        "text": None,
    }


def _text_of(detector: Detector, name: str) -> dict[str, str]:
    texts = detector.extractor.trusted_texts
    return {"text": texts[name]} if name in texts else {}


def data_uri(picture: UInt8[np.ndarray, "h w 3"] | None) -> str | None:
    """A small picture as PNG inside a data URI."""
    if picture is None:
        return None
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
