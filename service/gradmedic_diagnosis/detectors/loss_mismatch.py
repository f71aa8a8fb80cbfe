"""A loss function that gets an input of the wrong kind: probabilities for logits, or a shape that broadcasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

from gradmedic.protocol.runs import Loss
from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_columns import StepColumns
from gradmedic_diagnosis.detectors.step_view import StepView

RESHAPES = frozenset({
    "View", "UnsafeView", "ReshapeAlias", "Reshape", "T", "Transpose", "Permute", "Squeeze", "Unsqueeze", "ToCopy",
    "Slice", "Select", "Index", "Clone", "Alias", "Expand",
})  # fmt: skip
"""Operations that change the shape, the order or the type of their input, not its values."""
APPLIED_TWICE = frozenset(
    {
        ("LogSoftmax", "Softmax"),
        ("LogSoftmax", "Sigmoid"),
        ("BinaryCrossEntropyWithLogits", "Sigmoid"),
        ("BinaryCrossEntropyWithLogits", "Softmax"),
    }
)
"""An operation that expects logits, and the operation that gave it probabilities. A log-softmax of a log-softmax is
not among them: it changes nothing."""

CAUSE_SCORE = 0.95


class LossMismatch(Detector):
    """The loss function applies a softmax or sigmoid to the output of one, or output and target broadcast.

    In the first case, the input lies between 0 and 1, so no class can get a probability near 1, the loss has a floor
    far above zero and the gradients are squeezed twice. In the second, each output is compared with every target, so
    that the best output is the mean of the targets.
    """

    id = "loss_mismatch"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {"found": "found"}

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        """The two operations, the one nearer to the loss first; empty if none is applied twice."""

    @property
    def is_fault(self) -> bool:
        """Whether an open finding is a fault of the script: it is."""
        return True

    @property
    def cause_score(self) -> float:
        """Score of an open fault: it is read from the script itself."""
        return CAUSE_SCORE if self.is_open and self.is_fault else 0.0

    def pass_over(self, columns: StepColumns) -> int:
        """Read all steps where no fault is known of the loss."""
        facts = columns.training.loss
        if not self.is_at_rest or self.found:
            return 0
        is_sound = facts is None or (facts.broadcasts is not True and find_repeated_activation(facts) is None)
        return len(columns) if is_sound else 0

    def observe(self, view: StepView) -> None:
        """Open the finding at the first step with a loss."""
        if view.loss is None or (view.loss_facts is None and not self.is_open):
            return
        self.found = list(find_repeated_activation(view.loss_facts) or ())
        broadcasts = view.loss_facts is not None and view.loss_facts.broadcasts is True
        if self.found or broadcasts:
            evidence = {"loss": view.loss, "broadcasts": 1.0} if broadcasts else {"loss": view.loss}
            self.update_finding(view.step, "warning", [], evidence)
        else:
            self.close_finding(view.step)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain which operation is applied twice, or what broadcasting does."""
        del layers
        if "broadcasts" in finding.evidence:
            return (
                "The shapes of output and target differ and broadcast, as [n, 1] and [n] do: each output is compared "
                "with every target, so the model learns their mean. Give both the same shape, as squeeze(-1) does."
            )
        outer, inner = self.found
        loss = "cross-entropy" if outer == "LogSoftmax" else "binary cross-entropy"
        return (
            f"The loss is a {loss} that takes logits, and it gets the output of a {inner.lower()}. The signal is "
            f"squeezed twice, and the loss cannot come near zero. Remove the {inner.lower()} before the loss."
        )


def find_repeated_activation(loss: Loss | None) -> tuple[str, str] | None:
    """Return the two operations of the loss that are one too many, the one nearer to the loss first; else None.

    >>> find_repeated_activation(Loss(operations=["NllLoss", "LogSoftmax", "View", "Softmax", "Addmm"]))
    ('LogSoftmax', 'Softmax')
    """
    if loss is None:
        return None
    operations = [operation for operation in loss.operations if operation not in RESHAPES]
    for pair in pairwise(operations):
        if pair in APPLIED_TWICE:
            return pair
    return None
