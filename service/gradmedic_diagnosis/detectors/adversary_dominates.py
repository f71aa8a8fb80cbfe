"""One of several networks that train against each other has won: its loss is near its floor while the other's rises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_view import StepView

FLOOR_SHARE = 0.05
"""Share of its start below which the loss of a network that has won is. A cross-entropy between real and generated
examples starts at ln 2 and is near it in balance (Goodfellow et al. 2014, section 4.1); a twentieth of that means that
the network is right with 97 % on average."""
RISEN = 1.5
"""Times its start that the other's loss is at least: the generator's starts at ln 2 as well, when its examples are
recognized with 97 % it is 3.4."""
PERSISTENCE = 100
"""Losses of each network for which both must hold. Once the winner is certain, it sends no gradient back (Arjovsky and
Bottou 2017, theorem 2.4), but near the balance either side is ahead for a while."""
CAUSE_SCORE = 0.85


class AdversaryDominates(Detector):
    """Optimizers take turns; one loss stays near zero and the other far above its start, for long."""

    id = "adversary_dominates"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {"streams": "streams"}

    def __init__(self) -> None:
        super().__init__()
        self.streams: dict[str, list[float]] = {}
        """For each stream: consecutive losses near the floor, consecutive risen losses, current and first loss."""

    @property
    def cause_score(self) -> float:
        """Score of an open finding."""
        return CAUSE_SCORE if self.is_open else 0.0

    def observe(self, view: StepView) -> None:
        """Count the losses of the stream of this step that are near the floor, or have risen."""
        if not view.has_several_streams or view.row is None or view.loss is None or not math.isfinite(view.loss):
            return
        progress = view.progress
        is_near_floor = progress.lowest_current >= 0 and progress.current <= FLOOR_SHARE * progress.start
        has_risen = progress.current >= RISEN * progress.start > 0
        floor_losses, risen_losses = self.streams.get(view.stream, [0.0, 0.0])[:2]
        self.streams[view.stream] = [
            floor_losses + 1 if is_near_floor else 0.0,
            risen_losses + 1 if has_risen else 0.0,
            progress.current,
            progress.start,
        ]
        winner = self._find(0)
        loser = self._find(1)
        if winner is None or loser is None:
            self.close_finding(view.step)
            return
        evidence = {
            "loss_of_winner": winner[2],
            "start_of_winner": winner[3],
            "loss_of_other": loser[2],
            "start_of_other": loser[3],
            "losses": min(winner[0], loser[1]),
        }
        self.update_finding(view.step, "warning", [], evidence)

    def _find(self, counter: int) -> list[float] | None:
        """Return the stream with the largest count, if it is large enough."""
        stream = max(self.streams.values(), key=lambda stream: stream[counter])
        return stream if stream[counter] >= PERSISTENCE else None

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain both losses."""
        del layers
        evidence = finding.evidence
        return (
            f"One of the networks that train against each other has won: its loss is {evidence['loss_of_winner']:.2g} "
            f"(it started at {evidence['start_of_winner']:.2g}; near that is a balance), and the other's is "
            f"{evidence['loss_of_other']:.2g} (it started at {evidence['start_of_other']:.2g}), for "
            f"{evidence['losses']:.0f} losses. A certain winner sends almost no gradient to the other."
        )
