"""Fixtures of the tests of `gradmedic.torch`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest
import torch
from tests.client.torch.remedies.training import open_remedies


@pytest.fixture(autouse=True)
def close_remedies() -> Iterator[None]:
    """Close the remedies that a test applied: a function mode or a compiler's stance must not reach the next test."""
    yield
    while open_remedies:
        open_remedies.pop().close()
    assert torch._C._len_torch_function_stack() == 0


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Let no test see what another has compiled, nor its stance: a process that compiles is observed in another way."""
    compiler = sys.modules.get("torch._dynamo")
    if compiler is not None:
        compiler.reset()
        torch.compiler.set_stance("default")


@pytest.fixture
def one_thread() -> None:
    """Let torch use one thread, and seed it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def no_warning(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail if anything is logged: an error of the observation is only logged, so that the training goes on."""
    with caplog.at_level(logging.WARNING, "gradmedic"):
        yield
    assert not caplog.records
