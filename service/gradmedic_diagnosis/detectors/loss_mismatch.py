"""A loss function that gets an input of the wrong kind: probabilities for logits, or a shape that broadcasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile
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
NORMALIZED_TWICE = (("Sub", "Softmax", "Logsumexp"), ("Sub", "Sigmoid", "Logsumexp"))
"""Operations by which a distribution of categories normalizes its logits, where it gets probabilities."""
LINEAR = frozenset({"Addmm", "Mm", "Bmm", "Mv", "Baddbmm", "Addbmm", "Convolution", "Linear", "Embedding"})
"""Operations of layers: what comes behind the first of them is the model, and no longer the loss."""
PROBABILITIES = ("Softmax", "Sigmoid")
LOGARITHMS = ("LogSoftmax", "LogSigmoid", "Log", "Logsumexp", "Log1P", "Log2", "Log10")
NEEDS_LOGARITHMS = ("kl_divergence", "negative_log_likelihood")
"""Kinds of losses that take the logarithms of probabilities, and that are never negative then."""

CAUSE_SCORE = 0.95


class LossMismatch(Detector):
    """The loss function applies a softmax or sigmoid to the output of one, or misses one; or shapes broadcast.

    In the first case, the input lies between 0 and 1, so no class can get a probability near 1, the loss has a floor
    far above zero and the gradients are squeezed twice. A loss of log-probabilities that gets probabilities is no
    divergence. Where output and target broadcast, each output is compared with every target, so that the best output is
    the mean of the targets.
    """

    id = "loss_mismatch"
    verdict = "healthy"
    stored_keys: ClassVar[Mapping[str, str]] = {"found": "found"}

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        """The two operations, the one nearer to the loss first; or the kind of the loss and the operation that gave it
        probabilities; empty if there is no such fault."""

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
        faults = (find_repeated_activation(facts), find_missing_logarithm(facts))
        is_sound = facts is None or (facts.broadcasts is not True and faults == (None, None))
        return len(columns) if is_sound else 0

    def observe(self, view: StepView) -> None:
        """Open the finding at the first step with a loss."""
        if view.loss is None or (view.loss_facts is None and not self.is_open):
            return
        found = find_repeated_activation(view.loss_facts)
        if found is None and view.loss < 0:
            found = find_missing_logarithm(view.loss_facts)
        self.found = list(found or ())
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
        if outer in NEEDS_LOGARITHMS:
            name = "Kullback-Leibler divergence" if outer == "kl_divergence" else "negative log-likelihood"
            return (
                f"The loss is a {name} of log-probabilities, and it gets probabilities, the output of a "
                f"{inner.lower()}. So it falls below 0, and a smaller loss is no better answer. Give it the output of "
                "log_softmax."
            )
        loss = "cross-entropy" if outer == "LogSoftmax" else "binary cross-entropy"
        return (
            f"The loss is a {loss} that takes logits, and it gets the output of a {inner.lower()}. The signal is "
            f"squeezed twice, and the loss cannot come near zero. Remove the {inner.lower()} before the loss."
        )


def find_missing_logarithm(loss: Loss | None) -> tuple[str, str] | None:
    """Return the kind of a loss that takes log-probabilities, and the operation that gave it probabilities; else None.

    The operations alone do not prove it: targets may be probabilities that train, too. Such a loss is not negative.

    >>> find_missing_logarithm(Loss(kind="kl_divergence", operations=["Sum", "Sub", "Mul", "Softmax", "Addmm"]))
    ('kl_divergence', 'Softmax')
    >>> find_missing_logarithm(Loss(kind="kl_divergence", operations=["Sum", "Sub", "Mul", "LogSoftmax", "Addmm"]))
    """
    if loss is None:
        return None
    of_loss = list(takewhile(lambda operation: operation not in LINEAR, loss.operations))
    kind = "negative_log_likelihood" if "NllLoss" in of_loss else loss.kind
    first = next((each for each in of_loss if each in PROBABILITIES or each in LOGARITHMS), None)
    return (kind, first) if kind in NEEDS_LOGARITHMS and first in PROBABILITIES else None


def find_repeated_activation(loss: Loss | None) -> tuple[str, str] | None:
    """Return the two operations of the loss that are one too many, the one nearer to the loss first; else None.

    >>> find_repeated_activation(Loss(operations=["NllLoss", "LogSoftmax", "View", "Softmax", "Addmm"]))
    ('LogSoftmax', 'Softmax')
    >>> find_repeated_activation(Loss(operations=["Neg", "Mean", "Mul", "Gather", "Sub", "Softmax", "Logsumexp"]))
    ('LogSoftmax', 'Softmax')
    """
    if loss is None:
        return None
    operations = [operation for operation in loss.operations if operation not in RESHAPES]
    for pair in pairwise(operations):
        if pair in APPLIED_TWICE:
            return pair
    for triple in zip(operations, operations[1:], operations[2:], strict=False):
        if triple in NORMALIZED_TWICE:
            return ("LogSoftmax", triple[1])
    return None
