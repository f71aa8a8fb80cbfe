"""The report of `make bench-reruns`: one row a set, false proofs, targets, and the last line."""

from __future__ import annotations

import math

import pytest
from benchmarks.reruns.configurations import CONFIGURATIONS
from benchmarks.reruns.measurement import LeftOut, Measured, Proof
from benchmarks.reruns.published.configurations import PUBLISHED
from benchmarks.reruns.report import SetResults, report
from benchmarks.reruns.strategies import STRATEGIES, Race
from benchmarks.reruns.trials import Subject

from gradmedic_service.reruns.experiment import CandidateOutcome, Conclusion


def _measured(configuration: Subject, proofs: list[Proof]) -> Measured:
    """Return results in which our advice has these proofs after 3 trials, and the other strategies have none."""
    outcome = CandidateOutcome(
        candidate=1, state="verified", seeds=3, healthy=3, loss=0.1, control_loss=2.0, cost_seconds=1.0, reason=""
    )
    races = {
        name: Race(
            conclusion=Conclusion(
                status="done", reason="none held", outcomes=(outcome,) if name == "gradmedic" and proofs else ()
            ),
            candidates=[(), ()],
            trials=9,
            is_repaired=False,
        )
        for name in STRATEGIES
    }
    in_turn = {name: 3 if name == "gradmedic" and proofs else None for name in STRATEGIES}
    skills = {"control": 0.0, "repaired": proofs[0].skill if proofs else math.nan, "twin": 0.9}
    return Measured(
        configuration=configuration,
        races=races,
        in_turn=in_turn,
        skills=skills,
        slowest=1.0,
        verdict="exploding",
        proofs=proofs,
    )


TRUE = Proof(remedies="clip_grad_norm", skill=0.8, is_false=False)
FALSE = Proof(remedies="learning_rate", skill=0.1, is_false=True)


def _results(*, unrepaired: int = 0, false: int = 0, count: int = 80) -> SetResults:
    published = [*PUBLISHED.values()][:count]
    proofs = [[FALSE]] * false + [[]] * unrepaired + [[TRUE]] * (count - false - unrepaired)
    measured = [_measured(member, proof) for member, proof in zip(published, proofs, strict=True)]
    return SetResults(measured=measured, left_out=[], twins=["not_reproduced"] * 70)


def test_a_set_that_meets_its_targets_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """With 64 of 80 verified and no false proof, the published set passes, and the last line has the shares."""
    assert report({"published": _results(unrepaired=16)})
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == "reruns: published 80.0% of 80 (>= 80%) verified without a false proof PASS"


@pytest.mark.parametrize(
    ("results", "missed"),
    [
        (_results(unrepaired=17), "verified without a false proof: 78.8% of 80"),
        (_results(false=2), "false proofs: 2 of 80"),
        (_results(count=59), "verified without a false proof: 100.0% of 59"),
        (SetResults(measured=_results().measured, left_out=[], twins=["done"] * 70), "not_reproduced: 0 of 70"),
    ],
    ids=["too few verified", "false proofs", "too few trainings", "healthy ones reproduced"],
)
def test_a_missed_target_fails(results: SetResults, missed: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each target that is missed is shown as FAIL, and fails the whole."""
    assert not report({"published": results})
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line for line in lines if missed in line and line.endswith("FAIL")]
    assert lines[-1].startswith("reruns: ")
    assert lines[-1].endswith("FAIL")


def test_a_false_proof_does_not_count_as_verified(capsys: pytest.CaptureFixture[str]) -> None:
    """A training with a false proof among its remedies is verified, but not without a false proof."""
    member = next(iter(PUBLISHED.values()))
    both = _measured(member, [TRUE, FALSE])
    assert not both.is_truly_verified
    report({"published": SetResults(measured=[both], left_out=[], twins=[])})
    printed = capsys.readouterr().out
    assert f"false proof: {member.name}: learning_rate: skill 0.10, control 0.00, twin 0.90" in printed


def test_every_set_has_a_row_and_what_is_left_out_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a row for each set; trainings that are left out have their reason."""
    own = next(iter(CONFIGURATIONS.values()))
    out = LeftOut(configuration=own, reason="does not fail here")
    report({"own": SetResults(measured=[], left_out=[out], twins=[]), "published": _results()})
    printed = capsys.readouterr().out
    assert f"left out: {own.name}: does not fail here" in printed
    rows = [line.split()[0] for line in printed.splitlines() if line.startswith(("own ", "published "))]
    assert rows == ["own", "published"]
