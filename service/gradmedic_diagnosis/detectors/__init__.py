"""Detectors: each reads the stream step by step and holds at most one finding.

A detector is a small state machine. `observe` takes a `Moment` - one step, already measured - and updates the finding;
`signal` says how strongly the detector speaks for its verdict at that step, 0 (silent) to 1. Detectors do not know each
other; `gradmedic_diagnosis.diagnostician` combines them.
"""

from gradmedic_diagnosis.detectors.base import Detector, Episode, Moment
from gradmedic_diagnosis.detectors.contracting_recurrence import ContractingRecurrence
from gradmedic_diagnosis.detectors.depth_gap import DepthGap
from gradmedic_diagnosis.detectors.depth_growth import DepthGrowth
from gradmedic_diagnosis.detectors.divergence import Divergence
from gradmedic_diagnosis.detectors.excessive_clipping import ExcessiveClipping
from gradmedic_diagnosis.detectors.growth_in_time import GrowthInTime
from gradmedic_diagnosis.detectors.insensitive_loss import InsensitiveLoss
from gradmedic_diagnosis.detectors.nonfinite import NonFinite
from gradmedic_diagnosis.detectors.oscillation import Oscillation
from gradmedic_diagnosis.detectors.overwritten_weights import OverwrittenWeights
from gradmedic_diagnosis.detectors.plateau import Plateau
from gradmedic_diagnosis.detectors.saturation import Saturation
from gradmedic_diagnosis.detectors.starvation import Starvation
from gradmedic_diagnosis.detectors.zero_gradient import ZeroGradient

ALL: tuple[type[Detector], ...] = (
    NonFinite,
    Divergence,
    GrowthInTime,
    OverwrittenWeights,
    DepthGrowth,
    Oscillation,
    ZeroGradient,
    DepthGap,
    Saturation,
    ContractingRecurrence,
    InsensitiveLoss,
    ExcessiveClipping,
    Starvation,
    Plateau,
)
"""Every detector; where several speak equally loud for one verdict, the first of these decides it."""

DETECTORS: tuple[str, ...] = tuple(detector.id for detector in ALL)
"""Their ids, by which findings name them and a run or project may mute them."""

__all__ = ["ALL", "DETECTORS", "Detector", "Episode", "Moment"]
