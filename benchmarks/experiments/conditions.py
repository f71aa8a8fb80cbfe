"""One small training for each condition, in which the diagnosis finds it; the pictures show what the finding rests on.

The trainings are cases of the open causes corpus (`benchmarks.corpus.causes`), recorded at the default sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus.causes.generate import record_case
from benchmarks.corpus.causes.splits import CAUSES_FIT, CAUSES_SPLITS
from gradmedic.protocol.diagnosis import Finding
from gradmedic.protocol.probes import parse_metric
from gradmedic.protocol.runs import Training
from gradmedic_diagnosis import Block, Diagnostician

MAX_LINES: Final = 6
"""Most lines of one panel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A training in which a condition is found, and the quantity to draw."""

    case: str
    """Id of the case in the open causes corpus."""
    drawn: str
    """Name of a probe, of a step series, or of a statistic."""


EXAMPLES: Final[dict[str, Example]] = {
    "accumulating_gradients": Example(case="fit-digits.0.kept-gradients-forever", drawn="grad_norm"),
    "adversary_dominates": Example(case="fit-adversaries.0.adversary-steps", drawn="grad_norm"),
    "attention_logit_growth": Example(case="fit-attention.0.attention-logits", drawn="attention_logit_max"),
    "disconnected_parameters": Example(case="fit-digits.0.detached", drawn="grad_norm"),
    "forgetting_recurrence": Example(case="fit-memory.0.forgetting", drawn="time_gradient_factor"),
    "learning_rate_jump": Example(case="fit-regression.0.rate-jump", drawn="learning_rate"),
    "loss_mismatch": Example(case="fit-digits.0.softmax-twice", drawn="grad_norm"),
    "loss_scale_exhausted": Example(case="fit-digits.0.scale-exhausted", drawn="loss_scale"),
    "loss_spike": Example(case="fit-codes.0.beta2-default-spikes", drawn="grad_norm"),
    "low_precision_stall": Example(case="fit-regression.0.bfloat16-stall", drawn="unchanged_share"),
    "no_signal_from_loss": Example(case="fit-rewards.0.no-signal", drawn="grad_norm"),
    "nonfinite_input": Example(case="fit-memory.0.nonfinite-input", drawn="grad_norm"),
    "nonfinite_loss": Example(case="fit-codes.0.log-of-zero", drawn="grad_norm"),
    "optimizer_epsilon": Example(case="fit-regression.0.epsilon-too-large", drawn="epsilon_share"),
    "router_collapse": Example(case="fit-experts.0.router", drawn="router_largest_share"),
    "stale_second_moment": Example(case="fit-regression.0.stale-moment", drawn="second_moment_ratio"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a picture shows of a run."""

    condition: str
    finding: Finding
    steps: NDArray[np.int64]
    loss: NDArray[np.float64]
    drawn: str
    lines: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
    """Steps and values of the drawn quantity, by module or layer."""


def find_condition(condition: str) -> Evidence | None:
    """Train the example of a condition; return what to draw, None where the diagnosis does not find the condition."""
    example = EXAMPLES[condition]
    for program in CAUSES_SPLITS[CAUSES_FIT]:
        for case in program.cases():
            if case.id == example.case:
                recorded = record_case(case, program)
    description, block = recorded.description, recorded.block
    diagnostician = Diagnostician(
        tuple(description.layers), description.training or Training(), framework=description.framework
    )
    diagnostician.update(block)
    finding = next((found for found in diagnostician.diagnose().findings if found.detector == condition), None)
    if finding is None:
        return None
    names = [layer.name for layer in description.layers]
    return Evidence(
        condition=condition,
        finding=finding,
        steps=block.steps,
        loss=np.asarray(block.series["loss"].values, dtype=np.float64),
        drawn=example.drawn,
        lines=list_lines(block, names, example.drawn, finding.layers),
    )


def list_lines(
    block: Block, names: list[str], drawn: str, layers: list[str]
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Return steps and values of a probe, a series or a statistic, the finding's layers first, at most `MAX_LINES`."""
    if drawn in block.series:
        series = block.series[drawn]
        return {drawn: (block.steps[series.present], np.asarray(series.values[series.present], dtype=np.float64))}
    if drawn in block.statistics:
        column, sampled = block.statistics.index(drawn), block.steps[block.sampled]
        chosen = [name for name in layers if name in names] + [name for name in names if name not in layers]
        return {
            name: (sampled, np.asarray(block.values[:, names.index(name), column], dtype=np.float64))
            for name in chosen[:MAX_LINES]
        }
    lines: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
    for metric, series in block.metrics.items():
        probe = parse_metric(metric)
        if probe is not None and probe[0] == drawn and len(lines) < MAX_LINES:
            at = series.present
            lines[probe[1] or drawn] = (block.steps[at], np.asarray(series.values[at], dtype=np.float64))
    return lines
