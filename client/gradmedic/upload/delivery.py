"""The requests about one run: its registration, its blocks and rewinds, and its final status.

Each call makes one attempt. It raises an error that may pass, or that the next request would get as well. If the
service refuses a part of a description or of a block, the rest is sent without it.
The service appends each step once, so nothing has to be remembered about a request whose answer was lost. The uploader
and `gradmedic sync` decide when to make the next attempt.
"""

from __future__ import annotations

import dataclasses
import re
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol
from uuid import UUID

import numpy as np

from gradmedic.exceptions import ApiError, ConfigurationError, ConflictError, InvalidRequestError
from gradmedic.protocol.encoding import to_json, to_plain
from gradmedic.protocol.names import LONGEST_NAME, name_error
from gradmedic.protocol.runs import Layer, RunCreate, RunDetail, RunUpdate, Training
from gradmedic.protocol.service import MSGPACK_MEDIA_TYPE, WIRE_VERSIONS, FieldError, Limits
from gradmedic.protocol.steps import AppendResult, RewindResult, RunRewind
from gradmedic.recording.description import RunDescription
from gradmedic.recording.one_time_warnings import OneTimeWarnings
from gradmedic.recording.step import (
    Columns,
    Entry,
    Rewind,
    Step,
    encode_block,
    has_layers,
    has_statistics,
    metric_names,
)
from gradmedic.transport.http import Service, is_retryable
from gradmedic.upload.journal import Position
from gradmedic.upload.refusal import remove_fields, to_smallest, without_refused

BLOCK_STEPS = 50
"""A block is sent when it has this many steps. Larger blocks save little and arrive later."""

_BODY_HEADROOM = 0.5
"""Share of the service's largest body that a block's statistics may fill; the rest of the block is not counted."""
_TOO_LARGE = 413
_RUN_IS_LOST = frozenset({401, 403, 404, 409})
"""Statuses that the next block would get as well: no access, no such run, a stale generation."""
_REDUCTIONS = 10
"""Number of times that a refused request is sent again without the refused parts."""
_EXACT_REDUCTIONS = 3
"""Number of times that a refused block loses a series at single steps. Then it loses the whole series, because the
service names only the first of many bad steps."""
_SLOW_LINK = 1_000_000.0
"""Bytes per second below which a body is compressed. Statistics shrink by a third, at 46 MB/s (zlib level 1): on a
faster link that costs more than it saves."""
_SMALLEST_TIMED_BODY = 16_384
"""Bytes that a body must have for its time to be a measure of the link."""


class PositionStore(Protocol):
    """Remembers how far the service has acknowledged a session."""

    @property
    def position(self) -> Position:
        """The position that was saved last."""

    def save_position(self, **changes: int) -> None:
        """Change fields of the position and save it. May raise OSError."""


@dataclass(frozen=True, slots=True)
class SendResult:
    """The result of one attempt to send entries."""

    last_number: int | None
    """Number of the last entry that needs no further attempt; None if a smaller block should be tried."""
    answer: AppendResult | None = None
    """The service's answer to a block."""
    refused_steps: int = 0
    """Number of steps that the service refused. They are lost."""
    rewind: RewindResult | None = None
    """The service's answer to a rewind."""


class Delivery:
    """Delivers one run.

    Args:
        service: receives the run.
        run_id: id of the run.
        positions: remembers the generation.
        generation: generation of the run when the entries were recorded; None if it is not known.
        is_replay: whether the service may already have the number of dropped steps.
    """

    def __init__(
        self,
        service: Service,
        run_id: UUID,
        positions: PositionStore,
        *,
        generation: int | None = None,
        is_replay: bool = False,
    ) -> None:
        self._service = service
        self._run_id = run_id
        self._positions = positions
        self._generation = generation
        self._is_replay = is_replay
        self._dropped_before = 0  # dropped steps that the service had at the registration
        self._limits: Limits | None = None
        self._columns: Columns | None = None
        self._sent_version: int | None = None
        self._sent_training: Training | None = None
        self._block_steps = BLOCK_STEPS
        self._bytes_per_second: float | None = None
        self._layer_names: dict[str, str] = {}  # instead of names that the service refused
        self._known_metrics: set[str] = set()
        self._refused_metrics: set[str] = set()
        self._warn = OneTimeWarnings().warn

    @property
    def is_registered(self) -> bool:
        """Whether the service has the run."""
        return self._columns is not None

    @property
    def block_steps(self) -> int:
        """Number of entries that one attempt can send at most."""
        return self._block_steps

    def prepare(self, description: RunDescription) -> None:
        """Send what is new in the description of the run."""
        if description.version == self._sent_version:
            return
        content = description.content
        if self._columns is None:
            self._register(content)
        else:
            if len(content.layers) > len(self._columns.positions):
                self._match_layers(self._service.request_as(RunDetail, "GET", f"/runs/{self._run_id}"), content)
            if content.training != self._sent_training:
                self._patch(RunUpdate(training=self._with_earlier_drops(content.training)))
                self._sent_training = content.training
        if content.training == self._sent_training:  # a registration leaves out the number of dropped steps
            self._sent_version = description.version

    def send(self, entries: Sequence[tuple[int, Entry]], *, is_repeated: bool = False) -> SendResult:
        """Send the first of the entries, as many as fit into one block.

        Args:
            entries: oldest first, with their numbers.
            is_repeated: whether the service may already have some of the steps.
        """
        number, entry = entries[0]
        if isinstance(entry, Rewind):
            return SendResult(number, rewind=self._rewind(number, entry))
        steps = [(number, entry) for number, entry in takewhile(_is_step, entries) if isinstance(entry, Step)]
        steps = steps[: self._largest_block()]
        return self._append([step for _, step in steps], last_number=steps[-1][0], is_repeated=is_repeated)

    def send_final_status(self, status: str) -> None:
        """Send the final status of the run."""
        self._patch(RunUpdate(status=status))

    # --- registration -------------------------------------------------------------------------------------------------

    def _register(self, description: RunCreate) -> None:
        self._limits = self._service.request_as(Limits, "GET", "/limits")
        if not set(self._limits.wire_versions) & set(WIRE_VERSIONS):
            raise ConfigurationError(
                f"{self._service.base_url} supports the protocol versions {self._limits.wire_versions}, and this "
                f"client supports {list(WIRE_VERSIONS)}: install releases of both that have one in common"
            )
        # Drops are sent afterwards: after a lost answer it would not be known whose drops the service has.
        description = dataclasses.replace(description, training=_without_drops(description.training))
        fitting = self._fit_to_limits(description, self._limits)
        try:
            run = self._send_description("POST", "/runs", fitting)
        except ConflictError:
            # Another process began this run with other layers, or an answer was lost before layers were added.
            run = self._service.request_as(RunDetail, "GET", f"/runs/{self._run_id}")
            if run.project != description.project:
                raise
        if self._generation is None:
            self._save_position(generation=run.generation)
        self._sent_training = description.training
        self._dropped_before = (run.training and run.training.dropped_steps) or 0
        self._match_layers(run, description)

    def _with_earlier_drops(self, training: Training | None) -> Training | None:
        """Return the training with the drops of earlier processes added."""
        if training is None or not self._dropped_before:
            return training
        dropped, before = training.dropped_steps or 0, self._dropped_before
        return dataclasses.replace(
            training, dropped_steps=max(dropped, before) if self._is_replay else dropped + before
        )

    def _match_layers(self, run: RunDetail, description: RunCreate) -> None:
        """Find the service's position of each layer, and append the layers that the service lacks."""
        registered = {layer.name for layer in run.layers}
        missing = [layer for layer in description.layers if self._accepted_name(layer) not in registered]
        room = max(0, self._limits.max_layers - len(run.layers)) if self._limits is not None else 0
        if len(missing) > room:
            self._warn("layers", f"{len(missing) - room} layers are left out: the service takes no more of a run")
        if missing[:room]:
            try:
                run = self._patch(RunUpdate(append_layers=missing[:room]))
            except InvalidRequestError as error:
                self._warn("append_layers", f"{len(missing[:room])} layers are left out, the service refused: {error}")
        positions = {layer.name: i for i, layer in enumerate(run.layers)}
        self._columns = Columns(
            statistics=tuple(run.statistics),
            positions=np.array(
                [positions.get(self._accepted_name(layer), -1) for layer in description.layers], dtype=np.intp
            ),
            width=len(run.layers),
        )

    def _accepted_name(self, layer: Layer) -> str:
        """Return the name under which the service has a layer."""
        return self._layer_names.get(layer.name, layer.name)

    def _patch(self, update: RunUpdate) -> RunDetail:
        return self._send_description("PATCH", f"/runs/{self._run_id}", update)

    def _send_description(self, method: str, path: str, description: RunCreate | RunUpdate) -> RunDetail:
        """Send a description. If the service refuses parts of it, send it without them.

        Raises:
            ApiError: it is refused with only what it needs, too.
        """
        body = to_plain(description)
        for _ in range(_REDUCTIONS):
            try:
                run = self._service.request_as(RunDetail, method, path, body=to_json(body))
            except InvalidRequestError as error:
                removed = remove_fields(body, error.problem.errors)
                for each in removed:
                    self._warn_of_refusal("the run", each)
                if not removed:
                    smallest = to_smallest(body)
                    if smallest == {name: value for name, value in body.items() if value is not None}:
                        raise
                    body = smallest
                    self._warn("description", f"the run is described without its optional fields: {error}")
            else:
                break
        else:
            run = self._service.request_as(RunDetail, method, path, body=to_json(to_smallest(body)))
        layers = description.layers if isinstance(description, RunCreate) else description.append_layers
        for layer, sent in zip(layers or (), body.get("layers") or body.get("append_layers") or (), strict=False):
            if sent["name"] != layer.name:
                self._layer_names[layer.name] = sent["name"]
        return run

    def _fit_to_limits(self, description: RunCreate, limits: Limits) -> RunCreate:
        """Return the description as the service accepts it. The run matters more than its notes and tags."""
        config = to_plain(description.config)
        if not _is_config_accepted(config, limits):
            scalars = {k: v for k, v in config.items() if not isinstance(v, (dict, list))}
            config = scalars if _is_config_accepted(scalars, limits) else {}
            self._warn(
                "config",
                f"config is cut to {len(config)} plain values: the service takes {limits.max_config_bytes} bytes "
                f"and {limits.max_config_depth} levels",
            )
        longest = min(limits.max_name_length, LONGEST_NAME)
        notes, name, group = description.notes, description.name, description.group
        if notes is not None and len(notes) > limits.max_notes_length:
            notes = notes[: limits.max_notes_length]
            self._warn("notes", f"notes are cut: the service takes {limits.max_notes_length} characters")
        tags = [tag for tag in description.tags if name_error(tag, longest) is None][: limits.max_tags]
        if len(tags) < len(description.tags):
            self._warn(
                "tags",
                f"{len(description.tags) - len(tags)} tags are left out: the service takes {limits.max_tags} "
                f"of {longest} characters",
            )
        if (name is not None and len(name) > longest) or (group is not None and len(group) > longest):
            name, group = name and name[:longest], group and group[:longest]
            self._warn("name", f"name and group are cut to the {longest} characters that the service takes")
        layers = description.layers[: limits.max_layers]
        return dataclasses.replace(
            description, config=config, notes=notes, tags=tags, name=name, group=group, layers=layers
        )

    # --- blocks and rewinds -------------------------------------------------------------------------------------------

    def _rewind(self, number: int, entry: Rewind) -> RewindResult:
        """Rewind the run. A repetition under the generation of the first attempt changes nothing."""
        generation = self._generation or 0
        if self._positions.position.rewind == number:
            generation = self._positions.position.rewind_generation or 0
        self._save_position(rewind=number, rewind_generation=generation)
        takes_action = self._limits is not None and self._limits.max_guard_actions > 0
        rewind = RunRewind(
            step=entry.step, generation=generation, guard_action=entry.guard_action if takes_action else None
        )
        try:
            result = self._post_rewind(rewind)
        except InvalidRequestError as error:
            if rewind.guard_action is None:
                raise
            self._warn("guard_action", f"the guard action of a rewind is left out, the service refused it: {error}")
            result = self._post_rewind(dataclasses.replace(rewind, guard_action=None))
        self._save_position(generation=result.generation)
        return result

    def _post_rewind(self, rewind: RunRewind) -> RewindResult:
        # An older service refuses the name of a field that it does not have, so a null is left out.
        body = {name: value for name, value in to_plain(rewind).items() if value is not None}
        return self._service.request_as(RewindResult, "POST", f"/runs/{self._run_id}/rewind", body=to_json(body))

    def _save_position(self, **changes: int) -> None:
        self._generation = changes.get("generation", self._generation)
        try:
            self._positions.save_position(**changes)
        except OSError as error:
            self._warn("position", f"the journal's position could not be written: {error}")

    def _largest_block(self) -> int:
        """Return the number of steps that the next block may have under the service's limits."""
        if self._limits is None or self._columns is None:
            return 0
        values = max(1, self._columns.width * len(self._columns.statistics))
        by_body = int(self._limits.max_body_bytes * _BODY_HEADROOM) // (4 * values)
        by_values = self._limits.max_values_per_block // values
        return max(1, min(self._block_steps, self._limits.max_steps_per_block, by_values, by_body))

    def _append(self, block: Sequence[Step], *, last_number: int, is_repeated: bool) -> SendResult:
        columns, limits = self._columns, self._limits
        if columns is None or limits is None:
            return SendResult(None)
        if (count := len(metric_names(block))) > limits.max_metrics:
            self._warn(
                "metrics", f"{count - limits.max_metrics} metrics are left out: the service takes {limits.max_metrics}"
            )
        for step in block:
            if step.row is not None and not has_statistics(step.row, columns):
                lacking = ", ".join(name for name in columns.statistics if name not in step.row.statistics)
                self._warn(
                    f"lacking {lacking}",
                    f"the statistics of step {step.number} and of others like it are left out: this run's steps "
                    f"have {', '.join(columns.statistics)}, these lack {lacking}",
                )
            elif step.row is not None and not has_layers(step.row, columns):
                self._warn(
                    "unknown layers",
                    f"the statistics of some layers are left out, first in step {step.number}: the service does not "
                    "have these layers",
                )
        try:
            answer, refused = self._post_without_refused(block, columns, limits)
        except _TooLargeError:
            self._block_steps = len(block) // 2
            return SendResult(None)
        if answer is None:
            return SendResult(last_number, refused_steps=refused)
        if answer.ignored and not is_repeated:
            last_ignored = answer.last_step if answer.ignored >= len(block) else block[answer.ignored - 1].number
            self._warn(
                "ignored",
                f"the steps from {block[0].number} to {last_ignored} were ignored, because the run has steps up to "
                f"{last_ignored} already. Call run.rewind(step) after loading a checkpoint, go on with log(step=...), "
                "or start a new run",
            )
        return SendResult(last_number, answer, refused)

    def _post_without_refused(
        self, block: Sequence[Step], columns: Columns, limits: Limits
    ) -> tuple[AppendResult | None, int]:
        """Send a block. If the service refuses parts of it, send it without them, or give it up.

        Returns:
            The answer, None if the block is lost, and the number of steps that are lost.

        Raises:
            ApiError: the next block would be refused as well, or another attempt may succeed.
            _TooLargeError: a smaller block should be tried.
        """
        steps = [self._without_refused_metrics(step) for step in block]
        for reduction in range(_REDUCTIONS):
            body = encode_block(
                steps,
                columns,
                max_metrics=limits.max_metrics,
                max_guard_actions=limits.max_guard_actions,
                generation=self._generation,
            )
            try:
                answer = self._post(body)
            except ApiError as error:
                status, errors = error.problem.status, error.problem.errors
                if is_retryable(error) or status in _RUN_IS_LOST:
                    raise
                if status == _TOO_LARGE and len(block) > 1:
                    raise _TooLargeError from error
                sampled = [i for i, step in enumerate(steps) if step.row and has_statistics(step.row, columns)]
                reduced = without_refused(
                    steps,
                    errors,
                    sampled,
                    self._known_metrics,
                    removes_whole_series=reduction >= _EXACT_REDUCTIONS,
                )
                is_reduced = any(step not in steps for step in reduced) or len(reduced) < len(steps)
                if not reduced or not is_reduced:
                    self._warn(
                        error.problem.error_code, f"the service refused {len(block)} steps, they are lost: {error}"
                    )
                    break
                for each in errors:
                    self._warn_of_refusal("a block", each)
                if len(reduced) == len(steps):
                    self._refused_metrics |= set(metric_names(steps)) - set(metric_names(reduced))
                steps = reduced
            else:
                self._known_metrics.update(metric_names(steps))
                return answer, len(block) - len(steps)
        return None, len(block)

    def _warn_of_refusal(self, whole: str, error: FieldError) -> None:
        kind = re.sub(r"\d+", "", error.path)
        self._warn(kind, f"{error.path} of {whole} is left out, the service refused it: {error.message}")

    def _without_refused_metrics(self, step: Step) -> Step:
        if self._refused_metrics.isdisjoint(step.metrics):
            return step
        metrics = {name: value for name, value in step.metrics.items() if name not in self._refused_metrics}
        return dataclasses.replace(step, metrics=metrics)

    def _post(self, body: bytes) -> AppendResult:
        request: dict[str, Any] = {"body": body, "content_type": MSGPACK_MEDIA_TYPE}
        if self._bytes_per_second is not None and self._bytes_per_second < _SLOW_LINK:
            request |= {"body": _gzip(body), "content_encoding": "gzip"}
        started = time.perf_counter()
        result = self._service.request_as(AppendResult, "POST", f"/runs/{self._run_id}/steps", **request)
        if len(body) >= _SMALLEST_TIMED_BODY:
            self._bytes_per_second = len(request["body"]) / max(1e-6, time.perf_counter() - started)
        return result


class _TooLargeError(Exception):
    """A block is larger than the service takes."""


def _is_step(numbered: tuple[int, Entry]) -> bool:
    return isinstance(numbered[1], Step)


def _without_drops(training: Training | None) -> Training | None:
    return training and dataclasses.replace(training, dropped_steps=None)


def _gzip(body: bytes) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    return compressor.compress(body) + compressor.flush()


def _is_config_accepted(config: dict[str, Any], limits: Limits) -> bool:
    return len(to_json(config)) <= limits.max_config_bytes and _depth(config) <= limits.max_config_depth


def _depth(value: Any) -> int:
    """Return the depth of nested mappings and lists: 0 for a number, 1 for a flat mapping."""
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0
