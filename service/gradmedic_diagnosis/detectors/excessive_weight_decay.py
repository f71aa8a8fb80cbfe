"""Weight decay that takes the weights away sooner than the loss can shape them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from gradmedic.protocol.runs import Training
from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView
from gradmedic_diagnosis.detectors.zero_gradient import CONVERGED_SHARE
from gradmedic_diagnosis.optimizers import has_decoupled_decay, is_plain_sgd

USUAL_HORIZON = 1000.0
"""Steps within which decay alone takes the weights to 1/e, at the lower end of published trainings: ViT on ImageNet has
1,100 (3e-3 x 0.3), ResNet 10,000 (0.1 x 1e-4 with a momentum of 0.9), GPT-3 Small 17,000 (6e-4 x 0.1). Under
AdamW, weights are an average of the updates over this horizon, which should not be much shorter than an epoch (Wang and
Aitchison 2024, arXiv 2405.13698)."""
SHORT_HORIZON = USUAL_HORIZON / 10
"""Horizon below which the decay is excessive. A judgement: it is beyond any practice."""
PATIENCE = 100
"""Losses of the run before a loss that is still high counts, as for excessive clipping."""
HORIZONS = 2.0
"""Horizons for which the decay must have lasted without a loss that has halved: of the initial weights, decay leaves
14 % then, and the rest is what updates hold against it (Kosson et al. 2023, arXiv 2305.17212)."""
SHRUNK_SHARE = 0.5
"""Share of its first norm that the middle weight matrix has left, from which decay is stronger than the updates."""
REGROWN_SHARE = 0.75
"""Share from which the updates have won, and the finding ends."""
GROWN_FACTOR = 2.0
"""Growth of the middle matrix under the decay from which the updates are too large: the decay only takes away what they
made. A judgement: updates that decay outweighs do not let the weights grow."""
CAUSE_SCORE = 0.96
"""The script's own numbers show it. What follows from small weights, such as gradients that vanish, stands behind."""


class ExcessiveWeightDecay(Detector):
    """The decay's horizon is far shorter than in any practice, the weights have shrunk, and the loss has not halved.

    The horizon is 1 / (learning rate x weight decay). This holds for optimizers whose decay acts on the weights
    themselves, and for SGD, whose L2 term does the same. Adam and others divide an L2 term by the gradient's size, so
    that their decay has no such horizon. Where weights doubled before they shrank, the learning rate is too high, and
    there is no finding. A finding ends when the loss has halved or the weights have grown back. A rate that falls later
    does not end it, because the loss shows that nothing is mended.
    """

    id = "excessive_weight_decay"
    verdict = "healthy"
    explains_flat_loss = False
    stored_keys: ClassVar[Mapping[str, str]] = {
        "decayed": "decayed", "since_step": "since", "first_share": "first_share", "largest_share": "largest_share",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.decayed = 0.0
        """Horizons that have passed since the horizon became short, or since the loss was last halved."""
        self.since_step = 0
        """First step of them."""
        self.first_share = math.nan
        """Share of its first norm that the middle weight matrix had on the first sampled one of them."""
        self.largest_share = 0.0
        """Largest share that it had on them."""

    @property
    def is_fault(self) -> bool:
        """Whether an open finding asks for attention while the loss falls: always, since it falls by little."""
        return True

    @property
    def cause_score(self) -> float:
        """Score of an open finding."""
        return CAUSE_SCORE if self.is_open else 0.0

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the first one with a short horizon."""
        if not self.is_at_rest or self.decayed:
            return 0
        pull = _read_pull(columns.training)
        rates = columns.block.series.get("learning_rate")
        if math.isnan(pull) or rates is None:
            return len(columns)
        return columns.first_step(rates.present & ~columns.block.skipped & (rates.values * pull * SHORT_HORIZON > 1))

    def observe(self, view: StepView) -> None:
        """Add up the decay, and look at weights and loss once it has lasted."""
        pull = _read_pull(view.training)
        if math.isnan(pull) or view.is_skipped or math.isnan(view.learning_rate):
            return
        decay = view.learning_rate * pull
        is_short = decay * SHORT_HORIZON > 1
        if is_short:
            if self.decayed == 0:
                self.since_step = view.step
            self.decayed += decay
        elif not self.is_open:
            self._begin_anew()
        if view.row is not None and self.decayed:
            self._judge(view, _measure_share_left(view, view.row), decay if is_short else None)

    def _judge(self, view: StepView, left: float, decay: float | None) -> None:
        """Compare weights and loss with their limits. `decay` is the share of this step, None if it is usual."""
        learned = view.learned_share
        is_known = view.measures_progress and view.objective.count > 0 and not view.has_several_streams
        if not is_known or learned >= CONVERGED_SHARE or (self.is_open and left >= REGROWN_SHARE):
            self._begin_anew()
            self.close_finding(view.step)
            return
        if math.isnan(self.first_share):
            self.first_share = left
        if left > self.largest_share:
            self.largest_share = left
        has_grown = self.largest_share >= GROWN_FACTOR * self.first_share
        has_lasted = self.decayed >= HORIZONS and view.objective.count >= PATIENCE
        is_shrunk = left < REGROWN_SHARE if self.is_open else has_lasted and left <= SHRUNK_SHARE
        if decay is None or has_grown or not is_shrunk:
            return
        optimizer = view.training.optimizers[0]
        evidence = {"learning_rate": view.learning_rate, "weight_decay": optimizer.weight_decay or math.nan}
        if is_plain_sgd(optimizer) and optimizer.momentum:
            evidence["momentum"] = optimizer.momentum
        evidence |= {"horizon_steps": 1 / decay, "share_of_weights_left": left, "loss_fallen": learned}
        if view.objective.start > view.constant_level:
            evidence["constant_level"] = view.constant_level
        self.update_finding(view.step, "warning", [], evidence, since=self.since_step)

    def _begin_anew(self) -> None:
        """Forget the decay so far."""
        self.decayed, self.first_share, self.largest_share = 0.0, math.nan, 0.0

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain what decay takes with a step, and what it has left of weights and loss."""
        del layers
        evidence = finding.evidence
        horizon, fallen = evidence["horizon_steps"], evidence["loss_fallen"]
        momentum = f", with a momentum of {evidence['momentum']:g}," if "momentum" in evidence else ""
        level = "what a constant output gets" if "constant_level" in evidence else "its start"
        loss = f"only {fallen:.0%} below {level}" if round(fallen, 2) > 0 else f"no better than {level}"
        return (
            f"A weight decay of {evidence['weight_decay']:g} at a learning rate of {evidence['learning_rate']:.3g}"
            f"{momentum} takes {100 / horizon:.3g}% of the weights with each step, so that what is older than "
            f"{horizon:.2g} steps is forgotten (usual: {USUAL_HORIZON:g} steps or more). The middle weight matrix has "
            f"{evidence['share_of_weights_left']:.0%} of its first norm left, and the loss is {loss}."
        )


def _read_pull(training: Training) -> float:
    """Return the share of the weights that decay takes with each step, over the learning rate; NaN where it is unknown.

    With momentum, SGD repeats the pull of each step in the next ones, 1 / (1 - momentum) times in all. Of several
    optimizers, one rate is logged for all.
    """
    if len(training.optimizers) != 1:
        return math.nan
    optimizer = training.optimizers[0]
    decay = optimizer.weight_decay
    if decay is None or not decay > 0:
        return math.nan
    if is_plain_sgd(optimizer):
        momentum = optimizer.momentum or 0.0
        return decay / (1 - momentum) if 0 <= momentum < 1 else math.nan
    return decay if has_decoupled_decay(optimizer) else math.nan


def _measure_share_left(view: StepView, row: int) -> float:
    """Return the share of its first norm that the middle weight matrix has in a row; NaN where it is unknown."""
    measurements = view.measurements
    layers = view.architecture.find_path(measurements.presence_keys[row]).layers
    first, norms = view.averages.first_weight_norm[layers], measurements.weight_norm[row, layers]
    is_known = np.isfinite(norms) & (first > 0)
    return float(np.median(norms[is_known] / first[is_known])) if is_known.any() else math.nan
