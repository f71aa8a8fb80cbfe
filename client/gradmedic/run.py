"""`gradmedic.init()` and `Run`: what a training loop holds.

One idea: the training loop comes first. `log()` hands a step to a queue and returns; the network belongs to the
sender's thread; whatever goes wrong is logged once and the training goes on. The only exceptions are wrong arguments to
`init()` and `watch()`, which are raised before training begins, `UnhealthyRunError`, which is raised if it was asked
for, and `RunStoppedError`, which ends a trial.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import operator
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from uuid import UUID

import numpy as np

from gradmedic.configuration import (
    Configuration,
    as_trial,
    is_being_imported_by_spawn,
    process_rank,
    resolve_configuration,
)
from gradmedic.exceptions import (
    ConfigurationError,
    GradmedicError,
    RunStoppedError,
    UnhealthyRunError,
    UsageError,
)
from gradmedic.protocol.encoding import to_float32
from gradmedic.protocol.names import name_error
from gradmedic.protocol.runs import Layer, RunCreate, Training
from gradmedic.protocol.statistics import SERIES, STATISTICS
from gradmedic.protocol.steps import AppendResult
from gradmedic.recording import process_exit
from gradmedic.recording.instrumentation import Instrumentation, Pending, PendingNumber
from gradmedic.recording.layers import LayerRegistry
from gradmedic.recording.measurement import ARRAY_STATISTICS, measure_gradient
from gradmedic.recording.sampler import Sampler
from gradmedic.recording.step import Rewind, Row, Step
from gradmedic.transport.http import Service, Transport
from gradmedic.trial import (
    Report,
    TrialEnded,
    TrialEnvironment,
    TrialInstructions,
    circumstances,
    describe_environment,
    seed_generators,
)
from gradmedic.upload.journal import Journal
from gradmedic.upload.replay import find_leftovers
from gradmedic.upload.uploader import Sender

if TYPE_CHECKING:
    import torch

    from gradmedic.protocol.diagnosis import Diagnosis
    from gradmedic.torch.remedies import AppliedRemedies

logger = logging.getLogger("gradmedic")

DEFAULT_FLUSH_TIMEOUT = 30.0
DEFAULT_FINISH_TIMEOUT = 15.0
"""Seconds that the end of a job may be delayed by a service that does not answer."""

UNHEALTHY = ("vanishing", "exploding")
_EXCERPT = 50
"""Characters of a name that are shown when something is wrong with it."""
_LARGEST_STEP = 2**53
"""Beyond it, JSON readers that hold numbers in float64 would confuse steps; the service takes no larger one."""
_STATISTICS_BEFORE_ANY = ("grad_norm",)
"""What a run is said to carry if it is registered before it showed any statistics: every kind of row has this."""

Number = Any
"""A Python or numpy number, or a tensor with one element."""
Callback = TypeVar("Callback", bound=Callable[["VerdictEvent"], object])

_Draft = tuple[
    int,
    float,
    float | PendingNumber | None,
    float | PendingNumber | None,
    Mapping[str, float | PendingNumber | None],
    list[Pending],
    Row | None,
]
"""A step some of whose numbers may still be on a device: number, time, loss, learning rate, metrics, statistics."""

_runs: weakref.WeakSet[Run] = weakref.WeakSet()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictEvent:
    """The service changed its verdict on a run."""

    run_id: UUID
    verdict: str
    """`undetermined`, `healthy`, `vanishing` or `exploding`."""
    since_step: int | None
    """First step of the verdict."""
    summary: str
    """One sentence for a human."""


def init(
    project: str | None = None,
    *,
    config: Any = None,
    name: str | None = None,
    id: UUID | str | None = None,
    tags: Iterable[str] = (),
    notes: str | None = None,
    group: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    mode: str | None = None,
    trainable: str | None = None,
    log_freq: int | str | None = None,
    flush_interval: float | None = None,
    max_queue_bytes: int | None = None,
    max_disk_bytes: int | None = None,
    dir: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    silent: bool | None = None,
    on_unhealthy: str = "warn",
    transport: Transport | None = None,
) -> Run:
    """Begin a run and say where to look at it. Does not touch the network: that is left to a thread.

    What is not given comes from the environment variable in brackets, else from the default.

    Args:
        project: that owns the run [GRADMEDIC_PROJECT], "default".
        config: hyperparameters: a mapping, an `argparse.Namespace`, a dataclass.
        name: for humans [GRADMEDIC_RUN_NAME]; the service makes one up.
        id: UUID of the run [GRADMEDIC_RUN_ID]; a new UUIDv7.
        tags: words to find the run by [GRADMEDIC_TAGS, separated by commas].
        notes: free text.
        group: of runs that belong together [GRADMEDIC_RUN_GROUP].
        base_url: of the service [GRADMEDIC_BASE_URL], http://127.0.0.1:8642.
        api_key: [GRADMEDIC_API_KEY], none.
        mode: "online"; "offline" to keep everything on disk for `gradmedic sync`; "disabled" to do nothing at all
            [GRADMEDIC_MODE].
        trainable: name under which a worker may rerun this job.
        log_freq: "auto" takes statistics as often as should cost 1.5 % of the training's time, and at every step
            at the start - the first twenty, and on until a second was spent - and when a verdict is near: for twelve
            steps after a jump or an alarm; a number takes them at every such step, and at the first twenty
            [GRADMEDIC_LOG_FREQ], "auto".
        flush_interval: seconds that a step waits to be sent [GRADMEDIC_FLUSH_INTERVAL], 1.
        max_queue_bytes: memory for steps that wait for the service [GRADMEDIC_MAX_QUEUE_BYTES], 64 MiB.
        max_disk_bytes: disk for steps that wait for the service [GRADMEDIC_MAX_DISK_BYTES], 1 GiB.
        dir: where they are kept [GRADMEDIC_DIR], ".gradmedic".
        timeout: seconds for one request [GRADMEDIC_TIMEOUT], 10.
        silent: print nothing [GRADMEDIC_SILENT], False.
        on_unhealthy: when the verdict becomes vanishing or exploding: "warn" logs a warning, "stop" raises
            `UnhealthyRunError` from the next `log()` too, "clip" limits the gradients from then on as the diagnosis
            advises.
        transport: what carries the requests, if other than urllib3.

    In a trial of a rerun, the worker says project, id and mode, and random, numpy and torch are seeded from the trial's
    seed; by hand, `GRADMEDIC_SEED` does the same.

    Raises:
        ConfigurationError: an argument or environment variable is wrong.
    """
    started = circumstances()
    configuration = resolve_configuration(
        project=project,
        config=config,
        name=name,
        id=id,
        tags=tags,
        notes=notes,
        group=group,
        base_url=base_url,
        api_key=api_key,
        mode=mode,
        trainable=trainable,
        log_freq=log_freq,
        flush_interval=flush_interval,
        max_queue_bytes=max_queue_bytes,
        max_disk_bytes=max_disk_bytes,
        dir=dir,
        timeout=timeout,
        silent=silent,
        on_unhealthy=on_unhealthy,
    )
    if started.order is not None:
        configuration = as_trial(configuration, started.order.parameters)
    if is_being_imported_by_spawn():  # a process that only wants the functions of the main script
        configuration = dataclasses.replace(configuration, mode="disabled")
    if "ipykernel" in sys.modules:  # a cell that is run again begins its run again
        for earlier in list(_runs):
            earlier.finish()
    if started.seed is not None:
        seed_generators(started.seed)
    run = Run(configuration, transport, started)
    if run.is_trial and not run.is_follower and configuration.mode != "disabled":
        started.report.say(environment=describe_environment())
    if not configuration.silent and not run.is_follower:
        if configuration.mode == "online":
            sys.stderr.write(f"gradmedic: this run is at {run.url}\n")
        elif configuration.mode == "offline":
            sys.stderr.write(f"gradmedic: this run is kept for `gradmedic sync {configuration.directory}`\n")
    return run


class Run:
    """One training job, streamed to the service. Made by `gradmedic.init()`; used by one thread.

    As a context manager it is finished at the end of the block, as `failed` if an exception leaves it that is no exit
    with code 0. A run that is never finished is finished when the interpreter exits. In a forked child it does nothing.
    """

    def __init__(
        self,
        configuration: Configuration,
        transport: Transport | None = None,
        started: TrialEnvironment | None = None,
    ) -> None:
        self._configuration = configuration
        self._started = started or TrialEnvironment(seed=None, order=None, report=Report(None))
        self._treatments: list[AppliedRemedies] = []
        self._reason_to_end: str | None = None
        self._transport = transport
        self._book = LayerRegistry()
        self._sampler = Sampler(configuration.log_freq)
        self._sources: list[Instrumentation] = []
        self._statistics: tuple[str, ...] | None = None
        self._last_number = -1
        self._alive_at = 0.0
        self._said: set[str] = set()
        self._metric_names: set[str] = set()  # that were found good

        self._verdict = "undetermined"
        self._events: deque[VerdictEvent] = deque()
        self._callbacks: list[Callable[[VerdictEvent], object]] = []
        self._reason_to_stop: GradmedicError | None = None
        self._limits_to_set: deque[float] = deque()
        self._is_told_to_stop = False
        self._may_clip = configuration.on_unhealthy == "clip"

        self._is_inert = configuration.mode == "disabled"
        self._is_follower = not self._is_inert and process_rank() > 0
        self._is_finished = False
        self._service = Service(configuration.connection, transport)
        is_online = configuration.mode == "online"
        self._sender = Sender(
            service=self._service if is_online else None,
            run_id=configuration.run_id,
            observer=self,
            flush_interval=configuration.flush_interval,
            max_queue_bytes=configuration.max_queue_bytes,
            open_journal=self._open_journal,
            leftovers=lambda: find_leftovers(self._service, configuration.directory, self.id),
        )
        if not self._is_inert and not self._is_follower:
            atexit.register(self._finish_at_exit)
            process_exit.watch_for_end(self)
            _runs.add(self)

    @property
    def id(self) -> UUID:
        """Id of the run."""
        return self._configuration.run_id

    @property
    def url(self) -> str:
        """Page of the run."""
        return f"{self._configuration.connection.base_url}/runs/{self.id}"

    @property
    def project(self) -> str:
        """Project that owns the run."""
        return self._configuration.project

    @property
    def config(self) -> Mapping[str, Any]:
        """Hyperparameters, as given to `init()`; in a trial, with the values that it is to use."""
        return self._configuration.config

    @property
    def is_trial(self) -> bool:
        """Whether this is a trial of a rerun: a script may then skip its checkpoints and its evaluation."""
        return self._started.order is not None

    @property
    def is_follower(self) -> bool:
        """Whether this process trains together with a first one, which sends for all of them."""
        return self._is_follower

    @property
    def verdict(self) -> str:
        """The last verdict that the service gave: `undetermined`, `healthy`, `vanishing` or `exploding`."""
        return self._verdict

    def watch(
        self,
        model: torch.nn.Module | Mapping[str, torch.nn.Module],
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
        *,
        scaler: torch.amp.GradScaler | None = None,
        prefix: str = "",
        activations: bool = False,
    ) -> None:
        """Take statistics of a torch model's gradients, weights and updates whenever an optimizer steps.

        They are taken after unscaling and, where the script clips with `torch.nn.utils`, before clipping. What the
        training computes stays the same to the bit.

        Args:
            model: its parameters are the layers. Several models that train together come as a mapping from name to
                model, or in several calls.
            optimizer: one, or all that update the model.
            scaler: the loss scaler, if there is one: its scale is recorded, and so are the steps that it skips.
            prefix: goes before the names of the layers.
            activations: measure the outputs of activations too: shares of zeros and of saturated ones. It costs about
                as much as the activations do, on sampled steps.

        Raises:
            ConfigurationError: the arguments are not a model and its optimizers, or torch is missing.
            UsageError: the run is finished.
        """
        if self._is_finished:
            raise UsageError("watch() after finish()")
        try:
            from gradmedic.torch.watch import Watch
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"watch() needs torch: {error}") from error
        watch = Watch(model, optimizer, scaler=scaler, prefix=prefix, activations=activations)
        if self._is_inert:
            return
        if watch.is_follower and not self._is_follower:
            self._become_follower()
        treatment = self._treat(
            model, optimizer, has_scaler=scaler is not None
        )  # on every process: they train together
        if treatment is not None:
            watch = Watch(model, optimizer, scaler=scaler, prefix=prefix, activations=activations)  # as it is now
            treatment.attach_before_measurement()
        if watch.is_needed:
            if watch.has_others and self._configuration.on_unhealthy == "clip":
                self._may_clip = False  # the others would not, and train another model
                self._say_once("clip", 'on_unhealthy="clip" is for trainings of one process; this one is only warned')
            watch.begin(layer_registry=self._book, sampler=self._sampler, before_first_step=self._describe_sources)
            self._sources.append(watch)
        if treatment is not None:
            treatment.attach_after_measurement(watch if watch.is_needed else None)

    def log(
        self,
        loss: Number | None = None,
        step: int | None = None,
        *,
        gradients: Mapping[str, Any] | None = None,
        statistics: Mapping[str, Mapping[str, Number]] | None = None,
        learning_rate: Number | None = None,
        metrics: Mapping[str, Number] | None = None,
        **more_metrics: Number,
    ) -> None:
        """Record one step: everything since the last call.

        Takes some 50 microseconds, whatever the network and the disk do, and raises nothing but what is named below;
        what cannot be recorded is left out and logged once. A run without `watch()` gives its gradients, or their
        statistics, here.

        Args:
            loss: of the step; NaN and infinity are recorded as they are.
            step: number of the step, larger than the last; without it, one more than the last, from 0.
            gradients: arrays of any shape by layer name.
            statistics: of each layer: statistic to value, with names from `gradmedic.protocol.statistics.STATISTICS`.
            learning_rate: if it is not that of the watched optimizers.
            metrics: further numbers by name.
            more_metrics: the same.

        Raises:
            UnhealthyRunError: the verdict became unhealthy and `init(on_unhealthy="stop")` asked for it.
            TrialEnded: this is a trial, and it is over.
            RunStoppedError: the service asked for it.
        """
        if self._is_inert:
            return
        if self._is_finished:
            self._say_once("finished", "log() after finish() records nothing")
            return
        try:
            if metrics is not None:
                more_metrics = self._join_metrics(metrics, more_metrics)
            self._record(loss, step, gradients, statistics, learning_rate, more_metrics)
        except Exception as error:
            self._say_once(f"log {type(error)}", f"a step could not be recorded: {error!r}")
        if self._events or self._limits_to_set:
            self._call_back()
        if self._started.order is not None:
            self._end_trial_if_due(self._started.order)
        if self._reason_to_stop is not None:
            reason, self._reason_to_stop = self._reason_to_stop, None
            raise reason

    def flush(self, timeout: float = DEFAULT_FLUSH_TIMEOUT) -> bool:
        """Wait until the service has every step logged so far, at most `timeout` seconds; return whether it has."""
        if self._is_inert or self._is_finished or self._is_follower:
            return True
        self._describe_sources()
        is_delivered = self._sender.flush(timeout)
        self._call_back()
        return is_delivered

    def finish(self, *, timeout: float = DEFAULT_FINISH_TIMEOUT, status: str = "finished") -> bool:
        """Send what is left and end the run; a second call does nothing.

        Args:
            timeout: seconds that this may take.
            status: "finished" or "failed".

        Returns:
            Whether the service has everything.

        Raises:
            ConfigurationError: there is no such status.
        """
        if status not in ("finished", "failed"):
            raise ConfigurationError(f"status must be 'finished' or 'failed', not {status!r}")
        if self._is_inert or self._is_finished:
            return True
        self._describe_sources()
        self._is_finished = True
        for source in self._sources:
            source.close()
        for treatment in self._treatments:
            treatment.close()
        if self._is_follower:
            return True
        atexit.unregister(self._finish_at_exit)
        process_exit.ignore_end(self)
        is_delivered = self._sender.close(status, timeout)
        self._call_back()
        return is_delivered

    def rewind(self, step: int) -> None:
        """Say that the job resumed from the checkpoint of `step`: later steps of the run are dropped.

        For a run that goes on under its id, in this process or in another one. The next `log()` is step `step + 1`.

        Args:
            step: the last one that stays; -1 drops all.

        Raises:
            ConfigurationError: there is no such step.
            UsageError: the run is finished.
        """
        if not isinstance(step, int) or isinstance(step, bool) or not -1 <= step <= _LARGEST_STEP:
            raise ConfigurationError(f"step must be a whole number from -1, not {step!r}")
        if self._is_finished:
            raise UsageError("rewind() after finish()")
        if self._is_inert:
            return
        self._last_number = step
        if not self._is_follower:
            self._sender.put(Rewind(step))

    def diagnosis(self) -> Diagnosis:
        """Return what the service says of the run, with every step logged so far.

        Raises:
            TransportError, ApiError: the service cannot be reached, or refuses.
            UsageError: the run is disabled or offline, or another process sends for this one.
        """
        if self._is_inert or self._is_follower or self._configuration.mode == "offline":
            why = "another process sends for this one" if self._is_follower else f"mode is {self._configuration.mode!r}"
            raise UsageError(f"there is no diagnosis here: {why}")
        from gradmedic.api import Client  # no training needs it

        self.flush()
        connection = self._configuration.connection
        with Client(
            connection.base_url, connection.api_key, timeout=connection.timeout, transport=self._transport
        ) as client:
            return client.runs.diagnosis(self.id)

    def on_verdict(self, callback: Callback) -> Callback:
        """Call `callback(event)` whenever the verdict changes; usable as a decorator.

        It is called by the thread that trains, from the next `log()`, `flush()` or `finish()`, so it may change the
        optimizer. Its exceptions are logged.
        """
        self._callbacks.append(callback)
        return callback

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        is_meant = error is None or isinstance(error, RunStoppedError)
        if isinstance(error, SystemExit):
            is_meant = not process_exit.is_failure(error.code)
        self.finish(status="finished" if is_meant else "failed")

    # --- recording ----------------------------------------------------------------------------------------------------

    def _record(
        self,
        loss: Number | None,
        step: int | None,
        gradients: Mapping[str, Any] | None,
        statistics: Mapping[str, Mapping[str, Number]] | None,
        learning_rate: Number | None,
        metrics: Mapping[str, Number],
    ) -> None:
        sampler = self._sampler
        begun = sampler.clock()
        self._alive_at = begun
        try:
            pending = []  # no comprehension here and below: each is a call, and the caches are cold after a step
            for source in self._sources:
                pending.append(source.take())  # noqa: PERF401
            if self._is_follower:
                return
            number = self._last_number + 1 if step is None else self._number_of(step)
            if number is None:
                return
            self._last_number = number
            held: dict[str, float | PendingNumber | None] = {}
            for name, value in metrics.items():
                if self._takes_metric(str(name)):
                    held[str(name)] = self._hold(name, value)
            row = None
            if sampler.is_sampling and (gradients is not None or statistics is not None):
                row = self._row_of(gradients, statistics)
            self._sender.put(
                (
                    number,
                    time.time(),
                    None if loss is None else self._hold("loss", loss),
                    None if learning_rate is None else self._hold("learning_rate", learning_rate),
                    held,
                    pending,
                    row,
                )
            )
        finally:
            sampler.advance(sampler.clock() - begun)

    def _number_of(self, step: int) -> int | None:
        """Return the number of the step, or None if it cannot be recorded under the number given."""
        try:
            number = operator.index(step)
        except TypeError:
            self._say_once("step type", f"step must be an integer, not {step!r}; the step is left out")
            return None
        if number <= self._last_number or number < 0:
            self._say_once("step order", f"step {number} is left out: it does not follow step {self._last_number}")
            return None
        if number > _LARGEST_STEP:
            self._say_once("step size", f"step {number} is left out: steps end at {_LARGEST_STEP}")
            return None
        return number

    def _hold(self, name: str, value: Number | None) -> float | PendingNumber | None:
        if value is None or type(value) is float:
            return value
        for source in self._sources:
            pending = source.hold(value)
            if pending is not None:
                return pending
        try:
            return float(value.item() if hasattr(value, "item") else value)
        except Exception as error:
            self._say_once(f"number {name}", f"{name} is left out where it is not a number: {error}")
            return None

    def _join_metrics(self, metrics: Mapping[str, Number], more: dict[str, Number]) -> dict[str, Number]:
        if not isinstance(metrics, Mapping):
            self._say_once("metrics", f"metrics must map names to numbers; {type(metrics)} is left out")
            return more
        return {**metrics, **more}

    def _takes_metric(self, name: str) -> bool:
        """Whether the service takes a metric of this name; it would refuse the whole block for one that it does not."""
        if name in self._metric_names:
            return True
        error = name_error(name)
        if name in SERIES or name in STATISTICS:
            error = "is a name that gradmedic gives a meaning of its own; choose another"
        if error is not None:
            self._say_once(f"metric {name}", f"the metric {name[:_EXCERPT]!r} is left out: {error}")
            return False
        self._metric_names.add(name)
        return True

    def complete(self, draft: _Draft) -> Step | None:
        """Return the step of what `log()` was given; see `gradmedic.upload.uploader.Observer`."""
        try:
            return self._complete(*draft)
        except Exception as error:
            self._say_once(f"step {type(error)}", f"a step could not be recorded: {error!r}")
            return None

    def _complete(
        self,
        number: int,
        time: float,
        loss: float | PendingNumber | None,
        learning_rate: float | PendingNumber | None,
        metrics: Mapping[str, float | PendingNumber | None],
        pending: list[Pending],
        row: Row | None,
    ) -> Step:
        measurements = [each.read() for each in pending]
        step = Step(
            number=number,
            time=time,
            loss=_read(loss),
            learning_rate=_first(
                _read(learning_rate), _largest(measurement.learning_rate for measurement in measurements)
            ),
            loss_scale=_largest(measurement.loss_scale for measurement in measurements),
            clip_coefficient=_smallest(measurement.clip_coefficient for measurement in measurements),
            skipped=any(measurement.skipped for measurement in measurements),
            metrics={name: known for name, value in metrics.items() if (known := _read(value)) is not None},
            row=_join([row, *(measurement.row for measurement in measurements)]),
        )
        if step.row is not None and self._statistics is None:
            self._statistics = step.row.statistics
        return step

    def _row_of(
        self, gradients: Mapping[str, Any] | None, statistics: Mapping[str, Mapping[str, Number]] | None
    ) -> Row | None:
        """Return the row of gradients or statistics given to `log()`; one of them is not None."""
        if self._sources or (gradients is not None and statistics is not None):
            self._say_once(
                "two sources",
                "gradients and statistics given to log() are left out: a run gets them from watch(), from gradients= "
                "or from statistics=, not from several of them",
            )
            return None
        if statistics is not None:
            return self._row_of_statistics(statistics)
        if not isinstance(gradients, Mapping):
            self._say_once("gradients", f"gradients must map names of layers to arrays; {type(gradients)} is left out")
            return None
        layers, values = [], []
        for name, gradient in gradients.items():
            try:
                array = np.asarray(gradient)
                measured = measure_gradient(array)
            except Exception as error:
                self._say_once(f"gradient {name}", f"the gradient of {name} is left out: {error}")
                continue
            position = self._position_of(name, list(array.shape))
            if position is not None:
                layers.append(position)
                values.append(measured)
        return _row(ARRAY_STATISTICS, layers, values)

    def _row_of_statistics(self, statistics: Mapping[str, Mapping[str, Number]]) -> Row | None:
        if not isinstance(statistics, Mapping) or not all(isinstance(of, Mapping) for of in statistics.values()):
            self._say_once("statistics", 'statistics must map like {"layer": {"grad_norm": 0.3}}; others are left out')
            return None
        given = [name for name in STATISTICS if all(name in layer for layer in statistics.values())]
        for layer, numbers in statistics.items():
            left_out = sorted(set(numbers) - set(given))
            if left_out:
                self._say_once(
                    f"statistics {left_out}",
                    f"{', '.join(left_out)} of {layer} is left out: statistics are {', '.join(STATISTICS)}, "
                    "and every layer of a step has the same ones",
                )
        if not given:
            return None
        layers, values = [], []
        for name, numbers in statistics.items():
            held = [self._hold(f"{statistic} of {name}", numbers[statistic]) for statistic in given]
            row = [number for value in held if (number := _read(value)) is not None]
            position = self._position_of(name, None) if len(row) == len(given) else None
            if position is not None:
                layers.append(position)
                values.append(tuple(row))
        return _row(tuple(given), layers, values)

    def _position_of(self, name: object, shape: list[int] | None) -> int | None:
        """Return the position of a layer, which is new if its name is; None if the service would not take the name."""
        name = str(name)
        position = self._book.position(name)
        if position is None:
            if (error := name_error(name)) is not None:
                self._say_once(f"layer {name}", f"the layer {name[:_EXCERPT]!r} is left out: its name {error}")
                return None
            numel = None if shape is None else int(np.prod(shape, dtype=np.int64))
            position = self._book.add(Layer(name=name, shape=shape, numel=numel))
        return position

    # --- describing, on either thread ---------------------------------------------------------------------------------

    def _describe_sources(self) -> None:
        for source in self._sources:
            source.describe()

    def description_key(self) -> object:
        """Return what differs when `describe` does; see `gradmedic.upload.uploader.Observer`."""
        return len(self._book), self._statistics, *(id(source.training()) for source in self._sources)

    def describe(self) -> RunCreate:
        """Return what the service should know of the run by now; see `gradmedic.upload.uploader.Observer`."""
        configuration = self._configuration
        trainings = [training for source in self._sources if (training := source.training()) is not None]
        statistics = self._statistics or _first(*(source.statistics for source in self._sources))
        return RunCreate(
            id=self.id,
            project=configuration.project,
            name=configuration.name,
            config=dict(configuration.config),
            tags=list(configuration.tags),
            notes=configuration.notes,
            group=configuration.group,
            trainable=configuration.trainable,
            framework=_first(*(source.framework for source in self._sources)),
            layers=self._book.snapshot(),
            statistics=list(statistics or _STATISTICS_BEFORE_ANY),
            training=_merge(trainings),
        )

    # --- trials -------------------------------------------------------------------------------------------------------

    def _treat(
        self,
        model: torch.nn.Module | Mapping[str, torch.nn.Module],
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
        *,
        has_scaler: bool,
    ) -> AppliedRemedies | None:
        """Prepare the trial's remedies for optimizers and models; end the trial if they cannot be applied."""
        if not self.is_trial:
            return None
        from gradmedic.torch.remedies import AppliedRemedies, NotApplicable
        from gradmedic.torch.seeding import describe_device

        models = model if isinstance(model, Mapping) else {"": model}
        report = Report(None) if self._is_follower else self._started.report
        device = describe_device(next(iter(models.values())))
        report.say(watched=True, environment={**describe_environment(), "device": device})
        if not self._started.remedies:
            return None
        try:
            treatment = AppliedRemedies(
                model,
                optimizer,
                self._started.remedies,
                seed=self._started.seed or 0,
                has_scaler=has_scaler,
            )
        except NotApplicable as reason:
            self._end_as_not_applicable(str(reason))
        self._treatments.append(treatment)
        report.say(applied=sum(one.optimizer_count for one in self._treatments), not_applied=treatment.not_applied)
        return treatment

    def _end_trial_if_due(self, order: TrialInstructions) -> None:
        for treatment in self._treatments:
            if (reason := treatment.reason_to_end()) is not None:
                self._end_as_not_applicable(reason)
        if order.steps is not None and self._last_number + 1 >= order.steps:
            self._reason_to_end = f"its {order.steps} steps are done"
        if self._reason_to_end is not None:
            self._end_trial(self._reason_to_end)

    def _end_as_not_applicable(self, reason: str) -> NoReturn:
        report = Report(None) if self._is_follower else self._started.report
        report.say(not_applicable=reason)
        self._end_trial(f"not applicable: {reason}")

    def _end_trial(self, reason: str) -> NoReturn:
        self.finish()
        self._started.report.say(ended=reason)
        raise TrialEnded(reason)

    # --- verdicts -----------------------------------------------------------------------------------------------------

    def take_spike(self) -> None:
        """Sample the next steps, because one jumped; see `gradmedic.upload.uploader.Observer`."""
        self._sampler.hurry()

    def take_result(self, result: AppendResult) -> None:
        """Take the service's answer to a block; see `gradmedic.upload.uploader.Observer`."""
        if result.stop and self.is_trial:
            self._reason_to_end = "the service needs no more of this trial"
        elif result.stop and not self._is_told_to_stop:
            self._is_told_to_stop = True
            self._reason_to_stop = RunStoppedError(
                "the service asked this run to stop: the budget of its trial is spent, or it was cancelled"
            )
        if result.verdict == self._verdict:
            return
        self._verdict = result.verdict
        since = "" if result.since_step is None else f" since step {result.since_step}"
        summary = " ".join(result.alerts) or f"The verdict is {result.verdict}{since}."
        if result.verdict in UNHEALTHY:
            self._sampler.hurry()
            logger.warning("gradmedic: %s See %s", summary, self.url)
            if self._may_clip:
                self._find_limit()
        self._events.append(
            VerdictEvent(run_id=self.id, verdict=result.verdict, since_step=result.since_step, summary=summary)
        )

    def _find_limit(self) -> None:
        """Ask the diagnosis to which norm gradients should be clipped."""
        from gradmedic.protocol.diagnosis import Diagnosis  # few trainings need it

        try:
            diagnosis = self._service.ask(Diagnosis, "GET", f"/runs/{self.id}/diagnosis")
        except GradmedicError as error:
            logger.warning("gradmedic: the gradients are not clipped, the advice cannot be read: %s", error)
            return
        for advice in sorted(diagnosis.advice, key=lambda advice: advice.rank):
            max_norm = advice.remedy.parameters.get("max_norm")
            if advice.remedy.id == "clip_grad_norm" and isinstance(max_norm, (int, float)) and max_norm > 0:
                self._limits_to_set.append(float(max_norm))
                return
        logger.warning("gradmedic: the gradients are not clipped, which is not what the diagnosis advises")

    def _call_back(self) -> None:
        """Tell the callbacks what changed, and do what was asked for about it."""
        while self._limits_to_set:
            max_norm = self._limits_to_set.popleft()
            for source in self._sources:
                source.clip(max_norm)
            logger.warning("gradmedic: gradients are clipped to the norm %.4g from now on", max_norm)
        while self._events:
            event = self._events.popleft()
            if event.verdict in UNHEALTHY and self._configuration.on_unhealthy == "stop":
                self._reason_to_stop = UnhealthyRunError(
                    f"{event.summary} See {self.url}", verdict=event.verdict, since_step=event.since_step
                )
            elif not self._is_told_to_stop:
                self._reason_to_stop = None
            for callback in self._callbacks:
                try:
                    callback(event)
                except Exception:
                    logger.exception("gradmedic: a callback of on_verdict() failed")

    # --- the end ------------------------------------------------------------------------------------------------------

    def _finish_at_exit(self) -> None:
        self.finish(status="failed" if process_exit.has_failed(self._alive_at) else "finished")

    def _open_journal(self) -> Journal:
        configuration = self._configuration
        return Journal.begin(configuration.directory, self.id, configuration.max_disk_bytes)

    def _become_follower(self) -> None:
        """Leave the sending to the first process, which this one turned out not to be."""
        self._is_follower = True
        atexit.unregister(self._finish_at_exit)
        process_exit.ignore_end(self)

    def _become_inert(self) -> None:
        """Do nothing from now on: this process is a fork."""
        self._is_inert = True
        self._sender.abandon()
        for source in self._sources:
            source.close()

    def _say_once(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("gradmedic: %s (said once)", message)


def _read(number: float | PendingNumber | None) -> float | None:
    return number if number is None or isinstance(number, float) else number.read()


def _row(statistics: tuple[str, ...], layers: Sequence[int], values: Sequence[tuple[float, ...]]) -> Row:
    array = np.array(values, dtype=np.float64).reshape(len(layers), len(statistics))
    return Row(statistics, np.array(layers, dtype=np.int32), to_float32(array))


def _join(rows: Iterable[Row | None]) -> Row | None:
    present = [row for row in rows if row is not None]
    if len(present) < 2:
        return present[0] if present else None
    return Row(
        present[0].statistics,
        np.concatenate([row.layers for row in present]),
        np.concatenate([row.values for row in present]),
    )


def _merge(trainings: list[Training]) -> Training | None:
    """Return what several sources know: everything of the first, and the optimizers of all."""
    if not trainings:
        return None
    first = trainings[0]
    return Training(
        optimizers=[optimizer for training in trainings for optimizer in training.optimizers],
        precision=first.precision,
        input_rms=first.input_rms,
        input_abs_max=first.input_abs_max,
        target_rms=_first(*(training.target_rms for training in trainings)),
        batch_size=first.batch_size,
        clips_gradients=_largest(training.clips_gradients for training in trainings),
    )


T = TypeVar("T")
Ordered = TypeVar("Ordered", bound=float)


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)


def _largest(values: Iterable[Ordered | None]) -> Ordered | None:
    return max((value for value in values if value is not None), default=None)


def _smallest(values: Iterable[Ordered | None]) -> Ordered | None:
    return min((value for value in values if value is not None), default=None)


def _disable_runs_of_parent() -> None:
    process_exit.become_child()
    for run in list(_runs):
        run._become_inert()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disable_runs_of_parent)
