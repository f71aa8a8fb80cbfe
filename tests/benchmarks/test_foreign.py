"""The foreign part of the corpus: its splits, labels and recordings, and that the set-aside split did not change."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.corpus.foreign.cases import Case, Program, Programs, blow_up, lookalike, other, signal
from benchmarks.corpus.foreign.examiner import Examiner
from benchmarks.corpus.foreign.generate import generate_foreign, is_foreign_made, make_case, make_program, save
from benchmarks.corpus.foreign.labels import Ending, label_of
from benchmarks.corpus.foreign.loading import ForeignRun, load_foreign, load_run
from benchmarks.corpus.foreign.recorder import Recorded, record
from benchmarks.corpus.foreign.session import Session
from benchmarks.corpus.foreign.set_aside import RECORD, set_aside_digest
from benchmarks.corpus.foreign.splits import FOREIGN_ASIDE, FOREIGN_FIT, FOREIGN_SPLITS
from benchmarks.corpus.set_aside import read_record
from torch import Tensor, nn

import gradmedic

# --- splits -----------------------------------------------------------------------------------------------------------


def test_the_set_aside_split_is_the_one_that_was_fixed() -> None:
    """The last definition of `set_aside.json` is the digest of the programs and cases as they are."""
    assert set_aside_digest(FOREIGN_SPLITS[FOREIGN_ASIDE]) == read_record(RECORD)["definitions"][-1]["sha256"]


def test_each_definition_and_opening_has_its_date_and_reason() -> None:
    """No version of the set-aside split and no look at it goes without a reason."""
    noted = read_record(RECORD)
    assert all(entry["date"] and entry["why"] for entry in noted["definitions"])
    assert all(entry["commit"] and entry["date"] and entry["why"] for entry in noted["opened"])


def test_no_program_or_family_is_in_two_splits() -> None:
    """The set-aside split has whole programs and whole families that the other one does not have."""
    fit, aside = FOREIGN_SPLITS[FOREIGN_FIT], FOREIGN_SPLITS[FOREIGN_ASIDE]
    assert {program.family for program in fit}.isdisjoint(program.family for program in aside)
    assert {program.name for program in fit}.isdisjoint(program.name for program in aside)
    assert {program.train.__module__ for program in fit}.isdisjoint(program.train.__module__ for program in aside)


def test_every_case_has_an_id_of_its_own_and_its_twin_before_it() -> None:
    """Ids are unique, and a repaired twin is made before the faults that need it."""
    cases = [case for programs in FOREIGN_SPLITS.values() for program in programs for case in program.cases()]
    places = {case.id: place for place, case in enumerate(cases)}
    assert len(places) == len(cases)
    assert all(places[case.twin] < places[case.id] for case in cases if case.twin is not None)


def test_every_program_has_faults_and_lookalikes() -> None:
    """A program is of use if it has runs that fail and runs that only look as if they did."""
    for programs in FOREIGN_SPLITS.values():
        for program in programs:
            kinds = Counter(condition.kind for condition in program.conditions)
            assert kinds["healthy"] >= 2, program.name
            assert sum(kinds.values()) - kinds["healthy"] >= 3, program.name
            assert len(program.variants) >= 2, program.name


# --- labels -----------------------------------------------------------------------------------------------------------


def ending(losses: list[float], skill: float, **more: Any) -> Ending:
    """Return the outcome of a run that should reach a skill of 0.5."""
    given: dict[str, Any] = {"died": False, "best_skill": skill, "min_skill": 0.5, "surrogate": False, **more}
    return Ending(losses=losses, skill=skill, **given)


FLAT = [1.0] * 60
FALLING = [1.0 - 0.01 * step for step in range(60)]
RISEN = [1.0] * 20 + [0.5] * 20 + [3.0] * 20


@pytest.mark.parametrize(
    ("of", "kind", "twin_skill", "verdict", "level"),
    [
        (ending(FLAT, 0.9), "healthy", None, "healthy", "ok"),
        (ending(FLAT, 0.9), "other", 0.9, "healthy", "ok"),
        (ending(FLAT, 0.7), "other", 0.9, None, None),
        (ending(FLAT, 0.9, died=True), "blow_up", 0.9, "exploding", "critical"),
        (ending([*FLAT, *[11.0] * 20], 0.9), "blow_up", 0.9, "exploding", "critical"),
        (ending([*FLAT, *[11.0] * 20], 0.9, surrogate=True), "other", 0.9, "healthy", "ok"),
        (ending([1.0, 11.0, *FLAT], 0.0), "blow_up", 0.9, "exploding", "critical"),
        (ending([1.0, 11.0, *FLAT], 0.9), "healthy", None, "healthy", "ok"),
        (ending(RISEN, 0.0, best_skill=0.9), "blow_up", 0.9, "exploding", "critical"),
        (ending(RISEN, 0.0), "blow_up", 0.9, None, None),
        (ending(FLAT, 0.1), "signal", 0.9, "vanishing", "critical"),
        (ending(FLAT, -5.0), "signal", 0.9, "vanishing", "critical"),
        (ending(FLAT, 0.4), "signal", 0.9, None, None),
        (ending(FLAT, 0.1), "other", 0.9, "healthy", "attention"),
        (ending(FLAT, 0.1), "irreducible", 0.9, "healthy", "attention"),
        (ending([*FALLING, *[0.4] * 60], 0.1), "irreducible", 0.9, None, None),
        (ending(FLAT, 0.49), "other", 0.9, None, None),
        (ending(FALLING, 0.1), "signal", 0.9, None, None),
        (ending(FLAT, 0.1), "blow_up", 0.9, None, None),
        (ending(FLAT, 0.1, best_skill=0.8), "blow_up", 0.9, "healthy", "attention"),
        (ending([1.0, 5.0, *FLAT], 0.1, best_skill=0.8), "blow_up", 0.9, None, None),
        (ending([1.0, 5.0, *FLAT], 0.1, best_skill=0.8, surrogate=True), "blow_up", 0.9, "healthy", "attention"),
        (ending(FLAT, 0.1), "healthy", None, None, None),
        (ending(FLAT, 0.1, died=True), "healthy", None, None, None),
    ],
)
def test_labels_follow_the_outcome(
    of: Ending, kind: str, twin_skill: float | None, verdict: str | None, level: str | None
) -> None:
    """Loss, weights and skill decide; what is ambiguous or not as it was meant is dropped."""
    label = label_of(of, kind, twin_skill)
    assert (label.verdict, label.level) == (verdict, level)
    assert label.why


def test_noise_is_not_a_falling_loss() -> None:
    """A flat loss with noise of its own size has settled; the same fall without noise has not."""
    noise = torch.randn(200, generator=torch.Generator().manual_seed(3))
    assert not ending((1 + 0.5 * noise).tolist(), 0.1).is_still_falling
    assert ending(FALLING, 0.1).is_still_falling


# --- recordings -------------------------------------------------------------------------------------------------------

TINY = Programs()


@TINY.add(
    "tiny",
    blow_up("missing-value", nan_at=9),
    blow_up("root-at-zero", trap=("0", "root", 7), born_in=r"0\..*"),
    blow_up("branch-not-taken", trap=("0", "where", 8)),
    blow_up("clipped", trap=("0", "root", 6), clip=1e6),
    other("no-rate", lr=0.0),
    signal("nothing", gain=0.0),
    lookalike("one-bad-loss", bad_loss_at=6),
    min_skill=0.5,
    variants=({"lr": 0.3},),
    steps=25,
    optimizer="sgd",
)
def line(s: Session) -> None:
    """Fit a line by two layers."""
    model = s.make(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    optimizer = s.optimizer(model.parameters())
    s.skill(lambda: 1.0 if s["lr"] > 0 and s.get("gain") is None else 0.0)

    def loss_at(step: int) -> Tensor:
        hidden = model[0](s.corrupt(torch.randn(8, 2), step))  # type: ignore[index]
        loss: Tensor = model[1](hidden).pow(2).mean()  # type: ignore[index]
        if s.is_at("bad_loss_at", step):
            loss = loss * 0.0 + loss.detach() * math.nan
        return loss

    s.fit(model, optimizer, loss_at)


def tiny_case(name: str) -> tuple[Case, Program]:
    """Return a case of the first variant."""
    program = TINY[0]
    return next(case for case in program.cases() if case.id == f"line.0.{name}"), program


def record_tiny(name: str, sampling: str = "auto") -> Recorded:
    """Record a case of the first variant."""
    return record(*tiny_case(name), sampling)


def test_a_recording_holds_what_the_script_logged() -> None:
    """The block has the losses of every step, the layers of the model and the facts about the training."""
    recorded = record_tiny("base")
    assert recorded.block.steps.tolist() == list(range(25))
    np.testing.assert_allclose(recorded.block.series["loss"].values, recorded.losses, rtol=1e-6)
    assert [layer.name for layer in recorded.description.layers] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert recorded.description.training is not None
    assert recorded.description.training.optimizers[0].name == "SGD"
    assert str(recorded.description.framework).startswith("torch ")
    assert not recorded.died
    assert recorded.first_nonfinite is None


def test_the_same_case_has_the_same_losses() -> None:
    """A run follows from its case alone, whatever was drawn from the random generators before."""
    first = record_tiny("base")
    torch.rand(17)
    assert record_tiny("base").losses == first.losses


def test_every_step_is_sampled_on_demand() -> None:
    """With the sampling `every`, each step has its statistics, with `sparse` few do; another word is refused."""
    assert record_tiny("base", "every").block.sampled.all()
    assert record_tiny("base", "sparse").block.sampled.tolist() == [step <= 20 for step in range(25)]
    with pytest.raises(ValueError, match="sampling must be one of auto, every, sparse; got 'often'"):
        record_tiny("base", "often")


def test_a_missing_value_is_born_in_its_step() -> None:
    """A NaN in the inputs kills the run in the step of that batch, and the recording ends some steps later."""
    recorded = record_tiny("missing-value")
    assert recorded.died
    assert recorded.first_nonfinite == 9
    assert recorded.finite_gradients == []


@pytest.mark.parametrize(("name", "step"), [("root-at-zero", 7), ("branch-not-taken", 8), ("clipped", 6)])
def test_layers_behind_the_birth_are_forbidden_answers(name: str, step: int) -> None:
    """A trap makes the gradients of the layers before it non-finite, and no other ones."""
    recorded = record_tiny(name)
    assert recorded.first_nonfinite == step
    assert recorded.losses[: step + 1] == record_tiny("base").losses[: step + 1]
    assert recorded.nonfinite_gradients == ["0.weight", "0.bias"]
    assert recorded.finite_gradients == ["1.weight", "1.bias"]


def test_one_bad_loss_is_not_a_death() -> None:
    """A loss that is NaN once and leaves the gradients zero is noted, and the run goes on."""
    recorded = record_tiny("one-bad-loss")
    assert recorded.first_nonfinite == 6
    assert not recorded.died
    assert len(recorded.losses) == 25


def test_a_gradient_that_is_not_used_is_no_birth() -> None:
    """A step that a loss scaler skips leaves nothing behind, whatever its gradients were."""
    layer = nn.Linear(2, 1)
    examiner = Examiner(5)
    examiner.watch(layer)
    layer.weight.grad = torch.full((1, 2), math.nan)
    examiner.log(0.5)
    assert examiner.first_nonfinite is None
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    examiner.log(0.5)
    examiner.close()
    assert examiner.first_nonfinite == 1


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"warmup": 4}, [0.25, 0.5, 0.75, 1, 1]),
        ({"restarts": 2}, [1, 0.5, 1, 0.5, 1]),
        ({"jump": (3, 60.0)}, [1, 1, 1, 60, 60]),
        ({"drop": (1, 0.1), "jump": (3, 5.0)}, [1, 0.1, 0.1, 0.5, 0.5]),
        ({"ramp": (2, 3.0)}, [1, 1, 1, 3, 9]),
        ({"burst": (1, 2, 7.0)}, [1, 7, 7, 1, 1]),
    ],
)
def test_schedules_multiply_the_rate(settings: dict[str, Any], factors: list[float]) -> None:
    """Each schedule has the factors that are documented for it."""
    session = Session({"steps": 5, **settings}, gradmedic.init(mode="disabled"), Examiner(5), 0)
    assert [session.rate_factor(step) for step in range(5)] == pytest.approx(factors)


def test_measuring_the_skill_changes_no_training() -> None:
    """The skill may draw numbers and use the model, and the training computes the same."""

    def losses(skill: float) -> list[float]:
        torch.manual_seed(5)
        first = nn.Linear(3, 3)
        model = nn.Sequential(first, nn.Dropout(), nn.BatchNorm1d(3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        examiner = Examiner(20)
        examiner.watch(model)
        if skill:
            examiner.measure_skill = lambda: float(model(torch.randn(9, 3)).sum()) * 0 + skill
        for _ in range(20):
            loss = model(torch.randn(8, 3)).square().sum() + first.weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            examiner.log(loss)
        examiner.close()
        assert [value for _, value in examiner.skills] == ([skill] * 10 if skill else [-math.inf] * 10)
        return examiner.losses

    assert losses(0.0) == losses(0.7)


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of the manifest."""
    entries: list[dict[str, Any]] = json.loads((folder / "manifest.json").read_text())
    return entries


def test_a_saved_run_is_read_as_it_was(made: Path) -> None:
    """Every number and fact survives the file, and the labels come with it."""
    entry = next(entry for entry in read_manifest(made) if entry["id"] == "line.0.root-at-zero")
    run = load_run(made, entry)
    recorded = record_tiny("root-at-zero")
    assert (run.verdict, run.level, run.first_nonfinite) == ("exploding", "critical", 7)
    assert [layer.name for layer in run.layers] == [layer.name for layer in recorded.description.layers]
    assert run.training == recorded.description.training
    np.testing.assert_array_equal(run.block.series["loss"].values, recorded.block.series["loss"].values)
    np.testing.assert_array_equal(run.block.present, recorded.block.present)
    assert run.block.statistics == recorded.block.statistics
    assert (run.is_right_layer("0.weight"), run.is_right_layer("1.bias")) == (True, False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all recordings of the tiny program and their manifest."""
    out: Path = tmp_path_factory.mktemp("tiny")
    (out / "entries").mkdir()
    entries = [entry for entry in make_program(TINY[0], out, "auto") if entry["level"] is not None]
    (out / "manifest.json").write_text(json.dumps(entries))
    return out


def test_a_split_is_loaded_in_the_order_of_its_manifest(made: Path) -> None:
    """The loaded runs are those of the manifest; where no birth is known, no layer is right or wrong."""
    entries = read_manifest(made)
    runs = load_foreign("tiny", "auto", made)
    assert [run.id for run in runs] == [entry["id"] for entry in entries]
    assert {run.level for run in runs} == {"ok", "attention", "critical"}
    healthy = runs[0]
    assert isinstance(healthy, ForeignRun)
    assert healthy.is_right_layer("0.weight") is None


def test_a_split_that_was_not_made_names_its_command(tmp_path: Path) -> None:
    """The error for missing recordings has the command that makes them."""
    with pytest.raises(FileNotFoundError, match="generate --split foreign-fit --sampling auto"):
        load_foreign("foreign-fit", "auto", tmp_path)


def test_a_recording_is_kept_until_its_case_changes(tmp_path: Path) -> None:
    """A recording is not made twice, and is made again for another sampling."""
    (tmp_path / "entries").mkdir()
    case, program = tiny_case("base")
    entry = make_case(case, program, tmp_path, None)
    stamp = (tmp_path / f"{case.id}.npz").stat().st_mtime_ns
    assert make_case(case, program, tmp_path, None) == entry
    assert (tmp_path / f"{case.id}.npz").stat().st_mtime_ns == stamp
    assert make_case(case, program, tmp_path, None, "every")["sampling"] == "every"


def test_a_split_is_made_when_every_recording_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split is complete after `generate_foreign`, and only for its own sampling; its manifest has the runs kept."""
    monkeypatch.setitem(FOREIGN_SPLITS, "tiny", tuple(TINY))
    assert not is_foreign_made("tiny", tmp_path)
    lines: list[str] = []
    kept = generate_foreign("tiny", tmp_path, report=lines.append)
    assert is_foreign_made("tiny", tmp_path)
    assert not is_foreign_made("tiny", tmp_path, "every")
    assert [entry["id"] for entry in read_manifest(tmp_path)] == [entry["id"] for entry in kept]
    assert lines[-1].startswith(
        f"tiny: {len(list(TINY[0].cases()))} cases of 1 programs in 1 families; {len(kept)} kept"
    )


def test_a_fault_whose_twin_does_not_learn_is_dropped(tmp_path: Path) -> None:
    """Without a twin that learns, nothing follows from a run that does not."""
    case, program = tiny_case("no-rate")
    entry = make_case(case, program, tmp_path, {"level": None, "skill": None})
    assert (entry["level"], entry["why"]) == (None, "its repaired twin does not learn")


def test_saving_leaves_no_partial_file(tmp_path: Path) -> None:
    """A recording appears under its name when it is whole."""
    save(tmp_path / "run.npz", record_tiny("base"))
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]
