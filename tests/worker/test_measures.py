"""What real trials are judged by: the loss beside a constant answer's, in `eval()`, or a metric of worker.toml."""

from __future__ import annotations

from tests.support.services import Serve
from tests.support.workers import (
    SCRIPT,
    StartWorker,
    WaitUntil,
    has_trainables,
    set_parameters,
    stream_exploding_run,
    wait_for_end,
)

import gradmedic

TORCH_SCRIPT = """
    import sys
    sys.path = [path for path in sys.path if not path.endswith("without_torch")]
    import torch
    from torch import nn
    from torch.nn import functional
    import gradmedic
    torch.set_num_threads(1)
    arguments = dict(argument[2:].split("=") for argument in sys.argv[1:])
    how = arguments["how"]
    run = gradmedic.init(project="p", config={"how": how, "pause": 0.0}, trainable="train")
    momentum = 1e-6 if how == "hang" else 0.1
    model = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32, momentum=momentum), nn.ReLU(), nn.Linear(32, 1))
    with torch.no_grad():
        model[0].weight.mul_(10.0)
        model[3].bias.fill_(20.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e9 if how == "explode" else 0.01)
    run.watch(model, optimizer)
    for step in range(80):
        x = torch.randn(64, 4)
        y = x.sum(1, keepdim=True) + 0.1 * torch.randn(64, 1)
        if how == "spam":
            y = torch.randn(64, 1)
        loss = functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
    run.finish()
"""
"""A script that explodes. With `spam` its targets cannot be learned, so that it predicts their mean; with `hang` its
batch normalization never learns its moments, so that it is bad in `eval()`; with `learn` it is good."""


def test_what_is_no_better_than_the_mean_or_bad_in_eval_is_not_verified(
    serve: Serve, sqlite_url: str, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    """Beside a control that is NaN, a model that predicts the mean and one that works in `train()` only do not pass."""
    memory = ('memory = "400MiB"', 'memory = "4GiB"')
    with (
        serve(sqlite_url) as service,
        gradmedic.Client(service.url) as client,
        start_worker(service.url, script=TORCH_SCRIPT, replacement=memory),
    ):
        wait_until(lambda: has_trainables(client))
        remedies = [set_parameters(how=how) for how in ("spam", "hang", "learn")]
        rerun = client.reruns.create(stream_exploding_run(client), remedies=remedies, seeds=1, steps=80)
        rerun = wait_for_end(client, rerun)
        states = [candidate.outcome and candidate.outcome.state for candidate in rerun.candidates[1:]]
        assert states == ["healthy", "healthy", "verified"], rerun
        mean, in_train, _ = (candidate.reason or "" for candidate in rerun.candidates[1:])
        assert "a constant answer's" in mean
        assert "its loss in eval()" in in_train
        judged = {trial.candidate: trial for trial in rerun.trials}
        assert [judged[index].judged_by for index in (1, 2, 3)] == ["loss in eval()"] * 3
        assert (judged[2].loss or 0.0) < (judged[2].constant_level or 0.0) < (judged[2].judged_value or 0.0)


def test_the_operators_metric_decides(
    serve: Serve, sqlite_url: str, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    """A trial whose loss learns is not verified where the metric of `judge_by` shows nothing."""
    script = SCRIPT.replace("run.log(loss=loss,", "run.log(loss=loss, metrics={'reward': 0.5 + 0.1 * (how == 'hang')},")
    with (
        serve(sqlite_url) as service,
        gradmedic.Client(service.url) as client,
        start_worker(
            service.url,
            script=script,
            replacement=("preload = false", 'preload = false\njudge_by = "maximize reward"'),
        ),
    ):
        wait_until(lambda: has_trainables(client))
        remedies = [set_parameters(how=how) for how in ("learn", "hang")]
        rerun = client.reruns.create(stream_exploding_run(client), remedies=remedies, seeds=1, steps=80)
        rerun = wait_for_end(client, rerun)
        outcomes = [(candidate.outcome and candidate.outcome.state, candidate.reason) for candidate in rerun.candidates]
        no_better = "on seed 0: its reward 0.5 is no better than the control's best, 0.5"
        assert outcomes[1] == ("healthy", no_better)
        assert outcomes[2][0] == "verified"
        assert {trial.judged_by for trial in rerun.trials} == {"maximize reward"}
