"""Arguments and environment variables of a run."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pytest

import gradmedic
from gradmedic.configuration import resolve_configuration
from gradmedic.protocol.runs import Objective, Training


def test_an_argument_wins_over_the_environment_and_that_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument that is not given comes from GRADMEDIC_*, else from the default."""
    monkeypatch.setenv("GRADMEDIC_PROJECT", "from-environment")
    monkeypatch.setenv("GRADMEDIC_RUN_ID", "01a20088-6da0-7e80-b639-b6f5d5d30828")
    monkeypatch.setenv("GRADMEDIC_BASE_URL", "https://gradmedic.example/")
    run = gradmedic.init(mode="disabled")
    assert run.project == "from-environment"
    assert run.url == "https://gradmedic.example/runs/01a20088-6da0-7e80-b639-b6f5d5d30828"
    assert gradmedic.init("given", mode="disabled").project == "given"
    monkeypatch.delenv("GRADMEDIC_BASE_URL")
    assert gradmedic.init(mode="disabled").url.startswith("http://127.0.0.1:8642/runs/")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"project": " "}, "project"),
        ({"base_url": "localhost:8642"}, "base_url"),
        ({"base_url": "http://[::1"}, "base_url"),
        ({"id": "seven"}, "id"),
        ({"id": "b7f3a1de-0000-4000-8000-000000000000"}, "id must be a UUID of version 7"),
        ({"name": "n" * 600}, "name has 600 characters"),
        ({"project": "a\x00"}, "project must not contain"),
        ({"tags": "one"}, "tags"),
        ({"tags": ""}, "tags must be a sequence of strings"),
        ({"config": 3}, "config"),
        ({"mode": "offline-ish"}, "mode must be one of online, offline, disabled"),
        ({"log_freq": 0}, 'log_freq must be "auto" or a whole number'),
        ({"log_freq": 1.5}, "log_freq"),
        ({"flush_interval": float("nan")}, "flush_interval"),
        ({"max_queue_bytes": -1}, "max_queue_bytes"),
        ({"timeout": "soon"}, "timeout"),
        ({"on_nonfinite": "clip"}, "on_nonfinite must be one of record, locate, skip, stop, not 'clip'"),
        ({"on_unhealthy": "panic"}, "on_unhealthy must be one of warn, clip, skip, rewind, stop, not 'panic'"),
        ({"objective": "reward"}, 'objective must be "minimize loss", "minimize METRIC" or "maximize METRIC"'),
        ({"objective": "increase reward"}, "objective must be"),
        ({"objective": "minimize"}, "objective must be"),
        ({"objective": "none loss"}, "objective must be"),
        ({"objective": ["minimize", "loss"]}, "objective must be"),
        ({"objective": 3}, "objective must be"),
        ({"objective": "maximize " + "m" * 600}, "objective names a metric .* has 600 characters"),
        ({"objective": "maximize a\x00"}, "objective names a metric that cannot be logged"),
        ({"objective": "minimize grad_norm"}, "objective must name the loss or a metric"),
        ({"objective": "maximize learning_rate"}, "objective must name the loss or a metric"),
        ({"max_disk_bytes": 0}, "max_disk_bytes"),
        ({"dir": 3}, "dir must be the path of a folder"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name(arguments: dict[str, Any], named: str) -> None:
    """`init()` raises an error with the name and the value of the argument."""
    with pytest.raises(gradmedic.ConfigurationError, match=named):
        gradmedic.init(**arguments)


def test_a_wrong_environment_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is checked like the arguments."""
    monkeypatch.setenv("GRADMEDIC_LOG_FREQ", "often")
    with pytest.raises(gradmedic.ConfigurationError, match="GRADMEDIC_LOG_FREQ must be"):
        gradmedic.init(mode="disabled")


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("minimize loss", Objective(kind="loss", direction="minimize")),
        ("maximize loss", Objective(kind="loss", direction="maximize")),
        ("maximize reward", Objective(kind="metric", metric="reward", direction="maximize")),
        (" minimize  val loss ", Objective(kind="metric", metric="val loss", direction="minimize")),
        ("none", Objective(kind="none")),
        ("", None),
    ],
)
def test_an_objective_is_read_from_its_text(
    monkeypatch: pytest.MonkeyPatch, text: str, objective: Objective | None
) -> None:
    """It is a direction and the loss or the name of a metric, or `none`; an argument or `GRADMEDIC_OBJECTIVE`."""
    assert resolve_configuration(objective=text).objective == objective
    monkeypatch.setenv("GRADMEDIC_OBJECTIVE", text)
    configuration = resolve_configuration()
    assert configuration.objective == objective
    assert configuration.describe().training == (None if objective is None else Training(objective=objective))
    assert resolve_configuration(objective="minimize other").objective == Objective(
        kind="metric", metric="other", direction="minimize"
    )


def test_a_wrong_objective_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the name of the variable."""
    monkeypatch.setenv("GRADMEDIC_OBJECTIVE", "reward")
    with pytest.raises(gradmedic.ConfigurationError, match="GRADMEDIC_OBJECTIVE must be"):
        gradmedic.init(mode="disabled")


@pytest.mark.parametrize("tags", [None, (), [], iter(())], ids=["none", "tuple", "list", "iterator"])
def test_without_tags_those_of_the_environment_count(monkeypatch: pytest.MonkeyPatch, tags: Any) -> None:
    """`GRADMEDIC_TAGS` is used if the argument has no tag."""
    monkeypatch.setenv("GRADMEDIC_TAGS", "nightly,gpu")
    assert resolve_configuration(tags=tags).tags == ("nightly", "gpu")


def test_tags_may_be_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any iterable of strings is taken, also one without a truth value."""
    monkeypatch.setenv("GRADMEDIC_TAGS", "nightly")
    assert resolve_configuration(tags=np.array(["a", "b"])).tags == ("a", "b")


def test_hyperparameters_come_as_a_mapping_or_as_an_object() -> None:
    """A config may be an `argparse.Namespace` or a mapping."""
    assert gradmedic.init(mode="disabled", config=argparse.Namespace(lr=0.1)).config == {"lr": 0.1}
    assert gradmedic.init(mode="disabled", config={"lr": 0.1}).config == {"lr": 0.1}


def test_a_disabled_run_does_nothing() -> None:
    """In mode "disabled" every call returns at once, and nothing is started."""
    run = gradmedic.init(mode="disabled", base_url="http://127.0.0.1:1")
    run.log(loss=object())
    assert run.flush()
    assert run.finish()
    with pytest.raises(gradmedic.UsageError):
        run.diagnosis()
