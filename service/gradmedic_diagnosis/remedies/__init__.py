"""The catalogue of advice: what each remedy is good for, its reason, its cost and its sources.

The ids, the parameters with their ranges, what each remedy changes and the code to paste are in
`gradmedic.protocol.remedies`. This table adds what advice needs. A remedy with several good values of its parameters
has one row for each of them.
"""

from __future__ import annotations

from gradmedic_diagnosis.remedies.modules import MODULE_ROWS
from gradmedic_diagnosis.remedies.optimizers import OPTIMIZER_ROWS
from gradmedic_diagnosis.remedies.row import RemedyRow
from gradmedic_diagnosis.remedies.script import SCRIPT_ROWS
from gradmedic_diagnosis.remedies.updates import UPDATE_ROWS

CATALOGUE: tuple[RemedyRow, ...] = (*UPDATE_ROWS, *MODULE_ROWS, *OPTIMIZER_ROWS, *SCRIPT_ROWS)
"""Every remedy. Among remedies of the same merit, the first of these is advised first."""
