"""Counts how often a thread waits for the GPU."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

_MESSAGE = "called a synchronizing CUDA operation"
"""What torch warns of in its debug mode of synchronizations."""


@dataclass
class Count:
    """How often a thread has waited."""

    waits: int = 0


@contextmanager
def count_synchronizations() -> Iterator[Count]:
    """Count the times that the calling thread waits for the GPU.

    torch's debug mode sees numbers that are read from the device and copies that wait. It does not see waiting for
    events, streams and the whole device, whose functions are replaced.
    """
    count = Count()
    thread = threading.get_ident()

    def show(message: Warning | str, *_arguments: Any, **_named: Any) -> None:
        if _MESSAGE in str(message) and threading.get_ident() == thread:
            count.waits += 1

    def observe(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            count.waits += threading.get_ident() == thread
            return function(*arguments, **named)

        return call

    functions = ((torch.cuda.Event, "synchronize"), (torch.cuda.Stream, "synchronize"), (torch.cuda, "synchronize"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with mock.patch.object(warnings, "showwarning", show):
            patches = [mock.patch.object(owner, name, observe(getattr(owner, name))) for owner, name in functions]
            for patch in patches:
                patch.start()
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield count
            finally:
                torch.cuda.set_sync_debug_mode("default")
                for patch in patches:
                    patch.stop()
