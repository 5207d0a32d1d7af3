"""Where in a user's own network an error arose: file, line and the code there."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


def line_of(problem: BaseException) -> str:
    """The deepest line of an error's traceback that is neither torch's nor covary's; empty where there is none.

    Read as in "nets.py, line 12, in forward: `return self.head(x)`".
    """
    own = [frame for frame in _frames(problem) if not _of_a_library(frame)]
    if not own:
        return ""
    frame = own[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}: `{(frame.line or '').strip()}`"


def is_their_own(problem: BaseException) -> bool:
    """Whether an error was raised by a user's own code, not by a layer of torch's that it called."""
    frames = _frames(problem)
    return bool(frames) and not _of_a_library(frames[-1])


def first_line(problem: BaseException) -> str:
    """An error's type and the first line of its message."""
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0]}" if lines else type(problem).__name__


def _frames(problem: BaseException) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(problem.__traceback__) if not frame.filename.startswith("<")]


def _of_a_library(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(_LIBRARIES)
