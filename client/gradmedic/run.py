"""`Run`, which a training loop logs to.

`log()` puts a step into a queue for other threads and returns at once. A problem is logged once, and the
training goes on. The only exceptions are wrong arguments of `init()` and `watch()`, which are raised before training
begins, `UnhealthyRunError`, if the script asked for it, and `RunStoppedError` and `TrialEnded`, which end a trial. The
docstring of `gradmedic.recording` shows how a step gets from `log()` to the service.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from gradmedic import process_exit
from gradmedic.configuration import Configuration, process_rank
from gradmedic.exceptions import ConfigurationError, RunStoppedError, UsageError
from gradmedic.guard.reactions import Reactions
from gradmedic.guard.session import GuardSession
from gradmedic.open_runs import open_runs
from gradmedic.protocol.numbers import MAX_EXACT_INTEGER
from gradmedic.recording.arguments import ArgumentReader, Number
from gradmedic.recording.description import RunDescriber
from gradmedic.recording.events import VerdictEvent
from gradmedic.recording.instrumentation import Instrumentation
from gradmedic.recording.layers import LayerRegistry
from gradmedic.recording.one_time_warnings import OneTimeWarnings
from gradmedic.recording.recorder import Recorder
from gradmedic.recording.sampler import Sampler
from gradmedic.recording.spike_detector import SpikeDetector
from gradmedic.recording.step import Rewind
from gradmedic.transport.http import Service, Transport
from gradmedic.trial.instructions import TrialEnvironment
from gradmedic.trial.session import FINISH_SECONDS, TrialSession
from gradmedic.upload.answers import AnswerReader
from gradmedic.upload.journal import Journal
from gradmedic.upload.replay import find_sessions
from gradmedic.upload.uploader import Uploader

if TYPE_CHECKING:
    import torch

    from gradmedic.protocol.diagnosis import Diagnosis
    from gradmedic.protocol.guards import GuardAction
    from gradmedic.torch.watch import Watch

DEFAULT_FLUSH_TIMEOUT = 30.0
DEFAULT_FINISH_TIMEOUT = 15.0
UNREACHED_FINISH_TIMEOUT = 1.0
"""Seconds that a service that does not answer may delay the end of a job."""
_SHORTEST_RECORD_TIMEOUT = 5.0
"""Seconds that steps may take to reach the disk at the end, however short the timeout is: else they would be lost."""

Callback = TypeVar("Callback", bound=Callable[[VerdictEvent], object])
RewindCallback = TypeVar("RewindCallback", bound=Callable[[int], object])


class _State(Enum):
    """What the calls of a run do."""

    RECORDING = "recording"
    """They record steps, and other threads send them."""
    FOLLOWING = "following"
    """They only advance the sampling. The first process of the training records and sends the steps."""
    FINISHED = "finished"
    """`finish()` was called."""
    DISABLED = "disabled"
    """They do nothing: the mode is `disabled`, or this process is a fork."""


class Run:
    """One training job, streamed to the service. Made by `gradmedic.init()`; used by one thread.

    As a context manager it is finished at the end of the block, as `failed` if an exception leaves the block, unless
    it exits with code 0. A run that is never finished is finished when the interpreter exits. In a forked child it does
    nothing.
    """

    def __init__(
        self,
        configuration: Configuration,
        transport: Transport | None = None,
        environment: TrialEnvironment | None = None,
    ) -> None:
        self._configuration = configuration
        self._transport = transport
        self._trial = TrialSession(environment or TrialEnvironment(), self.finish)
        self._warnings = OneTimeWarnings()
        self._layers = LayerRegistry(self._warnings)
        self._sampler = Sampler(configuration.log_freq, is_trial=self._trial.is_trial)
        self._spikes = SpikeDetector()
        self._instrumentations: list[Instrumentation] = []
        self._arguments = ArgumentReader(self._layers, self._instrumentations, self._warnings)
        self._last_step = -1
        self._may_join_last_step = False
        self._last_log_at = 0.0

        self._guards = GuardSession(configuration, self.url, lambda: self._last_step, self._go_back)
        self._reactions = Reactions(
            self.url,
            self._sampler,
            self._guards,
            stops_if_unhealthy=configuration.on_unhealthy == "stop",
            is_trial=self._trial.is_trial,
        )
        service = Service(configuration.connection, transport)
        describer = RunDescriber(configuration.describe(), self._layers, self._instrumentations)
        self._answers = AnswerReader(
            service, self.id, self.url, self._reactions.events, may_clip=self._guards.policy.clips
        )
        self._uploader = Uploader(
            service=service if configuration.mode == "online" else None,
            run_id=self.id,
            describer=describer,
            answers=self._answers,
            flush_interval=configuration.flush_interval,
            max_queue_bytes=configuration.max_queue_bytes,
            open_journal=lambda: Journal.create(configuration.dir, self.id, configuration.max_disk_bytes),
            find_sessions=lambda: find_sessions(service, configuration.dir, self.id),
        )
        self._recorder = Recorder(
            self._uploader,
            describer,
            self._reactions.events,
            self._warnings,
            max_bytes=configuration.max_queue_bytes,
            is_trial=self._trial.is_trial,
        )
        self._state = _State.DISABLED if configuration.mode == "disabled" else _State.RECORDING
        self._is_follower = self._state is _State.RECORDING and process_rank() > 0
        if self._is_follower:
            self._follow_first_process()
        elif self._state is _State.RECORDING:
            atexit.register(self._finish_at_exit)
            process_exit.watch_for_exit(self)
            open_runs.add(self)
            if self.is_trial:
                self._trial.report_start()

    @property
    def id(self) -> UUID:
        """Id of the run."""
        return self._configuration.id

    @property
    def url(self) -> str:
        """Page of the run."""
        return f"{self._configuration.base_url}/runs/{self.id}"

    @property
    def project(self) -> str:
        """Project that owns the run."""
        return self._configuration.project

    @property
    def config(self) -> Mapping[str, Any]:
        """Hyperparameters, as given to `init()`; in a trial, with the values that it has to use."""
        return self._configuration.config

    @property
    def is_trial(self) -> bool:
        """Whether this is a trial of a rerun: a script may then skip its checkpoints and its evaluation."""
        return self._trial.is_trial

    @property
    def is_follower(self) -> bool:
        """Whether another process of the same training records and sends its steps."""
        return self._is_follower

    @property
    def verdict(self) -> str:
        """The last verdict of the service: `undetermined`, `healthy`, `vanishing` or `exploding`.

        In a trial it stays `undetermined`: the step at which an answer arrives depends on time.
        """
        return self._reactions.verdict

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

        A model that is watched already, in this run or another one, is watched anew: with the new optimizers, and not
        with the old ones.

        Args:
            model: its parameters are the layers. Several models that train together come as a mapping from name to
                model, or in several calls.
            optimizer: one, or all that update the model. An object with the optimizer as `.optimizer` is one too.
            scaler: the loss scaler, if there is one: its scale is recorded, and so are the steps that it skips.
            prefix: text in front of the names of the layers.
            activations: measure the outputs of activations too: shares of zeros and of saturated ones. It costs about
                as much as the activations do, on sampled steps.

        Raises:
            ConfigurationError: the arguments are not a model and its optimizers, or torch is missing.
            UsageError: the run is finished.
            TrialEnded: this is a trial, and its remedies cannot be applied.
        """
        if self._state is _State.FINISHED:
            raise UsageError("watch() after finish()")
        try:
            from gradmedic.torch.watch import Watch
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"watch() needs torch: {error}") from error
        watch = Watch(model, optimizer, scaler=scaler, prefix=prefix, activations=activations)
        if self._state is _State.DISABLED:
            return
        if watch.is_follower and not self._is_follower:
            self._stop_sending()
        # Remedies are applied on every process, because they train together.
        remedies = self._trial.apply_remedies(model, watch.optimizers, has_scaler=scaler is not None)
        if remedies is not None:  # the model has changed
            watch = Watch(model, watch.given_optimizers, scaler=scaler, prefix=prefix, activations=activations)
            remedies.attach_before_measurement()
        if watch.is_needed:
            self._end_watches(watch)
            watch.begin(layer_registry=self._layers, sampler=self._sampler, before_first_step=self._describe_layers)
            if self._configuration.on_nonfinite == "locate" and not watch.is_follower:
                watch.locate_origin(lambda: self._last_step + 1)
            self._instrumentations.append(watch)
            self._trial.follow_measurement(watch)
        self._guards.attach(watch)
        if remedies is not None:
            remedies.attach_after_measurement(watch if watch.is_needed else None)

    def unwatch(self) -> None:
        """Stop observing the models of this run, and leave nothing in them. The run goes on."""
        while self._instrumentations:
            self._instrumentations.pop().close()
        self._guards.close()

    def log(
        self,
        loss: Number | Mapping[str, Any] | None = None,
        step: int | None = None,
        *,
        gradients: Any = None,
        statistics: Mapping[str, Mapping[str, Number]] | None = None,
        learning_rate: Number | None = None,
        metrics: Mapping[str, Number] | None = None,
        **more_metrics: Number,
    ) -> None:
        """Record one step: everything since the last call.

        Takes some 0.2 ms, also when the network or the disk is slow. Raises nothing but what is named below;
        what cannot be recorded is left out and logged once. A run without `watch()` gives its gradients, or their
        statistics, here.

        Args:
            loss: loss of the step, also NaN or infinite; or a mapping with the loss as `loss`, and metrics.
            step: number of the step, larger than the last, or the last one to add to it; without it, one more.
            gradients: arrays of any shape by layer name, nested or not: nested ones have dotted paths as names.
            statistics: values by statistic, by layer name. The names of statistics are those of
                `gradmedic.protocol.statistics.STATISTICS`.
            learning_rate: learning rate, if it is not that of the watched optimizers.
            metrics: further numbers by name.
            more_metrics: the same.

        Raises:
            UnhealthyRunError: the verdict became unhealthy, or a gradient was not finite, and `init()` asked to stop.
            TrialEnded: this is a trial, and it is over.
            RunStoppedError: the service asked for it.
        """
        if self._state is _State.DISABLED:
            return
        if self._state is _State.FINISHED:
            self._warnings.warn("finished", "log() after finish() records nothing")
            return
        reactions = self._reactions
        if reactions.events:
            reactions.receive()
        try:
            if isinstance(loss, Mapping):
                loss, values = self._arguments.split_loss(loss)
                more_metrics = {**values, **more_metrics}
            if metrics is not None:
                more_metrics = self._arguments.join_metrics(metrics, more_metrics)
            self._record(loss, step, gradients, statistics, learning_rate, more_metrics)
        except Exception as error:
            self._warnings.warn(f"log {type(error)}", f"a step could not be recorded: {error!r}")
        reactions.act()
        self._guards.end_step(self._last_step, loss)
        if self._trial.is_trial:
            self._trial.finish_step(loss)
            self._trial.end_if_over(self._last_step + 1, is_stop_requested=reactions.is_stop_requested)
        reactions.raise_error()

    def flush(self, timeout: float = DEFAULT_FLUSH_TIMEOUT) -> bool:
        """Wait until the service has every step logged so far, at most `timeout` seconds; return whether it has."""
        if self._state is not _State.RECORDING:
            return True
        deadline = time.monotonic() + timeout
        self._describe_layers()
        is_delivered = self._recorder.wait(timeout) and self._uploader.flush(max(0.0, deadline - time.monotonic()))
        self._reactions.act()
        return is_delivered

    def finish(self, *, timeout: float | None = None, status: str = "finished") -> bool:
        """Send what is left and end the run; a second call does nothing.

        Args:
            timeout: seconds that this may take; by default 15; 1 if the service was never reached (`gradmedic sync`
                sends the steps then). A trial takes up to 60 in any case, because it is compared by all of its steps.
            status: "finished" or "failed".

        Returns:
            Whether the service has everything.

        Raises:
            ConfigurationError: there is no such status.
        """
        if status not in ("finished", "failed"):
            raise ConfigurationError(f"status must be 'finished' or 'failed', not {status!r}")
        if self._state in (_State.DISABLED, _State.FINISHED):
            return True
        self._describe_layers()
        self._state = _State.FINISHED
        for instrumentation in self._instrumentations:
            instrumentation.close()
        self._guards.close()
        self._trial.close()
        if self._is_follower:
            return True
        self._trial.report_last_step(self._last_step)
        self._forget_process_exit()
        unreached_timeout = UNREACHED_FINISH_TIMEOUT if timeout is None and not self.is_trial else None
        timeout = max(DEFAULT_FINISH_TIMEOUT if timeout is None else timeout, FINISH_SECONDS if self.is_trial else 0.0)
        deadline = time.monotonic() + timeout
        self._recorder.close(max(timeout, _SHORTEST_RECORD_TIMEOUT))
        is_delivered = self._uploader.close(status, max(0.0, deadline - time.monotonic()), unreached_timeout)
        self._reactions.act()
        return is_delivered

    def rewind(self, step: int) -> None:
        """Go back to the checkpoint of `step`: later steps of the run are dropped.

        For a run that goes on under its id, in this process or in another one. The next `log()` is step `step + 1`.

        Args:
            step: the last one that stays; -1 drops all.

        Raises:
            ConfigurationError: there is no such step.
            UsageError: the run is finished.
        """
        if not isinstance(step, int) or isinstance(step, bool) or not -1 <= step <= MAX_EXACT_INTEGER:
            raise ConfigurationError(f"step must be a whole number from -1, not {step!r}")
        if self._state is _State.FINISHED:
            raise UsageError("rewind() after finish()")
        self._guards.forget_after(step)
        self._go_back(step)

    def diagnosis(self) -> Diagnosis:
        """Return the diagnosis of the run, with every step logged so far.

        Raises:
            TransportError, ApiError: the service cannot be reached, or refuses.
            UsageError: the run is disabled or offline, or another process sends for this one.
        """
        mode = self._configuration.mode
        if self._state is _State.DISABLED or self._is_follower or mode == "offline":
            reason = "another process sends for this one" if self._is_follower else f"mode is {mode!r}"
            raise UsageError(f"there is no diagnosis here: {reason}")
        from gradmedic.api import Client  # no training needs it

        self.flush()
        connection = self._configuration.connection
        with Client(
            connection.base_url, connection.api_key, timeout=connection.timeout, transport=self._transport
        ) as client:
            return client.runs.diagnosis(self.id)

    def on_verdict(self, callback: Callback) -> Callback:
        """Call `callback(event)` whenever the verdict changes; usable as a decorator.

        The training thread calls it, from the next `log()`, `flush()` or `finish()`, so it may change the optimizer.
        Its exceptions are logged. In a trial it is never called: the step at which an answer arrives depends on time.
        """
        self._reactions.add_callback(callback)
        return callback

    def on_rewind(self, callback: RewindCallback) -> RewindCallback:
        """Call `callback(step)` when a guard has gone back to the state after `step`; usable as a decorator.

        Loops set back there what they keep themselves: a moving average of the weights, a counter. The training thread
        calls it, in every process, from `log()` or from the optimizer's step. Its exceptions are logged.
        """
        self._guards.rewind_callbacks.append(callback)
        return callback

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        has_failed = error is not None and not isinstance(error, RunStoppedError)
        if isinstance(error, SystemExit):
            has_failed = process_exit.is_failure(error.code)
        self.finish(status="failed" if has_failed else "finished")

    def _record(
        self,
        loss: Number | None,
        step: int | None,
        gradients: Any,
        statistics: Mapping[str, Mapping[str, Number]] | None,
        learning_rate: Number | None,
        metrics: Mapping[str, Number],
    ) -> None:
        sampler, arguments = self._sampler, self._arguments
        started = sampler.clock()
        self._last_log_at = time.perf_counter()
        number: int | None = self._last_step + 1
        if step is not None:
            number = arguments.read_step_number(step, self._last_step, may_join=self._may_join_last_step)
        is_addition = number == self._last_step
        try:
            measurements = []  # no comprehension here: it is a call, and the caches are cold after a step
            if not is_addition:
                for instrumentation in self._instrumentations:
                    measurements.append(instrumentation.finish_step(loss))  # noqa: PERF401
            if number is None:
                return
            self._last_step, self._may_join_last_step = number, True
            if self._is_follower:
                return
            draft = arguments.read_draft(
                number, loss, learning_rate, metrics, measurements, gradients, statistics,
                None if is_addition else self._spikes,
            )  # fmt: skip
            if draft.is_spike:
                sampler.sample_every_step()
            self._recorder.record(draft)
        finally:
            if is_addition:
                sampler.add_cost(sampler.clock() - started)
            else:
                sampler.advance(sampler.clock() - started)

    def _go_back(self, step: int, guard_action: GuardAction | None = None) -> None:
        self._last_step, self._may_join_last_step = step, False
        if self._state is _State.RECORDING:
            self._reactions.begin_rewind()
            self._recorder.record(Rewind(step, guard_action))

    def _end_watches(self, watch: Watch) -> None:
        """End what observes the models of `watch` so far, also in other runs of this process."""
        for run in {self, *open_runs}:
            for old in watch.find_replaced(run._instrumentations):
                run._instrumentations.remove(old)
                watch.continue_from(old, is_same_run=run is self)

    def _describe_layers(self) -> None:
        for instrumentation in self._instrumentations:
            instrumentation.describe()

    def _follow_first_process(self) -> None:
        self._state = _State.FOLLOWING
        self._trial.stop_reporting()

    def _stop_sending(self) -> None:
        """Leave the sending to the first process of the training. `watch()` finds that this process is another one."""
        self._is_follower = True
        self._follow_first_process()
        self._forget_process_exit()

    def _forget_process_exit(self) -> None:
        atexit.unregister(self._finish_at_exit)
        process_exit.stop_watching(self)

    def _finish_at_exit(self) -> None:
        self.finish(status="failed" if process_exit.has_failed(self._last_log_at) else "finished")

    def disable_in_child(self) -> None:
        """Do nothing from now on: this process is a fork."""
        self._state = _State.DISABLED
        self._recorder.abandon()
        self._uploader.abandon()
        for instrumentation in self._instrumentations:
            instrumentation.close()
        self._guards.close()
