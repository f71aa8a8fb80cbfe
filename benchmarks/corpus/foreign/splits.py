"""The foreign splits. No program and no family is in two of them."""

from __future__ import annotations

from typing import Final

from benchmarks.corpus.foreign.cases import Program
from benchmarks.corpus.foreign.programs import (
    aside_generative,
    aside_policies,
    aside_precision,
    aside_relations,
    aside_sequences,
    aside_units,
    fit_networks,
    fit_others,
)

FOREIGN_FIT: Final = "foreign-fit"
"""The split on which detectors may be developed."""
FOREIGN_ASIDE: Final = "foreign-aside"
"""The split that is not read while detectors change. `set_aside.json` has its digest and lists each opening."""
FOREIGN_SPLITS: Final[dict[str, tuple[Program, ...]]] = {
    FOREIGN_FIT: (*fit_networks.PROGRAMS, *fit_others.PROGRAMS),
    FOREIGN_ASIDE: (
        *aside_sequences.PROGRAMS,
        *aside_generative.PROGRAMS,
        *aside_policies.PROGRAMS,
        *aside_precision.PROGRAMS,
        *aside_relations.PROGRAMS,
        *aside_units.PROGRAMS,
    ),
}
