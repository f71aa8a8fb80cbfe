"""What observing a training costs the training: `make bench-client`.

One idea: variants of one training - without anything, with gradmedic, with what users would take instead - are
processes that take turns, a few steps each, so that they meet the same machine. Compared is the CPU time of the thread
that trains, turn by turn with the training that nobody observes; the median of the ratios counts.

The targets are the house's: at the default frequency 1.5 % of a step of a 10 M-parameter transformer and 3 % of a
50-layer perceptron, at every step 10 % of the transformer; 5 MB; 0.1 ms for `log()`; 0.1 s for the import.
"""

from __future__ import annotations

import argparse
import json
import os
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
IMPORTS = 9
MEMORY_STEPS = 5


@dataclass(frozen=True)
class Variant:
    """A way to observe the training."""

    name: str
    arguments: tuple[str, ...]
    package: tuple[str, str] | None = None
    warm_up: float = 0.0
    """Seconds that its observation takes before it is as it stays: the start is sampled at every step."""


VARIANTS = (
    Variant("nothing", ("nothing",)),
    Variant("gradmedic auto", ("gradmedic", "log_freq=auto"), warm_up=1.3),
    Variant("gradmedic every 10", ("gradmedic", "log_freq=10")),
    Variant("gradmedic every step", ("gradmedic", "log_freq=1")),
    Variant(f"wandb {WANDB} watch, offline", ("wandb",), ("wandb", WANDB)),
    Variant(f"TensorBoard {TENSORBOARD} histograms", ("tensorboard",), ("tensorboard", TENSORBOARD)),
    Variant("naive .item() loop", ("naive",)),
)
JOBS = {"gpt": "transformer, 10 M parameters in 102 tensors, AdamW", "mlp": "perceptron, 50 layers, 3.2 M, Adam"}


@dataclass
class Worker:
    """A training process and what it answered."""

    variant: Variant
    process: subprocess.Popen[str]
    answers: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, steps: int) -> dict[str, Any]:
        """Let it do some steps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def stop(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def median(self, name: str) -> float:
        """Return the median of a number over its turns."""
        return float(statistics.median(answer[name] for answer in self.answers))

    def calls(self) -> list[float]:
        """Return the milliseconds of every call that observed a step, ascending."""
        return sorted(call / 1e6 for answer in self.answers for call in answer["calls"])


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
    workers = [start(variant, job, base_url, folder) for variant in variants]
    for worker in workers:
        own = 2 * worker.ask(2)["own"]
        while own < worker.variant.warm_up:
            own += 5 * worker.ask(5)["own"]
    for _ in range(turns):
        for worker in workers:
            worker.answers.append(worker.ask(steps))
    for worker in workers:
        worker.stop()
    return {worker.variant.name: worker for worker in workers}


def overheads(workers: Mapping[str, Worker]) -> dict[str, list[float]]:
    """Return what each variant cost more than nothing, turn by turn, as a share; ascending."""
    bare = [answer["cpu"] for answer in workers["nothing"].answers]
    return {
        name: sorted(answer["cpu"] / nothing - 1 for answer, nothing in zip(worker.answers, bare, strict=True))
        for name, worker in workers.items()
    }


def print_table(job: str, workers: Mapping[str, Worker]) -> None:
    """Print what was measured."""
    print(f"\n{JOBS[job]}; {workers['nothing'].median('cpu') * 1e3:.0f} ms CPU a step, 1 thread\n")
    print("| variant | overhead, CPU | quartiles | by own account | resident memory | call p50, ms | p99 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    bare = workers["nothing"].answers[-1]["memory"]
    for name, ratios in overheads(workers).items():
        worker = workers[name]
        quarter = len(ratios) // 4
        calls = worker.calls()
        own = f"{worker.median('own') / worker.median('wall'):.1%}" if name.startswith("gradmedic") else ""
        spread = f"{ratios[quarter]:+.1%} to {ratios[-1 - quarter]:+.1%}"
        memory = f"{(worker.answers[-1]['memory'] - bare) / 1e6:+.1f} MB"
        p50, p99 = (calls[int(len(calls) * share)] for share in (0.5, 0.99))
        print(
            f"| {name} | {statistics.median(ratios):+.1%} | {spread} | {own} | {memory} | {p50:.3f} | {p99:.3f} ms |",
            flush=True,
        )


def extra_megabytes(base_url: str, folder: Path) -> float:
    """Return what observing every step of the transformer allocates at its peak, beyond the code that it loads.

    Every larger piece of memory is given back at once here, so that a process takes what it needs and no more.
    """
    peaks = {}
    for variant in (VARIANTS[0], VARIANTS[3]):
        measured = Variant(f"memory of {variant.name}", (*variant.arguments, "loads_first=1"))
        worker = start(
            measured, "gpt", base_url, folder, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536"
        )
        peaks[variant.name] = worker.ask(MEMORY_STEPS)["memory"]
        worker.stop()
    return float(peaks[VARIANTS[3].name] - peaks["nothing"]) / 1e6


def import_seconds() -> float:
    """Return what `import gradmedic` takes beyond numpy's own import, in CPU seconds."""

    def once(code: str) -> float:
        report = "import time; print(time.process_time())"
        done = subprocess.run([sys.executable, "-c", f"{code}; {report}"], capture_output=True, text=True, check=True)
        return float(done.stdout)

    pairs = [(once("import numpy, gradmedic"), once("import numpy")) for _ in range(IMPORTS)]
    return statistics.median(ours - numpy for ours, numpy in pairs)


def judge(
    results: Mapping[str, Mapping[str, Worker]], memory: float, importing: float
) -> list[tuple[str, str, str, bool]]:
    """Return name, value, target and verdict of each claim."""
    verdicts = []
    for name, job, variant in (
        ("gpt auto", "gpt", "gradmedic auto"),
        ("mlp auto", "mlp", "gradmedic auto"),
        ("gpt every step", "gpt", "gradmedic every step"),
    ):
        value = statistics.median(overheads(results[job])[variant])
        verdicts.append((f"overhead, {name}", f"{value:+.2%}", f"<= {TARGETS[name]:.1%}", value <= TARGETS[name]))
    verdicts.append(("extra memory", f"{memory:.1f} MB", f"<= {TARGETS['memory']:.0f} MB", memory <= TARGETS["memory"]))
    calls = sorted(call for job in results.values() for call in job["gradmedic every step"].calls())
    p99 = calls[int(len(calls) * 0.99)]
    verdicts.append(("log() p99", f"{p99:.3f} ms", f"<= {TARGETS['log p99']} ms", p99 <= TARGETS["log p99"]))
    verdicts.append(("import", f"{importing:.3f} s", f"<= {TARGETS['import']} s", importing <= TARGETS["import"]))
    return verdicts


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print tables and verdicts; return 0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=12, help="of each variant")
    parser.add_argument("--no-peers", action="store_true", help="only gradmedic and nothing")
    args = parser.parse_args(arguments)
    variants = VARIANTS[:4] if args.no_peers else VARIANTS
    results: dict[str, Mapping[str, Worker]] = {}
    importing = import_seconds()
    with tempfile.TemporaryDirectory(prefix="gradmedic-bench-") as scratch:
        folder = Path(scratch)
        with servers.gradmedic(f"sqlite:///{folder}/gradmedic.db", folder) as (base_url, _):
            memory = extra_megabytes(base_url, folder)
            for job, steps in (("mlp", 20), ("gpt", 6)):
                results[job] = measure(job, variants, args.turns, steps, base_url, folder)
                print_table(job, results[job])
    verdicts = judge(results, memory, importing)
    print()
    for name, value, target, is_met in verdicts:
        print(f"{name}: {value} (target {target}) {'PASS' if is_met else 'FAIL'}")
    met = sum(is_met for *_, is_met in verdicts)
    is_whole = met == len(verdicts)
    print(f"bench-client: {met} of {len(verdicts)} targets (target all) {'PASS' if is_whole else 'FAIL'}")
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
