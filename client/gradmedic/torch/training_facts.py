"""Joins what the parts of a watch have found out about how the models train."""

from __future__ import annotations

from torch import Tensor

from gradmedic.protocol.runs import Optimizer, Training
from gradmedic.torch.carried_gradients import CarriedGradients
from gradmedic.torch.clipping_meter import ClippingMeter
from gradmedic.torch.first_batch import FirstBatch
from gradmedic.torch.loss_observer import LossObserver
from gradmedic.torch.watched_layers import WatchedLayers


class TrainingFacts:
    """The facts about a training, as they become known.

    Args:
        first_batch: measured the first batch.
        loss_observer: observes the loss.
        clipping: observes the clipping.
        carried: finds out whether gradients are carried over.
        layers: the layers of the models.
    """

    def __init__(
        self,
        first_batch: FirstBatch,
        loss_observer: LossObserver,
        clipping: ClippingMeter,
        carried: CarriedGradients,
        layers: WatchedLayers,
    ) -> None:
        self._first_batch, self._loss_observer, self._clipping = first_batch, loss_observer, clipping
        self._carried, self._layers = carried, layers
        self._key: object = None
        self._training: Training | None = None

    def read(self, optimizers: list[Optimizer]) -> Training | None:
        """Return what is known now, waiting for a device if need be.

        Args:
            optimizers: the optimizers as they were at the first step.
        """
        carries_gradients = self._carried.read()
        key = (
            self._clipping.has_clipped, self._first_batch.is_over, self._loss_observer.revision, carries_gradients,
            self._layers.layer_order,
        )  # fmt: skip
        if key != self._key:
            self._key = key
            parameter_dtype = find_dtype(self._layers.list_built())
            self._training = Training(
                optimizers=optimizers,
                precision=self._first_batch.autocast or parameter_dtype,
                parameter_dtype=parameter_dtype,
                input_rms=self._first_batch.input_rms,
                input_abs_max=self._first_batch.input_abs_max,
                target_rms=self._loss_observer.target_rms,
                loss=self._loss_observer.summary(),
                batch_size=self._first_batch.batch_size,
                clips_gradients=self._clipping.has_clipped,
                carries_gradients=carries_gradients,
                layer_order=self._layers.layer_order,
            )
        return self._training


def find_dtype(parameters: list[Tensor]) -> str | None:
    """Return the dtype of most elements of the parameters; None without parameters."""
    elements: dict[str, int] = {}
    for parameter in parameters:
        name = str(parameter.dtype).removeprefix("torch.")
        elements[name] = elements.get(name, 0) + parameter.numel()
    return max(elements, key=lambda name: elements[name], default=None)
