"""The `gradmedic` command.

One idea: this module knows the commands that a training machine needs; all others - the service's, a worker's - join
through the entry-point group `gradmedic.commands`, are imported only when they are asked for, and without their extra
say which one it is.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TextIO
from uuid import UUID

from gradmedic import __version__
from gradmedic.api import Client, attempt
from gradmedic.configuration import resolve_connection, resolve_directory
from gradmedic.exceptions import ApiError, ConfigurationError, GradmedicError, UsageError
from gradmedic.protocol.diagnosis import Diagnosis, Outcome
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.ids import earliest_time
from gradmedic.protocol.remedies import REMEDIES, Remedy, describe_remedies
from gradmedic.protocol.reruns import EXECUTORS, RerunDetail
from gradmedic.protocol.runs import STATUSES, RunDetail, RunSummary
from gradmedic.protocol.verdicts import VERDICTS
from gradmedic.transport.http import Service
from gradmedic.upload.replay import find_leftovers

COMMANDS = "gradmedic.commands"
"""Entry-point group of the commands of other parts."""

EXIT_ERROR = 2
EXIT_UNHEALTHY = 3
"""What `diagnose --fail-on` exits with; not 1, which a crashed interpreter uses."""

_WIDEST = 100
_CLOCK_SKEW = 86_400.0
"""Seconds that the clock of a training machine may be ahead of the service's."""
_SHORT_ID = 13
"""Characters of an id that `runs` shows: the time to the millisecond, which also serves as a prefix."""


class Command(Protocol):
    """One command. An entry point of `gradmedic.commands` names an object like this."""

    help: str
    """One line for `gradmedic --help`."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it and return the exit code. A `GradmedicError` is printed in one line and becomes code 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _dispatch(arguments)
    except GradmedicError as error:
        print(f"gradmedic: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `gradmedic runs | head`
        sys.stderr.close()
        return 0


def _dispatch(arguments: Sequence[str]) -> int:
    joined = {point.name: point for point in importlib.metadata.entry_points(group=COMMANDS)}
    parser = argparse.ArgumentParser(
        prog="gradmedic",
        description="Reads the gradients of any training job and says what is wrong, why, and what fixes it.",
    )
    parser.add_argument("--version", action="version", version=f"gradmedic {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    # Only the command that is asked for is imported; --help without one shows all, and imports what it can.
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    shows_all = asked is None and not {"-h", "--help"}.isdisjoint(arguments)
    for name in sorted({*_OWN, *joined}):
        command: Command | None = _OWN.get(name)
        if command is None and (shows_all or asked == name):
            command = _load(joined[name], is_needed=asked == name)
        help_text = _needs_extra(joined[name]) if command is None else command.help
        child = commands.add_parser(name, help=help_text, description=command.help if command else None)
        if command is not None:
            command.add_arguments(child)
            child.set_defaults(command=command)
    args = parser.parse_args(arguments)
    chosen: Command = args.command
    if asked not in joined:
        return chosen.run(args)
    try:
        return chosen.run(args)
    except ModuleNotFoundError as error:  # a command may import what it needs only when it runs
        raise _missing_extra(joined[asked], error) from error


def _load(point: importlib.metadata.EntryPoint, *, is_needed: bool) -> Command | None:
    try:
        command: Command = point.load()
    except ModuleNotFoundError as error:
        if not is_needed:
            return None
        raise _missing_extra(point, error) from error
    return command


def _missing_extra(point: importlib.metadata.EntryPoint, error: ModuleNotFoundError) -> Exception:
    """Say which extra a command needs; the error itself if what is missing is our own and so a bug."""
    if (error.name or "").partition(".")[0] in ("gradmedic", "gradmedic_service") or not point.extras:
        return error
    extra = point.extras[0]
    return ConfigurationError(f"gradmedic {point.name} needs the {extra} extra: pip install 'gradmedic[{extra}]'")


def _needs_extra(point: importlib.metadata.EntryPoint) -> str:
    return f"needs the {point.extras[0]} extra" if point.extras else ""


# --- gradmedic runs ---------------------------------------------------------------------------------------------------


class RunsCommand:
    """`gradmedic runs`."""

    help = "list runs, newest first, with their verdicts"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments."""
        _add_connection(parser)
        parser.add_argument("--project", help="only of this project")
        parser.add_argument("--verdict", choices=VERDICTS, help="only with this verdict")
        parser.add_argument("--status", choices=STATUSES, help="only in this state")
        parser.add_argument("--tag", help="only with this tag")
        parser.add_argument("--text", help="only with this text in the name")
        parser.add_argument("--limit", type=_count, default=50, help="at most so many (default: 50)")
        parser.add_argument("--json", action="store_true", help="print JSON, one run a line")

    def run(self, args: argparse.Namespace) -> int:
        """List the runs."""
        with _client(args) as client:
            listing = client.runs.list(
                project=args.project,
                verdict=args.verdict,
                status=args.status,
                tag=args.tag,
                text=args.text,
                page_size=min(args.limit, 1000),
            )
            runs = [run for run, _ in zip(listing, range(args.limit), strict=False)]
        if args.json:
            for run in runs:
                print(to_json(run).decode())
        elif runs:
            _print_table(
                ("ID", "PROJECT", "NAME", "STATUS", "VERDICT", "SINCE", "STEP", "UPDATED"),
                [
                    (
                        str(run.id)[:_SHORT_ID],
                        run.project,
                        run.name,
                        run.status,
                        run.verdict,
                        _or_dash(run.since_step),
                        _or_dash(run.last_step),
                        f"{run.updated_at:%Y-%m-%d %H:%M}",
                    )
                    for run in runs
                ],
            )
        else:
            print("no runs")
        return 0


# --- gradmedic diagnose -----------------------------------------------------------------------------------------------


class DiagnoseCommand:
    """`gradmedic diagnose`."""

    help = "say what is wrong with a run, why, and what fixes it"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments."""
        _add_connection(parser)
        parser.add_argument("run", metavar="RUN", help="id, the beginning of an id, or name of the run")
        parser.add_argument("--project", help="look for the name in this project only")
        parser.add_argument("--at-step", type=int, help="as of this step")
        parser.add_argument("--json", action="store_true", help="print the diagnosis as JSON")
        parser.add_argument(
            "--fail-on",
            type=_verdicts,
            default=frozenset(),
            metavar="VERDICT,...",
            help=f"exit with code {EXIT_UNHEALTHY} if the verdict is one of these",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Print the diagnosis."""
        with _client(args) as client:
            run_id = _find_run(client, args.run, args.project)
            diagnosis = client.runs.diagnosis(run_id, at_step=args.at_step)
            if args.json:
                print(to_json(diagnosis).decode())
            else:
                print(render_diagnosis(diagnosis, client.runs.get(run_id)))
        return EXIT_UNHEALTHY if diagnosis.verdict in args.fail_on else 0


# --- gradmedic rerun --------------------------------------------------------------------------------------------------


_RERUN_ACTIONS = ("show", "follow", "cancel", "output")
_RERUN_OPTIONS = ("remedy", "seeds", "steps", "seconds", "trials", "executor", "project", "detach")


class RerunCommand:
    """`gradmedic rerun`."""

    help = "race remedies on a suspect run, against an unchanged control; or show, follow, cancel a rerun"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments."""
        _add_connection(parser)
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
            type=_candidate,
            metavar="REMEDY",
            help="a candidate, as `clip_grad_norm(max_norm=1.0)`, or several joined by +; may be given again "
            "(default: the run's advice)",
        )
        parser.add_argument("--seeds", type=_count, help="on which a remedy must hold (default: 3)")
        parser.add_argument("--steps", type=_count, help="of each trial")
        parser.add_argument("--seconds", type=float, help="that all trials may take together")
        parser.add_argument("--trials", type=_count, help="that there may be")
        parser.add_argument("--executor", choices=EXECUTORS, help="of the workers that run them (default: any)")
        parser.add_argument("--detach", action="store_true", help="do not wait for the end")
        parser.add_argument("--json", action="store_true", help="print the rerun as JSON")

    def run(self, args: argparse.Namespace) -> int:
        """Carry out what was asked."""
        action, *rest = args.words
        if not rest and action in _RERUN_ACTIONS:
            raise UsageError(f"`gradmedic rerun {action}` needs an id; to rerun a run of this name, give its id")
        if rest and (len(rest) > 1 or action not in _RERUN_ACTIONS):
            raise UsageError(f"give a RUN, or one of {', '.join(_RERUN_ACTIONS)} and one id")
        if rest and (given := [name for name in _RERUN_OPTIONS if getattr(args, name)]):
            raise UsageError(f"--{given[0]} is for asking for a rerun of a RUN, not for {action}")
        to = None if args.json else sys.stderr
        with _client(args) as client:
            if action == "output" and rest:
                sys.stdout.write(client.reruns.output(_id(rest[0], "trial")))
                return 0
            if not rest:
                rerun = client.reruns.create(
                    _find_run(client, action, args.project),
                    remedies=args.remedy,
                    seeds=args.seeds,
                    steps=args.steps,
                    seconds=args.seconds,
                    trials=args.trials,
                    executor=args.executor,
                )
                if not args.detach:
                    rerun = follow_rerun(client, rerun.id, to)
            elif action == "follow":
                rerun = follow_rerun(client, _id(rest[0]), to)
            elif action == "cancel":
                rerun = client.reruns.cancel(_id(rest[0]))
            else:
                rerun = client.reruns.get(_id(rest[0]))
        print(to_json(rerun).decode() if args.json else render_rerun(rerun))
        has_failed = rerun.status not in ("queued", "running", "done")
        return EXIT_ERROR if has_failed and action not in ("show", "cancel") else 0


def render_rerun(rerun: RerunDetail) -> str:
    """Return a rerun as text for a terminal: each candidate with what trying it has shown."""
    tried = sum(trial.status not in ("queued", "running") for trial in rerun.trials)
    lines = [
        f"rerun {rerun.id}: {rerun.status}" + (f", {rerun.reason}" if rerun.reason else ""),
        (
            f"{rerun.trainable} in {rerun.project}, {tried} of {len(rerun.trials)} trials ended, "
            f"{rerun.cost_seconds:.0f} s of {rerun.budget.seconds or 0:.0f} s"
        ),
        "",
    ]
    for index, candidate in enumerate(rerun.candidates):
        trials = [trial for trial in rerun.trials if trial.candidate == index]
        if candidate.outcome is not None:
            said = f"{render_outcome(candidate.outcome)}"
            if candidate.outcome.state != "verified" and candidate.reason:
                said += f" ({candidate.reason})"
        elif trials:
            said = "; ".join(
                f"seed {trial.seed} {trial.status}, {trial.verdict}" + _loss_of(trial.loss) for trial in trials
            )
        else:
            said = "not tried"
        lines += _item(
            f"{describe_remedies(candidate.remedies)}:", [said], min(_WIDEST, shutil.get_terminal_size().columns)
        )
    return "\n".join(lines)


def render_outcome(outcome: Outcome) -> str:
    """Write an outcome as a person would.

    >>> from uuid import UUID
    >>> render_outcome(Outcome(state="verified", rerun_id=UUID(int=0), seeds=3, healthy=3, loss=1.31,
    ...                             control_loss=float("nan"), cost_seconds=41.2))
    'verified: healthy in 3 of 3 seeds, loss 1.31 against NaN; 41 s'
    """
    if outcome.state == "not_applicable":
        return "not applicable"
    seeds = "1 seed" if outcome.seeds == 1 else f"{outcome.seeds} seeds"
    losses = "" if outcome.loss is None else f", loss {_loss(outcome.loss)} against {_loss(outcome.control_loss)}"
    return f"{outcome.state}: healthy in {outcome.healthy} of {seeds}{losses}; {outcome.cost_seconds:.0f} s"


def _loss(loss: float | None) -> str:
    return "?" if loss is None else "NaN" if math.isnan(loss) else f"{loss:.4g}"


def _loss_of(loss: float | None) -> str:
    return "" if loss is None else f", loss {_loss(loss)}"


def follow_rerun(client: Client, rerun_id: UUID, to: TextIO | None, *, timeout: float | None = None) -> RerunDetail:
    """Wait for the end of a rerun; on the way, print what becomes of each trial. Raises TimeoutError."""
    shown: set[tuple[UUID, str, str | None]] = set()

    def show(rerun: RerunDetail) -> None:
        for trial in rerun.trials:
            stage = trial.id, trial.status, trial.reason  # one that runs may wait for a place before
            if stage in shown or trial.status == "queued":
                continue
            shown.add(stage)
            title = f"{describe_remedies(rerun.candidates[trial.candidate].remedies)}, seed {trial.seed}"
            why = f" ({trial.reason})" if trial.reason else ""
            ended = "" if trial.status == "running" else f", {trial.verdict}{_loss_of(trial.loss)}"
            print(f"  {title}: {trial.status}{ended}{why}", file=to, flush=True)

    return client.reruns.wait(rerun_id, timeout=timeout, on_change=None if to is None else show)


def _id(text: str, of: str = "rerun") -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise UsageError(f"{text!r} is not the id of a {of}") from None


_REMEDY = re.compile(r"(\w+)(?:\((.*)\))?", re.DOTALL)


def _candidate(text: str) -> list[Remedy]:
    """Read `clip_grad_norm(max_norm=1.0) + warm_up(steps=100)`; one parameter needs no name."""
    remedies = []
    for part in re.split(r"\+(?![^(]*\))", text):
        found = _REMEDY.fullmatch(part.strip())
        if found is None:
            raise argparse.ArgumentTypeError(f"must be like clip_grad_norm(max_norm=1.0), not {part.strip()!r}")
        id, inside = found[1], (found[2] or "").strip()
        kind = REMEDIES.get(id)
        parameters: dict[str, float | int | str | bool] = {}
        for position, given in enumerate(part for part in inside.split(",") if part.strip()):
            name, _, value = given.rpartition("=")
            if not name:
                names = [] if kind is None else list(kind.parameters)
                if position >= len(names):
                    raise argparse.ArgumentTypeError(f"name the parameter {given.strip()!r} of {id}")
                name = names[position]
            parameters[name.strip()] = _plain(value.strip())
        remedies.append(Remedy(id=id, parameters=parameters))
    return remedies


def _plain(text: str) -> float | int | str | bool:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")


# --- gradmedic sync ---------------------------------------------------------------------------------------------------


class SyncCommand:
    """`gradmedic sync`."""

    help = "send what offline runs recorded, and what others could not send"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments."""
        _add_connection(parser)
        parser.add_argument(
            "dir", metavar="DIR", nargs="?", help="where runs keep it (default: $GRADMEDIC_DIR or ./.gradmedic)"
        )
        parser.add_argument("--json", action="store_true", help="print JSON, one session a line")

    def run(self, args: argparse.Namespace) -> int:
        """Send every session whose process has ended; one that is refused is kept and does not hold up the others."""
        directory = resolve_directory(args.dir)
        if args.dir is not None and not directory.is_dir():
            raise UsageError(f"there is no folder {directory}")
        service = Service(resolve_connection(args.base_url))
        replays = find_leftovers(service, directory)
        try:
            refused = 0
            for replay in replays:
                try:
                    attempt(replay.send_all)
                except ApiError as error:
                    refused += 1
                    sys.stderr.write(f"gradmedic: {replay.run_id} is kept, {replay.remaining} steps: {error}\n")
                    continue
                replay.close()
                if args.json:
                    print(json.dumps({"run_id": str(replay.run_id), "steps": replay.sent}))
                else:
                    print(f"{replay.run_id}: {replay.sent} steps sent, see {service.base_url}/runs/{replay.run_id}")
        finally:
            for replay in replays:
                replay.keep()
            service.close()
        if not replays and not args.json:
            print(f"nothing to send in {directory}")
        return 2 if refused else 0


_OWN: Mapping[str, Command] = {
    "diagnose": DiagnoseCommand(),
    "rerun": RerunCommand(),
    "runs": RunsCommand(),
    "sync": SyncCommand(),
}


def render_diagnosis(diagnosis: Diagnosis, run: RunSummary) -> str:
    """Return a diagnosis as text for a terminal: what, since when, where, why, and what to do, in this order."""
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    since = "" if diagnosis.since_step is None else f" since step {diagnosis.since_step}"
    bad = [f for f in diagnosis.findings if f.verdict == diagnosis.verdict and f.resolved_step is None and f.layers]
    lines = [
        f"{diagnosis.verdict.upper()}{since}  (confidence {diagnosis.score:.0%})",
        f"run {run.name} in {run.project}, {run.status}, "
        + ("no steps yet" if diagnosis.step is None else f"as of step {diagnosis.step}"),
    ]
    if bad and diagnosis.verdict in ("vanishing", "exploding"):
        lines.append(f"first bad layer: {bad[0].layers[0]}")
    training = run.training if isinstance(run, RunDetail) else None
    if training is not None and training.dropped_steps:
        lines.append(f"{training.dropped_steps} steps are missing: the client had no room for them")
    lines += ["", *_wrap(diagnosis.summary, width)]
    if diagnosis.findings:
        lines += ["", "What was seen"]
        for finding in diagnosis.findings:
            until = "" if finding.resolved_step is None else f", resolved at step {finding.resolved_step}"
            lines += _item(
                f"{finding.severity}: {finding.detector} from step {finding.first_step}{until}",
                [finding.explanation, _numbers(finding.evidence)],
                width,
            )
    if diagnosis.causes:
        lines += ["", "Why, most likely first"]
        for cause in sorted(diagnosis.causes, key=lambda cause: -cause.score):
            heading = f"{cause.cause.replace('_', ' ')} ({cause.score:.0%})"
            lines += _item(heading, [cause.explanation, _numbers(cause.evidence)], width)
    if diagnosis.advice:
        lines += ["", "What to do, best first"]
        for advice in sorted(diagnosis.advice, key=lambda advice: advice.rank):
            parameters = ", ".join(f"{name}={value}" for name, value in advice.remedy.parameters.items())
            paragraphs = [advice.reason, f"Cost: {advice.cost}", _tried(advice.outcome)]
            lines += _item(f"{advice.rank}. {advice.remedy.id}({parameters})", paragraphs, width)
            lines += ["", textwrap.indent(advice.snippet.rstrip(), " " * 8), ""]
    advised = [[advice.remedy] for advice in diagnosis.advice]
    others = [tried for tried in diagnosis.tried if tried.remedies not in advised]
    if others:
        lines += ["", "What else was tried"]
        for tried in others:
            lines += _item(
                describe_remedies(tried.remedies),
                [f"{render_outcome(tried.outcome)}.{_tried_on(tried.outcome)}"],
                width,
            )
    return "\n".join(lines).rstrip()


def _tried(outcome: Outcome | None) -> str:
    return "" if outcome is None else f"Tried: {render_outcome(outcome)}.{_tried_on(outcome)}"


def _tried_on(outcome: Outcome) -> str:
    """Say on which versions and device."""
    named = [f"{name} {outcome.environment[name]}" for name in ("python", "torch") if name in outcome.environment]
    device = outcome.environment.get("device")
    return f" On {', '.join([*named, *([device] if device else [])])}." if named or device else ""


def _item(heading: str, paragraphs: Iterable[str], width: int) -> list[str]:
    lines = [f"  {heading}"]
    for paragraph in paragraphs:
        lines += _wrap(paragraph, width, indent=" " * 6)
    return lines


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


def _numbers(evidence: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {_short(value)}" for name, value in evidence.items())


def _short(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def _find_run(client: Client, reference: str, project: str | None) -> UUID:
    """Return the id of the run that a reference means.

    Raises:
        UsageError: none or several are meant.
    """
    try:
        return UUID(reference)
    except ValueError:
        pass
    found = {
        run.id for run in client.runs.list(project=project, text=reference, page_size=1000) if run.name == reference
    }
    found |= set(_runs_that_begin(client, reference.lower(), project))
    if len(found) == 1:
        return next(iter(found))
    if not found:
        raise UsageError(f"no run has the name {reference!r} or an id that begins so; see `gradmedic runs`")
    examples = ", ".join(str(run_id) for run_id in list(found)[:3])
    raise UsageError(f"{len(found)} runs are called {reference!r} or have an id that begins so, for example {examples}")


def _runs_that_begin(client: Client, beginning: str, project: str | None) -> Iterator[UUID]:
    """Iterate over the runs whose id begins so; an id begins with its time, so older runs need not be looked at."""
    earliest = earliest_time(beginning)
    if earliest is None:
        return
    for run in client.runs.list(project=project, sort="-created_at", page_size=1000):
        if run.created_at.timestamp() < earliest - _CLOCK_SKEW:
            return
        if str(run.id).startswith(beginning):
            yield run.id


def _add_connection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url", help="of the service (default: $GRADMEDIC_BASE_URL or http://127.0.0.1:8642)")


def _client(args: argparse.Namespace) -> Client:
    return Client(args.base_url)  # a key on the command line would show in the list of processes


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def _verdicts(text: str) -> frozenset[str]:
    verdicts = frozenset(text.split(","))
    unknown = verdicts - set(VERDICTS)
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(VERDICTS)}")
    return verdicts
