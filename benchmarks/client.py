"""Measures what gradmedic costs a training: `make bench-client`.

Variants of one training (without an observer, with gradmedic, with wandb or TensorBoard) are processes that take turns,
a few steps each, so that all of them run under the same load. gradmedic is off in every other step, so that each step
is compared with its neighbour. The figure is the CPU time of the training thread: the medians of the ratios of sampled
steps and of other steps, weighted by how many were sampled. Intervals hold 95 % of resamplings.

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
"""In which the sampler learns what a step and a sample take."""
STEPS = {"mlp": 10, "gpt": 5}
"""Of a turn."""
TURNS = {"mlp": 16, "gpt": 6}
CALLS = 160
"""Further steps of the transformer, on end: turns of it have too few for a percentile."""
PEER_TURNS = 3
"""What they cost needs no fine scales."""
PARTS = ("basics", "mlp", "gpt", "calls", "peers")
"""Of a measurement, three minutes each at most, for those who must ask others to be quiet meanwhile."""


@dataclass(frozen=True)
class Variant:
    """A way to observe the training."""

    name: str
    arguments: tuple[str, ...]
    package: tuple[str, str] | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it can be laid aside for a turn."""
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
class Worker:
    """A training process and what it answered: in turns that were observed, and in those to compare them with."""

    variant: Variant
    process: subprocess.Popen[str]
    turns: list[Answer] = field(default_factory=list)

    def ask(self, steps: int, how: str = "") -> Answer:
        """Let it do some steps; "settle" if they are only a beginning, "alone" without others to compare them with."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{steps} {how}\n")
        self.process.stdin.flush()
        answer: Answer = json.loads(self.process.stdout.readline())
        return answer

    def stop(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def all(self, name: str) -> list[float]:
        """Return what it answered of every step."""
        return [each for turn in self.turns for each in turn[name]]

    def calls(self) -> list[float]:
        """Return the milliseconds of every call that observed a step, ascending."""
        return in_milliseconds(self.all("calls"))

    def overhead(self) -> tuple[float, float, float]:
        """Return what observing costs, as a share of a bare step, and the interval that it lies in."""
        steps = list(zip(self.all("cpu"), self.all("bare"), self.all("sampled"), strict=True))
        generator = random.Random(0)
        resampled = sorted(overhead_in(generator.choices(steps, k=len(steps))) for _ in range(RESAMPLINGS))
        edge = RESAMPLINGS // 40
        return overhead_in(steps), resampled[edge], resampled[-1 - edge]

    def share_of(self, name: str) -> float:
        """Return seconds of the observed steps as a share of what these steps would take without being observed."""
        return float(sum(turn[name] for turn in self.turns) / sum(self.all("bare")))


def in_milliseconds(calls: Sequence[float]) -> list[float]:
    """Return nanoseconds as milliseconds, ascending."""
    return sorted(call / 1e6 for call in calls)


def overhead_in(steps: Sequence[tuple[float, float, float]]) -> float:
    """Return what observing cost, of steps that tell CPU time, that of a bare neighbour, and whether it was sampled."""
    ratios: dict[float, list[float]] = {}
    for cpu, bare, is_sampled in steps:
        ratios.setdefault(is_sampled, []).append(cpu / bare)
    return sum(statistics.median(each) * len(each) / len(steps) for each in ratios.values()) - 1


def start(variant: Variant, job: str, base_url: str, folder: Path, **environment: str) -> Worker:
    """Start a training."""
    python = servers.environment_of(*variant.package, with_ours=True) if variant.package else Path(sys.executable)
    own = folder / variant.name.replace(" ", "-").replace(",", "") / job
    own.mkdir(parents=True)
    name, *options = variant.arguments
    command = [str(python), str(SCRIPT), job, name, f"base_url={base_url}", f"folder={own}", *options]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(own / "log").open("w"), text=True, cwd=own,
        env=os.environ | environment,
    )  # fmt: skip
    assert process.stdout is not None
    while (line := process.stdout.readline()) != "ready\n":
        if not line:
            raise RuntimeError((own / "log").read_text())
    return Worker(variant, process)


def measure(
    job: str, variants: Sequence[Variant], turns: int, steps: int, base_url: str, folder: Path
) -> dict[str, Worker]:
    """Let the variants of a job take turns."""
    workers = [start(variant, job, base_url, folder) for variant in (NOTHING, *variants)]
    for worker in workers:
        worker.ask(SETTLING_STEPS if worker.variant == OURS[0] else 3, "settle")
    for _ in range(turns):
        nothing = workers[0].ask(steps)
        for worker in workers:
            answer = nothing if worker.variant is NOTHING else worker.ask(steps)
            worker.turns.append(answer if worker.variant.is_ours else answer | {"bare": nothing["cpu"]})
    for worker in workers:
        worker.stop()
    return {worker.variant.name: worker for worker in workers}


def more_calls(base_url: str, folder: Path) -> list[float]:
    """Return the milliseconds of further calls beside the transformer, as a user's script makes them."""
    worker = start(OURS[0], "gpt", base_url, folder / "calls")
    worker.ask(SETTLING_STEPS, "settle")
    calls = in_milliseconds(worker.ask(CALLS, "alone")["calls"])
    worker.stop()
    return calls


def print_table(job: str, workers: Mapping[str, Worker]) -> None:
    """Print what was measured."""
    print(f"\n{JOBS[job]}; {statistics.median(workers['nothing'].all('cpu')) * 1e3:.0f} ms CPU a step, 1 thread\n")
    print("| variant | sampled | overhead, CPU | 95 % | by own account | other threads | call p50, ms | p99 | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    nothing = workers["nothing"].turns[-1]["memory"]
    for name, worker in workers.items():
        if worker.variant is NOTHING:
            continue
        overhead, low, high = worker.overhead()
        own = [f"{worker.share_of(each):.1%}" for each in ("own", "other_threads")] if worker.variant.is_ours else "  "
        sampled = f"{statistics.mean(worker.all('sampled')):.0%}" if worker.variant.is_ours else ""
        calls = worker.calls()
        p50, p99 = (f"{calls[int(len(calls) * share)]:.3f}" for share in (0.5, 0.99))
        memory = f"{(worker.turns[-1]['memory'] - nothing) / 1e6:+.0f} MB"
        cells = (name, sampled, f"{overhead:+.2%}", f"{low:+.2%} to {high:+.2%}", *own, p50, p99, memory)
        print(f"| {' | '.join(cells)} |", flush=True)


def extra_megabytes(base_url: str, folder: Path) -> float:
    """Return what observing every step of the transformer allocates at its peak, beyond the code that it loads.

    Every larger piece of memory is given back at once here, so that a process takes what it needs and no more.
    """
    peaks = {}
    for variant in (NOTHING, OURS[-1]):
        measured = Variant(f"memory of {variant.name}", (*variant.arguments, "loads_first=1"))
        worker = start(
            measured, "gpt", base_url, folder, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536"
        )
        peaks[variant.name] = worker.ask(MEMORY_STEPS)["memory"]
        worker.stop()
    return float(peaks[OURS[-1].name] - peaks["nothing"]) / 1e6


def import_seconds(folder: Path) -> float:
    """Return what `import gradmedic` takes beyond numpy's own import, in CPU seconds: from bytecode, as installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")

    def once() -> float:
        code = "import time, numpy; begun = time.process_time(); import gradmedic; print(time.process_time() - begun)"
        command = [sys.executable, "-c", code]
        return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    once()  # compiles
    return statistics.median(once() for _ in range(IMPORTS))


Verdict = tuple[str, str, str, bool]
"""Name, value, target, and whether it is met."""


def judge_overheads(job: str, workers: Mapping[str, Worker]) -> list[Verdict]:
    """Return the verdicts on what observing one job costs."""
    verdicts = []
    for mode in ("auto", "every step"):
        target = TARGETS.get(f"{job} {mode}")
        if target is not None and f"gradmedic {mode}" in workers:
            value = workers[f"gradmedic {mode}"].overhead()[0]
            verdicts.append((f"overhead, {job} {mode}", f"{value:+.2%}", f"<= {target:.1%}", value <= target))
    return verdicts


def judge_calls(job: str, calls: Sequence[float]) -> Verdict:
    """Return the verdict on what `log()` takes."""
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
                memory, importing = extra_megabytes(base_url, folder), import_seconds(folder)
                verdicts.append(("extra memory", f"{memory:.1f} MB", "<= 5 MB", memory <= TARGETS["memory"]))
                verdicts.append(("import", f"{importing:.3f} s", "<= 0.1 s", importing <= TARGETS["import"]))
            for job, steps in STEPS.items():
                calls: list[float] = []
                if job in parts:
                    workers = measure(job, OURS, TURNS[job], steps, base_url, folder)
                    print_table(job, workers)
                    verdicts += judge_overheads(job, workers)
                    calls += [call for worker in workers.values() if worker.variant.is_ours for call in worker.calls()]
                if job == "gpt" and "calls" in parts:
                    calls += more_calls(base_url, folder)
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
