"""The causes corpus and its benchmark: labels, digest, recordings and scores."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.cause_learning import count_outcomes, find_place, learn_from_case
from benchmarks.cause_races import RemedyRace, draw_sample, is_true_in_skill, race, race_sample
from benchmarks.cause_rules import name_by_autotrainer, name_by_umlaut
from benchmarks.cause_trials import list_remedy_sources, try_remedies
from benchmarks.causes import CauseReading, describe, describe_kinds, list_errors, list_targets, read, score
from benchmarks.corpus.causes.cases import DIES, FAILS, STALLS, CauseProgram, CausePrograms
from benchmarks.corpus.causes.faults import KINDS, fault, lookalike
from benchmarks.corpus.causes.generate import make_program
from benchmarks.corpus.causes.labels import Outcome, reason_to_drop
from benchmarks.corpus.causes.loading import CauseRun, load_run
from benchmarks.corpus.causes.session import CauseSession
from benchmarks.corpus.causes.set_aside import RECORD, set_aside_digest
from benchmarks.corpus.causes.splits import CAUSES_ASIDE, CAUSES_FIT, CAUSES_SPLITS
from benchmarks.corpus.set_aside import read_record
from torch import Tensor, nn

from benchmarks import cause_trials
from gradmedic.protocol.diagnosis import Advice
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.runs import Loss
from gradmedic_diagnosis.race_counts import SCALED

FIT, ASIDE = CAUSES_SPLITS[CAUSES_FIT], CAUSES_SPLITS[CAUSES_ASIDE]


def test_the_set_aside_split_is_the_one_that_was_fixed() -> None:
    """The last definition of `set_aside.json` is the digest of the programs and cases as they are."""
    assert set_aside_digest(ASIDE) == read_record(RECORD)["definitions"][-1]["sha256"]


def test_each_definition_and_opening_has_its_date_and_reason() -> None:
    """No version of the set-aside split and no look at it goes without a reason."""
    noted = read_record(RECORD)
    assert all(entry["date"] and entry["why"] for entry in noted["definitions"])
    assert all(entry["commit"] and entry["date"] and entry["why"] for entry in noted["opened"])


def test_no_program_is_in_two_splits() -> None:
    """The set-aside split has programs and modules of its own."""
    assert {program.name for program in FIT}.isdisjoint(program.name for program in ASIDE)
    assert {program.train.__module__ for program in FIT}.isdisjoint(program.train.__module__ for program in ASIDE)


def test_every_case_has_an_id_of_its_own_and_its_twin_before_it() -> None:
    """Ids are unique, and a twin is made before the faults that need it."""
    cases = [case for programs in CAUSES_SPLITS.values() for program in programs for case in program.cases()]
    places = {case.id: place for place, case in enumerate(cases)}
    assert len(places) == len(cases)
    assert all(places[case.twin] < places[case.id] for case in cases if case.twin is not None)
    assert all((case.twin is None) == (not case.causes) for case in cases)


def test_every_kind_has_three_programs() -> None:
    """A kind of fault is judged by the same fault in different models and tasks."""
    programs: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for program in (*FIT, *ASIDE):
        for case in program.cases():
            if case.causes:
                programs[case.kind].add(program.name)
    assert {kind: names for kind, names in programs.items() if len(names) < 3} == {}


def outcome(skill: float, *, died: bool = False) -> Outcome:
    """Return the outcome of a run that should reach a skill of 0.5."""
    return Outcome(losses=[1.0], died=died, skill=skill, min_skill=0.5)


@pytest.mark.parametrize(
    ("of", "manner", "twin_skill", "is_kept"),
    [
        (outcome(0.9), "", None, True),
        (outcome(0.4), "", None, False),
        (outcome(0.1), FAILS, 0.9, True),
        (outcome(0.5), FAILS, 0.9, False),
        (outcome(0.1), FAILS, None, False),
        (outcome(-math.inf, died=True), FAILS, 0.9, True),
        (outcome(-math.inf, died=True), STALLS, 0.9, False),
        (outcome(0.1), STALLS, 0.9, True),
        (outcome(0.1), DIES, 0.9, False),
        (outcome(-math.inf, died=True), DIES, 0.9, True),
    ],
)
def test_a_run_is_kept_if_its_outcome_is_what_was_meant(
    of: Outcome, manner: str, twin_skill: float | None, is_kept: bool
) -> None:
    """A fault must do its harm in its manner against a twin that learns; a look-alike must learn."""
    assert (reason_to_drop(of, manner, twin_skill) is None) == is_kept


TINY = CausePrograms()


@TINY.add(
    fault("nonfinite-input", nan_at=6),
    fault("rate-too-high", lr_factor=1e4),
    fault("excessive-clipping", clip=1e-9, twin={"clip": 10.0}),
    fault("dead-units", bias=0.0),
    lookalike("accumulation", accumulate=2),
    min_skill=0.5,
    steps=25,
    optimizer="sgd",
    lr=0.1,
)
def tiny_line(s: CauseSession) -> None:
    """Fit a line."""
    model = s.make(nn.Linear(2, 1))
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    s.skill(lambda: float((nn.utils.parameters_to_vector(model.parameters()) - start).norm()))

    def loss_at(step: int) -> Tensor:
        x = torch.randn(16, 2)
        target = 3 * x.sum(1, keepdim=True)
        return nn.functional.mse_loss(model(s.corrupt(x, step)), target)

    s.train(model, loss_at)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[CauseRun]:
    """The runs of the tiny program that were kept."""
    folder = tmp_path_factory.mktemp("causes")
    (folder / "entries").mkdir()
    entries = make_program(TINY[0], folder)
    assert make_program(TINY[0], folder) == [dict(entry, causes=list(entry["causes"])) for entry in entries]
    assert [entry["id"] for entry in entries if entry["why"]] == ["tiny-line.0.dead-units"]
    return [load_run(folder, entry) for entry in entries if entry["why"] is None]


def test_a_recording_has_its_causes_and_its_training(runs: list[CauseRun]) -> None:
    """What was made is loaded again: names of the cause, layers, optimizer, and the steps with their loss."""
    by_kind = {run.kind: run for run in runs}
    assert set(by_kind) == {"twin", "nonfinite-input", "rate-too-high", "excessive-clipping", "accumulation"}
    bad = by_kind["nonfinite-input"]
    assert bad.causes == ("nonfinite_input",)
    assert bad.treatable
    assert [layer.name for layer in bad.layers] == ["weight", "bias"]
    assert bad.training.optimizers[0].name == "SGD"
    assert math.isnan(bad.block.series["loss"].values[6])
    assert not by_kind["twin"].is_failing


def test_the_diagnosis_of_a_run_is_scored(runs: list[CauseRun]) -> None:
    """Each run is read once; a failing one counts for its kind."""
    readings = [read(run) for run in runs]
    result = score(readings)
    assert (result.failing, result.kinds, result.lookalikes, result.twins) == (3, 3, 1, 2)
    assert result.silent == 1
    assert "nonfinite-input" in describe_kinds(readings)
    assert "UMLAUT" in describe(readings)
    assert len(list_errors(readings)) == result.failing - result.first


def test_the_first_two_names_count(runs: list[CauseRun]) -> None:
    """A true cause in the second place counts among the first two only, one in the third place nowhere."""
    run = next(run for run in runs if run.kind == "rate-too-high")
    named = [("learning_rate_too_high",), ("x", "learning_rate_too_high"), ("x", "y", "learning_rate_too_high"), ()]
    result = score([CauseReading(run=run, named=names) for names in named])
    assert (result.failing, result.first, result.first_two) == (4, 1, 2)


def test_a_finding_above_a_note_disturbs_a_lookalike(runs: list[CauseRun]) -> None:
    """One that is open at the end counts; one that was resolved is reported beside it."""
    run = next(run for run in runs if run.kind == "accumulation")
    result = score(
        [
            CauseReading(run=run, named=()),
            CauseReading(run=run, named=(), past_findings=("plateau",)),
            CauseReading(run=run, named=(), past_findings=("plateau",), open_findings=("plateau",)),
        ]
    )
    assert (result.lookalikes, result.silent, result.always_silent) == (3, 2, 1)


def test_few_runs_miss_the_target(runs: list[CauseRun]) -> None:
    """Shares alone do not pass: they must be of enough runs and kinds."""
    is_met = {value.split(":")[0]: met for value, _, met in list_targets(score([read(run) for run in runs]))}
    assert not is_met["failing runs"]


def test_umlaut_reads_inputs_rates_and_losses(runs: list[CauseRun]) -> None:
    """Its rules see an input beyond 1, a rate above 0.01, a NaN loss, and a likelihood without a softmax."""
    bad = next(run for run in runs if run.kind == "nonfinite-input")
    assert set(name_by_umlaut(bad)) == {"unscaled_inputs", "learning_rate_too_high", "nonfinite_loss"}
    plain = replace(bad.training, input_abs_max=0.5, optimizers=[], loss=Loss(operations=["NllLoss", "Addmm"]))
    assert name_by_umlaut(replace(bad, training=plain))[0] == "loss_mismatch"


def test_autotrainer_reads_gradients_where_the_loss_does_not_fall(runs: list[CauseRun]) -> None:
    """A NaN is an exploding gradient there; a run that learns has no problem."""
    bad = next(run for run in runs if run.kind == "nonfinite-input")
    fine = next(run for run in runs if run.kind == "twin")
    assert name_by_autotrainer(bad)[:1] == ("missing_clipping",)
    assert name_by_autotrainer(fine) == ()


def advise(*remedies: Remedy) -> tuple[Advice, ...]:
    """Return advice of remedies, in their order."""
    return tuple(
        Advice(remedy=remedy, rank=rank, reason="", cost="", snippet="", sources=[])
        for rank, remedy in enumerate(remedies, start=1)
    )


USELESS = Remedy(id="scale_learning_rate", parameters={"factor": 0.9})
RIGHT = Remedy(id="scale_learning_rate", parameters={"factor": 1e-4})
BY_HAND = Remedy(id="stable_loss")


def test_the_first_advice_that_holds_on_every_seed_is_verified(
    runs: list[CauseRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Advices are tried in turn, without those for the script. Another diagnosis judges the kept recordings anew."""
    monkeypatch.setattr(cause_trials, "RESULTS", tmp_path)
    case = next(case for case in TINY[0].cases() if case.kind == "rate-too-high")
    run = next(run for run in runs if run.kind == "rate-too-high")
    done = race(case, TINY[0], CauseReading(run=run, named=(), advice=advise(BY_HAND, USELESS, RIGHT)))
    assert done.verified == (False, True)
    assert done.is_true
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert race(case, TINY[0], done.reading).verified == (False, True)
    monkeypatch.setattr(cause_trials, "diagnosis_digest", lambda: "another")
    assert race(case, TINY[0], done.reading).verified == (False, True)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert after.items() > kept.items()
    assert {path.suffixes[-1] for path in after.keys() - kept.keys()} == {".json"}
    control, repaired = (try_remedies(case, TINY[0], remedies, 0) for remedies in ((), (RIGHT,)))
    assert is_true_in_skill(control, repaired)
    assert not is_true_in_skill(repaired, control)


def test_a_remedy_that_does_not_apply_is_a_result(
    runs: list[CauseRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial ends at once where the SDK cannot apply its remedy."""
    monkeypatch.setattr(cause_trials, "RESULTS", tmp_path)
    case = next(case for case in TINY[0].cases() if case.kind == "rate-too-high")
    trial = try_remedies(case, TINY[0], (Remedy(id="add_residual"),), 0)
    assert trial.trained.status == "not_applicable"
    assert trial.trained.reason
    assert trial.trained.losses == []


def test_a_trial_depends_on_its_own_remedies_alone() -> None:
    """Its sources are those of its remedy, of what that one imports, and of what all remedies share."""
    names = {path.stem for path in list_remedy_sources(["replace_activation"])}
    assert {"replace_activation", "step_remedy", "applied"} <= names
    assert not {"clip", "qk_norm"} & names
    assert "loss_scale" in {path.stem for path in list_remedy_sources(["scale_loss"])}


def test_the_sample_is_of_runs_that_a_rerun_can_treat(runs: list[CauseRun]) -> None:
    """It is the same at each call."""
    readings = [CauseReading(run=run, named=()) for run in runs]
    sample = draw_sample(readings, 9)
    assert {reading.run.kind for reading in sample} == {"nonfinite-input", "rate-too-high"}
    assert draw_sample(readings, 1) == draw_sample(readings, 1)


def test_the_order_is_learned_from_other_programs(
    runs: list[CauseRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Remedies are tried until one is verified. Its counts move it to the front for other programs, not for its own."""
    monkeypatch.setattr(cause_trials, "RESULTS", tmp_path)
    case = next(case for case in TINY[0].cases() if case.kind == "rate-too-high")
    mine = learn_from_case(case, TINY[0], 1)
    assert mine is not None
    assert [done.is_verified for done in mine.outcomes.values()] == [True]
    held, failed = list(mine.list_candidates(20))[-1], *mine.outcomes
    done = RemedyRace(is_verified=True, is_true=True, is_applicable=True, why="")
    others = [
        replace(
            mine,
            run=replace(mine.run, program="other"),
            outcomes={failed: replace(done, is_verified=False, is_applicable=False), held: done},
        )
    ] * 100  # far more than the runs that stand for the remedy's own merit
    assert count_outcomes(others) == {held: {mine.cause: {SCALED: (100, 100)}}}
    mine = replace(mine, outcomes={held: done})
    assert find_place(mine, others, is_learned=True) == 0
    alone = find_place(mine, [mine], is_learned=False)
    assert alone != 0
    assert find_place(mine, [mine] * 100, is_learned=True) == alone


def test_a_case_that_learns_teaches_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case whose unchanged control has skill is left out."""
    monkeypatch.setattr(cause_trials, "RESULTS", tmp_path)
    case = next(case for case in TINY[0].cases() if case.kind == "dead-units")
    assert learn_from_case(case, TINY[0], 1) is None


def test_runs_without_advice_count_in_the_race(
    runs: list[CauseRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A treatable run whose diagnosis advises nothing is one that was not repaired."""
    monkeypatch.setattr(cause_trials, "RESULTS", tmp_path)
    monkeypatch.setitem(CAUSES_SPLITS, "tiny", tuple(TINY))
    targets = race_sample("tiny", [CauseReading(run=run, named=()) for run in runs], 9, 1)
    assert [(value, is_met) for value, _, is_met in targets] == [
        ("first advice verified: 0.0%", False),
        ("one of the first 3 verified: 0.0%", False),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("program", [*FIT[:1], *ASIDE[:1]], ids=lambda program: program.name)
def test_a_program_learns_without_its_faults(program: CauseProgram, tmp_path: Path) -> None:
    """The twin of a program is no failing run."""
    (tmp_path / "entries").mkdir()
    twin = next(program.cases())
    only = replace(program, conditions=(), variants=program.variants[:1])
    assert make_program(only, tmp_path)[0]["why"] is None
    assert twin.kind == "twin"
    assert np.isfinite(load_run(tmp_path, make_program(only, tmp_path)[0]).block.values).all()
