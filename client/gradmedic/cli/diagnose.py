"""`gradmedic diagnose`: print the diagnosis of a run."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradmedic.cli.command import EXIT_UNHEALTHY, RUN_HELP, add_connection_argument, make_client
from gradmedic.cli.references import find_run
from gradmedic.cli.replay import is_path, render_outcome_of_replay, replay_recording, replay_to_json
from gradmedic.cli.text import (
    describe_origin,
    format_environment,
    format_evidence,
    format_outcome,
    list_item,
    terminal_width,
    wrap,
)
from gradmedic.protocol.diagnosis import Advice, Diagnosis, DiagnosisAtStep, Outcome, Tried
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.names import closest_first
from gradmedic.protocol.origin_sentences import explain_search
from gradmedic.protocol.remedies import Remedy, describe_remedies
from gradmedic.protocol.runs import RunDetail, RunSummary, Training
from gradmedic.protocol.verdicts import LEVELS, UNHEALTHY_VERDICTS, VERDICTS

if TYPE_CHECKING:
    from gradmedic.protocol.recordings import Replay

_RERUN_HINT = "A run with a trainable needs no change of its script: `gradmedic locate RUN` runs it again and finds it."


class DiagnoseCommand:
    """`gradmedic diagnose`."""

    help = "print what is wrong with a run, why, and what fixes it"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_connection_argument(parser)
        parser.add_argument(
            "run",
            metavar="RUN | FILE",
            help=f"{RUN_HELP}; or the path of a recording, which needs no service",
        )
        parser.add_argument("--project", help="look for the name in this project only")
        parser.add_argument("--at-step", type=int, help="print the diagnosis as of this step")
        parser.add_argument("--json", action="store_true", help="print the diagnosis as JSON")
        parser.add_argument(
            "--fail-on",
            type=_parse_conditions,
            default=frozenset(),
            metavar="VERDICT|LEVEL,...",
            help=f"exit with code {EXIT_UNHEALTHY} if the verdict or the level is one of these; `attention` includes "
            "`critical`",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Print the diagnosis."""
        if is_path(args.run):
            return self._replay(Path(args.run), args)
        with make_client(args) as client:
            run_id = find_run(client, args.run, args.project)
            diagnosis = client.runs.diagnosis(run_id, at_step=args.at_step)
            if args.json:
                print(to_json(diagnosis).decode())
            else:
                print(render_diagnosis(diagnosis, client.runs.get(run_id)))
        return _exit_code(diagnosis, args)

    def _replay(self, path: Path, args: argparse.Namespace) -> int:
        """Diagnose a recording and print its diagnosis."""
        replay = replay_recording(path, args.at_step)
        print(replay_to_json(replay).decode() if args.json else render_replay(replay, path.name))
        return _exit_code(replay.diagnosis, args)


def _exit_code(diagnosis: DiagnosisAtStep, args: argparse.Namespace) -> int:
    return EXIT_UNHEALTHY if args.fail_on & {diagnosis.verdict, diagnosis.level} else 0


def render_diagnosis(diagnosis: Diagnosis, run: RunSummary) -> str:
    """Return a diagnosis as text: verdict, first step, first layer, findings, causes and advice, in this order."""
    place = f"run {run.name} in {run.project}, {run.status}"
    training = run.training if isinstance(run, RunDetail) else None
    lines = render_diagnosis_of(place, diagnosis, training, run.framework)
    advised = [advice.remedies for advice in diagnosis.advice]
    other_trials = [tried for tried in diagnosis.tried if tried.remedies not in advised]
    if diagnosis.guards is not None:
        lines += ["", *wrap(diagnosis.guards.summary, terminal_width())]
    if other_trials:
        lines += ["", "What else was tried"]
        for tried in other_trials:
            lines += list_item(
                describe_remedies(tried.remedies),
                [f"{format_outcome(tried.outcome)}.{format_environment(tried.outcome)}", _explain(tried)],
                terminal_width(),
            )
    return "\n".join(lines).rstrip()


def render_diagnosis_of(
    place: str, diagnosis: DiagnosisAtStep, training: Training | None, framework: str | None
) -> list[str]:
    """Return the lines of a diagnosis; `place` names the run or the file."""
    width = terminal_width()
    since = "" if diagnosis.since_step is None else f" since step {diagnosis.since_step}"
    causal = [finding for finding in diagnosis.findings if finding.verdict == diagnosis.verdict and finding.layers]
    causal.sort(key=lambda finding: finding.resolved_step is not None)
    lines = [
        f"{diagnosis.verdict.upper()}{since}  (confidence {diagnosis.score:.0%})",
        f"level {diagnosis.level}; the loss: {diagnosis.learning}",
        f"{place}, " + ("no steps yet" if diagnosis.step is None else f"as of step {diagnosis.step}"),
    ]
    if causal and diagnosis.verdict in UNHEALTHY_VERDICTS:
        lines.append(f"first bad layer: {causal[0].layers[0]}")
    if training is not None and training.dropped_steps:
        lines.append(f"{training.dropped_steps} steps are missing: the client had no room for them")
    lines += ["", *wrap(diagnosis.summary, width)]
    lines += _describe_origin(diagnosis, framework, width)
    if diagnosis.findings:
        lines += ["", "What was seen"]
        for finding in diagnosis.findings:
            until = "" if finding.resolved_step is None else f", resolved at step {finding.resolved_step}"
            reason = "" if finding.consequence_of is None else f", a consequence of {finding.consequence_of}"
            lines += list_item(
                f"{finding.severity}: {finding.detector} from step {finding.first_step}{until}{reason}",
                [finding.explanation, format_evidence(finding.evidence)],
                width,
            )
    if diagnosis.causes:
        lines += ["", "Why, most likely first"]
        for cause in sorted(diagnosis.causes, key=lambda cause: -cause.score):
            heading = f"{cause.cause.replace('_', ' ')} ({cause.score:.0%})"
            lines += list_item(heading, [cause.explanation, format_evidence(cause.evidence)], width)
    if diagnosis.advice:
        lines += ["", "What to do, best first"]
        for advice in sorted(diagnosis.advice, key=lambda advice: advice.rank):
            tried = diagnosis.tried if isinstance(diagnosis, Diagnosis) else []
            paragraphs = [_describe_trial(advice.outcome), advice.reason, f"Cost: {advice.cost}"]
            paragraphs.append(_describe_change_in_script(advice, tried))
            heading = " + ".join(_write_call(remedy) for remedy in advice.remedies)
            lines += list_item(f"{advice.rank}. {heading}", paragraphs, width)
            lines += ["", textwrap.indent(advice.snippet.rstrip(), " " * 8), ""]
    return lines


def _describe_origin(diagnosis: DiagnosisAtStep, framework: str | None, width: int) -> list[str]:
    """Return the lines about the origin of a non-finite number: what was found, or how to find it."""
    origin = diagnosis.origin
    if origin is None:
        if all(finding.detector != "nonfinite" for finding in diagnosis.findings):
            return []
        search = explain_search(framework)
        text = f"It is not known which operation made the first non-finite number. {search.text}"
        lines = ["", *wrap(text, width), "", textwrap.indent(search.code, " " * 8)]
        return [*lines, "", *wrap(_RERUN_HINT, width)] if (framework or "torch").startswith("torch") else lines
    return ["", *describe_origin(origin, width)]


def render_replay(replay: Replay, name: str) -> str:
    """Return the diagnosis of a recording as text, with what the service and the review gave."""
    training = replay.header.training
    lines = render_diagnosis_of(f"recording {name}", replay.diagnosis, training, replay.header.framework)
    return "\n".join([*lines, "", *render_outcome_of_replay(replay)]).rstrip()


def _write_call(remedy: Remedy) -> str:
    return f"{remedy.id}({', '.join(f'{name}={value}' for name, value in remedy.parameters.items())})"


def _describe_change_in_script(advice: Advice, tried: Sequence[Tried]) -> str:
    """Return the sentence about a remedy that only a change of the script can apply; empty for others."""
    if advice.outcome is None:
        return "No rerun can try it. Change the script like this:" if advice.needs_script else ""
    if advice.outcome.state != "not_applicable":
        return ""
    reason = next((f" ({entry.reason})" for entry in tried if entry.remedies == advice.remedies), "")
    return f"A rerun could not apply it{reason}. Change the script like this:"


def _explain(tried: Tried) -> str:
    """Return the reason of an outcome that is no proof."""
    return "" if tried.outcome.state == "verified" else f"Reason: {tried.reason}."


def _describe_trial(outcome: Outcome | None) -> str:
    return "" if outcome is None else f"Tried: {format_outcome(outcome)}.{format_environment(outcome)}"


def _parse_conditions(text: str) -> frozenset[str]:
    conditions = frozenset(text.split(","))
    choices = (*VERDICTS, *LEVELS)
    unknown = conditions - set(choices)
    if unknown:
        word = min(unknown)
        raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(closest_first(word, choices))}")
    return conditions | {"critical"} if "attention" in conditions else conditions
