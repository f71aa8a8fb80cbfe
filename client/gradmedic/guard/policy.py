"""What the owner of a run allows guards to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardPolicy:
    """What guards may do in a training loop."""

    skips_nonfinite: bool = False
    """Whether a step is not taken if its gradient is not finite."""
    stops_at_nonfinite: bool = False
    """Whether the training stops as well then."""
    skips_spikes: bool = False
    """Whether a step is not taken if the norm of its gradient is a spike."""
    clips: bool = False
    """Whether gradients are clipped as the diagnosis of an unhealthy verdict advises."""
    rewinds: bool = False
    """Whether the training goes back to an earlier state when skipping a step does not help."""

    @classmethod
    def from_choices(cls, *, on_nonfinite: str, on_unhealthy: str) -> GuardPolicy:
        """Return what two arguments of `gradmedic.init()` allow."""
        skips = on_unhealthy in ("skip", "rewind")
        return cls(
            skips_nonfinite=skips or on_nonfinite in ("skip", "stop"),
            stops_at_nonfinite=on_nonfinite == "stop",
            skips_spikes=skips,
            clips=on_unhealthy == "clip",
            rewinds=on_unhealthy == "rewind",
        )

    @property
    def is_active(self) -> bool:
        """Whether guards may do anything in an optimizer's step."""
        return self.skips_nonfinite or self.skips_spikes or self.clips

    @property
    def needs_norms(self) -> bool:
        """Whether the norm of every step's gradient must be known."""
        return self.skips_nonfinite or self.skips_spikes
