"""Finds the run, rerun or trial that an argument names: by its id, a part of its id, or the name of a run.

Ids that were made in the same moment have the same beginning, because it is the time. So the commands print the last 8
characters of an id, which are random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar
from uuid import UUID

from gradmedic.api import Client
from gradmedic.cli.text import format_time
from gradmedic.exceptions import UsageError
from gradmedic.protocol.ids import SHORT_ID, earliest_time, has_part, id_digits
from gradmedic.protocol.names import did_you_mean
from gradmedic.protocol.reruns import RerunSummary, Trial
from gradmedic.protocol.runs import RunSummary

Item = TypeVar("Item", RunSummary, RerunSummary, Trial)

MOST_CANDIDATES = 10
"""Candidates that an error lists."""
SEARCHED_RERUNS = 100
"""The newest reruns, among whose trials a part of an id is looked for."""
_PAGE = 1000
_CLOCK_SKEW = 86_400.0
"""Seconds that the clock of a training machine may be ahead of the service's clock."""


def find_run(client: Client, reference: str, project: str | None) -> UUID:
    """Return the id of the run with this id, part of an id, or name.

    Raises:
        UsageError: no run matches, or several do.
    """
    if (run_id := _parse_id(reference)) is not None:
        return run_id
    found = client.runs.list(project=project, text=reference, page_size=_PAGE)
    matches = {run.id: run for run in found if run.name == reference or has_part(run.id, reference)}
    if len(id_digits(reference)) < SHORT_ID:  # the service looks for longer parts
        matches |= {run.id: run for run in _runs_with_beginning(client, reference, project)}
    if not matches:
        raise UsageError(_describe_missing_run(client, reference, project))
    if len(matches) > 1:
        raise UsageError(
            f"{len(matches)} runs are called {reference!r} or have an id that begins or ends so; give one of these "
            f"ids:{_list_candidates(matches.values(), _describe_run)}"
        )
    return next(iter(matches))


def find_rerun(client: Client, reference: str) -> UUID:
    """Return the id of the rerun with this id or part of an id.

    Raises:
        UsageError: no rerun matches, or several do.
    """
    return _find_by_part(reference, "rerun", lambda: client.reruns.list(page_size=_PAGE), _describe_rerun)


def find_trial(client: Client, reference: str) -> UUID:
    """Return the id of the trial with this id, or of a trial of the newest reruns with this part of an id.

    Raises:
        UsageError: no trial matches, or several do.
    """

    def newest_trials() -> Iterator[Trial]:
        for rerun in islice(client.reruns.list(page_size=SEARCHED_RERUNS), SEARCHED_RERUNS):
            yield from client.reruns.get(rerun.id).trials

    return _find_by_part(reference, "trial", newest_trials, lambda trial: f"seed {trial.seed}, {trial.status}")


def missing_project(client: Client, name: str) -> str | None:
    """Return that there is no project of this name, and what it is close to; None if there is one."""
    names = [project.name for project in client.projects()]
    if name in names:
        return None
    return f"there is no project {name!r}{did_you_mean(name, names) or '; see `gradmedic projects`'}"


def _find_by_part(
    reference: str, kind: str, read_items: Callable[[], Iterable[Item]], describe: Callable[[Item], str]
) -> UUID:
    if (id := _parse_id(reference)) is not None:
        return id
    if not id_digits(reference):
        raise UsageError(f"{reference!r} is not the id of a {kind}")
    matches = {item.id: item for item in read_items() if has_part(item.id, reference)}
    if not matches:
        raise UsageError(f"no {kind} has an id that begins or ends with {reference!r}; see `gradmedic rerun list`")
    if len(matches) > 1:
        raise UsageError(
            f"{len(matches)} {kind}s have an id that begins or ends with {reference!r}; give one of these "
            f"ids:{_list_candidates(matches.values(), describe)}"
        )
    return next(iter(matches))


def _parse_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _runs_with_beginning(client: Client, beginning: str, project: str | None) -> Iterator[RunSummary]:
    """Iterate over the runs whose id begins so. The beginning contains a time, so older runs are not read."""
    digits = id_digits(beginning)
    earliest = earliest_time(digits)
    if earliest is None:
        return
    for run in client.runs.list(project=project, sort="-created_at", page_size=_PAGE):
        if run.created_at.timestamp() < earliest - _CLOCK_SKEW:
            return
        if run.id.hex.startswith(digits):
            yield run


def _describe_missing_run(client: Client, reference: str, project: str | None) -> str:
    """Return that no run matches, with what may have been meant."""
    if project is not None and (missing := missing_project(client, project)) is not None:
        return missing
    where = "" if project is None else f" of project {project!r}"
    newest = islice(client.runs.list(project=project, page_size=_PAGE), _PAGE)
    hint = did_you_mean(reference, {run.name for run in newest})
    if project is not None and not hint:
        elsewhere = [run for run in client.runs.list(text=reference, page_size=_PAGE) if run.name == reference]
        hint = f"; project {elsewhere[0].project!r} has one" if elsewhere else ""
    hint = hint or "; see `gradmedic runs`"
    return f"no run{where} has the name {reference!r} or an id that begins or ends so{hint}"


def _list_candidates(items: Iterable[Item], describe: Callable[[Item], str]) -> str:
    """Return a line for each of the newest candidates."""
    ordered = sorted(items, key=lambda item: item.id, reverse=True)
    lines = [f"\n  {item.id}  {describe(item)}" for item in ordered[:MOST_CANDIDATES]]
    rest = len(ordered) - MOST_CANDIDATES
    return "".join(lines) + (f"\n  and {rest} older ones" if rest > 0 else "")


def _describe_run(run: RunSummary) -> str:
    return f"{run.name} in {run.project}, {run.status}, {run.verdict}, {format_time(run.created_at)}"


def _describe_rerun(rerun: RerunSummary) -> str:
    return f"{rerun.trainable} in {rerun.project}, {rerun.status}, {format_time(rerun.created_at)}"
