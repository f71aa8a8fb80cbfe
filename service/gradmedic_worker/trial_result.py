"""The result of an attempt, as the worker sends it to the service."""

from __future__ import annotations

import re
import signal
from dataclasses import replace

from gradmedic.protocol.trials import ClaimedTrial, TrialResult
from gradmedic_worker.executors.base import STOPPED, TIMEOUT, LostAttempt, TrialEnd

OUTPUT_CHARACTERS = 64 * 1024
"""Characters of the output's end that are sent to the service."""
NO_TEXT = re.compile("[\x00\ud800-\udfff]")
"""Characters that a script may write, and that PostgreSQL or UTF-8 cannot hold: NUL and lone surrogates."""


def build_result(
    claimed: ClaimedTrial,
    end: TrialEnd | LostAttempt,
    *,
    output: str,
    seconds: float | None,
    judge_by: str | None = None,
) -> TrialResult:
    """Return the result of an ended attempt.

    Args:
        claimed: The trial.
        end: How the attempt ended.
        output: The output of its script.
        seconds: Duration of the attempt.
        judge_by: The objective by which the operator wants the trial to be judged.
    """
    if isinstance(end, LostAttempt):
        return TrialResult(attempt=claimed.attempt, status="lost", reason=end.reason, output=output or None)
    status, reason = _determine_status(claimed, end)
    return TrialResult(
        attempt=claimed.attempt,
        status=status,
        reason=reason,
        exit_code=end.exit_code,
        output=output,
        environment=end.report.environment,
        seconds=seconds,
        last_step=_find_last_step(end, status),
        judge_by=judge_by,
        evaluation=end.report.evaluation,
        origin=end.report.origin,
    )


def build_failure(claimed: ClaimedTrial, reason: str) -> TrialResult:
    """Return the result of an attempt that the worker could not run."""
    return TrialResult(attempt=claimed.attempt, status="failed", reason=reason)


def build_bare_result(result: TrialResult, reason: str) -> TrialResult:
    """Return a result without what the script has written, for a service that does not accept that.

    An attempt that was lost stays lost, every other one has failed.
    """
    return TrialResult(
        attempt=result.attempt,
        status="lost" if result.status == "lost" else "failed",
        reason=reason,
        seconds=result.seconds,
    )


def clean_result(result: TrialResult) -> TrialResult:
    """Return a result whose texts every service can store."""
    return replace(
        result,
        reason=None if result.reason is None else clean_text(result.reason),
        output=None if result.output is None else clean_output(result.output),
        environment={clean_text(name): clean_text(value) for name, value in result.environment.items()},
    )


def clean_output(output: str) -> str:
    """Return the end of an output, in characters that every service can store."""
    return clean_text(output[-OUTPUT_CHARACTERS:])


def clean_text(text: str) -> str:
    r"""Return a text with a question mark on a black diamond, U+FFFD, for each character that cannot be stored.

    >>> clean_text("a\x00b\udc80c") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c"
    True
    """
    return NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)


def _find_last_step(end: TrialEnd, status: str) -> int | None:
    """Return the last step that the script has logged, None if it is not known.

    A script that failed may have ended before the SDK could report it. The report of one that is done must have it.
    """
    last_step = end.report.last_step
    return None if last_step == -1 and status != "done" else last_step


def _determine_status(claimed: ClaimedTrial, end: TrialEnd) -> tuple[str, str | None]:
    """Return the status of an ended trial, and its reason if it is not `done`.

    A script that has logged the last step of its budget is done, however its process ends afterwards. So is one that
    has reported where a number was not finite: many scripts end themselves then.
    """
    if end.report.not_applicable is not None:
        return "not_applicable", end.report.not_applicable
    is_last = end.report.last_step is not None and end.report.last_step >= claimed.steps - 1
    is_over = is_last or end.report.origin is not None
    if not is_over and (failure := _describe_failure(claimed, end)) is not None:
        return "failed", failure
    if claimed.remedies and end.report.applied is None:
        return "failed", "the script never called run.watch(), so that its remedies were not applied"
    return "done", None


def _describe_failure(claimed: ClaimedTrial, end: TrialEnd) -> str | None:
    """Return why the process of a trial did not end by itself with exit code 0; None if it did."""
    if end.reason in (TIMEOUT, STOPPED):
        return f"it took longer than the {claimed.seconds:.0f} s that it was given"
    if end.reason is not None:
        return end.reason
    if end.exit_code is None or end.exit_code < 0:
        return f"it was ended by signal {_describe_signal(-(end.exit_code or 0))}"
    return f"it ended with exit code {end.exit_code}" if end.exit_code else None


def _describe_signal(number: int) -> str:
    """Return a signal's number and name, and the usual source of SIGKILL.

    >>> _describe_signal(11)
    '11 (SIGSEGV)'
    """
    names = {member.value: member.name for member in signal.Signals}
    hint = ", which the kernel sends when memory runs out" if number == signal.SIGKILL else ""
    return f"{number} ({names[number]}{hint})" if number in names else str(number)
