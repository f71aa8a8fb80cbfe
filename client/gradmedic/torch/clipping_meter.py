"""What a `Watch` does when the script clips gradients: it measures them before, and records the coefficient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradmedic.recording.sampler import Sampler
from gradmedic.torch.lockstep import Lockstep
from gradmedic.torch.nonfinite_check import GradientCheck
from gradmedic.torch.statistics import MeasuredArray, copy_first_element, is_measured_on_host, measure_gradients
from gradmedic.torch.watched_layers import UnclippedGradient, WatchedLayers, WatchedParameter, group_by_device


class ClippingMeter:
    """Observes the clipping of watched gradients. A `ClippingObserver`.

    Args:
        layers: the watched layers.
        sampling: decides which steps are measured.
        check: finds non-finite gradients; None if no step may be sampled besides, as other processes do not sample it.
        sampler: sampler of the run.
        before_first_step: function that is called before the first measurement.
        call_safely: function that calls a function and reports its error, which must not reach the training. It takes
            the message for an error, the function and the arguments.
        add_coefficient: function that takes what gradients were multiplied by.
        add_flags: function that measures on a device which gradients of some layers are non-finite.
    """

    def __init__(
        self,
        layers: WatchedLayers,
        sampling: Sampler | Lockstep,
        check: GradientCheck | None,
        sampler: Sampler,
        before_first_step: Callable[[], None],
        call_safely: Callable[..., None],
        add_coefficient: Callable[[MeasuredArray], None],
        add_flags: Callable[[Sequence[WatchedParameter]], None],
    ) -> None:
        self._layers, self._sampling, self._check, self._sampler = layers, sampling, check, sampler
        self._before_first_step, self._call_safely = before_first_step, call_safely
        self._add_coefficient, self._add_flags = add_coefficient, add_flags
        self._clipped: list[WatchedParameter] = []  # of the call of torch's function that is under way
        self._has_unclipped = False
        self.has_clipped: bool | None = None
        """Whether the script clips watched gradients; None if no optimizer has stepped yet."""
        self.is_checked = False
        """Whether all watched gradients of the step were looked at before they were clipped."""

    def before_clipping(self, parameters: list[Tensor], total_norm: Tensor | None) -> None:
        """Measure gradients that are about to be clipped."""
        self._call_safely("clipping could not be observed", self._measure, parameters, total_norm)

    def after_clipping(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        """Record that gradients were clipped, and by how much."""
        self._call_safely("clipping could not be observed", self._record, parameters, coefficient)

    def end_optimizer_step(self) -> None:
        """Note that the gradients that were clipped are used up."""
        self.is_checked = False
        if self.has_clipped is None:
            self.has_clipped = False

    def clear(self) -> None:
        """Drop what was measured of gradients that no optimizer used, at the end of a step."""
        self.is_checked = False
        if self._has_unclipped:
            self._has_unclipped = False
            for watched in self._layers.by_id.values():
                watched.unclipped = None

    def _measure(self, parameters: list[Tensor], total_norm: Tensor | None) -> None:
        self._clipped = clipped = self._find_watched(parameters)
        if not clipped:
            return
        self.has_clipped = True
        if not self._sampling.is_sampling and self._check is not None:
            self._look(self._check, clipped, parameters, total_norm)
        if not self._sampling.is_sampling:
            return
        self._before_first_step()
        with torch.no_grad():
            unmeasured = [
                watched
                for watched in clipped
                if watched.parameter.grad is not None and not watched.has_valid_unclipped()
            ]
            for group in group_by_device(unmeasured):
                array = measure_gradients([watched.gradient() for watched in group])
                for row, watched in enumerate(group):
                    watched.unclipped = UnclippedGradient(array, row, watched.gradient())
                    self._has_unclipped = True

    def _look(
        self, check: GradientCheck, clipped: Sequence[WatchedParameter], parameters: list[Tensor], norm: Tensor | None
    ) -> None:
        """Sample this step if a gradient is not finite. After the clipping, all of them or none would be."""
        if norm is not None and is_measured_on_host(norm):
            is_finite = math.isfinite(norm.item())
        else:
            is_finite = check.is_finite(parameters)
            self._add_flags(clipped)
        if not is_finite:
            self._sampler.sample_this_step()
        self.is_checked = len(clipped) == len(self._layers.by_id)

    def _find_watched(self, parameters: list[Tensor]) -> list[WatchedParameter]:
        return [watched for p in parameters if (watched := self._layers.by_id.get(id(p))) is not None]

    def _record(self, parameters: list[Tensor], coefficient: Tensor | None) -> None:
        clipped, self._clipped = self._clipped or self._find_watched(parameters), []
        if self._has_unclipped:
            for watched in clipped:
                if watched.unclipped is not None:
                    watched.unclipped.version = watched.unclipped.gradient._version
        if clipped and coefficient is not None and (self._sampling.is_sampling or coefficient.device.type == "cpu"):
            self._add_coefficient(copy_first_element(coefficient))
