"""The pure core: from blocks of gradient statistics to a verdict with its reasons.

numpy and the standard library only, no input or output: the same code serves the API, `gradmedic rediagnose`, the
benchmarks and the tests.
"""

from gradmedic_diagnosis.block import Block, StepSeries
from gradmedic_diagnosis.detectors import DETECTORS
from gradmedic_diagnosis.diagnostician import Diagnostician
from gradmedic_diagnosis.facts import LayerFacts, OptimizerFacts, TrainingFacts
from gradmedic_diagnosis.report import Advice, Cause, Diagnosis, Finding, Remedy, Verdict, VerdictChange

__all__ = [
    "DETECTORS",
    "Advice",
    "Block",
    "Cause",
    "Diagnosis",
    "Diagnostician",
    "Finding",
    "LayerFacts",
    "OptimizerFacts",
    "Remedy",
    "StepSeries",
    "TrainingFacts",
    "Verdict",
    "VerdictChange",
]
