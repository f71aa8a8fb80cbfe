"""Families of runs, by split; no family is in both."""

from __future__ import annotations

from benchmarks.corpus.families.family import Case, Family


def families_of(split: str) -> tuple[Family, ...]:
    """Return the families of `fit` or `heldout`."""
    if split == "fit":
        from benchmarks.corpus.families import fit

        return fit.FAMILIES
    if split == "heldout":
        from benchmarks.corpus.families import heldout

        return heldout.FAMILIES
    raise ValueError(f"unknown split {split!r}")


__all__ = ["Case", "Family", "families_of"]
