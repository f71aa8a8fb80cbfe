"""The splits of the causes corpus. No program is in two of them."""

from __future__ import annotations

from typing import Final

from benchmarks.corpus.causes.cases import CauseProgram
from benchmarks.corpus.causes.programs import aside_others, aside_sequences, aside_tables, fit_networks, fit_others

CAUSES_FIT: Final = "causes-fit"
"""The split on which conditions and causes may be developed."""
CAUSES_ASIDE: Final = "causes-aside"
"""The split that is not looked at run by run. `set_aside.json` has its digest and lists each opening."""
CAUSES_SPLITS: Final[dict[str, tuple[CauseProgram, ...]]] = {
    CAUSES_FIT: (*fit_networks.PROGRAMS, *fit_others.PROGRAMS),
    CAUSES_ASIDE: (*aside_sequences.PROGRAMS, *aside_others.PROGRAMS, *aside_tables.PROGRAMS),
}
