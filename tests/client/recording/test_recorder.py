"""The recorder's thread."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
import pytest
from tests.support.patience import PATIENCE
from tests.support.workers import WaitUntil

from gradmedic.protocol.runs import RunCreate
from gradmedic.recording import recorder as recorder_module
from gradmedic.recording.description import RunDescriber
from gradmedic.recording.draft import Draft, complete_step
from gradmedic.recording.events import Event, SpikeDetected
from gradmedic.recording.instrumentation import Measurement
from gradmedic.recording.layers import LayerRegistry
from gradmedic.recording.one_time_warnings import OneTimeWarnings
from gradmedic.recording.recorder import Recorder
from gradmedic.recording.step import Entry, Rewind, Row, Step


class CollectingOutput:
    """Collects entries; while `may_continue` is not set, the recorder hangs."""

    def __init__(self) -> None:
        self.is_closed = False
        self.may_continue = threading.Event()
        self.may_continue.set()
        self.entries: list[tuple[Entry, bool]] = []
        self.dropped = 0
        self.has_started = False

    def start(self) -> None:
        """Note the start."""
        self.has_started = True

    def append(self, entry: Entry, *, is_urgent: bool) -> None:
        """Collect an entry."""
        assert self.may_continue.wait(PATIENCE)
        self.entries.append((entry, is_urgent))

    def add_dropped(self, steps: int) -> None:
        """Count dropped steps."""
        self.dropped += steps

    def fail(self) -> None:
        """Close."""
        self.is_closed = True


class ReadyMeasurement:
    """A measurement that is read at once."""

    def __init__(self, measurement: Measurement | None) -> None:
        self._measurement = measurement

    has_numbers = True

    def read_totals(self) -> None:
        """Return that a device would be waited for."""

    def read(self) -> Measurement:
        """Return the measurement; raise an error if there is none."""
        if self._measurement is None:
            raise RuntimeError("the device was lost")
        return self._measurement


def draft(number: int, loss: float | None = 1.0, *measurements: Measurement | None) -> Draft:
    """Return a draft."""
    return Draft(number, 0.0, loss, None, {}, [ReadyMeasurement(each) for each in measurements], None)


def row(layer: int, norm: float) -> Row:
    """Return a row of one layer."""
    return Row(("grad_norm",), np.array([layer], dtype=np.int32), np.array([[norm]], dtype=np.float32))


def make_recorder(output: CollectingOutput, events: deque[Event], *, is_trial: bool = False) -> Recorder:
    """Return a recorder of a run without layers."""
    describer = RunDescriber(RunCreate(project="p", layers=[]), LayerRegistry(), [])
    return Recorder(output, describer, events, OneTimeWarnings(), max_bytes=0, is_trial=is_trial)


def test_entries_are_recorded_in_order_and_a_spike_is_urgent() -> None:
    """A step that jumps is urgent and causes one event."""
    output, events = CollectingOutput(), deque[Event]()
    recorder = make_recorder(output, events)
    for number in range(10):
        recorder.record(draft(number))
    recorder.record(Rewind(3))
    recorder.record(draft(4, 1e6))
    assert recorder.wait(PATIENCE)
    recorder.close(PATIENCE)
    assert output.has_started
    numbers = [entry.number if isinstance(entry, Step) else -entry.step for entry, _ in output.entries]
    assert numbers == [*range(10), -3, 4]
    assert [is_urgent for _, is_urgent in output.entries] == [False] * 11 + [True]
    assert list(events) == [SpikeDetected()]


def test_a_step_that_cannot_be_read_is_left_out_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The steps after one that cannot be read are recorded."""
    output = CollectingOutput()
    recorder = make_recorder(output, deque())
    for number in range(4):
        recorder.record(draft(number, 1.0, None) if number < 2 else draft(number))
    assert recorder.wait(PATIENCE)
    recorder.close(PATIENCE)
    assert [entry.number for entry, _ in output.entries if isinstance(entry, Step)] == [2, 3]
    assert caplog.text.count("the device was lost") == 1


def test_drafts_without_room_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the recorder hangs, record() returns at once; what has no room is counted later."""
    monkeypatch.setattr(recorder_module, "_FEWEST_DRAFTS", 10)
    output = CollectingOutput()
    output.may_continue.clear()
    recorder = make_recorder(output, deque())
    for number in range(100):
        recorder.record(draft(number))
    output.may_continue.set()
    assert recorder.wait(PATIENCE)
    recorder.record(draft(100))
    assert recorder.wait(PATIENCE)
    recorder.close(PATIENCE)
    assert 10 <= len(output.entries) < 20
    assert len(output.entries) + output.dropped == 101


def test_a_closed_output_takes_nothing_and_wait_returns() -> None:
    """wait() returns False at once if the output was closed before everything was recorded."""
    output = CollectingOutput()
    output.may_continue.clear()
    recorder = make_recorder(output, deque())
    recorder.record(draft(0))
    output.is_closed = True
    recorder.record(draft(1))
    assert not recorder.wait(PATIENCE)
    output.may_continue.set()
    recorder.close(PATIENCE)


def test_a_step_joins_the_measurements_of_several_instrumentations() -> None:
    """The completed step has all rows, the largest learning rate and scale, and the norm of all outputs together."""
    step = complete_step(
        draft(
            0,
            1.0,
            Measurement(row=row(0, 1.0), learning_rate=0.1, clip_coefficient=0.5, output_gradient_norm=3.0),
            Measurement(row=row(2, 3.0), learning_rate=0.2, loss_scale=8.0, clip_coefficient=0.25, skipped=True),
            Measurement(output_gradient_norm=4.0),
        )
    )
    assert (step.learning_rate, step.loss_scale, step.clip_coefficient, step.skipped) == (0.2, 8.0, 0.25, True)
    assert step.output_gradient_norm == 5.0
    assert step.row is not None
    assert step.row.layers.tolist() == [0, 2]
    assert step.row.values.tolist() == [[1.0], [3.0]]


def test_a_trial_waits_for_room_and_drops_nothing(monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil) -> None:
    """While the recorder of a trial hangs, record() waits, so that every step is recorded."""
    monkeypatch.setattr(recorder_module, "_FEWEST_DRAFTS", 10)
    output = CollectingOutput()
    output.may_continue.clear()
    recorder = make_recorder(output, deque(), is_trial=True)

    def log() -> None:
        for number in range(100):
            recorder.record(draft(number))

    training = threading.Thread(target=log, daemon=True)
    training.start()
    # record() waits behind 11 drafts. The recorder hangs at the second one, which it may take before or after that.
    wait_until(lambda: len(recorder._drafts) >= recorder._max_drafts - 1)
    output.may_continue.set()
    training.join(PATIENCE)
    assert not training.is_alive()
    recorder.close(PATIENCE)
    assert [entry.number for entry, _ in output.entries if isinstance(entry, Step)] == list(range(100))
    assert output.dropped == 0


@pytest.mark.parametrize("loss", [1.0, 1e6], ids=["usual", "spike"])
def test_a_step_of_a_trial_is_held_until_the_next_one(
    monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil, loss: float
) -> None:
    """What a trial logs for a step later belongs to it, however much later that is, also for a step that jumps."""
    monkeypatch.setattr(recorder_module, "_HOLD", -1.0)
    output = CollectingOutput()
    recorder = make_recorder(output, deque(), is_trial=True)
    for number in range(9):
        recorder.record(draft(number))
    recorder.record(draft(9, loss))
    wait_until(lambda: len(output.entries) >= 9 and not recorder._drafts)
    recorder.record(draft(9, None)._replace(metrics={"accuracy": 0.5}))
    recorder.record(draft(10))
    recorder.close(PATIENCE)
    steps = [entry for entry, _ in output.entries if isinstance(entry, Step)]
    assert [step.number for step in steps] == list(range(11))
    assert [step.metrics for step in steps[9:]] == [{"accuracy": 0.5}, {}]
