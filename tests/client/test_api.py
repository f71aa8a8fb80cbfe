"""Queries of `Client`."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from tests.client.runs import start
from tests.support.faulty_proxy import FaultyProxy
from tests.support.patience import PATIENCE

import gradmedic


@pytest.fixture
def project(service_url: str) -> str:
    """A project with seven runs; the third has a tag."""
    project = f"project-{uuid4()}"
    for i in range(7):
        with gradmedic.init(project, name=f"run {i}", tags=["third"] if i == 2 else [], base_url=service_url) as run:
            run.log(1.0, gradients={"w": np.ones(2)})
    return project


def test_a_list_reads_all_pages(proxy: FaultyProxy, project: str) -> None:
    """The iterator fetches a page only when its first item is read."""
    with gradmedic.Client(proxy.url) as client:
        names = [run.name for run in client.runs.list(project=project, page_size=3)]
        assert sorted(names) == [f"run {i}" for i in range(7)]
        assert len(proxy.requests) == 3
        next(client.runs.list(project=project, page_size=3))
        assert len(proxy.requests) == 4


def test_a_list_is_filtered(client: gradmedic.Client, project: str) -> None:
    """Only runs that match tag, text, status and verdict are listed."""
    assert [run.name for run in client.runs.list(project=project, tag="third")] == ["run 2"]
    assert [run.name for run in client.runs.list(project=project, text="run 5")] == ["run 5"]
    assert list(client.runs.list(project=project, status="failed")) == []
    assert len(list(client.runs.list(project=project, status="finished", verdict="undetermined"))) == 7


def test_many_runs_are_read_and_changed_at_once(client: gradmedic.Client, project: str) -> None:
    """Lists, counts and columns are typed; changing the tags of many runs and deleting them answer what was done."""
    runs = list(client.runs.list(project=project, where={"loss": ["<2", ">=1"]}, sort="name", config_keys=["lr"]))
    assert [run.name for run in runs] == [f"run {index}" for index in range(7)]
    assert runs[0].loss is not None
    assert (runs[0].loss.last, runs[0].loss.sparkline, runs[0].config) == (1.0, [1.0], {})
    counts = client.runs.counts(project=project, group_by="project")
    assert (counts.total, counts.groups[0].value, counts.groups[0].total) == (7, project, 7)
    assert client.runs.columns(project=project) == []
    missing = uuid4()
    tagged = client.runs.change_tags([runs[0].id, str(runs[1].id), missing], add=["best"])
    assert (tagged.changed, tagged.failed[0].id) == ([runs[0].id, runs[1].id], missing)
    assert [run.name for run in client.runs.list(project=project, tag="best", sort="name")] == ["run 0", "run 1"]
    assert client.runs.delete_many(run.id for run in runs[3:]).changed == [run.id for run in runs[3:]]
    assert client.runs.counts(project=project).total == 3


def test_a_run_can_be_read_and_deleted(client: gradmedic.Client, project: str) -> None:
    """Detail, steps, diagnosis and history are typed; a deleted run is not found."""
    (summary,) = client.runs.list(project=project, tag="third")
    assert client.runs.get(summary.id).layers[0].name == "w"
    assert client.runs.steps(summary.id, "grad_norm", layer="w").series[0].mean[0] == np.float32(np.sqrt(2))
    assert client.runs.diagnosis(summary.id).verdict == "undetermined"
    assert client.runs.diagnosis(str(summary.id), at_step=0).step == 0
    assert list(client.runs.history(summary.id)) == []
    client.runs.delete(summary.id)
    with pytest.raises(gradmedic.NotFoundError):
        client.runs.get(summary.id)


def test_an_invalid_query_names_its_field(client: gradmedic.Client, project: str) -> None:
    """The error has the service's message."""
    (summary,) = client.runs.list(project=project, tag="third")
    with pytest.raises(gradmedic.InvalidRequestError, match="statistic"):
        client.runs.steps(summary.id, "steepness")


def test_waiting_for_a_run_ends_with_it(service_url: str, client: gradmedic.Client) -> None:
    """wait() returns when the run has ended or `until` holds, and raises TimeoutError after the timeout."""
    run = start(service_url)
    run.log(1.0)
    assert run.flush()
    with pytest.raises(TimeoutError, match="is running, at step 0"):
        client.runs.wait(run.id, timeout=0)
    assert client.runs.wait(run.id, until=lambda current: current.last_step == 0).status == "running"
    run.finish(status="failed")
    assert client.runs.wait(run.id, timeout=PATIENCE).status == "failed"


def test_a_run_is_changed(service_url: str, client: gradmedic.Client) -> None:
    """update() changes name and tags; notes that are not given stay."""
    with start(service_url, notes="old", tags=["a"]) as run:
        pass
    changed: Any = client.runs.update(run.id, name="better", tags=("b", "c"))
    assert (changed.name, changed.notes, changed.tags) == ("better", "old", ["b", "c"])
