"""The progress of a run as lists show it: its last loss, a curve of the loss, its last metrics, and its duration.

It is a small state in the run's row, advanced block by block. The curve has buckets of equal numbers of steps. A bucket
covers a power of two of steps; where the run grows beyond `MAX_CURVE_POINTS` buckets, two become one. So the curve does
not depend on how the steps were cut into blocks.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from datetime import datetime

import msgspec
import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.probes import PREFIX as PROBE_PREFIX
from gradmedic_diagnosis import Block, StepSeries

MAX_CURVE_POINTS = 40
"""Largest number of buckets of the curve of the loss: a picture of some 100 pixels shows no more."""
MAX_LISTED_METRICS = 64
"""Largest number of metrics with a last value in lists, those that arrived first. Probes are none."""
LOSS = "loss"
METRIC_PREFIX = "metric."
"""Prefix of a metric's name among the last values."""
_LARGEST = float(np.finfo(np.float64).max)


class LastValue(msgspec.Struct, array_like=True, frozen=True):
    """The last value of a series, and its step."""

    step: int
    value: float


class CurveBucket(msgspec.Struct, array_like=True):
    """The losses of the steps `index * width` to `(index + 1) * width - 1`."""

    index: int
    mean: float
    """Mean of the finite losses; 0 where there is none."""
    finite: int
    """Number of finite losses."""
    nonfinite: int
    """Number of NaN and infinite losses."""

    def add(self, other: CurveBucket) -> None:
        """Add the losses of another bucket."""
        if other.finite:
            self.mean += (other.mean - self.mean) * (other.finite / (self.finite + other.finite))
        self.finite += other.finite
        self.nonfinite += other.nonfinite


class RunProgress(msgspec.Struct, array_like=True):
    """The progress of a run up to a step."""

    generation: int
    """Generation of the run."""
    step: int = -1
    """The last step; -1 before the first."""
    width: int = 1
    """Number of steps that a bucket of the curve covers."""
    curve: list[CurveBucket] = []
    """Buckets of the curve with at least one loss, in order."""
    loss: LastValue | None = None
    metrics: dict[str, LastValue] = {}
    first_time: float | None = None
    """Time of the first step, in seconds since the Unix epoch, by the client's clock where it sends times."""
    last_time: float | None = None
    """Time of the last step."""

    def add(self, block: Block, created_at: datetime, now: datetime) -> None:
        """Read the next steps of a run that was created at `created_at`, received now."""
        steps = block.steps
        loss = block.series.get(LOSS)
        if loss is not None:
            self._add_losses(steps, loss)
        for name, series in block.metrics.items():
            if name in self.metrics or (len(self.metrics) < MAX_LISTED_METRICS and not name.startswith(PROBE_PREFIX)):
                last = last_value(steps, series)
                if last is not None:
                    self.metrics[name] = last
        times = block.series.get("time")
        if times is None or not self.add_times(times):
            self.first_time = created_at.timestamp() if self.first_time is None else self.first_time
            self.last_time = now.timestamp()
        if len(steps):
            self.step = int(steps[-1])

    def add_times(self, times: StepSeries) -> bool:
        """Read the times of the next steps; return whether there is one."""
        present = times.present
        if not present.size:
            return False
        if present[0] and present[-1]:
            first, last = 0, -1
        else:
            positions = present.nonzero()[0]
            if not positions.size:
                return False
            first, last = positions[0], positions[-1]
        self.last_time = float(times.values[last])
        if self.first_time is None:
            self.first_time = float(times.values[first])
        return True

    def make_room(self, first_step: int, last_step: int) -> None:
        """Widen the buckets until the curve can hold steps after those that it has."""
        first = self.curve[0].index * self.width if self.curve else first_step
        while last_step // self.width - first // self.width >= MAX_CURVE_POINTS:
            self._widen()

    def add_bucket(self, bucket: CurveBucket) -> None:
        """Add losses to the end of the curve."""
        if self.curve and self.curve[-1].index == bucket.index:
            self.curve[-1].add(bucket)
        else:
            self.curve.append(bucket)

    def sparkline(self) -> list[float | None]:
        """Return the mean loss of each bucket, to four digits; None without a loss, NaN without a finite one."""
        if not self.curve:
            return []
        first = self.curve[0].index
        points: list[float | None] = [None] * (self.curve[-1].index - first + 1)
        for bucket in self.curve:
            points[bucket.index - first] = float(f"{bucket.mean:.4g}") if bucket.finite else math.nan
        return points

    def last_values(self) -> dict[str, float]:
        """Return the last loss and the last metrics, by the names by which lists sort and filter."""
        values = {f"{METRIC_PREFIX}{name}": last.value for name, last in self.metrics.items()}
        return values if self.loss is None else {LOSS: self.loss.value, **values}

    def duration(self) -> float | None:
        """Return the seconds from the first step to the last one, None if they are not known."""
        if self.first_time is None or self.last_time is None:
            return None
        seconds = self.last_time - self.first_time
        return seconds if 0 <= seconds < math.inf else None

    def to_bytes(self) -> bytes:
        """Serialize the progress."""
        return msgspec.msgpack.encode(self)

    def _add_losses(self, steps: NDArray[np.int64], loss: StepSeries) -> None:
        last = last_value(steps, loss)
        if last is None:
            return
        self.loss = last
        is_complete = bool(loss.present.all())
        numbers: list[int] = (steps if is_complete else steps[loss.present]).tolist()
        values: list[float] = (loss.values if is_complete else loss.values[loss.present]).tolist()
        self.make_room(numbers[0], numbers[-1])
        start = 0
        while start < len(numbers):  # lists of some 50 steps are faster here than arrays
            index = numbers[start] // self.width
            stop = bisect_left(numbers, (index + 1) * self.width, start)
            self.add_bucket(bucket_of(index, values[start:stop]))
            start = stop

    def _widen(self) -> None:
        """Make one bucket of two."""
        self.width *= 2
        merged: list[CurveBucket] = []
        for bucket in self.curve:
            bucket.index //= 2
            if merged and merged[-1].index == bucket.index:
                merged[-1].add(bucket)
            else:
                merged.append(bucket)
        self.curve = merged


def read_progress(stored: bytes | None) -> RunProgress | None:
    """Return a stored progress; None if there is none, or another version of the code wrote it."""
    if stored is None:
        return None
    try:
        return msgspec.msgpack.decode(stored, type=RunProgress)
    except msgspec.MsgspecError:
        return None


def bucket_of(index: int, losses: list[float]) -> CurveBucket:
    """Return a bucket of losses.

    >>> bucket_of(3, [1.0, math.nan, 2.0])
    CurveBucket(index=3, mean=1.5, finite=2, nonfinite=1)
    """
    total = sum(losses)
    if math.isfinite(total):
        return CurveBucket(index, total / len(losses), len(losses), 0)
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return CurveBucket(index, 0.0, 0, len(losses))
    mean = min(max(sum(finite) / len(finite), -_LARGEST), _LARGEST)  # the sum of finite numbers may be infinite
    return CurveBucket(index, mean, len(finite), len(losses) - len(finite))


def last_value(steps: NDArray[np.int64], series: StepSeries) -> LastValue | None:
    """Return the last value of a series of some steps, None if no step has one."""
    if len(steps) and series.present[-1]:
        return LastValue(int(steps[-1]), float(series.values[-1]))
    present = series.present.nonzero()[0]
    return LastValue(int(steps[present[-1]]), float(series.values[present[-1]])) if present.size else None


def listed_names(metrics: list[str]) -> list[str]:
    """Return the metrics of a run that have a last value in lists."""
    return [name for name in metrics if not name.startswith(PROBE_PREFIX)][:MAX_LISTED_METRICS]
