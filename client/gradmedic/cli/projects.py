"""`gradmedic projects`: list projects with their settings."""

from __future__ import annotations

import argparse

from gradmedic.cli.command import add_connection_argument, make_client
from gradmedic.cli.text import format_time, print_table
from gradmedic.protocol.encoding import to_json


class ProjectsCommand:
    """`gradmedic projects`."""

    help = "list projects with their settings"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        add_connection_argument(parser)
        parser.add_argument("--json", action="store_true", help="print JSON, one project per line")

    def run(self, args: argparse.Namespace) -> int:
        """Print the projects."""
        with make_client(args) as client:
            projects = list(client.projects())
        if args.json:
            for project in projects:
                print(to_json(project).decode())
        elif projects:
            rows = [
                (
                    project.name,
                    "automatic" if project.rerun_automatically else "on request",
                    ", ".join(project.muted_detectors) or "-",
                    format_time(project.created_at),
                )
                for project in projects
            ]
            print_table(("NAME", "RERUNS", "MUTED DETECTORS", "CREATED"), rows)
        else:
            print("no projects")
        return 0
