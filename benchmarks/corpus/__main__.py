"""`python -m benchmarks.corpus generate --split fit|tune|review|heldout --out DIR [--jobs N] [--only FAMILY]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.corpus.families import SPLITS
from benchmarks.corpus.generate import generate


def main() -> None:
    """Generate the split of the arguments."""
    parser = argparse.ArgumentParser(prog="benchmarks.corpus")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("generate", help="make the recordings of a split")
    command.add_argument("--split", choices=tuple(SPLITS), required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--jobs", type=int, default=1)
    command.add_argument(
        "--only", default="", help="only families whose names begin with this text; no manifest is written"
    )
    arguments = parser.parse_args()
    generate(arguments.split, arguments.out, jobs=arguments.jobs, only=arguments.only, report=print)


if __name__ == "__main__":
    main()
