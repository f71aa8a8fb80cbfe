"""The probes of a block, as the detectors read them."""

from __future__ import annotations

import dataclasses

import numpy as np
from tests.diagnosis.synthetic_run import run

from gradmedic.protocol.probes import name_metric
from gradmedic_diagnosis import StepSeries
from gradmedic_diagnosis.probes import read_probes


def test_each_step_has_its_probes() -> None:
    """Numbers are found by probe and subject; other metrics and unknown probes are left out."""
    present = np.array([True, False, True])
    values = np.array([1.0, 0.0, np.nan])
    metrics = {
        name_metric("output_rms", "fc1"): StepSeries(values, present),
        name_metric("output_rms", "fc2"): StepSeries(np.array([4.0, 5.0, 6.0]), ~present),
        name_metric("unchanged_share"): StepSeries(np.array([0.5, 0.0, 0.0]), np.array([True, False, False])),
        "gradmedic/a_probe_of_a_later_version": StepSeries(values, present),
        "val/accuracy": StepSeries(values, present),
    }
    first, second, third = read_probes(dataclasses.replace(run([1.0, 1.0, 1.0]), metrics=metrics))
    assert first == {"output_rms": {"fc1": 1.0}, "unchanged_share": {"": 0.5}}
    assert second == {"output_rms": {"fc2": 5.0}}
    assert list(third) == ["output_rms"]
    assert np.isnan(third["output_rms"]["fc1"])


def test_a_block_without_probes_has_none() -> None:
    """Every step has an empty mapping."""
    assert list(read_probes(run([1.0, 2.0]))) == [{}, {}]
