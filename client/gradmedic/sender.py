"""Carries the steps of a run to the service, from a thread of its own.

One idea: the queue is the truth. A step leaves it only when the service has acknowledged it; every attempt cuts a new
block from the front of the queue, and because the service appends each step once, sending too much is harmless. So
there is one loop with one attempt a turn, and all that can go wrong - service away, slow, restarted, full - is a delay
before the next turn.

The training thread only ever appends to the queue, under a lock that is never held during I/O.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import numpy as np

from gradmedic import wire
from gradmedic.encoding import to_json, to_plain
from gradmedic.exceptions import ApiError, ConfigurationError, ConflictError, GradmedicError
from gradmedic.http import Service, is_retryable, retry_delay
from gradmedic.step import Columns, Step, carries, encode_block, metric_names

logger = logging.getLogger("gradmedic")

BLOCK_STEPS = 50
"""A block leaves when it has this many steps. Larger blocks save little and are seen later."""

_BODY_HEADROOM = 0.5
"""Share of the service's largest body that a block's statistics may fill: what else it holds is not counted."""
_TOO_LARGE = 413
_RUN_IS_LOST = frozenset({401, 403, 404, 409})
"""Refusals of a block that the next block would meet as well: no access, no such run, a stale generation."""


class StepQueue:
    """Steps that are not acknowledged yet, oldest first, bounded in bytes. Not thread-safe: the sender locks."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._steps: deque[Step] = deque()
        self._bytes = 0
        self.dropped = 0
        """Steps that were given up for lack of room."""

    def __len__(self) -> int:
        return len(self._steps)

    def append(self, step: Step) -> None:
        """Append a step; if that takes too much room, drop the oldest healthy ones, and others only after them."""
        self._steps.append(step)
        self._bytes += step.nbytes
        if self._bytes > self._max_bytes:
            self._make_room()

    def front(self, count: int) -> list[Step]:
        """Return the oldest steps, `count` at most, and keep them."""
        return [self._steps[i] for i in range(min(count, len(self._steps)))]

    def remove_until(self, number: int) -> None:
        """Remove the steps up to and including step `number`."""
        while self._steps and self._steps[0].number <= number:
            self._bytes -= self._steps.popleft().nbytes

    def clear(self) -> None:
        """Remove all steps."""
        self._steps.clear()
        self._bytes = 0

    def _make_room(self) -> None:
        # An eighth more than needed, so that a full queue is not searched at every step. The newest step stays.
        target = self._max_bytes - self._max_bytes // 8
        for drops_nonfinite in (False, True):
            kept: deque[Step] = deque()
            newest = self._steps.pop()
            for step in self._steps:
                if self._bytes > target and (drops_nonfinite or step.is_finite):
                    self._bytes -= step.nbytes
                    self.dropped += 1
                else:
                    kept.append(step)
            kept.append(newest)
            self._steps = kept


class Sender:
    """Registers a run, sends its steps and its end.

    Args:
        service: where to.
        run_id: of the run.
        describe: returns what `POST /runs` needs to say, as of now; called on the sender's thread.
        flush_interval: seconds that a step waits for others at most.
        max_queue_bytes: memory for steps that are not acknowledged.
        on_result: called on the sender's thread with each answer to a block.
    """

    def __init__(
        self,
        *,
        service: Service,
        run_id: UUID,
        describe: Callable[[], wire.RunCreate],
        flush_interval: float,
        max_queue_bytes: int,
        on_result: Callable[[wire.AppendResult], None],
    ) -> None:
        self._service = service
        self._run_id = run_id
        self._describe = describe
        self._flush_interval = flush_interval
        self._on_result = on_result

        self._changed = threading.Condition()  # guards what follows
        self._queue = StepQueue(max_queue_bytes)
        self._thread: threading.Thread | None = None
        self._due_at = 0.0  # when the oldest step has waited long enough; counts while there is one
        self._urgent_step = -1  # the last step that should not wait
        self._waiting_flushes = 0
        self._final_status: str | None = None  # what remains to be said of the run's end
        self._retry_at = 0.0
        self._failures = 0  # in a row
        self._is_registered = False
        self._is_refused = False
        self._is_over = False  # nothing will be sent any more

        # The sender's thread alone uses what follows.
        self._limits: wire.Limits | None = None
        self._columns: Columns | None = None
        self._sent_training: wire.Training | None = None
        self._block_steps = BLOCK_STEPS
        self._reported_drops = 0
        self._said: set[str] = set()

    def put(self, step: Step, *, is_urgent: bool = False) -> None:
        """Take a step to be sent; returns at once. An urgent one does not wait for others."""
        with self._changed:
            if self._is_over:
                return
            self._queue.append(step)
            if is_urgent:
                self._urgent_step = step.number
            if len(self._queue) == 1:
                self._due_at = time.monotonic() + self._flush_interval
            if is_urgent or len(self._queue) in (1, BLOCK_STEPS):
                self._changed.notify_all()  # otherwise the thread knows how long to wait
            self._start()

    def flush(self, timeout: float) -> bool:
        """Wait until every step so far is acknowledged, at most `timeout` seconds; return whether it is."""
        with self._changed:
            self._start()
            self._waiting_flushes += 1
            self._retry_at = 0.0
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._is_over or self._is_delivered(), timeout)
            finally:
                self._waiting_flushes -= 1
            return self._is_delivered()

    def close(self, status: str, timeout: float) -> bool:
        """Send what is left and the run's final status, within `timeout` seconds; return whether that succeeded."""
        with self._changed:
            if not self._is_over:
                self._final_status = status
                self._retry_at = 0.0
                self._start()
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_over, timeout)
            succeeded = self._is_over and not self._is_refused
            unsent = len(self._queue)
            self._is_over = True
            self._changed.notify_all()
        if not succeeded and not self._is_refused:
            logger.warning(
                "gradmedic could not tell %s of the run's end within %g s; %d steps were not sent",
                self._service.base_url,
                timeout,
                unsent,
            )
        return succeeded

    def abandon(self) -> None:
        """Forget everything without a word: this process is a fork, and its parent goes on sending."""
        self._changed = threading.Condition()  # another thread of the parent may have held the old lock
        self._is_over = True
        self._queue.clear()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None and not self._is_over:
            self._thread = threading.Thread(target=self._run, name="gradmedic-sender", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while self._wait_until_due():
                self._make_attempt()
        except Exception:
            self._is_refused = True
            logger.exception("gradmedic stopped sending because of an error of its own; training goes on")
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()
            self._service.close()

    def _wait_until_due(self) -> bool:
        """Wait until there is something to do; return False when there never will be."""
        with self._changed:
            while not self._is_over:
                seconds = self._seconds_until_due()
                if seconds is not None and seconds <= 0:
                    return True
                self._changed.wait(seconds)
            return False

    def _seconds_until_due(self) -> float | None:
        now = time.monotonic()
        is_waited_for = self._final_status is not None or (self._waiting_flushes > 0 and not self._is_delivered())
        if is_waited_for or self._is_urgent() or len(self._queue) >= BLOCK_STEPS:
            due_at = now
        elif self._queue:
            due_at = self._due_at
        else:
            return None
        return max(due_at, self._retry_at) - now

    def _is_urgent(self) -> bool:
        return bool(self._queue) and self._urgent_step >= self._queue.front(1)[0].number

    def _is_delivered(self) -> bool:
        return self._is_registered and not self._queue and not self._is_refused

    def _make_attempt(self) -> None:
        """Do the next thing that is due, once. A failure only sets when to try again, or that it is over."""
        try:
            self._advance()
        except GradmedicError as error:
            self._take_failure(error)
        else:
            with self._changed:
                recovered, self._failures = self._failures > 0, 0
                self._changed.notify_all()
            if recovered:
                logger.warning("gradmedic reaches %s again", self._service.base_url)
        self._report_drops()

    def _advance(self) -> None:
        with self._changed:
            waiting = self._queue.front(self._block_steps)
            status = self._final_status
        description = self._describe()  # after the steps were looked at, so that it has all of their layers
        if self._columns is None:
            self._register(description)
        elif len(description.layers) > len(self._columns.positions):
            self._match(self._service.ask(wire.RunDetail, "GET", f"/runs/{self._run_id}"), description)
        elif description.training != self._sent_training:
            self._patch(wire.RunUpdate(training=description.training))
            self._sent_training = description.training
        if waiting:
            self._send(waiting[: self._largest_block()])
        elif status is not None:
            self._patch(wire.RunUpdate(status=status))
            with self._changed:
                self._is_over = True

    def _register(self, description: wire.RunCreate) -> None:
        self._limits = self._service.ask(wire.Limits, "GET", "/limits")
        if not set(self._limits.wire_versions) & set(wire.WIRE_VERSIONS):
            raise ConfigurationError(
                f"{self._service.base_url} speaks wire versions {self._limits.wire_versions}, this gradmedic "
                f"{list(wire.WIRE_VERSIONS)}: install versions of both that have one in common"
            )
        body = to_json(self._fit_config(description, self._limits))
        try:
            run = self._service.ask(wire.RunDetail, "POST", "/runs", body=body)
        except ConflictError:
            # Another process began this run with other layers, or an answer was lost before layers were added.
            run = self._service.ask(wire.RunDetail, "GET", f"/runs/{self._run_id}")
            if run.project != description.project:
                raise
        self._match(run, description)
        self._sent_training = description.training
        with self._changed:
            self._is_registered = True

    def _match(self, run: wire.RunDetail, description: wire.RunCreate) -> None:
        """Learn from the run as the service has it which layer is which; append the layers that it lacks."""
        known = {layer.name for layer in run.layers}
        missing = [layer for layer in description.layers if layer.name not in known]
        if missing:
            run = self._patch(wire.RunUpdate(append_layers=missing))
        places = {layer.name: i for i, layer in enumerate(run.layers)}
        self._columns = Columns(
            statistics=tuple(run.statistics),
            positions=np.array([places[layer.name] for layer in description.layers], dtype=np.intp),
            width=len(run.layers),
        )

    def _patch(self, update: wire.RunUpdate) -> wire.RunDetail:
        return self._service.ask(wire.RunDetail, "PATCH", f"/runs/{self._run_id}", body=to_json(update))

    def _fit_config(self, description: wire.RunCreate, limits: wire.Limits) -> wire.RunCreate:
        """Return the description with a `config` that the service accepts: the run matters more than all of it."""
        config = to_plain(description.config)
        if not _fits(config, limits):
            scalars = {k: v for k, v in config.items() if not isinstance(v, (dict, list))}
            config = scalars if _fits(scalars, limits) else {}
            self._say_once(
                "config",
                f"config is cut to {len(config)} plain values: the service takes {limits.max_config_bytes} bytes "
                f"and {limits.max_config_depth} levels",
            )
        return dataclasses.replace(description, config=config)

    def _largest_block(self) -> int:
        """Return how many steps the next block may have under the service's limits."""
        if self._limits is None or self._columns is None:
            return 0
        values = max(1, self._columns.width * len(self._columns.statistics))
        by_body = int(self._limits.max_body_bytes * _BODY_HEADROOM) // (4 * values)
        by_values = self._limits.max_values_per_block // values
        return max(1, min(self._block_steps, self._limits.max_steps_per_block, by_values, by_body))

    def _send(self, block: Sequence[Step]) -> None:
        columns, limits = self._columns, self._limits
        if columns is None or limits is None:
            return
        if (count := len(metric_names(block))) > limits.max_metrics:
            self._say_once(
                "metrics", f"{count - limits.max_metrics} metrics are left out: the service takes {limits.max_metrics}"
            )
        for step in block:
            if step.row is not None and not carries(step.row, columns):
                lacking = ", ".join(name for name in columns.statistics if name not in step.row.statistics)
                self._say_once(
                    f"lacking {lacking}",
                    f"the statistics of step {step.number} and of others like it are left out: this run's steps "
                    f"have {', '.join(columns.statistics)}, these lack {lacking}",
                )
        try:
            result = self._service.ask(
                wire.AppendResult,
                "POST",
                f"/runs/{self._run_id}/steps",
                body=encode_block(block, columns, max_metrics=limits.max_metrics),
                content_type=wire.MSGPACK_MEDIA_TYPE,
            )
        except ApiError as error:
            self._take_refusal(error, block)
            return
        self._acknowledge(block)
        if result.ignored and self._failures == 0:
            self._say_once(
                "ignored",
                f"{result.ignored} steps up to step {block[-1].number} were ignored: the run has steps up to "
                f"{result.last_step} already. Go on with log(step=...), or start a new run",
            )
        self._on_result(result)

    def _take_refusal(self, error: ApiError, block: Sequence[Step]) -> None:
        """Take the refusal of one block; raise if the next one would fare no better."""
        status = error.problem.status
        if is_retryable(error) or status in _RUN_IS_LOST:
            raise error
        if status == _TOO_LARGE and len(block) > 1:
            self._block_steps = len(block) // 2
            return
        self._say_once(error.problem.error_code, f"the service refused {len(block)} steps, they are lost: {error}")
        self._acknowledge(block)

    def _acknowledge(self, block: Sequence[Step]) -> None:
        with self._changed:
            self._queue.remove_until(block[-1].number)
            self._due_at = time.monotonic() + self._flush_interval

    def _take_failure(self, error: GradmedicError) -> None:
        with self._changed:
            is_hopeless = not is_retryable(error)
            # A wrong URL may be put right while training goes on, but nobody should wait for that at the end.
            is_refusal = isinstance(error, (ApiError, ConfigurationError)) or self._final_status is not None
            if is_hopeless and is_refusal:
                self._is_refused = self._is_over = True
                unsent = len(self._queue)
                self._queue.clear()
            else:
                self._retry_at = time.monotonic() + retry_delay(error, self._failures)
                self._failures += 1
        if self._is_refused:
            logger.error("gradmedic stopped sending (%d steps not sent), training goes on: %s", unsent, error)
        elif self._failures == 1:
            logger.warning("gradmedic keeps the steps and tries again, training goes on: %s", error)

    def _report_drops(self) -> None:
        with self._changed:
            dropped = self._queue.dropped
        if dropped > self._reported_drops:
            self._reported_drops = dropped
            logger.warning("gradmedic dropped %d steps so far: its queue is full and the service away", dropped)

    def _say_once(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("gradmedic: %s", message)


def _fits(config: dict[str, Any], limits: wire.Limits) -> bool:
    return len(to_json(config)) <= limits.max_config_bytes and _depth(config) <= limits.max_config_depth


def _depth(value: Any) -> int:
    """Return how many mappings and lists are nested: 0 for a number, 1 for a flat mapping."""
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0
