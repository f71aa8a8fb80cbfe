"""One of several networks that train against each other has won: it learns no more, and sends the other no gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView
from gradmedic_diagnosis.loss_progress import UNMOVED_SHARE

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
SILENT_DECADES = 2.0
"""Decades of its gradient that a network has lost when the game is over. That of a generator falls by up to five within
4,000 steps of a discriminator that is trained to optimality (Arjovsky and Bottou 2017, figure 2); in balance, the noise
of the examples keeps both within a decade."""
EARLY_ROWS = 5
"""Sampled steps whose mean is the gradient at the start."""
SILENT_ROWS = 8
SILENT_STEPS = 50
"""Consecutive sampled steps, and steps from the first to the last of them, for which a gradient must be that small."""
SMALLEST_LOG_RMS = -40.0
"""Stands for a gradient of exactly zero, which a certain discriminator sends in single precision."""
CAUSE_SCORE = 0.85


@dataclass(slots=True)
class NetworkGradient:
    """The gradient of one network: the mean log10 of the root mean square over its weight matrices."""

    rows: int = 0
    """Sampled steps with a gradient that count towards the start."""
    mean_rms: float = 0.0
    """Mean over the first of them, not in decades: it may fall steeply from the first step on."""
    current: float = 0.0
    silent_rows: int = 0
    """Consecutive sampled steps on which it was `SILENT_DECADES` below its start."""
    silent_since: int = 0

    @property
    def early(self) -> float:
        """Logarithm of the gradient at the start."""
        return math.log10(self.mean_rms) if self.mean_rms > 0 else SMALLEST_LOG_RMS

    def add(self, log_rms: float, step: int) -> None:
        """Add the gradient of a sampled step."""
        self.current = log_rms
        if self.rows < EARLY_ROWS:
            if log_rms > SMALLEST_LOG_RMS:
                self.rows += 1
                self.mean_rms += (10.0**log_rms - self.mean_rms) / self.rows
            return
        if self.early - log_rms < SILENT_DECADES:
            self.silent_rows = 0
            return
        if self.silent_rows == 0:
            self.silent_since = step
        self.silent_rows += 1

    def is_silent(self, step: int) -> bool:
        """Whether the gradient has been small for long."""
        return self.silent_rows >= SILENT_ROWS and step - self.silent_since >= SILENT_STEPS


class AdversaryDominates(Detector):
    """One of several networks with an optimizer each has won.

    Where optimizers take turns with a loss each, one loss stays near zero and the other far above its start. Where the
    script logs one loss, the gradients show it: those of all networks have become silent although the loss has not
    fallen, or those of one network while the loss has risen.
    """

    id = "adversary_dominates"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {"streams": "streams", "stored_networks": "networks"}

    def __init__(self) -> None:
        super().__init__()
        self.streams: dict[str, list[float]] = {}
        """For each stream: consecutive losses near the floor, consecutive risen losses, current and first loss."""
        self.networks: dict[str, NetworkGradient] = {}
        """Gradient of each network, by the first part of the names of its layers."""
        self._members: dict[str, NDArray[np.intp]] | None = None
        """Weight matrices of each network; empty where a single optimizer trains the model, None before a step."""

    @property
    def stored_networks(self) -> dict[str, dict[str, Any]]:
        """The networks, as the state holds them."""
        return {name: asdict(network) for name, network in self.networks.items()}

    @stored_networks.setter
    def stored_networks(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        self.networks = {name: NetworkGradient(**numbers) for name, numbers in stored.items()}

    @property
    def cause_score(self) -> float:
        """Score of an open finding."""
        return CAUSE_SCORE if self.is_open else 0.0

    def pass_over(self, columns: StepColumns) -> int:
        """Read all steps where a single optimizer trains the model with a single loss."""
        is_alone = len(columns.training.optimizers) <= 1 and columns.has_one_stream
        return len(columns) if self.is_at_rest and is_alone and not self.streams else 0

    def observe(self, view: StepView) -> None:
        """Read the loss of the step's stream, and the gradient of each network."""
        if view.row is None or view.is_skipped:
            return
        if self._members is None:
            self._members = _list_networks(view.architecture) if len(view.training.optimizers) > 1 else {}
        by_losses = self._read_losses(view)
        silent = self._read_gradients(view)
        if by_losses is not None:
            self.update_finding(view.step, "warning", [], by_losses)
        elif silent:
            since = max(self.networks[name].silent_since for name in silent)
            layers = [int(i) for name in silent for i in self._members[name][:1]]
            weakest = min((self.networks[name] for name in silent), key=lambda network: network.current - network.early)
            evidence = {
                "silent_networks": float(len(silent)),
                "gradient_decades_lost": weakest.early - weakest.current,
                "gradient_log10_rms_at_start": weakest.early,
                "sampled_steps": float(min(self.networks[name].silent_rows for name in silent)),
            }
            self.update_finding(view.step, "warning", layers, evidence, since=since)
        else:
            self.close_finding(view.step)

    def _read_losses(self, view: StepView) -> dict[str, float] | None:
        """Count the losses of this stream that are near the floor, or have risen; return evidence of a winner."""
        if view.has_several_streams and view.loss is not None and math.isfinite(view.loss):
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
        winner, loser = (self._find(0), self._find(1)) if self.streams else (None, None)
        if winner is None or loser is None:
            return None
        return {
            "loss_of_winner": winner[2],
            "start_of_winner": winner[3],
            "loss_of_other": loser[2],
            "start_of_other": loser[3],
            "losses": min(winner[0], loser[1]),
        }

    def _read_gradients(self, view: StepView) -> list[str]:
        """Follow the gradient of each network; return the networks that are silent, if the loss agrees with that."""
        if not self._members:
            return []
        measurements, row = view.measurements, view.row
        for name, members in self._members.items():
            present = members[measurements.present[row, members]]
            if len(present) == 0 or measurements.nonfinite_count[row, present].any():
                continue
            log_rms = np.where(measurements.is_zero[row, present], SMALLEST_LOG_RMS, measurements.log_rms[row, present])
            if np.isfinite(log_rms).all():
                network = self.networks.setdefault(name, NetworkGradient())
                network.add(max(float(log_rms.mean()), SMALLEST_LOG_RMS), view.step)
        silent = [name for name, network in self.networks.items() if network.is_silent(view.step)]
        progress = view.objective
        if not silent:
            return []
        if len(silent) < len(self._members):
            has_risen = not view.has_several_streams and progress.current >= RISEN * progress.start > 0
            return silent if has_risen else []
        is_judged = view.measures_progress and not view.has_several_streams and progress.count > 0
        return [] if is_judged and progress.fallen_share >= UNMOVED_SHARE else silent

    def _find(self, counter: int) -> list[float] | None:
        """Return the stream with the largest count, if it is large enough."""
        stream = max(self.streams.values(), key=lambda stream: stream[counter])
        return stream if stream[counter] >= PERSISTENCE else None

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain both losses."""
        del layers
        evidence = finding.evidence
        if "gradient_decades_lost" in evidence:
            which = "One of the networks that train" if evidence["silent_networks"] == 1 else "The networks that train"
            verb = "gets" if evidence["silent_networks"] == 1 else "get"
            return (
                f"{which} against each other hardly {verb} a gradient any more, for {evidence['sampled_steps']:.0f} "
                f"sampled steps: it is 10^{evidence['gradient_decades_lost']:.1f} times smaller than at the start, and "
                "the loss has not fallen. In balance it stays within a factor of ten. A network that is certain sends "
                "almost no gradient to the other."
            )
        return (
            f"One of the networks that train against each other has won: its loss is {evidence['loss_of_winner']:.2g} "
            f"(it started at {evidence['start_of_winner']:.2g}; near that is a balance), and the other's is "
            f"{evidence['loss_of_other']:.2g} (it started at {evidence['start_of_other']:.2g}), for "
            f"{evidence['losses']:.0f} losses. A certain winner sends almost no gradient to the other."
        )


def _list_networks(architecture: Architecture) -> dict[str, NDArray[np.intp]]:
    """Return the weight matrices of each network; empty if there is one network only.

    Networks that train against each other are watched under names of their own, or are parts of one module.
    """
    networks: dict[str, list[int]] = {}
    for i in architecture.order:
        if architecture.is_path[i]:
            networks.setdefault(architecture.names[i].partition(".")[0], []).append(int(i))
    return {name: np.array(members) for name, members in networks.items()} if len(networks) > 1 else {}
