"""Causes in the initial weights."""

from __future__ import annotations

import math

from gradmedic.protocol.diagnosis import Cause
from gradmedic_diagnosis.causes.cause import make_cause, ramp
from gradmedic_diagnosis.run_evidence import RunEvidence

LARGE_RECURRENT_FACTOR = 2.0
"""Initial spectral norm from which a recurrent matrix is too large: torch's own initialization has 1.15, an orthogonal
matrix has 1."""
LARGE_RECURRENT_SCORE = 0.91
"""Score of such a matrix, above that of the largest update. A judgement: gradients may grow a thousandfold over ten
time steps before there is any update, and the updates follow from them (Pascanu et al. 2013, section 2.1)."""
SMALL_RECURRENT_FACTOR = 0.7
"""Initial factor per time step below which a recurrent matrix is too small."""
INIT_DECADES = 0.5
"""Decades of a signal that the initial weights gain over the network's depth, from which they are poor."""
CLEAR_INIT_DECADES = 2 * INIT_DECADES
"""Decades from which the initial weights alone explain a large first loss or a large recurrent factor."""
VARIANCE_PRESERVING_DECADES = 1.5
"""Decades within which initial weights preserve variance well enough not to be the reason for fading gradients. Four
matrices behind rectifiers lose them with torch's own initialization, whose variance is a sixth of He's."""
DEFAULT_DECADES = 0.42
"""Decades that a matrix behind a rectifier loses at most with torch's own initialization: 0.39, and a little more in
small matrices, by chance."""
DEEP_DECADES = 3.0
"""Decades that are too many also for torch's own initialization: eight matrices behind rectifiers lose them."""


def check_large_initialization(run: RunEvidence) -> Cause | None:
    """Look for initial weights that amplify a signal."""
    decades = run.initial_signal_decades
    if not decades >= CLEAR_INIT_DECADES and (recurrence := check_large_recurrence(run)) is not None:
        return recurrence
    if math.isnan(decades) or decades < INIT_DECADES:
        return None
    return make_cause(
        "poor_initialization",
        0.55 + 0.4 * ramp(decades, INIT_DECADES, 2.0),
        f"The initial weights amplify a signal 10^{decades:.1f}-fold through {len(run.main_path)} layers; "
        "a variance-preserving initialization (He, Glorot) keeps its size.",
        signal_decades=decades,
        layers=len(run.main_path),
    )


def check_large_recurrence(run: RunEvidence) -> Cause | None:
    """Look for a recurrent matrix that starts too large: the state saturates or overflows, whatever follows from it."""
    factor = run.recurrent_factor
    if not factor >= LARGE_RECURRENT_FACTOR:
        return None
    score = LARGE_RECURRENT_SCORE + 0.06 * ramp(math.log10(factor), math.log10(LARGE_RECURRENT_FACTOR), 1.0)
    text = f"The recurrent matrix starts at a factor of {factor:.3g} per time step; an orthogonal one starts at 1."
    return make_cause("poor_initialization", score, text, recurrent_factor=factor)


def has_zero_matrices(run: RunEvidence) -> bool:
    """Whether half of the weight matrices or more start at exactly zero."""
    return len(run.zero_initialized) >= max(1, len(run.path) // 2)


def check_small_initialization(run: RunEvidence) -> Cause | None:
    """Look for initial weights that shrink a signal, or are all zero."""
    if has_zero_matrices(run):
        zeros = len(run.zero_initialized)
        text = f"{zeros} weight matrices start at exactly zero: all units of a layer stay the same."
        return make_cause("poor_initialization", 0.97, text, zero_layers=zeros)
    factor, decades = run.recurrent_factor, run.initial_signal_decades
    if not math.isnan(factor) and factor < SMALL_RECURRENT_FACTOR:
        text = f"The recurrent matrix starts at a factor of {factor:.2g} per time step; an orthogonal one starts at 1."
        return make_cause("poor_initialization", 0.8, text, recurrent_factor=factor)
    if math.isnan(decades) or decades > -VARIANCE_PRESERVING_DECADES:
        return None
    if -decades < min(DEEP_DECADES, DEFAULT_DECADES * len(run.main_path)):
        return None  # no less than with torch's own initialization, with which a network of this depth trains
    text = (
        f"The initial weights shrink a signal by 10^{-decades:.1f} over {len(run.main_path)} layers; "
        "He or Glorot do not."
    )
    return make_cause(
        "poor_initialization",
        0.55 + 0.4 * ramp(-decades, VARIANCE_PRESERVING_DECADES, 3.0),
        text,
        signal_decades=decades,
    )
