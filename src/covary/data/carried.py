"""Trusted inputs prepared as the network itself asks for, where nobody says how."""

from __future__ import annotations

from typing import Any

import numpy as np

from covary.data.preprocessing import LARGEST
from covary.data.presets import Preset, as_arrays_are, differs, preset_of
from covary.data.source import Source, open_data


def open_as_carried(preset: Preset | None, inputs: Any, **kwargs: Any) -> tuple[Source, str]:
    """Inputs as `open_data` gives them, and what came of the preset, in a sentence; empty where nothing did.

    A mean, std or transform that is given wins over the preset, and so do those of a Source. Images that are decoded
    are resized and cropped; arrays of pixels have one size already and are only normalised, unless the preset resizes
    always; arrays of floats are taken as they are.
    """
    parts = ("mean", "std", "transform")
    given = any(kwargs.get(name) is not None for name in parts)
    given |= isinstance(inputs, Source) and any(getattr(inputs, name) is not None for name in parts)
    if preset is None or given:
        source = open_data(inputs, **kwargs)
        theirs = preset_of(kwargs.get("transform")) or preset
        return source, "" if theirs is None else differs(theirs, source.preprocessing)
    source = open_data(inputs, **{**kwargs, "mean": preset.mean, "std": preset.std, "transform": preset.transform})
    if source.mode is None:
        if np.asarray(source.reader.read(source.index[:1])[0]).dtype not in LARGEST:
            return source.preprocessed(), ""
        preset = as_arrays_are(preset)
        source = source.preprocessed(mean=preset.mean, std=preset.std, transform=preset.transform)
    return source, f"Images are prepared as by {preset.words()}."
