"""`python -m benchmarks.corpus generate --split NAME --out DIR [--jobs N] [--only BEGINNING] [--sampling NAME]`.

`python -m benchmarks.corpus checksums --split NAME --folder DIR` stores the checksums of recordings (`checksums.py`).

The splits `fit`, `tune`, `review` and `heldout` are recorded by our own recorder, at every step. The splits
`foreign-fit` and `foreign-aside` are recorded through the SDK: `--sampling` is `auto` (its default), `every`, or
`sparse` (each twentieth step, about as `auto` does in long trainings). The splits `causes-fit` and `causes-aside` are
recorded through the SDK at its default sampling.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.corpus.causes.generate import generate_causes
from benchmarks.corpus.causes.splits import CAUSES_SPLITS
from benchmarks.corpus.checksums import STORED, store
from benchmarks.corpus.families import SPLITS
from benchmarks.corpus.foreign.generate import generate_foreign
from benchmarks.corpus.foreign.recorder import SAMPLINGS
from benchmarks.corpus.foreign.splits import FOREIGN_SPLITS
from benchmarks.corpus.generate import generate


def main() -> None:
    """Generate the split of the arguments, or store its checksums."""
    parser = argparse.ArgumentParser(prog="benchmarks.corpus")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("generate", help="make the recordings of a split")
    command.add_argument("--split", choices=(*SPLITS, *FOREIGN_SPLITS, *CAUSES_SPLITS), required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--jobs", type=int, default=1)
    command.add_argument(
        "--only", default="", help="only families (programs) whose names begin with this text; no manifest is written"
    )
    command.add_argument("--sampling", choices=SAMPLINGS, default="auto", help="of the foreign splits")
    storing = commands.add_parser("checksums", help="store the checksums of a split's recordings")
    storing.add_argument("--split", choices=tuple(SPLITS), required=True)
    storing.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    if "folder" in arguments:
        print(f"{arguments.split}: {store(arguments.split, arguments.folder)} checksums stored in {STORED.name}")
    elif arguments.split in CAUSES_SPLITS:
        generate_causes(
            arguments.split,
            arguments.out,
            jobs=arguments.jobs,
            only=arguments.only,
            report=lambda line: print(line, flush=True),
        )
    elif arguments.split in FOREIGN_SPLITS:
        generate_foreign(
            arguments.split,
            arguments.out,
            sampling=arguments.sampling,
            jobs=arguments.jobs,
            only=arguments.only,
            report=lambda line: print(line, flush=True),
        )
    else:
        generate(arguments.split, arguments.out, jobs=arguments.jobs, only=arguments.only, report=print)


if __name__ == "__main__":
    main()
