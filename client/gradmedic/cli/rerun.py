"""`gradmedic rerun`: race remedies on a suspect run, and list, show, follow or cancel reruns."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from itertools import islice
from typing import TextIO
from uuid import UUID

from gradmedic.api import Client
from gradmedic.cli.command import EXIT_ERROR, RUN_HELP, add_connection_argument, make_client, positive_integer
from gradmedic.cli.progress import Progress, format_duration, progress_stream
from gradmedic.cli.references import find_rerun, find_run, find_trial
from gradmedic.cli.remedy_argument import parse_candidate
from gradmedic.cli.text import (
    describe_origin,
    format_loss,
    format_outcome,
    format_time,
    list_item,
    print_table,
    terminal_width,
)
from gradmedic.exceptions import UsageError
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.ids import short_id
from gradmedic.protocol.names import did_you_mean
from gradmedic.protocol.remedies import describe_remedies
from gradmedic.protocol.reruns import EXECUTORS, RERUN_STATUSES, Candidate, RerunDetail, RerunPlan

_ACTIONS = ("show", "follow", "cancel", "output")
"""Actions on the rerun or trial that the next word names."""
_LIST = "list"
_OPTIONS: Mapping[str, str] = {
    **dict.fromkeys(
        ("remedy", "seeds", "steps", "seconds", "trials", "rounds", "executor", "detach"), "a new rerun of a RUN"
    ),
    "project": "a new rerun of a RUN, or to list",
    **dict.fromkeys(("status", "limit"), "list"),
}
"""The action that each option belongs to."""
_DEFAULT_LIMIT = 50


class RerunCommand:
    """`gradmedic rerun`."""

    help = "race remedies on a suspect run against an unchanged control; or list, show, follow or cancel reruns"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_connection_argument(parser)
        parser.add_argument(
            "words",
            nargs="+",
            metavar="RUN | list | ACTION ID",
            help=f"{RUN_HELP}; or `list`; or show, follow or cancel and the id of a rerun; or output and the id of a "
            "trial. The last 8 characters of an id are enough",
        )
        parser.add_argument(
            "--project", help="look for the name in this project only; list reruns of this project only"
        )
        parser.add_argument(
            "--remedy",
            action="append",
            type=parse_candidate,
            metavar="REMEDY",
            help="candidate such as `clip_grad_norm(max_norm=1.0)`, or several remedies joined by +; may be repeated "
            "(default: the run's advice)",
        )
        parser.add_argument("--seeds", type=positive_integer, help="number of seeds of a candidate (default: 3)")
        parser.add_argument("--steps", type=positive_integer, help="number of steps of a trial")
        parser.add_argument("--seconds", type=float, help="seconds that all trials may take together")
        parser.add_argument("--trials", type=positive_integer, help="number of trials at most")
        parser.add_argument(
            "--rounds",
            type=positive_integer,
            help="number of rounds at most: where one proves no remedy, the next one builds on its trials (default: 3; "
            "1 with --remedy)",
        )
        parser.add_argument("--executor", choices=EXECUTORS, help="executor of the workers (default: any)")
        parser.add_argument("--detach", action="store_true", help="do not wait for the end of the rerun")
        parser.add_argument("--status", choices=RERUN_STATUSES, help="list reruns with this status only")
        parser.add_argument(
            "--limit", type=positive_integer, help=f"number of listed reruns at most (default: {_DEFAULT_LIMIT})"
        )
        parser.add_argument("--json", action="store_true", help="print the rerun as JSON; of a list, one line for each")

    def run(self, args: argparse.Namespace) -> int:
        """Create, list, show, follow or cancel reruns, or print the output of a trial."""
        action, *rest = args.words
        _check_arguments(action, rest, args)
        with make_client(args) as client:
            if action == _LIST:
                list_reruns(client, args)
                return 0
            if action == "output" and rest:
                trial_id = find_trial(client, rest[0])
                output = client.reruns.output(trial_id)
                sys.stdout.write(
                    to_json({"trial_id": trial_id, "output": output}).decode() + "\n" if args.json else output
                )
                return 0
            progress = progress_stream(is_quiet=args.json)
            if not rest:
                rerun = client.reruns.create(
                    find_run(client, action, args.project),
                    remedies=args.remedy,
                    seeds=args.seeds,
                    steps=args.steps,
                    seconds=args.seconds,
                    trials=args.trials,
                    rounds=args.rounds,
                    executor=args.executor,
                )
                if progress is not None and rerun.plan is not None:
                    print(describe_plan(rerun.plan), file=progress, flush=True)
                if not args.detach:
                    rerun = follow_rerun(client, rerun.id, progress)
            elif action == "follow":
                rerun = follow_rerun(client, find_rerun(client, rest[0]), progress)
            elif action == "cancel":
                rerun = client.reruns.cancel(find_rerun(client, rest[0]))
            else:
                rerun = client.reruns.get(find_rerun(client, rest[0]))
        print(to_json(rerun).decode() if args.json else render_rerun(rerun))
        has_failed = rerun.status not in ("queued", "running", "done")
        return EXIT_ERROR if has_failed and action not in ("show", "cancel") else 0


def _check_arguments(action: str, rest: list[str], args: argparse.Namespace) -> None:
    """Raise UsageError if the words name no action, or an option belongs to another one."""
    actions = ", ".join(_ACTIONS)
    if not rest and action in _ACTIONS:
        raise UsageError(f"`gradmedic rerun {action}` needs an id; to rerun a run of this name, give its id")
    if rest and action == _LIST:
        raise UsageError(f"`gradmedic rerun {_LIST}` needs no id: {rest[0]!r} is one argument too many")
    if rest and (len(rest) > 1 or action not in _ACTIONS):
        raise UsageError(f"give a RUN, or one of {actions} and one id{did_you_mean(action, (*_ACTIONS, _LIST))}")
    kinds = ("list",) if action == _LIST else () if rest else ("a new rerun",)
    for name, owner in _OPTIONS.items():
        if getattr(args, name) and not any(kind in owner for kind in kinds):
            raise UsageError(f"--{name} belongs to {owner}, not to {action if rest or action == _LIST else 'a RUN'}")


def list_reruns(client: Client, args: argparse.Namespace) -> None:
    """Print the newest reruns as a table, or as JSON."""
    limit = args.limit or _DEFAULT_LIMIT
    matching = client.reruns.list(project=args.project, status=args.status, page_size=min(limit, 1000))
    reruns = list(islice(matching, limit))
    if args.json:
        for rerun in reruns:
            print(to_json(rerun).decode())
    elif reruns:
        rows = [
            (
                short_id(rerun.id),
                short_id(rerun.run_id),
                rerun.project,
                rerun.trainable,
                rerun.status,
                format_time(rerun.created_at),
                rerun.reason or "-",
            )
            for rerun in reruns
        ]
        print_table(("ID", "RUN", "PROJECT", "TRAINABLE", "STATUS", "CREATED", "RESULT"), rows)
    else:
        print("no reruns")


def describe_plan(plan: RerunPlan) -> str:
    """Return the expected cost of a rerun, and its limits, as one line.

    >>> from gradmedic.protocol.reruns import RerunBudget
    >>> budget = RerunBudget(steps=300, seconds=3600.0, trials=200, rounds=3)
    >>> describe_plan(
    ...     RerunPlan(candidates=8, trials=15, steps=300, step_seconds=0.02, seconds_left=90.0, budget=budget)
    ... )
    'about 15 trials of 300 steps, 1 min 30 s of computing; at most 200 trials, 1 h 0 min, 3 rounds'
    """
    seconds = "" if plan.seconds_left is None else f", {format_duration(plan.seconds_left)} of computing"
    limits = []
    if plan.budget.trials is not None:
        limits.append(f"{plan.budget.trials} trials")
    if plan.budget.seconds is not None:
        limits.append(format_duration(plan.budget.seconds))
    if plan.budget.rounds is not None:
        limits.append(f"{plan.budget.rounds} round{'' if plan.budget.rounds == 1 else 's'}")
    trials = f"{plan.trials} trial{'' if plan.trials == 1 else 's'}"
    return f"about {trials} of {plan.steps} steps{seconds}; at most {', '.join(limits)}"


def render_rerun(rerun: RerunDetail) -> str:
    """Return a rerun as text: each candidate with its outcome or its trials."""
    ended = sum(trial.status not in ("queued", "running") for trial in rerun.trials)
    expected, left = str(len(rerun.trials)), ""
    if rerun.plan is not None:
        expected = f"about {rerun.plan.trials}"
        if rerun.plan.seconds_left is not None:
            left = f", about {format_duration(rerun.plan.seconds_left)} left"
    lines = [
        f"rerun {rerun.id}: {rerun.status}" + (f", {rerun.reason}" if rerun.reason else ""),
        (
            f"{rerun.trainable} in {rerun.project}, {ended} of {expected} trials ended, "
            f"{rerun.cost_seconds:.0f} s of {rerun.budget.seconds or 0:.0f} s{left}"
        ),
        "",
    ]
    if rerun.kind == "locate":
        trials = [f"  seed {trial.seed}: {trial.status} (trial {short_id(trial.id)})" for trial in rerun.trials]
        found = [] if rerun.origin is None else ["", *describe_origin(rerun.origin, terminal_width())]
        return "\n".join([*lines, *trials, *found])
    for index, candidate in enumerate(rerun.candidates):
        heading = f"{_name_candidate(rerun, index)}:"
        lines += list_item(heading, [_describe_candidate(rerun, index, candidate)], terminal_width())
    return "\n".join(lines)


def _name_candidate(rerun: RerunDetail, index: int) -> str:
    """Return the remedies of a candidate, with the steps of its trials where they differ from those of the first."""
    if rerun.kind == "locate":
        return "unchanged script"
    candidate = rerun.candidates[index]
    is_longer = candidate.steps is not None and candidate.steps != rerun.budget.steps
    return describe_remedies(candidate.remedies) + (f", {candidate.steps} steps" if is_longer else "")


def _describe_candidate(rerun: RerunDetail, index: int, candidate: Candidate) -> str:
    if candidate.outcome is not None:
        is_explained = candidate.outcome.state != "verified" and candidate.reason
        return format_outcome(candidate.outcome) + (f" ({candidate.reason})" if is_explained else "")
    trials = [trial for trial in rerun.trials if trial.candidate == index]
    if not trials:
        return "not tried"
    return "; ".join(
        f"seed {trial.seed} {trial.status}, {trial.verdict}{_describe_loss(trial.loss)} (trial {short_id(trial.id)})"
        for trial in trials
    )


def follow_rerun(
    client: Client, rerun_id: UUID, stream: TextIO | None, *, timeout: float | None = None, title: str = "racing"
) -> RerunDetail:
    """Wait for the end of a rerun; print each change of a trial to `stream`, and how far the trials are.

    `title` stands before the number of steps.

    Raises:
        TimeoutError: `timeout` seconds passed before.
    """
    shown: set[tuple[UUID, str, str | None]] = set()

    with Progress(title, None, "steps", stream) as progress:

        def show_changes(rerun: RerunDetail) -> None:
            for trial in rerun.trials:
                stage = trial.id, trial.status, trial.reason  # a running trial may first wait for a place
                if stage in shown or trial.status == "queued":
                    continue
                shown.add(stage)
                name = f"{_name_candidate(rerun, trial.candidate)}, seed {trial.seed}"
                reason = f" ({trial.reason})" if trial.reason else ""
                result = "" if trial.status == "running" else f", {trial.verdict}{_describe_loss(trial.loss)}"
                progress.print_line(f"  {name}: {trial.status}{result}{reason}")
            progress.update(*count_steps(rerun))

        return client.reruns.wait(rerun_id, timeout=timeout, on_change=None if stream is None else show_changes)


def count_steps(rerun: RerunDetail) -> tuple[int, int | None]:
    """Return the number of steps that the trials of a rerun have made, and that all may make; None if it is not known.

    A trial that has ended needs no further steps. Trials of a further round are not counted.
    """
    done = sum(0 if trial.step is None else trial.step + 1 for trial in rerun.trials)
    if rerun.budget.steps is None:
        return done, None
    left = 0
    for trial in rerun.trials:
        if trial.status in ("queued", "running"):
            steps = rerun.candidates[trial.candidate].steps or rerun.budget.steps
            left += max(0, steps - (0 if trial.step is None else trial.step + 1))
    if rerun.plan is not None:
        left += max(0, rerun.plan.trials - len(rerun.trials)) * rerun.plan.steps
    return done, done + left


def _describe_loss(loss: float | None) -> str:
    return "" if loss is None else f", loss {format_loss(loss)}"
