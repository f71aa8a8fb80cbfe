"""A part of the model that does not train: it has no gradient, one that is exactly zero, or no optimizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradmedic.protocol.diagnosis import Severity
from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.detectors.base import STUCK_PATIENCE, Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import MAX_LAYERS_NAMED, StepView
from gradmedic_diagnosis.detectors.zero_gradient import DEAD_LAYERS_SHARE

PERSISTENCE = 50
"""Sampled steps without a gradient before there is a finding. A part may join later, as in progressive unfreezing."""
_NUMBER = re.compile(r"\d+")
PROBES = 3
"""Consecutive probes that must show gradients that no optimizer uses."""
MOST = 0.5
"""Share of the gradients from which what no optimizer uses is most of the model. Then a small part is tuned on purpose,
as a head, a prompt or biases are."""
ALL = 0.999
"""Share of the gradients from which on what no optimizer uses is the whole model, where no layer of an optimizer has
had a gradient. An input that is optimized through a model has one."""
LARGE_SHARE = 0.1
"""Share of the trained weights that must be cut off. A judgement: pretrained models often have a small head or pooler
that a task does not use, which is no fault."""

CAUSE_SCORE = 0.95


class DisconnectedParameters(Detector):
    """Layers that an optimizer holds have had no gradient since the first step, or only zeros, while others had.

    It is a note where layers of the same name but for a number had gradients, as experts have that no example was
    routed to yet.

    A second form: layers have gradients that no optimizer uses. It is a note where that is most of the model, or only
    layers before those that train, as where a head is tuned on features, unless the loss does not fall at all: then the
    layers that train are not enough. Where no layer of an optimizer has a gradient, it holds those of another model.

    A third form: parameters that the model computes with, and does not register, have gradients that nothing uses.
    """

    id = "disconnected_parameters"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {
        "steps": "steps", "touched": "touched", "probes": "probes",
        "unregistered_probes": "unregistered_probes",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        """Sampled steps on which some layers had a gradient, as long as others never had one."""
        self.touched = 0
        """Bit set of the layers that had a gradient so far: bit i is layer i."""
        self.probes = 0
        """Consecutive probes with gradients of layers that no optimizer uses."""
        self.unregistered_probes = 0
        """Consecutive probes with gradients of parameters that the model does not register."""
        self._untouched = np.zeros(0, dtype=np.bool_)
        """The other layers, `[layer]`."""
        self._are_all_touched = False

    @property
    def is_fault(self) -> bool:
        """Whether an open finding is a fault of the script: unless it is a note."""
        return self.finding_state is not None and self.finding_state.severity != "note"

    @property
    def cause_score(self) -> float:
        """Score of an open fault: it is read from the script itself."""
        return CAUSE_SCORE if self.is_open and self.is_fault else 0.0

    def pass_over(self, columns: StepColumns) -> int:
        """Read the steps before the first gradient of a layer that had none yet, and before the next probe."""
        stop = min(columns.first_probe("unused_gradient_share"), columns.first_probe("unregistered_gradient_share"))
        present = columns.measurements.present
        if len(self._untouched) != present.shape[1]:
            return 0
        if self._are_all_touched:
            return stop
        if not self.is_open and (self.steps < PERSISTENCE or self._find_cut_off(columns.architecture) is not None):
            return 0
        is_judged = (columns.depth_profile.dead_share < DEAD_LAYERS_SHARE)[:, None]
        has_gradient = present & ~(columns.measurements.is_zero & is_judged) & ~columns.is_row_skipped[:, None]
        stop = min(stop, columns.first_row(np.logical_or.reduce(has_gradient & self._untouched, axis=1)))
        self.steps += int(np.count_nonzero(has_gradient[: columns.rows_before[stop]].any(axis=1)))
        return stop

    def observe(self, view: StepView) -> None:
        """Count the steps, and remember the layers that had a gradient."""
        if view.is_skipped:
            return
        shares = view.probes.get("unused_gradient_share")
        if shares:
            self._read_unused(view, shares.get("", 0.0))
        shares = view.probes.get("unregistered_gradient_share")
        if shares:
            self._read_unregistered(view, shares.get("", 0.0))
        if view.row is None:
            return
        present = view.measurements.present[view.row]
        if len(self._untouched) != len(present):
            self._untouched = ~_read_bits(self.touched, len(present))
            self._are_all_touched = not self._untouched.any()
        if self._are_all_touched:
            return
        has_gradient = present
        if view.dead_share < DEAD_LAYERS_SHARE:  # else the network is dead, and no part of it is cut off
            has_gradient = present & ~view.measurements.is_zero[view.row]
        if not has_gradient.any():
            return
        self.steps += 1
        if (has_gradient & self._untouched).any():
            self._untouched &= ~has_gradient
            self.touched = _write_bits(~self._untouched)
            self._are_all_touched = not self._untouched.any()
            if not self._is_of_gradients:
                self.close_finding(view.step)
        if self.steps < PERSISTENCE or self.is_open or not self._untouched.any():
            return
        cut_off = self._find_cut_off(view.architecture)
        if cut_off is not None:
            is_cut_off, share = cut_off
            layers = [int(i) for i in view.architecture.order if is_cut_off[i]][:MAX_LAYERS_NAMED]
            evidence = {"share_of_weights": share, "layers_affected": float(np.count_nonzero(is_cut_off))}
            zeros = np.count_nonzero(is_cut_off & present)
            if zeros:
                evidence["layers_with_zero_gradient"] = float(zeros)
            names = view.architecture.names
            siblings = {_NUMBER.sub("#", names[i]) for i in np.flatnonzero(~self._untouched)}
            is_expert = all(_NUMBER.sub("#", names[i]) in siblings for i in np.flatnonzero(is_cut_off))
            self.update_finding(view.step, "note" if is_expert else "warning", layers, evidence, since=0)

    def _find_cut_off(self, architecture: Architecture) -> tuple[NDArray[np.bool_], float] | None:
        """Return the trained layers that never had a gradient, and their share of the weights; None if it is small."""
        is_trained, sizes = ~architecture.is_frozen, architecture.sqrt_numel**2
        is_cut_off = self._untouched & is_trained
        share = float(sizes[is_cut_off].sum() / max(sizes[is_trained].sum(), 1.0))
        return (is_cut_off, share) if share >= LARGE_SHARE else None

    @property
    def _is_of_gradients(self) -> bool:
        """Whether the finding is about gradients that nothing uses."""
        return self._has_evidence("unused_gradient_share") or self._has_evidence("unregistered_gradient_share")

    def _has_evidence(self, name: str) -> bool:
        return self.finding_state is not None and name in self.finding_state.evidence

    def _read_unregistered(self, view: StepView, share: float) -> None:
        if share == 0:
            self.unregistered_probes = 0
            if self._has_evidence("unregistered_gradient_share"):
                self.close_finding(view.step)
            return
        self.unregistered_probes += 1
        is_free = not self.is_open or self._has_evidence("unregistered_gradient_share")
        if self.unregistered_probes >= PROBES and is_free:
            self.update_finding(view.step, "warning", [], {"unregistered_gradient_share": share}, since=0)

    def _read_unused(self, view: StepView, share: float) -> None:
        architecture = view.architecture
        if share == 0 or not architecture.is_forgotten.any():
            self.probes = 0
            if self._has_evidence("unused_gradient_share"):
                self.close_finding(view.step)
            return
        self.probes += 1
        if self.probes < PROBES or (self.is_open and not self._has_evidence("unused_gradient_share")):
            return
        forgotten = [int(i) for i in architecture.order if architecture.is_forgotten[i]]
        in_order = architecture.order.tolist()
        trained = [place for place, i in enumerate(in_order) if not architecture.is_frozen[i]]
        is_behind = bool(trained) and in_order.index(forgotten[-1]) > trained[0]
        evidence = {"unused_gradient_share": share, "layers_affected": float(len(forgotten))}
        has_failed = view.is_stuck and view.objective.count >= STUCK_PATIENCE and not view.has_learned
        trains_nothing = share >= ALL and not self.touched
        is_fault = has_failed or trains_nothing or (is_behind and share < MOST)
        severity: Severity = "warning" if is_fault else "note"
        self.update_finding(view.step, severity, forgotten[-MAX_LAYERS_NAMED:], evidence, since=0)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain how much of the model does not train."""
        evidence = finding.evidence
        if "unregistered_gradient_share" in evidence:
            return (
                f"{evidence['unregistered_gradient_share']:.0%} of all gradients belong to parameters that the model "
                "uses and does not register, as those of layers in a list or dict of Python: model.parameters() lacks "
                "them, so that no optimizer changes them. Put the layers into an nn.ModuleList or nn.ModuleDict."
            )
        count = int(evidence["layers_affected"])
        if "unused_gradient_share" in evidence:
            which = f"1 weight matrix ({layers[0]}) is" if count == 1 else f"{count} (the last is {layers[-1]}) are"
            text = (
                f"{evidence['unused_gradient_share']:.2%} of all gradients belong to layers that are in no optimizer, "
                f"so that they never change: {which} computed in vain."
            )
            if finding.severity == "note":
                return f"{text} If that is meant, requires_grad_(False) saves the time."
            if evidence["unused_gradient_share"] >= ALL:
                return (
                    f"{text} Was the layer made, or replaced, after the optimizer, or does the optimizer hold the "
                    "parameters of another model?"
                )
            return f"{text} Was the layer made, or replaced, after the optimizer?"
        share = evidence["share_of_weights"]
        which = f"1 layer ({layers[0]})" if count == 1 else f"{count} layers (the first is {layers[0]})"
        if finding.severity != "note" and evidence.get("layers_with_zero_gradient", 0) == count:
            return (
                f"The gradient of {which} with {share:.0%} of the trained weights has been exactly zero since the "
                "start, while other layers had gradients. Is the output of this part multiplied by zero, or are its "
                "units dead?"
            )
        question = "Are these experts that were never chosen?"
        if finding.severity != "note":
            question = "Is this part computed under no_grad, or cut off by detach()?"
        return (
            f"{which} with {share:.0%} of the trained weights never had a gradient, so they stay as they were "
            f"initialized. {question}"
        )


def _read_bits(bits: int, count: int) -> NDArray[np.bool_]:
    """Return the lowest `count` bits as a boolean array, the lowest first."""
    packed = np.frombuffer(bits.to_bytes(count // 8 + 1, "little"), dtype=np.uint8)
    return np.unpackbits(packed, count=count, bitorder="little").astype(np.bool_)


def _write_bits(flags: NDArray[np.bool_]) -> int:
    """Return a number whose bit i is `flags[i]`."""
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")
