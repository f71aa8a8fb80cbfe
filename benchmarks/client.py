"""Measures what gradmedic costs a training: `make bench-client`.

Variants of one training (without an observer, with gradmedic, with wandb or TensorBoard) are processes that take turns,
a few steps each, so that all of them run under the same load. gradmedic is off in every other step, so that each
observed step is compared with the bare step beside it. The overhead is the ratio of their CPU times in the training
thread: the median over sampled steps and the median over other steps, weighted by their numbers. An interval holds 95 %
of the overheads of resampled steps. Turns are repeated until the intervals can tell (`benchmarks.comparison`).

The CPU time of a thread excludes the time that it waits for a core or for the interpreter's lock. So `log()` is
measured in wall-clock time, and the CPU time of gradmedic's own threads is printed beside it. Both are not judged.

The targets: at the default frequency 1.5 % of a step of a 10 M-parameter transformer and 3 % of a 50-layer perceptron,
at every step 10 % and 20 %; 5 MB; the import of gradmedic with its `init`, 0.6 of numpy's own import.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import servers
from benchmarks.comparison import (
    Check,
    Interval,
    Outcome,
    mean_of,
    ratio_of_costs,
    repeat_until_decided,
    report,
)

WANDB, TENSORBOARD = "0.31.0", "2.21.0"
SCRIPT = Path(__file__).with_name("training_loop.py")
OVERHEAD_TARGETS = {"gpt auto": 0.015, "mlp auto": 0.03, "gpt every step": 0.10, "mlp every step": 0.20}
"""Shares of a bare step, by job and sampling."""
MEGABYTES_TARGET = 5.0
IMPORT_TARGET = 0.6
IMPORTS = 15
"""Fewest imports that are judged."""
IMPORT_SECONDS = 120.0
MEMORY_STEPS = 5
MEMORY_SECONDS = 300.0
RESAMPLINGS = 400
SETTLING_STEPS = 20
"""Number of steps in which gradmedic measures how long a step and a sample take."""
STEPS = {"mlp": 10, "gpt": 5}
"""Number of steps in a turn, by job."""
TURNS = {"mlp": 16, "gpt": 6}
"""Fewest turns of each variant, by job."""
JOB_SECONDS = 900.0
"""Bound of the time in which a job's overheads must be decided."""
CALLS = 160
"""Number of further steps of the transformer, without turns: its turns have too few steps for a percentile."""
PEER_TURNS = 3
"""Number of turns of the other tools. Their overhead is so large that few turns show it."""
PARTS = ("basics", "mlp", "gpt", "calls", "peers")
"""Parts of the benchmark, of at most three minutes each. On a shared machine, each can run while nothing else does."""


@dataclass(frozen=True)
class Variant:
    """A way to observe the training."""

    name: str
    arguments: tuple[str, ...]
    package: tuple[str, str] | None = None

    @property
    def is_gradmedic(self) -> bool:
        """Whether gradmedic observes the training. Only gradmedic can be switched off for a step."""
        return self.arguments[0] == "gradmedic"


NOTHING = Variant("nothing", ("nothing",))
OURS = (
    Variant("gradmedic auto", ("gradmedic", "log_freq=auto")),
    Variant("gradmedic every 10", ("gradmedic", "log_freq=10")),
    Variant("gradmedic every step", ("gradmedic", "log_freq=1")),
)
PEERS = (
    Variant(f"wandb {WANDB} watch, offline", ("wandb",), ("wandb", WANDB)),
    Variant(f"TensorBoard {TENSORBOARD} histograms", ("tensorboard",), ("tensorboard", TENSORBOARD)),
    Variant("naive .item() loop", ("naive",)),
)
JOBS = {"gpt": "transformer, 10 M parameters in 102 tensors, AdamW", "mlp": "perceptron, 50 layers, 3.2 M, Adam"}


Answer = dict[str, Any]


@dataclass
class TrainingProcess:
    """The process of a training, and its answers: the measurements of each turn."""

    variant: Variant
    process: subprocess.Popen[str]
    turns: list[Answer] = field(default_factory=list)

    def run_steps(self, steps: int, mode: str = "") -> Answer:
        """Run steps and return their measurements. The mode is "settle" (warm-up), "alone" (no bare steps) or empty."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{steps} {mode}\n")
        self.process.stdin.flush()
        answer: Answer = json.loads(self.process.stdout.readline())
        return answer

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def list_values(self, name: str) -> list[float]:
        """Return a measurement of every step of all turns."""
        return [value for turn in self.turns for value in turn[name]]

    def list_calls(self) -> list[float]:
        """Return the milliseconds of every call that observed a step, ascending."""
        return in_milliseconds(self.list_values("calls"))

    def overhead(self) -> Interval:
        """Return the overhead of observing, as a share of a bare step."""
        steps = list(zip(self.list_values("cpu"), self.list_values("bare"), self.list_values("sampled"), strict=True))
        generator = random.Random(0)
        resampled = sorted(compute_overhead(generator.choices(steps, k=len(steps))) for _ in range(RESAMPLINGS))
        edge = RESAMPLINGS // 40
        return Interval(compute_overhead(steps), resampled[edge], resampled[-1 - edge])

    def share_of_bare(self, name: str) -> float:
        """Return the sum of a measurement in seconds, as a share of the seconds of the bare steps."""
        return float(sum(turn[name] for turn in self.turns) / sum(self.list_values("bare")))


def in_milliseconds(calls: Sequence[float]) -> list[float]:
    """Return nanoseconds as milliseconds, ascending."""
    return sorted(call / 1e6 for call in calls)


def compute_overhead(steps: Sequence[tuple[float, float, float]]) -> float:
    """Return the overhead of observing steps, given as CPU time, CPU time of the bare neighbour, and `is_sampled`."""
    ratios: dict[float, list[float]] = {}
    for cpu, bare, is_sampled in steps:
        ratios.setdefault(is_sampled, []).append(cpu / bare)
    return sum(statistics.median(group) * len(group) / len(steps) for group in ratios.values()) - 1


def start_training(variant: Variant, job: str, base_url: str, folder: Path, **environment: str) -> TrainingProcess:
    """Start a training, and wait until it is ready."""
    python = servers.environment_of(*variant.package, with_ours=True) if variant.package else Path(sys.executable)
    own = folder / variant.name.replace(" ", "-").replace(",", "") / job
    own.mkdir(parents=True)
    name, *options = variant.arguments
    # With -P, no module beside the script hides another, as `cuda` would hide what torch imports.
    command = [str(python), "-P", str(SCRIPT), job, name, f"base_url={base_url}", f"folder={own}", *options]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(own / "log").open("w"), text=True, cwd=own,
        env=os.environ | environment,
    )  # fmt: skip
    assert process.stdout is not None
    while (line := process.stdout.readline()) != "ready\n":
        if not line:
            raise RuntimeError((own / "log").read_text())
    return TrainingProcess(variant, process)


class Job:
    """A training whose variants run in turns, each in a process of its own."""

    def __init__(self, name: str, variants: Sequence[Variant], base_url: str, folder: Path) -> None:
        self._name = name
        trainings = [start_training(variant, name, base_url, folder) for variant in (NOTHING, *variants)]
        self.trainings = {training.variant.name: training for training in trainings}
        for training in trainings:
            training.run_steps(SETTLING_STEPS if training.variant == OURS[0] else 3, "settle")

    def take_turns(self, names: Collection[str] | None = None) -> None:
        """Run a turn of the variants of these names, or of all; other tools are compared with the bare training."""
        nothing = self.trainings[NOTHING.name].run_steps(STEPS[self._name])
        for name, training in self.trainings.items():
            if names is not None and name not in names:
                continue
            answer = nothing if training.variant is NOTHING else training.run_steps(STEPS[self._name])
            training.turns.append(answer if training.variant.is_gradmedic else answer | {"bare": nothing["cpu"]})

    def checks(self) -> dict[str, Check]:
        """Return the check of each judged variant, by its name."""
        return {
            name: Check(
                name=f"overhead, {self._name} {name.removeprefix('gradmedic ')}",
                estimate=training.overhead,
                limit=OVERHEAD_TARGETS[key],
                style="{:+.2%}",
            )
            for name, training in self.trainings.items()
            if (key := f"{self._name} {name.removeprefix('gradmedic ')}") in OVERHEAD_TARGETS
        }

    def run_until_decided(self) -> list[Check]:
        """Run turns until the overheads are decided, and return their checks."""
        checks = self.checks()
        for _ in range(TURNS[self._name]):
            self.take_turns()

        def take_open_turns() -> None:
            undecided = [name for name, check in checks.items() if check.judge() is Outcome.CANNOT_TELL]
            self.take_turns(undecided)

        if any(check.judge() is Outcome.CANNOT_TELL for check in checks.values()):
            repeat_until_decided(take_open_turns, list(checks.values()), JOB_SECONDS, fewest_rounds=1)
        return list(checks.values())

    def stop(self) -> None:
        """End the processes."""
        for training in self.trainings.values():
            training.stop()


def measure_further_calls(base_url: str, folder: Path) -> list[float]:
    """Return the milliseconds of further calls of `log()` in the training of the transformer, ascending."""
    training = start_training(OURS[0], "gpt", base_url, folder / "calls")
    training.run_steps(SETTLING_STEPS, "settle")
    calls = in_milliseconds(training.run_steps(CALLS, "alone")["calls"])
    training.stop()
    return calls


def print_table(job: str, trainings: Mapping[str, TrainingProcess]) -> None:
    """Print a row of measurements for each variant."""
    milliseconds = statistics.median(trainings["nothing"].list_values("cpu")) * 1e3
    print(f"\n{JOBS[job]}; {milliseconds:.0f} ms CPU a step, 1 thread\n")
    print(
        "| variant | sampled | overhead, CPU | 95 % interval | own measurement | "
        "other threads | call p50, ms | p99 | memory |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    nothing = trainings["nothing"].turns[-1]["memory"]
    for variant_name, training in trainings.items():
        if training.variant is NOTHING:
            continue
        overhead = training.overhead()
        own = [" ", " "]
        if training.variant.is_gradmedic:
            own = [f"{training.share_of_bare(name):.1%}" for name in ("own", "other_threads")]
        sampled = f"{statistics.mean(training.list_values('sampled')):.0%}" if training.variant.is_gradmedic else ""
        calls = training.list_calls()
        p50, p99 = (f"{calls[int(len(calls) * share)]:.3f}" for share in (0.5, 0.99))
        memory = f"{(training.turns[-1]['memory'] - nothing) / 1e6:+.0f} MB"
        interval = f"{overhead.low:+.2%} to {overhead.high:+.2%}"
        cells = (variant_name, sampled, f"{overhead.estimate:+.2%}", interval, *own, p50, p99, memory)
        print(f"| {' | '.join(cells)} |", flush=True)


def measure_extra_megabytes(base_url: str, folder: Path) -> tuple[float, float]:
    """Return the peak memory of observing every step of the transformer, without machine code and with it.

    Modules are imported before, and the machine code of libraries (numpy's and torch's, of operations that the training
    does not use itself) is subtracted: it is mapped from files, and all processes of a machine share it. The settings
    of malloc return larger pieces of memory at once, so that the process holds only what it uses.
    """
    peaks, codes = {}, {}
    for variant in (NOTHING, OURS[-1]):
        measured = Variant(f"memory of {variant.name}", (*variant.arguments, "loads_first=1"))
        training = start_training(
            measured, "gpt", base_url, folder, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536"
        )
        answer = training.run_steps(MEMORY_STEPS)
        peaks[variant.name], codes[variant.name] = answer["memory"], answer["code"]
        training.stop()
    extra, code = (float(sizes[OURS[-1].name] - sizes[NOTHING.name]) / 1e6 for sizes in (peaks, codes))
    return extra - code, extra


def check_memory(base_url: str, folder: Path) -> Check:
    """Measure the extra memory until its interval can tell, and return the check."""
    megabytes: list[float] = []
    with_code: list[float] = []
    check = Check(name="extra memory", estimate=lambda: mean_of(megabytes), limit=MEGABYTES_TARGET, style="{:.1f} MB")

    def take_round() -> None:
        own, everything = measure_extra_megabytes(base_url, folder / f"memory-{len(megabytes)}")
        megabytes.append(own)
        with_code.append(everything)

    repeat_until_decided(take_round, [check], MEMORY_SECONDS)
    print(f"extra memory with the machine code that is mapped: {statistics.median(with_code):.1f} MB (not judged)")
    return check


IMPORT_SCRIPT = """
import json, time
started = time.process_time()
import numpy
with_numpy = time.process_time()
import gradmedic
gradmedic.init
print(json.dumps([with_numpy - started, time.process_time() - with_numpy]))
"""
"""Importing the package alone loads nearly nothing; a training needs `init`."""


def check_import(folder: Path) -> Check:
    """Measure the import of gradmedic beside numpy's, from bytecode as in an installation, and return the check."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    with_numpy: list[float] = []
    with_gradmedic: list[float] = []

    def measure_once() -> tuple[float, float]:
        command = [sys.executable, "-c", IMPORT_SCRIPT]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        numpy_seconds, gradmedic_seconds = json.loads(done.stdout)
        return numpy_seconds, gradmedic_seconds

    def take_round() -> None:
        numpy_seconds, gradmedic_seconds = measure_once()
        with_numpy.append(numpy_seconds)
        with_gradmedic.append(gradmedic_seconds)

    measure_once()  # compiles the bytecode
    check = Check(
        name="import of gradmedic with init / numpy's own import",
        estimate=lambda: ratio_of_costs(with_gradmedic, with_numpy),
        limit=IMPORT_TARGET,
    )
    repeat_until_decided(take_round, [check], IMPORT_SECONDS, IMPORTS)
    medians = [f"{statistics.median(seconds):.3f}" for seconds in (with_gradmedic, with_numpy)]
    print(f"import of gradmedic with init {medians[0]} s of CPU, numpy's own import {medians[1]} s (medians)")
    return check


def print_calls(job: str, calls: Sequence[float]) -> None:
    """Print the 99th percentile of the durations of `log()`, in wall-clock milliseconds."""
    p99 = sorted(calls)[int(len(calls) * 0.99)]
    print(f"log() p99, {job}, of {len(calls)} calls: {p99:.3f} ms (not judged: an absolute time; the aim is 0.1 ms)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print tables and verdicts; return 1 if a target is missed, 2 if one could not be decided, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}: what to measure; else all")
    args = parser.parse_args(arguments)
    parts = args.parts or PARTS
    if unknown := set(parts).difference(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="gradmedic-bench-") as scratch:
        folder = Path(scratch)
        with servers.gradmedic(f"sqlite:///{folder}/gradmedic.db", folder) as (base_url, _):
            if "basics" in parts:
                checks += [check_memory(base_url, folder), check_import(folder)]
            for name in STEPS:
                calls: list[float] = []
                if name in parts:
                    job = Job(name, OURS, base_url, folder)
                    checks += job.run_until_decided()
                    job.stop()
                    print_table(name, job.trainings)
                    ours = [training for training in job.trainings.values() if training.variant.is_gradmedic]
                    calls += [call for training in ours for call in training.list_calls()]
                if name == "gpt" and "calls" in parts:
                    calls += measure_further_calls(base_url, folder)
                if calls:
                    print_calls(name, calls)
                if "peers" in parts:
                    peers = Job(name, PEERS, base_url, folder / "peers")
                    for _ in range(PEER_TURNS):
                        peers.take_turns()
                    peers.stop()
                    print_table(name, peers.trainings)
    return report("bench-client", checks)


if __name__ == "__main__":
    sys.exit(main())
