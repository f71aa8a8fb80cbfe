"""Measures what gradmedic costs a training: `make bench-client`.

Variants of one training (without an observer, with gradmedic, with wandb or TensorBoard) are processes that take turns,
a few steps each, so that all of them run under the same load. gradmedic is off in every other step, so that each
observed step is compared with the bare step beside it. The overhead is the ratio of their CPU times in the training
thread: the median over sampled steps and the median over other steps, weighted by their numbers. An interval holds 95 %
of the overheads of resampled steps.

The CPU time of a thread excludes the time that it waits for a core or for the interpreter's lock. So `log()` is
measured in wall-clock time, and the CPU time of gradmedic's own threads is printed beside it.

The targets: at the default frequency 1.5 % of a step of a 10 M-parameter transformer and 3 % of a
50-layer perceptron, at every step 10 % of the transformer; 5 MB; 0.1 ms for `log()`; 0.1 s for the import.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import servers

WANDB, TENSORBOARD = "0.31.0", "2.21.0"
SCRIPT = Path(__file__).with_name("training_loop.py")
TARGETS = {
    "gpt auto": 0.015, "mlp auto": 0.03, "gpt every step": 0.10, "memory": 5.0, "log p99": 0.1, "import": 0.1,
}  # fmt: skip
IMPORTS = 25
MEMORY_STEPS = 5
RESAMPLINGS = 400
SETTLING_STEPS = 20
"""Number of steps in which gradmedic measures how long a step and a sample take."""
STEPS = {"mlp": 10, "gpt": 5}
"""Number of steps in a turn, by job."""
TURNS = {"mlp": 16, "gpt": 6}
"""Number of turns of each variant, by job."""
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

    def overhead(self) -> tuple[float, float, float]:
        """Return the overhead of observing, as a share of a bare step, and the ends of its interval."""
        steps = list(zip(self.list_values("cpu"), self.list_values("bare"), self.list_values("sampled"), strict=True))
        generator = random.Random(0)
        resampled = sorted(compute_overhead(generator.choices(steps, k=len(steps))) for _ in range(RESAMPLINGS))
        edge = RESAMPLINGS // 40
        return compute_overhead(steps), resampled[edge], resampled[-1 - edge]

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


def measure(
    job: str, variants: Sequence[Variant], turns: int, steps: int, base_url: str, folder: Path
) -> dict[str, TrainingProcess]:
    """Run the variants of a job in turns, and return their processes by name."""
    trainings = [start_training(variant, job, base_url, folder) for variant in (NOTHING, *variants)]
    for training in trainings:
        training.run_steps(SETTLING_STEPS if training.variant == OURS[0] else 3, "settle")
    for _ in range(turns):
        nothing = trainings[0].run_steps(steps)
        for training in trainings:
            answer = nothing if training.variant is NOTHING else training.run_steps(steps)
            training.turns.append(answer if training.variant.is_gradmedic else answer | {"bare": nothing["cpu"]})
    for training in trainings:
        training.stop()
    return {training.variant.name: training for training in trainings}


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
        overhead, low, high = training.overhead()
        own = [" ", " "]
        if training.variant.is_gradmedic:
            own = [f"{training.share_of_bare(name):.1%}" for name in ("own", "other_threads")]
        sampled = f"{statistics.mean(training.list_values('sampled')):.0%}" if training.variant.is_gradmedic else ""
        calls = training.list_calls()
        p50, p99 = (f"{calls[int(len(calls) * share)]:.3f}" for share in (0.5, 0.99))
        memory = f"{(training.turns[-1]['memory'] - nothing) / 1e6:+.0f} MB"
        cells = (variant_name, sampled, f"{overhead:+.2%}", f"{low:+.2%} to {high:+.2%}", *own, p50, p99, memory)
        print(f"| {' | '.join(cells)} |", flush=True)


def measure_extra_megabytes(base_url: str, folder: Path) -> float:
    """Return the peak memory of observing every step of the transformer, without the code that is loaded for it.

    The settings of malloc return larger pieces of memory at once, so that the process holds only what it uses.
    """
    peaks = {}
    for variant in (NOTHING, OURS[-1]):
        measured = Variant(f"memory of {variant.name}", (*variant.arguments, "loads_first=1"))
        training = start_training(
            measured, "gpt", base_url, folder, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536"
        )
        peaks[variant.name] = training.run_steps(MEMORY_STEPS)["memory"]
        training.stop()
    return float(peaks[OURS[-1].name] - peaks["nothing"]) / 1e6


def measure_import_seconds(folder: Path) -> float:
    """Return the CPU seconds of `import gradmedic` after numpy's own import, from bytecode as in an installation."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")

    def measure_once() -> float:
        code = "import time, numpy; begun = time.process_time(); import gradmedic; print(time.process_time() - begun)"
        command = [sys.executable, "-c", code]
        return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    measure_once()  # compiles the bytecode
    return statistics.median(measure_once() for _ in range(IMPORTS))


Verdict = tuple[str, str, str, bool]
"""Name, value, target, and whether it is met."""


def judge_overheads(job: str, trainings: Mapping[str, TrainingProcess]) -> list[Verdict]:
    """Return the verdicts on the overheads of one job."""
    verdicts = []
    for mode in ("auto", "every step"):
        target = TARGETS.get(f"{job} {mode}")
        if target is not None and f"gradmedic {mode}" in trainings:
            value = trainings[f"gradmedic {mode}"].overhead()[0]
            verdicts.append((f"overhead, {job} {mode}", f"{value:+.2%}", f"<= {target:.1%}", value <= target))
    return verdicts


def judge_calls(job: str, calls: Sequence[float]) -> Verdict:
    """Return the verdict on the durations of `log()`."""
    p99 = sorted(calls)[int(len(calls) * 0.99)]
    return f"log() p99, {job}, of {len(calls)}", f"{p99:.3f} ms", "<= 0.1 ms", p99 <= TARGETS["log p99"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print tables and verdicts; return 0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}: what to measure; else all")
    args = parser.parse_args(arguments)
    parts = args.parts or PARTS
    if unknown := set(parts).difference(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="gradmedic-bench-") as scratch:
        folder = Path(scratch)
        with servers.gradmedic(f"sqlite:///{folder}/gradmedic.db", folder) as (base_url, _):
            if "basics" in parts:
                memory = measure_extra_megabytes(base_url, folder)
                importing = measure_import_seconds(folder)
                verdicts.append(("extra memory", f"{memory:.1f} MB", "<= 5 MB", memory <= TARGETS["memory"]))
                verdicts.append(("import", f"{importing:.3f} s", "<= 0.1 s", importing <= TARGETS["import"]))
            for job, steps in STEPS.items():
                calls: list[float] = []
                if job in parts:
                    trainings = measure(job, OURS, TURNS[job], steps, base_url, folder)
                    print_table(job, trainings)
                    verdicts += judge_overheads(job, trainings)
                    calls += [
                        call
                        for training in trainings.values()
                        if training.variant.is_gradmedic
                        for call in training.list_calls()
                    ]
                if job == "gpt" and "calls" in parts:
                    calls += measure_further_calls(base_url, folder)
                if calls:
                    verdicts.append(judge_calls(job, calls))
                if "peers" in parts:
                    print_table(job, measure(job, PEERS, PEER_TURNS, steps, base_url, folder / "peers"))
    print()
    for name, value, target, is_met in verdicts:
        print(f"{name}: {value} (target {target}) {'PASS' if is_met else 'FAIL'}")
    met = sum(is_met for *_, is_met in verdicts)
    is_whole = met == len(verdicts)
    print(f"bench-client: {met} of {len(verdicts)} targets (target all) {'PASS' if is_whole else 'FAIL'}")
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
