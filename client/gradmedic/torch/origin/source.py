"""Reads from the frames of the running thread which line of the user's code called an operation, and which module."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch
from torch import nn

from gradmedic.protocol.origins import SourceLine

_TORCH = os.path.dirname(torch.__file__) + os.sep  # noqa: PTH120 - compared with the text of code objects
_GRADMEDIC = str(Path(__file__).parents[2]) + os.sep
_ENGINE = os.path.join(_TORCH, "autograd", "graph.py")  # noqa: PTH118
_REPLAY = str(Path(__file__).with_name("replay.py"))
_MOST_FRAMES = 300
_LONGEST_TEXT = 200


class Place(NamedTuple):
    """A line of code, as a frame has it."""

    file: str
    line: int
    function: str


class Caller(NamedTuple):
    """What the frames show of a call."""

    place: Place | None
    """The innermost line outside of torch and gradmedic; None if the call does not come from such a line."""
    module: str | None
    """Path of the innermost module whose code runs; None outside of the modules."""


def find_place(frame: FrameType | None) -> Place | None:
    """Return the innermost line that belongs neither to torch nor to gradmedic."""
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return None
        file = frame.f_code.co_filename
        if is_user_code(file):
            return Place(file, frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back
    return None


def find_caller(frame: FrameType | None, modules: Mapping[int, str]) -> Caller:
    """Return the line and the module of a call.

    The search ends at the engine that runs the backward pass, and at the code that repeats a step: what is outside of
    them did not call the operation.

    Args:
        frame: innermost frame of the call.
        modules: path of each module by its id.
    """
    place: Place | None = None
    module: str | None = None
    for _ in range(_MOST_FRAMES):
        if frame is None or (place is not None and module is not None):
            break
        code = frame.f_code
        if code.co_filename in (_ENGINE, _REPLAY):
            break
        if place is None and is_user_code(code.co_filename):
            place = Place(code.co_filename, frame.f_lineno, code.co_name)
        if module is None and modules and code.co_argcount and code.co_varnames[0] == "self":
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module):
                module = modules.get(id(owner))
        frame = frame.f_back
    return Caller(place, module)


def is_user_code(file: str) -> bool:
    """Whether a file belongs neither to torch nor to gradmedic, nor to the interpreter."""
    return not file.startswith((_TORCH, _GRADMEDIC, "<frozen"))


def describe_place(place: Place) -> SourceLine:
    """Return a line with its code and the file's path relative to the working directory, or else to the script."""
    text = linecache.getline(place.file, place.line).strip()
    return SourceLine(file=_shorten(place.file), line=place.line, text=text[:_LONGEST_TEXT] or None)


def _shorten(file: str) -> str:
    path = Path(file)
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    for folder in (Path.cwd(), *([Path(script).resolve().parent] if script else [])):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.as_posix()
