"""`gradmedic alerts`: say where the alerts of a project go, test it, mute it, and read what was sent."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice

from gradmedic.api import Client
from gradmedic.cli.command import EXIT_ERROR, RUN_HELP, add_connection_argument, make_client, positive_integer
from gradmedic.cli.references import find_run, missing_project
from gradmedic.cli.text import format_time, print_table
from gradmedic.exceptions import UsageError
from gradmedic.protocol.alert_destinations import AlertDestination
from gradmedic.protocol.alert_history import TROUBLES, Alert
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.ids import has_part, short_id

UNITS = {"d": "days", "h": "hours", "m": "minutes"}
STANDARD_INPUT = "-"
"""The address that stands for the first line of the standard input."""
LONG_AGO = datetime.fromtimestamp(0, UTC)
"""Time that ends a mute, also if the clock of the service is behind."""
_DESTINATION_HELP = "id of the destination, its beginning or its last 8 characters, or its name"


class AlertsCommand:
    """`gradmedic alerts`."""

    help = "say where the alerts of a project go, test and mute it, and list the alerts that were made"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the actions."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        add = actions.add_parser("add", help="add a destination to a project")
        add.add_argument(
            "address",
            metavar="ADDRESS",
            help="https://... (a webhook, or the URL that Slack, Discord or Teams shows), mailto:..., slack://..., "
            "discord://..., telegram://... or pagerduty://...; - reads it from the standard input, so that it is not "
            "in the list of processes",
        )
        add.add_argument("--name", help="name of the destination (default: its address without secrets)")
        add.add_argument(
            "--trouble",
            dest="troubles",
            action="append",
            choices=TROUBLES,
            help="send this trouble only; may be given again (default: all)",
        )
        list_all = actions.add_parser("list", help="list destinations, with their last error")
        test = actions.add_parser("test", help="send a test message; the exit code is 2 if it does not arrive")
        mute = actions.add_parser(
            "mute", help="send nothing to a destination, or make no alerts of a project, for a time"
        )
        remove = actions.add_parser("remove", help="remove a destination")
        for action in (test, remove):
            action.add_argument("destination", metavar="DESTINATION", help=_DESTINATION_HELP)
        mute.add_argument(
            "destination", metavar="DESTINATION", nargs="?", help=f"{_DESTINATION_HELP} (default: the whole project)"
        )
        time = mute.add_mutually_exclusive_group(required=True)
        time.add_argument(
            "--for", dest="duration", type=_parse_duration, metavar="TIME", help="days, hours or minutes: 2d, 8h, 30m"
        )
        time.add_argument("--off", action="store_true", help="end the mute")
        history = actions.add_parser("history", help="list the alerts that were made, newest first")
        history.add_argument("--run", metavar="RUN", help=f"list alerts about this run only: {RUN_HELP}")
        history.add_argument("--trouble", choices=TROUBLES, help="list alerts about this trouble only")
        history.add_argument(
            "--limit", type=positive_integer, default=20, help="number of alerts at most (default: 20)"
        )
        for action in (add, list_all, test, mute, remove, history):
            add_connection_argument(action)
            action.add_argument("--project", help="name of the project (default: the only one that the key reaches)")
            action.add_argument("--json", action="store_true", help="print JSON, one object per line")

    def run(self, args: argparse.Namespace) -> int:
        """Do the action."""
        with make_client(args) as client:
            return _ACTIONS[args.action](client, args)


def _add(client: Client, args: argparse.Namespace) -> int:
    address = sys.stdin.readline().strip() if args.address == STANDARD_INPUT else args.address
    created = client.alerts.add(_find_project(client, args), address, name=args.name, troubles=args.troubles)
    if args.json:
        print(to_json(created).decode())
        return 0
    print(f"{short_id(created.id)}: alerts of {created.project} go to {created.address}")
    if created.signing_secret is not None:
        print(f"signing secret, shown only now: {created.signing_secret}")
    print(f"send a test: gradmedic alerts test {short_id(created.id)}")
    return 0


def _list(client: Client, args: argparse.Namespace) -> int:
    destinations = list(client.alerts.destinations(project=args.project))
    if args.json:
        for destination in destinations:
            print(to_json(destination).decode())
    elif destinations:
        rows = [
            (
                short_id(destination.id),
                destination.project,
                destination.name,
                destination.address,
                "all" if destination.troubles is None else ", ".join(destination.troubles),
                _describe_state(destination),
            )
            for destination in destinations
        ]
        print_table(("ID", "PROJECT", "NAME", "ADDRESS", "TROUBLES", "STATE"), rows)
    else:
        print("no destinations; `gradmedic alerts add ADDRESS` adds one")
    return 0


def _test(client: Client, args: argparse.Namespace) -> int:
    destination = _find_destination(client, args)
    result = client.alerts.test(destination.id)
    if args.json:
        print(to_json(result).decode())
    elif result.is_delivered:
        print(f"{destination.name} has accepted a test message")
    else:
        print(f"gradmedic: {destination.name}: {result.error}", file=sys.stderr)
    return 0 if result.is_delivered else EXIT_ERROR


def _mute(client: Client, args: argparse.Namespace) -> int:
    until = LONG_AGO if args.off else datetime.now(UTC) + args.duration
    end = "no longer muted" if args.off else f"muted until {format_time(until)}"
    if args.destination is None:
        project = client.alerts.mute_project(_find_project(client, args), until)
        print(to_json(project).decode() if args.json else f"the alerts of {project.name} are {end}")
    else:
        destination = client.alerts.update(_find_destination(client, args).id, muted_until=until)
        print(to_json(destination).decode() if args.json else f"{destination.name} is {end}")
    return 0


def _remove(client: Client, args: argparse.Namespace) -> int:
    destination = _find_destination(client, args)
    client.alerts.remove(destination.id)
    print(to_json(destination).decode() if args.json else f"{destination.name}: removed")
    return 0


def _history(client: Client, args: argparse.Namespace) -> int:
    run_id = None if args.run is None else find_run(client, args.run, args.project)
    matching = client.alerts.history(
        project=args.project, run_id=run_id, trouble=args.trouble, page_size=min(args.limit, 1000)
    )
    alerts = list(islice(matching, args.limit))
    if args.json:
        for alert in alerts:
            print(to_json(alert).decode())
    elif alerts:
        rows = [
            (format_time(alert.created_at), alert.project, alert.trouble, alert.title, _describe_deliveries(alert))
            for alert in alerts
        ]
        print_table(("TIME", "PROJECT", "TROUBLE", "ALERT", "DELIVERIES"), rows)
    else:
        print("no alerts")
    return 0


_ACTIONS: Mapping[str, Callable[[Client, argparse.Namespace], int]] = {
    "add": _add,
    "list": _list,
    "test": _test,
    "mute": _mute,
    "remove": _remove,
    "history": _history,
}


def _find_project(client: Client, args: argparse.Namespace) -> str:
    """Return the project that the arguments name, or the only one."""
    if args.project is not None:
        return str(args.project)
    names = [project.name for project in islice(client.projects(), 2)]
    if len(names) != 1:
        raise UsageError("give --project NAME; `gradmedic projects` lists the names")
    return names[0]


def _find_destination(client: Client, args: argparse.Namespace) -> AlertDestination:
    """Return the destination whose id, part of an id, or name the arguments have.

    Raises:
        UsageError: no destination matches, or several do.
    """
    reference = args.destination
    matches = [
        destination
        for destination in client.alerts.destinations(project=args.project)
        if destination.name == reference or has_part(destination.id, reference)
    ]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        missing = None if args.project is None else missing_project(client, args.project)
        raise UsageError(missing or f"no destination is called {reference!r}; see `gradmedic alerts list`")
    listed = "".join(f"\n  {match.id}  {match.name} in {match.project}" for match in matches)
    raise UsageError(f"{len(matches)} destinations match {reference!r}; give one of these ids:{listed}")


def _describe_state(destination: AlertDestination) -> str:
    """Return whether messages arrive there: muted, the last error, or the last delivery."""
    if destination.muted_until is not None and destination.muted_until > datetime.now(UTC):
        return f"muted until {format_time(destination.muted_until)}"
    if destination.last_error is not None:
        return f"failed: {destination.last_error}"
    if destination.last_delivered_at is not None:
        return f"delivered {format_time(destination.last_delivered_at)}"
    return "unused"


def _describe_deliveries(alert: Alert) -> str:
    """Return the deliveries of an alert as `name: state`, with the reason of one that failed."""
    described = [
        f"{delivery.destination}: {delivery.state}" + (f" ({delivery.last_error})" if delivery.last_error else "")
        for delivery in alert.deliveries
    ]
    return ", ".join(described) or "no destination"


def _parse_duration(text: str) -> timedelta:
    """Convert days, hours or minutes, such as `8h`, to a duration."""
    unit = UNITS.get(text[-1:])
    try:
        if unit is None or not text[:-1].isdecimal():
            raise ValueError
        duration = timedelta(**{unit: int(text[:-1])})
        datetime.now(UTC) + duration
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be days, hours or minutes like 2d, 8h or 30m, not {text!r}") from None
    return duration
