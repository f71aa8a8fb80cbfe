"""Prints what was measured: a table of families for each set, then one row a set, and the targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks.reruns.configurations import FITTED
from benchmarks.reruns.measurement import OURS, RANDOM, LeftOut, Measured, median_turns

TARGET_VERIFIED: Final = {"own": 0.95, "drawn": 0.95, "published": 0.80}
"""Smallest share of each set that is verified without a false proof."""
TARGET_COUNT: Final = 60
"""Smallest number of failing trainings of a set."""
TARGET_FALSE: Final = 0.02
"""Largest share of verified remedies that are false proofs."""
TARGET_TRIALS: Final = 0.5
"""Largest number of trials to the first verified remedy, as a share of random search's."""
TARGET_HEALTHY: Final = 60
Z: Final = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResults:
    """The results of a set."""

    measured: Sequence[Measured]
    left_out: Sequence[LeftOut]
    twins: Sequence[str]
    """Status of the rerun of each twin that learns."""

    @property
    def strategies(self) -> tuple[str, ...]:
        """The measured strategies."""
        return tuple(self.measured[0].races) if self.measured else ()

    @property
    def proofs(self) -> tuple[int, int]:
        """Number of false proofs, and of all."""
        proofs = [proof for result in self.measured for proof in result.proofs]
        return sum(proof.is_false for proof in proofs), len(proofs)


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Return Wilson's interval (95 %) of a share.

    >>> [round(bound, 3) for bound in wilson(57, 60)]
    [0.863, 0.983]
    """
    if of == 0:
        return 0.0, 1.0
    share = hits / of
    middle = (share + Z**2 / (2 * of)) / (1 + Z**2 / of)
    half = Z / (1 + Z**2 / of) * math.sqrt(share * (1 - share) / of + Z**2 / (4 * of**2))
    return middle - half, middle + half


def report(sets: Mapping[str, SetResults]) -> bool:
    """Print the tables of the sets and the targets; return whether all targets are met."""
    for name, results in sets.items():
        print(f"\n{name}: {len(results.measured)} fail, {len(results.left_out)} are left out")
        _print_families(results)
        _print_details(results)
    print("\nset, failing | verified, 95 % interval | verified without a false proof | false proofs of all proofs |")
    print("median trials to the first verified, by strategy | verified by each of the others")
    for name, results in sets.items():
        print(_row(name, results))
    print()
    verdicts = [verdict for name, results in sets.items() for verdict in _verdicts(name, results)]
    for value, target, is_met in verdicts:
        print(f"{value} (target {target}) {'PASS' if is_met else 'FAIL'}")
    is_met = all(is_met for _, _, is_met in verdicts)
    shares = ", ".join(
        f"{name} {_share_true(results):.1%} of {len(results.measured)} (>= {TARGET_VERIFIED[name]:.0%})"
        for name, results in sets.items()
    )
    print(f"reruns: {shares} verified without a false proof {'PASS' if is_met else 'FAIL'}")
    return is_met


def _print_families(results: SetResults) -> None:
    """Print a row for each family, and one for all."""
    measured, strategies = results.measured, results.strategies
    columns = ("verified", "repaired by AUTOTRAINER's criterion", "trials to the first verified")
    print(f"of {', '.join(strategies)}: {'; '.join(columns)}; skill of the control, repaired, and of the twin")
    for family in (*dict.fromkeys(result.configuration.family for result in measured), ""):
        members = [result for result in measured if family in ("", result.configuration.family)]
        verified = [f"{_count_verified(members, name):>4}" for name in strategies]
        repaired = [f"{sum(result.races[name].is_repaired for result in members):>4}" for name in strategies]
        turns = [f"{median_turns(members, name):>5g}" for name in strategies]
        skills = [
            f"{_finite_median([result.skills[name] for result in members]):>6.2f}"
            for name in ("control", "repaired", "twin")
        ]
        print(
            f"{family or 'all':26}{len(members):>4} | {' '.join(verified)} | {' '.join(repaired)} | "
            f"{' '.join(turns)} | {' '.join(skills)}"
        )


def _print_details(results: SetResults) -> None:
    for result in results.measured:
        name = result.configuration.name
        for proof in result.proofs:
            if proof.is_false:
                skills = f"skill {proof.skill:.2f}, control {result.skills['control']:.2f}"
                print(f"false proof: {name}: {proof.remedies}: {skills}, twin {result.skills['twin']:.2f}")
        if not result.proofs:
            print(f"not repaired: {name}: {result.races[OURS].conclusion.reason}")
    for left in results.left_out:
        print(f"left out: {left.configuration.name}: {left.reason}")
    for label, is_fitted in (("corrected the advice", True), ("did not", False)):
        part = [result for result in results.measured if (result.configuration.name in FITTED) == is_fitted]
        if part:
            turns = ", ".join(f"{name} {median_turns(part, name):g}" for name in results.strategies)
            hits = _count_verified(part, OURS)
            print(f"of {len(part)} whose trials {label}: {hits} verified; median trials to the first: {turns}")
    if results.measured:
        print(f"longest trial {max(result.slowest for result in results.measured):.1f} CPU s")


def _row(name: str, results: SetResults) -> str:
    count, verified = len(results.measured), _count_verified(results.measured, OURS)
    true = _count_true(results)
    false, proofs = results.proofs
    low, high = wilson(verified, count)
    true_low, true_high = wilson(true, count)
    turns = " ".join(f"{name} {median_turns(results.measured, name):g}" for name in results.strategies)
    others = ", ".join(
        f"{name} {_count_verified(results.measured, name)}" for name in results.strategies if name != OURS
    )
    return (
        f"{name:12}{count:>4} | {verified:>4} {low:.0%} to {high:.0%} | {true:>4} {true_low:.0%} to {true_high:.0%} | "
        f"{false:>3} of {proofs:>3} | {turns} | {others}"
    )


def _verdicts(name: str, results: SetResults) -> list[tuple[str, str, bool]]:
    """Return value, target and whether it is met, for each target of a set."""
    count, share = len(results.measured), _share_true(results)
    false, proofs = results.proofs
    quiet = sum(status == "not_reproduced" for status in results.twins)
    compared: list[tuple[str, str, bool]] = []
    if RANDOM in results.strategies:
        ours, theirs = median_turns(results.measured, OURS), median_turns(results.measured, RANDOM)
        is_fewer = ours <= TARGET_TRIALS * theirs
        is_no_lower = _count_verified(results.measured, OURS) >= _count_verified(results.measured, RANDOM)
        compared = [
            (f"{name}: trials to the first verified: {ours:g} against {theirs:g}",
             "at most half of random search's, which verifies no more", is_fewer and is_no_lower),
        ]  # fmt: skip
    return [
        (f"{name}: verified without a false proof: {share:.1%} of {count}",
         f">= {TARGET_VERIFIED[name]:.0%} of at least {TARGET_COUNT}",
         share >= TARGET_VERIFIED[name] and count >= TARGET_COUNT),
        (f"{name}: false proofs: {false} of {proofs}", f"<= {TARGET_FALSE:.0%}", false <= TARGET_FALSE * proofs),
        *compared,
        (f"{name}: healthy that end not_reproduced: {quiet} of {len(results.twins)}",
         f"all of at least {TARGET_HEALTHY}", quiet == len(results.twins) >= TARGET_HEALTHY),
    ]  # fmt: skip


def _count_verified(measured: Sequence[Measured], name: str) -> int:
    return sum(bool(result.races[name].verified) for result in measured)


def _count_true(results: SetResults) -> int:
    return sum(result.is_truly_verified for result in results.measured)


def _share_true(results: SetResults) -> float:
    return _count_true(results) / max(1, len(results.measured))


def _finite_median(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return median(finite) if finite else math.nan
