"""The detectors: each reads the run step by step and reports at most one finding.

A detector is a small state machine. `observe` reads one `StepView` and updates the finding and its `strength`: how
strongly the finding supports the detector's verdict at that step, from 0 to 1. Detectors do not read each other;
`gradmedic_diagnosis.diagnostician` combines them.
"""

from gradmedic_diagnosis.detectors.accumulating_gradients import AccumulatingGradients
from gradmedic_diagnosis.detectors.adversary_dominates import AdversaryDominates
from gradmedic_diagnosis.detectors.attention_logit_growth import AttentionLogitGrowth
from gradmedic_diagnosis.detectors.base import Detector
from gradmedic_diagnosis.detectors.contracting_recurrence import ContractingRecurrence
from gradmedic_diagnosis.detectors.depth_gap import DepthGap
from gradmedic_diagnosis.detectors.depth_growth import DepthGrowth
from gradmedic_diagnosis.detectors.disconnected_parameters import DisconnectedParameters
from gradmedic_diagnosis.detectors.excessive_clipping import ExcessiveClipping
from gradmedic_diagnosis.detectors.excessive_weight_decay import ExcessiveWeightDecay
from gradmedic_diagnosis.detectors.forgetting_recurrence import ForgettingRecurrence
from gradmedic_diagnosis.detectors.growth_in_time import GrowthInTime
from gradmedic_diagnosis.detectors.insensitive_loss import InsensitiveLoss
from gradmedic_diagnosis.detectors.learning_rate_jump import LearningRateJump
from gradmedic_diagnosis.detectors.loss_divergence import LossDivergence
from gradmedic_diagnosis.detectors.loss_mismatch import LossMismatch
from gradmedic_diagnosis.detectors.loss_scale_exhausted import LossScaleExhausted
from gradmedic_diagnosis.detectors.loss_spike import LossSpike
from gradmedic_diagnosis.detectors.low_precision_stall import LowPrecisionStall
from gradmedic_diagnosis.detectors.missing_gradients import MissingGradients
from gradmedic_diagnosis.detectors.no_signal_from_loss import NoSignalFromLoss
from gradmedic_diagnosis.detectors.nonfinite import Nonfinite
from gradmedic_diagnosis.detectors.nonfinite_input import NonfiniteInput
from gradmedic_diagnosis.detectors.nonfinite_loss import NonfiniteLoss
from gradmedic_diagnosis.detectors.optimizer_epsilon import OptimizerEpsilon
from gradmedic_diagnosis.detectors.oscillation import Oscillation
from gradmedic_diagnosis.detectors.overwritten_weights import OverwrittenWeights
from gradmedic_diagnosis.detectors.plateau import Plateau
from gradmedic_diagnosis.detectors.recurring_growth import RecurringGrowth
from gradmedic_diagnosis.detectors.router_collapse import RouterCollapse
from gradmedic_diagnosis.detectors.saturation import Saturation
from gradmedic_diagnosis.detectors.stale_second_moment import StaleSecondMoment
from gradmedic_diagnosis.detectors.starvation import Starvation
from gradmedic_diagnosis.detectors.zero_gradient import ZeroGradient

DETECTOR_TYPES: tuple[type[Detector], ...] = (
    Nonfinite,
    LossDivergence,
    GrowthInTime,
    OverwrittenWeights,
    DepthGrowth,
    Oscillation,
    RecurringGrowth,
    ZeroGradient,
    DepthGap,
    Saturation,
    ContractingRecurrence,
    InsensitiveLoss,
    ExcessiveClipping,
    Starvation,
    DisconnectedParameters,
    NoSignalFromLoss,
    LossMismatch,
    ForgettingRecurrence,
    RouterCollapse,
    AccumulatingGradients,
    MissingGradients,
    LossScaleExhausted,
    AttentionLogitGrowth,
    NonfiniteInput,
    NonfiniteLoss,
    LearningRateJump,
    AdversaryDominates,
    LossSpike,
    OptimizerEpsilon,
    LowPrecisionStall,
    StaleSecondMoment,
    ExcessiveWeightDecay,
    Plateau,
)
"""Every detector. Where several are equally strong for one verdict, the first of them decides it."""

DETECTORS: tuple[str, ...] = tuple(detector.id for detector in DETECTOR_TYPES)
"""Ids of all detectors. Findings carry them, and runs and projects mute detectors by them."""
