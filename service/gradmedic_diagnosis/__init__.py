"""The diagnosis: it turns blocks of gradient statistics into a verdict with its reasons and advice.

It imports numpy, the standard library and `gradmedic.protocol` only, and does no input or output. The API,
`gradmedic rediagnose`, the benchmarks and the tests all run this code.
"""

from gradmedic_diagnosis.architecture import Architecture
from gradmedic_diagnosis.block import Block, StepSeries
from gradmedic_diagnosis.detectors import DETECTORS
from gradmedic_diagnosis.diagnostician import Diagnostician, UpdatedDiagnosis

__all__ = ["DETECTORS", "Architecture", "Block", "Diagnostician", "StepSeries", "UpdatedDiagnosis"]
