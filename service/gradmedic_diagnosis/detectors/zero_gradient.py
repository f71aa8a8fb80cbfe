"""Layers whose gradient is exactly zero: dead units, symmetric initialization, a collapsed network, a dead state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradmedic_diagnosis.detectors.base import MAX_LAYERS_NAMED, Detector, Episode, Moment
from gradmedic_diagnosis.network import DEAD_SHARE

MOST = 0.5
"""Share of the weight matrices with exactly zero gradients from which the network counts as dead."""
PERSISTENCE = 20
"""Sampled steps running: one batch can leave every unit of a small layer silent."""
REVIVED = 10
"""Sampled steps running with gradients after which a dead network counts as alive again: one lucky batch is no cure."""
PATIENCE = 60
"""Steps of the run before a partly dead network and a stuck loss together speak; one that is dead throughout can never
move again and speaks at once."""
CONVERGED = 0.5
"""A loss that fell by this share of its start may leave zero gradients behind because nothing is left to learn, or
because the script froze layers by hand; that is no failure."""


class ZeroGradient(Detector):
    """At least half of the weight matrices get gradients that are exactly zero, and the loss is not down.

    Or every recurrent matrix does, that once got others: a state that is dead after its first time step carries nothing
    on, while input and output weights still learn what single inputs tell.
    """

    id = "zero_gradient"
    verdict = "vanishing"
    remembered = ("running", "since", "alive")

    def __init__(self) -> None:
        super().__init__()
        self.running = 0
        self.since = 0
        self.alive = 0

    def observe(self, moment: Moment) -> None:
        """Count sampled steps with a mostly dead network."""
        if moment.row is None or not moment.has_row or moment.skipped:
            return
        if moment.dead_share == 0 or (moment.dead_share < MOST and not self._forgets(moment)):
            self.running = 0
            self.alive += 1
            if self.alive >= REVIVED:
                self.close(moment.step)
            return
        self.alive = 0
        if self.running == 0:
            self.since = moment.step
        self.running += 1
        if self.running < PERSISTENCE:
            return
        progress = moment.progress
        is_down = progress.count > 0 and progress.fallen >= CONVERGED
        if moment.dead_share == 1 and moment.gradient == 0:
            speaks = not is_down
            self.signal = 0.9 if speaks else 0.0
        else:
            is_old = progress.count >= PATIENCE
            holds = is_old and (not is_down or (self._died(moment) and progress.fell_at_first_only()))
            speaks = self.speak_while_stuck(moment, 0.9, holds=holds)
        dead = moment.depth.zero[moment.row] > DEAD_SHARE
        if moment.architecture.is_path.any():
            dead &= moment.architecture.is_path
        layers = [int(i) for i in moment.architecture.order if dead[i]][:MAX_LAYERS_NAMED]
        evidence = {"dead_share": moment.dead_share, "dead_layers": float(np.count_nonzero(dead))}
        if moment.dead_share < MOST:
            layers, evidence["dead_state"] = list(moment.architecture.recurrent)[:MAX_LAYERS_NAMED], 1.0
        self.open(moment.step, "critical" if speaks else "note", layers, evidence, since=self.since)

    @staticmethod
    def _forgets(moment: Moment) -> bool:
        """Whether all plain recurrent matrices are dead that once lived: one time step never feeds them at all."""
        layers = list(moment.architecture.recurrent)
        dead = moment.depth.zero[moment.row, layers] > DEAD_SHARE
        return bool(layers) and bool((dead & (moment.averages.seen_nonzero[layers] > 0)).all())

    @staticmethod
    def _died(moment: Moment) -> bool:
        """Whether all weight matrices are dead while biases go on, or one is that once lived: nobody froze them."""
        dead = (moment.depth.zero[moment.row] > DEAD_SHARE) & moment.architecture.is_path
        return moment.dead_share == 1 or bool((moment.averages.seen_nonzero[dead] > 0).any())

    def explain(self, episode: Episode, names: Sequence[str]) -> str:
        """Say how many layers are dead."""
        evidence = episode.evidence
        if "dead_state" in evidence:
            return (
                f"{names[0]} gets gradients that are exactly zero and once got others: the hidden state is dead after "
                f"its first time step, and nothing is learned from earlier ones."
            )
        dead, share = int(evidence["dead_layers"]), evidence["dead_share"]
        text = f"{dead} weight matrices ({share:.0%}) get gradients that are exactly zero"
        return text + (f", the first being {names[0]}." if names else ".")
