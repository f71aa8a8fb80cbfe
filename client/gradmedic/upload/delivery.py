"""The conversation with the service about one run: who it is, what it did, how it ended.

One idea: one request a call, and a refusal is either an exception - then the same call may be made again - or is dealt
with here. Because the service appends each step once, nothing needs to be remembered about a request whose answer was
lost. Who calls, and when again after a failure, is the business of the sender and of `gradmedic sync`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import zlib
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any
from uuid import UUID

import numpy as np

from gradmedic.exceptions import ApiError, ConfigurationError, ConflictError
from gradmedic.protocol.encoding import to_json, to_plain
from gradmedic.protocol.names import LONGEST_NAME, name_error
from gradmedic.protocol.runs import RunCreate, RunDetail, RunUpdate, Training
from gradmedic.protocol.service import MSGPACK_MEDIA_TYPE, WIRE_VERSIONS, Limits
from gradmedic.protocol.steps import AppendResult, RewindResult, RunRewind
from gradmedic.recording.step import Columns, Entry, Rewind, Step, carries, encode_block, metric_names
from gradmedic.transport.http import Service, is_retryable
from gradmedic.upload.journal import Journal

logger = logging.getLogger("gradmedic")

BLOCK_STEPS = 50
"""A block leaves when it has this many steps. Larger blocks save little and are seen later."""

_BODY_HEADROOM = 0.5
"""Share of the service's largest body that a block's statistics may fill: what else it holds is not counted."""
_TOO_LARGE = 413
_RUN_IS_LOST = frozenset({401, 403, 404, 409})
"""Refusals of a block that the next block would meet as well: no access, no such run, a stale generation."""
_SLOW_LINK = 1_000_000.0
"""Bytes per second below which a body is compressed. Statistics shrink by a third, at 46 MB/s (zlib level 1): on a
faster link that costs more than it saves."""
_WORTH_MEASURING = 16_384
"""Bytes of a body whose time says something about the link."""


class Delivery:
    """Delivers one run.

    Args:
        service: where to.
        run_id: of the run.
        on_result: called with each answer to a block.
        journal: returns what remembers the generation; None if nothing does.
        generation: that the run had when the entries were recorded; None if that was not known.
        is_replay: whether steps that were given up may have been told of before.
    """

    def __init__(
        self,
        service: Service,
        run_id: UUID,
        *,
        on_result: Callable[[AppendResult], None] = lambda _result: None,
        journal: Callable[[], Journal | None] = lambda: None,
        generation: int | None = None,
        is_replay: bool = False,
    ) -> None:
        self._service = service
        self._run_id = run_id
        self._on_result = on_result
        self._journal = journal
        self._generation = generation
        self._is_replay = is_replay
        self._dropped_before = 0  # as the service had it
        self._limits: Limits | None = None
        self._columns: Columns | None = None
        self._sent_training: Training | None = None
        self._block_steps = BLOCK_STEPS
        self._bytes_per_second: float | None = None
        self._said: set[str] = set()

    @property
    def is_registered(self) -> bool:
        """Whether the service knows the run."""
        return self._columns is not None

    @property
    def block_steps(self) -> int:
        """How many entries to offer at most."""
        return self._block_steps

    def prepare(self, description: RunCreate) -> None:
        """Let the service know of the run what it does not know yet."""
        if self._columns is None:
            self._register(description)
        elif len(description.layers) > len(self._columns.positions):
            self._match(self._service.ask(RunDetail, "GET", f"/runs/{self._run_id}"), description)
        elif description.training != self._sent_training:
            self._patch(RunUpdate(training=self._with_earlier_drops(description.training)))
            self._sent_training = description.training

    def send(self, entries: Sequence[tuple[int, Entry]], *, is_repeated: bool = False) -> int | None:
        """Send the first of the entries, as many as fit; return the number up to which they are dealt with.

        None means that a smaller block may fare better. `is_repeated`: that steps are stored already is no surprise.
        """
        number, entry = entries[0]
        if isinstance(entry, Rewind):
            self._rewind(number, entry)
            return number
        steps = [(number, each) for number, each in takewhile(_is_step, entries) if isinstance(each, Step)]
        steps = steps[: self._largest_block()]
        return steps[-1][0] if self._append([step for _, step in steps], is_repeated=is_repeated) else None

    def end(self, status: str) -> None:
        """Say how the run ended."""
        self._patch(RunUpdate(status=status))

    # --- who the run is -----------------------------------------------------------------------------------------------

    def _register(self, description: RunCreate) -> None:
        self._limits = self._service.ask(Limits, "GET", "/limits")
        if not set(self._limits.wire_versions) & set(WIRE_VERSIONS):
            raise ConfigurationError(
                f"{self._service.base_url} speaks wire versions {self._limits.wire_versions}, this gradmedic "
                f"{list(WIRE_VERSIONS)}: install versions of both that have one in common"
            )
        # Of drops it is told afterwards: an answer that is lost would leave it open whose drops the service has.
        description = dataclasses.replace(description, training=_without_drops(description.training))
        body = to_json(self._fit(description, self._limits))
        try:
            run = self._service.ask(RunDetail, "POST", "/runs", body=body)
        except ConflictError:
            # Another process began this run with other layers, or an answer was lost before layers were added.
            run = self._service.ask(RunDetail, "GET", f"/runs/{self._run_id}")
            if run.project != description.project:
                raise
        if self._generation is None:
            self._remember(generation=run.generation)
        self._sent_training = description.training
        self._dropped_before = (run.training and run.training.dropped_steps) or 0
        self._match(run, description)

    def _with_earlier_drops(self, training: Training | None) -> Training | None:
        """Return what is to be told: other processes that recorded the run may have dropped steps too."""
        if training is None or not self._dropped_before:
            return training
        dropped, before = training.dropped_steps or 0, self._dropped_before
        return dataclasses.replace(
            training, dropped_steps=max(dropped, before) if self._is_replay else dropped + before
        )

    def _match(self, run: RunDetail, description: RunCreate) -> None:
        """Learn from the run as the service has it which layer is which; append the layers that it lacks."""
        known = {layer.name for layer in run.layers}
        missing = [layer for layer in description.layers if layer.name not in known]
        if missing:
            run = self._patch(RunUpdate(append_layers=missing))
        places = {layer.name: i for i, layer in enumerate(run.layers)}
        self._columns = Columns(
            statistics=tuple(run.statistics),
            positions=np.array([places[layer.name] for layer in description.layers], dtype=np.intp),
            width=len(run.layers),
        )

    def _patch(self, update: RunUpdate) -> RunDetail:
        return self._service.ask(RunDetail, "PATCH", f"/runs/{self._run_id}", body=to_json(update))

    def _fit(self, description: RunCreate, limits: Limits) -> RunCreate:
        """Return the description as the service accepts it: the run matters more than all of its decoration."""
        config = to_plain(description.config)
        if not _fits(config, limits):
            scalars = {k: v for k, v in config.items() if not isinstance(v, (dict, list))}
            config = scalars if _fits(scalars, limits) else {}
            self._say_once(
                "config",
                f"config is cut to {len(config)} plain values: the service takes {limits.max_config_bytes} bytes "
                f"and {limits.max_config_depth} levels",
            )
        longest = min(limits.max_name_length, LONGEST_NAME)
        notes, name, group = description.notes, description.name, description.group
        if notes is not None and len(notes) > limits.max_notes_length:
            notes = notes[: limits.max_notes_length]
            self._say_once("notes", f"notes are cut: the service takes {limits.max_notes_length} characters")
        tags = [tag for tag in description.tags if name_error(tag, longest) is None][: limits.max_tags]
        if len(tags) < len(description.tags):
            self._say_once(
                "tags",
                f"{len(description.tags) - len(tags)} tags are left out: the service takes {limits.max_tags} "
                f"of {longest} characters",
            )
        if (name is not None and len(name) > longest) or (group is not None and len(group) > longest):
            name, group = name and name[:longest], group and group[:longest]
            self._say_once("name", f"name and group are cut to the {longest} characters that the service takes")
        return dataclasses.replace(description, config=config, notes=notes, tags=tags, name=name, group=group)

    # --- what it did --------------------------------------------------------------------------------------------------

    def _rewind(self, number: int, entry: Rewind) -> None:
        """Go back, once: repeated under the generation of the first attempt, it changes nothing."""
        journal = self._journal()
        generation = self._generation or 0
        if journal is not None and journal.position.rewind == number:
            generation = journal.position.rewind_generation or 0
        self._remember(rewind=number, rewind_generation=generation)
        body = to_json(RunRewind(step=entry.step, generation=generation))
        result = self._service.ask(RewindResult, "POST", f"/runs/{self._run_id}/rewind", body=body)
        self._remember(generation=result.generation)

    def _remember(self, **changes: int) -> None:
        self._generation = changes.get("generation", self._generation)
        journal = self._journal()
        if journal is not None:
            try:
                journal.move(**changes)
            except OSError as error:
                self._say_once("position", f"the journal's position could not be written: {error}")

    def _largest_block(self) -> int:
        """Return how many steps the next block may have under the service's limits."""
        if self._limits is None or self._columns is None:
            return 0
        values = max(1, self._columns.width * len(self._columns.statistics))
        by_body = int(self._limits.max_body_bytes * _BODY_HEADROOM) // (4 * values)
        by_values = self._limits.max_values_per_block // values
        return max(1, min(self._block_steps, self._limits.max_steps_per_block, by_values, by_body))

    def _append(self, block: Sequence[Step], *, is_repeated: bool) -> bool:
        columns, limits = self._columns, self._limits
        if columns is None or limits is None:
            return False
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
            result = self._post(
                encode_block(block, columns, max_metrics=limits.max_metrics, generation=self._generation)
            )
        except ApiError as error:
            return self._take_refusal(error, block)
        if result.ignored and not is_repeated:
            self._say_once(
                "ignored",
                f"{result.ignored} steps up to step {block[-1].number} were ignored: the run has steps up to "
                f"{result.last_step} already. Say run.rewind(step) after loading a checkpoint, go on with "
                "log(step=...), or start a new run",
            )
        self._on_result(result)
        return True

    def _post(self, body: bytes) -> AppendResult:
        request: dict[str, Any] = {"body": body, "content_type": MSGPACK_MEDIA_TYPE}
        if self._bytes_per_second is not None and self._bytes_per_second < _SLOW_LINK:
            request |= {"body": _gzip(body), "content_encoding": "gzip"}
        begun = time.perf_counter()
        result = self._service.ask(AppendResult, "POST", f"/runs/{self._run_id}/steps", **request)
        if len(body) >= _WORTH_MEASURING:
            self._bytes_per_second = len(request["body"]) / max(1e-6, time.perf_counter() - begun)
        return result

    def _take_refusal(self, error: ApiError, block: Sequence[Step]) -> bool:
        """Take the refusal of one block; raise if the next one would fare no better."""
        status = error.problem.status
        if is_retryable(error) or status in _RUN_IS_LOST:
            raise error
        if status == _TOO_LARGE and len(block) > 1:
            self._block_steps = len(block) // 2
            return False
        self._say_once(error.problem.error_code, f"the service refused {len(block)} steps, they are lost: {error}")
        return True

    def _say_once(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("gradmedic: %s", message)


def _is_step(numbered: tuple[int, Entry]) -> bool:
    return isinstance(numbered[1], Step)


def _without_drops(training: Training | None) -> Training | None:
    return training and dataclasses.replace(training, dropped_steps=None)


def _gzip(body: bytes) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    return compressor.compress(body) + compressor.flush()


def _fits(config: dict[str, Any], limits: Limits) -> bool:
    return len(to_json(config)) <= limits.max_config_bytes and _depth(config) <= limits.max_config_depth


def _depth(value: Any) -> int:
    """Return how many mappings and lists are nested: 0 for a number, 1 for a flat mapping."""
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0
