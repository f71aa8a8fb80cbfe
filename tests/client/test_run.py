"""A run from `init()` to `finish()`, against the real service."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.runs import (
    losses,
    start,
)
from tests.support.faulty_proxy import FaultyProxy

import gradmedic


def test_what_was_logged_is_stored_to_the_bit(service_url: str, client: gradmedic.Client) -> None:
    """Losses, learning rates, metrics, steps, status, config and statistics arrive as they were given."""
    generator = np.random.default_rng(0)
    gradients = [generator.normal(size=(3, 4)) for _ in range(70)]
    with start(service_url, name="whole", config={"lr": 0.1}, tags=["a", "b"], notes="n", group="g") as run:
        for i, gradient in enumerate(gradients):
            run.log(1.0 / (i + 1), step=2 * i, gradients={"w": gradient}, learning_rate=0.1, accuracy=i / 70)
    stored = client.runs.get(run.id)
    assert (stored.name, stored.status, stored.last_step) == ("whole", "finished", 138)
    assert (stored.config, stored.tags, stored.notes, stored.group) == ({"lr": 0.1}, ["a", "b"], "n", "g")
    assert [(layer.name, layer.shape, layer.numel) for layer in stored.layers] == [("w", [3, 4], 12)]
    assert losses(client, run) == {2 * i: 1.0 / (i + 1) for i in range(70)}
    result = client.runs.steps(run.id, ["grad_norm", "accuracy", "learning_rate"], layer="w", max_points=2000)
    by_name = {series.statistic: series for series in result.series}
    np.testing.assert_array_equal(by_name["grad_norm"].mean, [np.float32(np.linalg.norm(g)) for g in gradients])
    assert by_name["accuracy"].mean == [i / 70 for i in range(70)]
    assert set(by_name["learning_rate"].mean) == {0.1}


def test_a_config_that_no_database_stores_is_cleaned(service_url: str, client: gradmedic.Client) -> None:
    """NUL, lone surrogates and huge integers in a configuration or in notes do not cost the run."""
    config = {"prompt\x00": "a\x00b", "path": "\udcff", "seed": 10**400, "deep": [{"\ud800": 2**64}]}
    with start(service_url, config=config, notes="n\x00") as run:
        run.log(1.0)
    stored = client.runs.get(run.id)
    assert stored.config == {"prompt?": "a?b", "path": "?", "seed": str(10**400), "deep": [{"?": str(2**64)}]}
    assert (stored.notes, stored.last_step) == ("n?", 0)


def test_nonfinite_numbers_are_stored_and_absent_layers_are_absent(service_url: str, client: gradmedic.Client) -> None:
    """A NaN is counted as a value; an absent layer has no value."""
    with start(service_url) as run:
        run.log(math.nan, statistics={"a": {"grad_norm": math.inf}, "b": {"grad_norm": 1.0}})
        run.log(1.0, statistics={"b": {"grad_norm": 2.0}})
    result = client.runs.steps(run.id, ["grad_norm", "loss"], max_points=10)
    series = {(s.statistic, s.layer): s for s in result.series}
    assert (series["grad_norm", "a"].count, series["grad_norm", "a"].nonfinite) == ([1, 0], [1, 0])
    assert series["grad_norm", "b"].mean == [1.0, 2.0]
    assert series["loss", None].nonfinite == [1, 0]


def test_layers_may_appear_while_the_run_goes_on(service_url: str, client: gradmedic.Client) -> None:
    """A layer that appears later is appended, and earlier steps do not have it."""
    with start(service_url) as run:
        run.log(1.0, gradients={"first": np.ones(2)})
        assert run.flush()
        run.log(0.9, gradients={"second": np.ones(3), "first": np.ones(2)})
        assert run.flush()
        run.log(0.8, gradients={"third": np.ones(3)})
    assert [layer.name for layer in client.runs.get(run.id).layers] == ["first", "second", "third"]
    result = client.runs.steps(run.id, "grad_norm", max_points=10)
    assert {s.layer: s.count for s in result.series} == {"first": [1, 1, 0], "second": [0, 1, 0], "third": [0, 0, 1]}


def test_a_run_may_log_losses_only(service_url: str, client: gradmedic.Client) -> None:
    """A run needs no layers and no statistics; the grad_norm of later gradients is stored."""
    with start(service_url) as run:
        run.log(1.0)
        assert run.flush()
        run.log(0.9, gradients={"w": np.array([3.0, 4.0])})
    assert losses(client, run) == {0: 1.0, 1: 0.9}
    (series,) = client.runs.steps(run.id, "grad_norm", layer="w").series
    assert 5.0 in series.mean


def test_a_run_without_any_step_exists(service_url: str, client: gradmedic.Client) -> None:
    """init() and finish() alone register the run; an exception in its `with` block makes it failed."""
    with pytest.raises(ZeroDivisionError), start(service_url) as run:
        raise ZeroDivisionError
    assert client.runs.get(run.id).status == "failed"


def test_the_same_id_is_the_same_run(service_url: str, client: gradmedic.Client, caplog: Any) -> None:
    """A second process with the run's id continues the run; stored steps are ignored with a warning."""
    first = start(service_url)
    first.log(1.0, gradients={"a": np.ones(1)})
    first.finish()
    second = start(service_url, id=first.id)
    second.log(9.0, gradients={"b": np.ones(1)})
    second.log(2.0, gradients={"b": np.ones(1), "a": np.ones(1)})
    second.finish()
    assert losses(client, first) == {0: 1.0, 1: 2.0}
    assert [layer.name for layer in client.runs.get(first.id).layers] == ["a", "b"]
    assert caplog.text.count("were ignored") == 1


def test_log_freq_leaves_statistics_out_but_no_step(service_url: str, client: gradmedic.Client) -> None:
    """Every loss is stored; statistics of a watched model are those of the first twenty steps and of each eighth."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with start(service_url, log_freq=8) as run:
        run.watch(model, optimizer)
        for _ in range(40):
            model(torch.ones(1)).sum().backward()
            optimizer.step()
            run.log(1.0)
    (series,) = client.runs.steps(run.id, "grad_norm", layer="weight", max_points=100).series
    assert len(losses(client, run)) == 40
    assert [i for i, count in enumerate(series.count) if count] == [*range(20), 24, 32]


def test_finish_takes_a_status_by_name_only(service_url: str, client: gradmedic.Client) -> None:
    """`finish("failed")`, which would set the timeout, is a TypeError and loses nothing."""
    run: Any = start(service_url)
    run.log(1.0)
    with pytest.raises(TypeError):
        run.finish("failed")
    assert run.finish(status="failed")
    assert (client.runs.get(run.id).status, losses(client, run)) == ("failed", {0: 1.0})


def test_log_after_finish_is_warned_of_once_and_does_nothing(
    service_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After finish(), log() warns once, finish() does nothing, and watch() raises UsageError."""
    run = start(service_url)
    assert run.finish()
    assert run.finish()
    run.log(1.0)
    run.log(1.0)
    assert caplog.text.count("log() after finish()") == 1
    with pytest.raises(gradmedic.UsageError):
        run.watch(None, None)  # type: ignore[arg-type]
    with pytest.raises(gradmedic.ConfigurationError, match="status"):
        run.finish(status="done")


def test_a_config_that_is_too_large_costs_the_config_and_not_the_run(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A config that the service would refuse is cut to plain values before it is sent."""
    with start(service_url, config={"lr": 0.1, "table": [1.0] * 500_000}) as run:
        run.log(1.0)
    assert client.runs.get(run.id).config == {"lr": 0.1}
    assert "config is cut" in caplog.text


def test_notes_and_tags_are_cut_to_what_the_service_accepts(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Notes and tags beyond the limits are cut with a warning, and the run is stored."""
    limits = client.limits()
    with start(
        service_url, notes="n" * (limits.max_notes_length + 1), tags=[f"t{i}" for i in range(limits.max_tags + 3)]
    ) as run:
        run.log(1.0)
    stored = client.runs.get(run.id)
    assert stored.notes == "n" * limits.max_notes_length
    assert len(stored.tags) == limits.max_tags
    assert "notes are cut" in caplog.text
    assert "3 tags are left out" in caplog.text


def test_a_notebook_cell_that_is_run_again_ends_its_first_run(
    service_url: str, client: gradmedic.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook's kernel, a second init() finishes the first run."""
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    first = start(service_url)
    first.log(1.0)
    second = start(service_url)
    assert client.runs.get(first.id).status == "finished"
    second.log(2.0)
    assert second.finish()
    assert losses(client, second) == {0: 2.0}


def test_a_process_that_is_not_the_first_sends_nothing(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of rank 1 makes no request; flush() and finish() return True, and diagnosis() raises UsageError."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = start(proxy.url)
    run.log(1.0)
    run.rewind(0)
    assert run.is_follower
    assert run.flush()
    with pytest.raises(gradmedic.UsageError, match="another process"):
        run.diagnosis()
    assert run.finish()
    assert not proxy.requests
