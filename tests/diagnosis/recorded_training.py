"""Small trainings of torch that go through the SDK, its journal and the service's decoder into a diagnosis."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.corpus.foreign.recorder import read_journal

import gradmedic
from gradmedic.protocol.runs import RunCreate
from gradmedic_diagnosis import Block, Diagnostician, UpdatedDiagnosis

Train = Callable[[gradmedic.Run], None]


def record_training(train: Train) -> tuple[RunCreate, Block]:
    """Train with an offline run that samples every step; return its description and steps as a service has them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        run = gradmedic.init(mode="offline", dir=folder, silent=True, project="tests", log_freq=1)
        try:
            train(run)
        finally:
            run.finish(timeout=30)
        return read_journal(Path(folder), run.id)


def diagnose_recorded(description: RunCreate, block: Block) -> UpdatedDiagnosis:
    """Return the diagnosis of a recorded training."""
    return Diagnostician(description.layers, description.training, framework=description.framework).update(block)


def diagnose_training(train: Train) -> UpdatedDiagnosis:
    """Return the diagnosis of a training."""
    return diagnose_recorded(*record_training(train))
