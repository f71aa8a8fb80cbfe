"""`gradmedic review`: confirm or reject the verdict on a run."""

from __future__ import annotations

import argparse

from gradmedic.cli.command import RUN_HELP, add_connection_argument, make_client
from gradmedic.cli.references import find_run
from gradmedic.cli.text import format_time
from gradmedic.exceptions import UsageError
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.reviews import REVIEW_ANSWERS, Review
from gradmedic.protocol.verdicts import LEVELS, VERDICTS

_OPTIONS_OF_AN_ANSWER = ("verdict", "level", "note", "step")


class ReviewCommand:
    """`gradmedic review`."""

    help = "confirm or reject the verdict on a run"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_connection_argument(parser)
        parser.add_argument("run", metavar="RUN", help=RUN_HELP)
        parser.add_argument("answer", nargs="?", choices=REVIEW_ANSWERS, help="whether the verdict is right or wrong")
        parser.add_argument("--project", help="look for the name in this project only")
        parser.add_argument("--verdict", choices=VERDICTS, help="true verdict, with the answer `wrong`")
        parser.add_argument("--level", choices=LEVELS, help="true level, with the answer `wrong`")
        parser.add_argument("--note", metavar="TEXT", help="reason for the answer")
        parser.add_argument("--step", type=int, help="step of the diagnosis that is reviewed (default: the last step)")
        parser.add_argument("--clear", action="store_true", help="take back the review")
        parser.add_argument("--json", action="store_true", help="print the review as JSON")

    def run(self, args: argparse.Namespace) -> int:
        """Review the run, take back its review, or print the review that it has."""
        given = [name for name in _OPTIONS_OF_AN_ANSWER if getattr(args, name) is not None]
        if args.clear and args.answer is not None:
            raise UsageError("give either an answer or --clear")
        if args.answer is None and given:
            raise UsageError(f"--{given[0]} belongs to an answer: give `right` or `wrong`")
        with make_client(args) as client:
            run_id = find_run(client, args.run, args.project)
            review: Review | None = None
            if args.clear:
                client.runs.take_back_review(run_id)
            elif args.answer is None:
                review = client.runs.get(run_id).review
            else:
                review = client.runs.review(
                    run_id, args.answer, verdict=args.verdict, level=args.level, note=args.note, step=args.step
                )
        print(to_json(review).decode() if args.json else render_review(review))
        return 0


def render_review(review: Review | None) -> str:
    """Return a review as text: the answer, what was judged, and the true verdict and level."""
    if review is None:
        return "no review"
    step = "" if review.step is None else f" at step {review.step}"
    judged = f"the verdict {review.judged_verdict} (level {review.judged_level}){step}"
    lines = [f"{judged} is {review.answer}, by the review of {format_time(review.reviewed_at)}"]
    if review.verdict is not None:
        lines.append(f"true verdict: {review.verdict}")
    if review.level is not None:
        lines.append(f"true level: {review.level}")
    if review.note:
        lines.append(f"note: {review.note}")
    return "\n".join(lines)
