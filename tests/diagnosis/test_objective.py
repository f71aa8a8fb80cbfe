"""What counts as progress: the loss, a metric that the user declares, or nothing; and what the loss means."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.diagnosis.synthetic_run import falling, layers, noisy, run
from tests.diagnosis.whole_run import STEPS, find_finding, list_alarms

from gradmedic.protocol.runs import Loss, Objective, Training
from gradmedic_diagnosis import Block, Diagnostician, StepSeries, UpdatedDiagnosis

REWARD = Objective(kind="metric", metric="reward", direction="maximize")


def diagnose(block: Block, training: Training) -> UpdatedDiagnosis:
    """Diagnose a whole run with facts about its training."""
    return Diagnostician(layers(block.present.shape[1]), training).update(block)


def with_metric(block: Block, name: str, values: NDArray[np.float64], *, every: int = 1) -> Block:
    """Return the block with a metric that is logged on every n-th step."""
    present = np.arange(len(block)) % every == 0
    return dataclasses.replace(block, metrics={name: StepSeries(np.where(present, values, 0.0), present)})


def with_output_gradient(block: Block, norms: NDArray[np.float64]) -> Block:
    """Return the block with the norm of the gradient at the model's output, measured on every step."""
    series = StepSeries(norms, np.ones(len(block), dtype=np.bool_))
    return dataclasses.replace(block, series={**block.series, "output_gradient_norm": series})


def test_a_declared_metric_replaces_the_loss() -> None:
    """A reward that rises is `learning`, although the loss is flat and would be stuck."""
    block = with_metric(run(noisy(2.3, STEPS)), "reward", -falling(STEPS, start=100.0))
    assert diagnose(block, Training()).learning == "stuck"
    diagnosis = diagnose(block, Training(objective=REWARD))
    assert (diagnosis.learning, diagnosis.level) == ("learning", "ok")


def test_a_metric_that_falls_gets_worse() -> None:
    """A reward that rose and then falls back is `worsening`; the summary names the reward, with its own sign."""
    reward = np.concatenate([100 - falling(200, start=100.0), noisy(20.0, 100)])
    diagnosis = diagnose(with_metric(run(falling(300)), "reward", reward), Training(objective=REWARD))
    assert (diagnosis.learning, diagnosis.level) == ("worsening", "attention")
    assert diagnosis.summary.startswith("The reward gets worse: it is ")


def test_a_metric_that_is_logged_seldom_is_followed() -> None:
    """A metric on every fifth step is judged from the steps that have it."""
    block = with_metric(run(noisy(2.3, 600)), "reward", -falling(600, start=100.0), every=5)
    assert diagnose(block, Training(objective=REWARD)).learning == "learning"


def test_a_metric_that_never_comes_says_nothing() -> None:
    """Without a value of the declared metric, nothing is known of learning."""
    assert diagnose(run(noisy(2.3, STEPS)), Training(objective=REWARD)).learning == "unknown"


@pytest.mark.parametrize("training", [Training(objective=Objective(kind="none")), Training(loss=Loss(surrogate=True))])
def test_a_loss_that_measures_nothing_is_not_judged(training: Training) -> None:
    """With the objective `none`, or a loss that is seen to be a surrogate, nothing is said of learning."""
    diagnosis = diagnose(run(noisy(2.3, STEPS)), training)
    assert (diagnosis.learning, diagnosis.level) == ("unknown", "ok")


def test_a_declared_loss_outranks_what_the_client_saw() -> None:
    """A user who declares that the loss is to be minimized is believed, whatever the loss looks like."""
    training = Training(objective=Objective(kind="loss", direction="minimize"), loss=Loss(surrogate=True))
    assert diagnose(run(noisy(2.3, STEPS)), training).learning == "stuck"


def test_a_surrogate_may_grow_tenfold() -> None:
    """The loss of a policy gradient has no level: twelve times its first values is no explosion."""
    loss = np.concatenate([noisy(0.01, 60), noisy(0.12, 240)])
    block = run(loss, update=6.0)
    assert list_alarms(diagnose(block, Training()))
    assert not list_alarms(diagnose(block, Training(loss=Loss(surrogate=True))))


def test_the_level_of_a_constant_output_is_no_progress() -> None:
    """A loss that fell from a bad start to what a constant output gets is stuck there, and has not converged."""
    loss = np.concatenate([np.geomspace(9.0, 2.3, 30), noisy(2.3, 370, noise=0.005)])
    assert diagnose(run(loss), Training()).learning == "converged"
    diagnosis = diagnose(run(loss), Training(loss=Loss(kind="cross_entropy", constant_level=float(np.log(10)))))
    assert (diagnosis.learning, diagnosis.level) == ("stuck", "attention")
    assert "no better than that of a constant output" in diagnosis.summary
    below = diagnose(run(loss - 0.3), Training(loss=Loss(kind="cross_entropy", constant_level=float(np.log(10)))))
    assert below.learning == "converged"


def test_what_was_lost_is_judged_by_the_level_of_a_constant_output() -> None:
    """A run that began at 50 and was destroyed to above what a constant output gets is worsening."""
    loss = np.concatenate([np.geomspace(50, 2.3, 100), falling(100), noisy(3.0, 100)])
    training = Training(loss=Loss(kind="cross_entropy", constant_level=float(np.log(10))))
    assert diagnose(run(loss), Training()).learning != "worsening"
    assert diagnose(run(loss), training).learning == "worsening"


def test_no_signal_from_the_loss_is_no_dead_network() -> None:
    """All gradients zero with a zero gradient at the output: the loss sends no signal. Without one: dead units."""
    block = run(noisy(2.3, 200), gradient=0.0, update=0.0)
    silent = diagnose(with_output_gradient(block, np.zeros(200)), Training())
    assert (silent.verdict, silent.level) == ("healthy", "attention")
    assert (finding := find_finding(silent, "no_signal_from_loss")) is not None
    assert finding.severity == "warning"
    assert "Is the loss detached" in finding.explanation
    alive = diagnose(with_output_gradient(block, np.ones(200)), Training())
    assert (alive.verdict, find_finding(alive, "no_signal_from_loss")) == ("vanishing", None)


def test_no_signal_after_the_objective_is_reached_is_a_note() -> None:
    """Once the margin is satisfied or the task solved, no signal is what one expects: the level stays ok."""
    is_solved = np.arange(STEPS) >= 150
    gradient = np.where(is_solved[:, None], 0.0, 1.0)
    loss = np.where(is_solved, 0.0, falling(STEPS))
    block = with_output_gradient(run(loss, gradient=gradient), np.where(is_solved, 0.0, 1.0))
    diagnosis = diagnose(block, Training())
    assert (diagnosis.verdict, diagnosis.level) == ("healthy", "ok")
    assert (finding := find_finding(diagnosis, "no_signal_from_loss")) is not None
    assert (finding.severity, finding.first_step) == ("note", 150)
    policy = diagnose(block, Training(loss=Loss(surrogate=True)))
    assert (policy.verdict, policy.level) == ("healthy", "ok")


def test_the_loss_of_chosen_values_may_rise() -> None:
    """The loss of a Q-learning follows targets that grow with what it learns; that of other regressions does not."""
    loss = np.concatenate([np.geomspace(0.1, 7e-4, 150), np.geomspace(7e-4, 0.2, 250)])
    chosen = Loss(kind="huber", operations=["SmoothL1Loss", "Select", "Gather", "Addmm"], surrogate=False)
    rising = diagnose(run(loss), Training(loss=chosen))
    assert (rising.learning, rising.level) == ("unknown", "ok")
    assert "gets worse" not in rising.summary
    of_first_targets = dataclasses.replace(chosen, constant_level=1e-4)  # it says nothing of later ones
    assert diagnose(run(falling(STEPS)), Training(loss=of_first_targets)).learning == "learning"
    other = Loss(kind="huber", operations=["SmoothL1Loss", "Addmm", "Gather"], surrogate=False)
    for training in (
        Training(loss=other),
        Training(loss=chosen, objective=Objective(kind="loss", direction="minimize")),
    ):
        assert diagnose(run(loss), training).learning == "worsening"


def test_a_solved_policy_is_no_dead_network() -> None:
    """Without the gradient at the output, zero gradients after a signal under a surrogate loss raise no alarm."""
    gradient = np.where(np.arange(STEPS)[:, None] >= 150, 0.0, 1.0)
    block = run(noisy(0.1, STEPS), gradient=gradient)
    assert not list_alarms(diagnose(block, Training(loss=Loss(surrogate=True))))
    assert list_alarms(diagnose(run(noisy(0.1, STEPS), gradient=0.0), Training(loss=Loss(surrogate=True))))


def test_a_softmax_before_a_cross_entropy_asks_for_attention() -> None:
    """Softmax twice is a fault of the script, also while the loss falls; log-softmax twice changes nothing."""
    twice = Training(loss=Loss(kind="cross_entropy", operations=["NllLoss", "LogSoftmax", "Softmax", "Addmm"]))
    diagnosis = diagnose(run(falling(STEPS)), twice)
    assert (diagnosis.verdict, diagnosis.learning, diagnosis.level) == ("healthy", "learning", "attention")
    assert "takes logits" in diagnosis.summary
    for operations in (["NllLoss", "LogSoftmax", "LogSoftmax"], ["NllLoss", "LogSoftmax", "Addmm", "Softmax"]):
        once = Training(loss=Loss(kind="cross_entropy", operations=operations))
        assert diagnose(run(falling(STEPS)), once).level == "ok"


def test_a_distribution_over_probabilities_asks_for_attention() -> None:
    """A distribution of categories normalizes its logits; where it gets probabilities, they are squeezed twice."""
    of_policy = ["Neg", "Mean", "Mul", "Squeeze", "Gather", "Sub"]
    twice = Training(loss=Loss(operations=[*of_policy, "Softmax", "Logsumexp", "Addmm"]))
    assert "takes logits" in diagnose(run(falling(STEPS)), twice).summary
    for operations in (["Addmm", "Logsumexp"], ["LogSoftmax", "Logsumexp", "Softmax"]):
        once = Training(loss=Loss(operations=[*of_policy, *operations]))
        assert diagnose(run(falling(STEPS)), once).level == "ok"


@pytest.mark.parametrize(
    ("kind", "operations", "name"),
    [
        ("kl_divergence", ["Mul", "Div", "Sum", "Sub", "Mul", "Softmax", "Addmm"], "Kullback-Leibler divergence"),
        ("cross_entropy", ["NllLoss", "Softmax", "Addmm"], "negative log-likelihood"),
        ("cross_entropy", ["NllLoss", "View", "Sigmoid", "Convolution"], "negative log-likelihood"),
    ],
)
def test_probabilities_in_place_of_log_probabilities_ask_for_attention(
    kind: str, operations: list[str], name: str
) -> None:
    """A divergence of probabilities is negative from the first step on, and the advice is a log-softmax."""
    training = Training(loss=Loss(kind=kind, operations=operations))
    diagnosis = diagnose(run(falling(STEPS) - 30), training)
    assert diagnosis.level == "attention"
    assert diagnosis.causes[0].cause == "loss_mismatch"
    assert name in diagnosis.causes[0].explanation
    assert diagnosis.advice[0].remedy.id == "use_log_softmax"
    # A loss that is not negative compares probabilities that train, too, with log-probabilities.
    assert diagnose(run(falling(STEPS)), training).level == "ok"
    right = ["LogSoftmax" if each in ("Softmax", "Sigmoid") else each for each in operations]
    assert diagnose(run(falling(STEPS) - 30), Training(loss=Loss(kind=kind, operations=right))).level == "ok"


def test_a_long_run_above_a_constant_output_is_stuck() -> None:
    """A loss that falls, but would not reach the level of a constant output within as many steps again, is stuck."""
    loss = np.linspace(3.86, 3.44, 400)
    training = Training(loss=Loss(kind="cross_entropy", constant_level=3.1))
    diagnosis = diagnose(run(loss), training)
    assert (diagnosis.learning, diagnosis.level) == ("stuck", "attention")
    assert "no better than that of a constant output" in diagnosis.summary
    assert diagnose(run(loss), Training()).learning != "stuck"
    far = diagnose(run(np.geomspace(900, 60, 400)), training)
    assert (far.learning, far.level) == ("stuck", "attention")
    for soon_below in (np.linspace(3.9, 3.2, 400), np.geomspace(90, 6, 400)):
        assert diagnose(run(soon_below), training).level == "ok"


def test_a_part_without_gradients_asks_for_attention() -> None:
    """Two of four layers never get a gradient: the finding names them. Layers that no optimizer has are left out."""
    block = run(falling(STEPS))
    present = block.present.copy()
    present[:, :2] = False
    block = dataclasses.replace(block, present=present)
    names = ["encoder.0.weight", "encoder.1.weight", "head.0.weight", "head.1.weight"]
    named = [dataclasses.replace(layer, name=name) for layer, name in zip(layers(), names, strict=True)]
    diagnosis = Diagnostician(named).update(block)
    assert (finding := find_finding(diagnosis, "disconnected_parameters")) is not None
    assert (finding.layers, diagnosis.level) == (names[:2], "attention")
    frozen = [dataclasses.replace(layer, frozen=i < 2) for i, layer in enumerate(named)]
    assert Diagnostician(frozen).update(block).level == "ok"


def test_experts_that_were_never_chosen_are_a_note() -> None:
    """Layers whose siblings had gradients, the same name but for a number, are experts, which is no fault."""
    block = run(falling(STEPS))
    present = block.present.copy()
    present[:, 1] = False
    names = ["gate.weight", "expert0.weight", "expert1.weight", "head.weight"]
    experts = [dataclasses.replace(layer, name=name) for layer, name in zip(layers(), names, strict=True)]
    diagnosis = Diagnostician(experts).update(dataclasses.replace(block, present=present))
    assert (finding := find_finding(diagnosis, "disconnected_parameters")) is not None
    assert (finding.severity, diagnosis.level) == ("note", "ok")


def test_a_part_that_joins_later_is_connected() -> None:
    """A part that gets its first gradient at step 120 closes the finding; an expert that rests often never opens it."""
    block = run(falling(STEPS))
    for joined, expected in ((np.arange(STEPS) >= 120, 120), (np.arange(STEPS) % 40 == 0, None)):
        present = block.present.copy()
        present[:, 1] = joined
        finding = find_finding(
            diagnose(dataclasses.replace(block, present=present), Training()), "disconnected_parameters"
        )
        assert (finding and finding.resolved_step) == expected


def test_the_objective_does_not_depend_on_the_cuts() -> None:
    """Cut into blocks of any size, and through bytes after each, a run has the same changes at the same steps."""
    reward = np.concatenate([100 - falling(200, start=100.0), noisy(20.0, 100)])
    gradient = np.where(np.arange(300) >= 250, 0.0, 1.0)
    block = with_output_gradient(with_metric(run(falling(300)), "reward", reward), gradient)
    present = block.present.copy()
    present[:120, 0] = False
    block = dataclasses.replace(block, present=present)
    training = Training(objective=REWARD)
    expected = diagnose(block, training)
    for size in (1, 7, 64):
        diagnostician, changes = Diagnostician(layers(), training), []
        for start in range(0, len(block), size):
            changes += diagnostician.update(block.cut(start, min(len(block), start + size))).changes
            diagnostician = Diagnostician.from_bytes(diagnostician.to_bytes(), layers(), training)
        assert changes == expected.changes
        assert [f.detector for f in diagnostician.diagnose().findings] == [f.detector for f in expected.findings]


def test_a_fault_of_the_script_is_no_vanishing() -> None:
    """A flat loss behind softmax twice, or at a rate near zero, is explained by the fault: no gradient is to blame."""
    gradient = 10.0 ** np.array([-4, -3, -1, 0])
    block = run(noisy(2.3, STEPS), gradient=gradient)
    assert list_alarms(diagnose(block, Training()))
    twice = Training(loss=Loss(kind="cross_entropy", operations=["NllLoss", "LogSoftmax", "Softmax", "Addmm"]))
    assert not list_alarms(diagnose(block, twice))
    assert not list_alarms(
        diagnose(run(noisy(2.3, STEPS), gradient=gradient, update=1e-9, learning_rate=1e-9), Training())
    )


def test_a_cross_entropy_far_above_a_constant_output_has_blown_up() -> None:
    """A run that blew up within its first steps has no earlier level; what a constant output gets is one."""
    loss = np.concatenate([[0.43, 4.0, 16.0, 31.0], noisy(20.0, 96, noise=0.3)])
    block = run(loss, update=6.0)
    training = Training(loss=Loss(kind="cross_entropy", constant_level=float(np.log(2))))
    assert not list_alarms(diagnose(block, Training()))
    assert list_alarms(diagnose(block, training))[0][1] == "exploding"


def test_targets_that_broadcast_ask_for_attention() -> None:
    """Outputs `[n, 1]` against targets `[n]` are a fault of the script, and no gradient vanishes for it."""
    block = run(noisy(1.0, STEPS), gradient=10.0 ** np.array([-4, -3, -1, 0]))
    diagnosis = diagnose(block, Training(loss=Loss(kind="squared_error", broadcasts=True)))
    assert (diagnosis.verdict, diagnosis.level) == ("healthy", "attention")
    assert (finding := find_finding(diagnosis, "loss_mismatch")) is not None
    assert "broadcast" in finding.explanation


def test_a_surrogate_beside_a_declared_metric_may_grow_tenfold() -> None:
    """The loss of a policy gradient has no level, also where the reward is declared; a cross-entropy has one."""
    loss = np.concatenate([noisy(0.01, 60), noisy(0.8, 240)])
    block = with_metric(run(loss, update=6.0), "reward", -falling(300, start=100.0))
    assert not list_alarms(diagnose(block, Training(objective=REWARD, loss=Loss(surrogate=True))))
    assert list_alarms(diagnose(block, Training(objective=REWARD, loss=Loss(kind="cross_entropy", surrogate=False))))


def test_a_stored_mismatch_is_explained_as_before() -> None:
    """A diagnosis that is restored from bytes explains the same two operations, without a further step."""
    twice = Training(loss=Loss(operations=["BinaryCrossEntropyWithLogits", "Sigmoid", "Addmm"]))
    diagnostician = Diagnostician(layers(), twice)
    before = diagnostician.update(run(falling(60)))
    after = Diagnostician.from_bytes(diagnostician.to_bytes(), layers(), twice).diagnose()
    assert "binary cross-entropy" in before.summary
    assert after.summary == before.summary
