"""`gradmedic rerun`: race remedies on a suspect run, and show, follow or cancel a rerun."""

from __future__ import annotations

import argparse
import sys
from typing import TextIO
from uuid import UUID

from gradmedic.api import Client
from gradmedic.cli.command import (
    EXIT_ERROR,
    add_connection_argument,
    find_run,
    make_client,
    parse_id,
    positive_integer,
)
from gradmedic.cli.remedy_argument import parse_candidate
from gradmedic.cli.text import format_loss, format_outcome, list_item, terminal_width
from gradmedic.exceptions import UsageError
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.remedies import describe_remedies
from gradmedic.protocol.reruns import EXECUTORS, Candidate, RerunDetail

_ACTIONS = ("show", "follow", "cancel", "output")
_NEW_RERUN_OPTIONS = ("remedy", "seeds", "steps", "seconds", "trials", "executor", "project", "detach")


class RerunCommand:
    """`gradmedic rerun`."""

    help = "race remedies on a suspect run against an unchanged control; or show, follow or cancel a rerun"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_connection_argument(parser)
        parser.add_argument(
            "words",
            nargs="+",
            metavar="RUN | ACTION ID",
            help="id, beginning of an id, or name of the run; or show, follow or cancel and the id of a rerun; or "
            "output and the id of a trial",
        )
        parser.add_argument("--project", help="look for the name in this project only")
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
        parser.add_argument("--executor", choices=EXECUTORS, help="executor of the workers (default: any)")
        parser.add_argument("--detach", action="store_true", help="do not wait for the end of the rerun")
        parser.add_argument("--json", action="store_true", help="print the rerun as JSON")

    def run(self, args: argparse.Namespace) -> int:
        """Create, show, follow or cancel a rerun, or print the output of a trial."""
        action, *rest = args.words
        if not rest and action in _ACTIONS:
            raise UsageError(f"`gradmedic rerun {action}` needs an id; to rerun a run of this name, give its id")
        if rest and (len(rest) > 1 or action not in _ACTIONS):
            raise UsageError(f"give a RUN, or one of {', '.join(_ACTIONS)} and one id")
        if rest and (given := [name for name in _NEW_RERUN_OPTIONS if getattr(args, name)]):
            raise UsageError(f"--{given[0]} belongs to a new rerun of a RUN, not to {action}")
        progress = None if args.json else sys.stderr
        with make_client(args) as client:
            if action == "output" and rest:
                sys.stdout.write(client.reruns.output(parse_id(rest[0], "trial")))
                return 0
            if not rest:
                rerun = client.reruns.create(
                    find_run(client, action, args.project),
                    remedies=args.remedy,
                    seeds=args.seeds,
                    steps=args.steps,
                    seconds=args.seconds,
                    trials=args.trials,
                    executor=args.executor,
                )
                if not args.detach:
                    rerun = follow_rerun(client, rerun.id, progress)
            elif action == "follow":
                rerun = follow_rerun(client, parse_id(rest[0]), progress)
            elif action == "cancel":
                rerun = client.reruns.cancel(parse_id(rest[0]))
            else:
                rerun = client.reruns.get(parse_id(rest[0]))
        print(to_json(rerun).decode() if args.json else render_rerun(rerun))
        has_failed = rerun.status not in ("queued", "running", "done")
        return EXIT_ERROR if has_failed and action not in ("show", "cancel") else 0


def render_rerun(rerun: RerunDetail) -> str:
    """Return a rerun as text: each candidate with its outcome or its trials."""
    ended = sum(trial.status not in ("queued", "running") for trial in rerun.trials)
    lines = [
        f"rerun {rerun.id}: {rerun.status}" + (f", {rerun.reason}" if rerun.reason else ""),
        (
            f"{rerun.trainable} in {rerun.project}, {ended} of {len(rerun.trials)} trials ended, "
            f"{rerun.cost_seconds:.0f} s of {rerun.budget.seconds or 0:.0f} s"
        ),
        "",
    ]
    for index, candidate in enumerate(rerun.candidates):
        heading = f"{describe_remedies(candidate.remedies)}:"
        lines += list_item(heading, [_describe_candidate(rerun, index, candidate)], terminal_width())
    return "\n".join(lines)


def _describe_candidate(rerun: RerunDetail, index: int, candidate: Candidate) -> str:
    if candidate.outcome is not None:
        is_explained = candidate.outcome.state != "verified" and candidate.reason
        return format_outcome(candidate.outcome) + (f" ({candidate.reason})" if is_explained else "")
    trials = [trial for trial in rerun.trials if trial.candidate == index]
    if not trials:
        return "not tried"
    return "; ".join(
        f"seed {trial.seed} {trial.status}, {trial.verdict}{_describe_loss(trial.loss)}" for trial in trials
    )


def follow_rerun(
    client: Client, rerun_id: UUID, progress: TextIO | None, *, timeout: float | None = None
) -> RerunDetail:
    """Wait for the end of a rerun and print each change of a trial to `progress`. Raises TimeoutError."""
    shown: set[tuple[UUID, str, str | None]] = set()

    def print_changes(rerun: RerunDetail) -> None:
        for trial in rerun.trials:
            stage = trial.id, trial.status, trial.reason  # a running trial may first wait for a place
            if stage in shown or trial.status == "queued":
                continue
            shown.add(stage)
            title = f"{describe_remedies(rerun.candidates[trial.candidate].remedies)}, seed {trial.seed}"
            reason = f" ({trial.reason})" if trial.reason else ""
            result = "" if trial.status == "running" else f", {trial.verdict}{_describe_loss(trial.loss)}"
            print(f"  {title}: {trial.status}{result}{reason}", file=progress, flush=True)

    return client.reruns.wait(rerun_id, timeout=timeout, on_change=None if progress is None else print_changes)


def _describe_loss(loss: float | None) -> str:
    return "" if loss is None else f", loss {format_loss(loss)}"
