"""A Ray cluster and services with keys, once for all tests that need them, and executors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.patience import PATIENCE
from tests.support.ray_cluster import RayCluster
from tests.support.ray_trials import (
    HEAD_CPUS,
    ExecutorUnderTest,
    ServiceWithKeys,
    TrainableFolder,
    cancel_all_reruns,
    run_service_with_keys,
)

import gradmedic
from gradmedic_worker.configuration import read_configuration
from gradmedic_worker.executors.base import Executor, TrialProcess
from gradmedic_worker.executors.local import LocalExecutor
from gradmedic_worker.executors.ray import RayExecutor

LONG_LEASE = float(PATIENCE)
"""Seconds. Tests of the contract claim trials and send no heartbeats."""
SHORT_LEASE = 5.0
"""Seconds, for tests in which a worker is lost and another one waits for the end of its lease."""


@pytest.fixture(scope="session")
def trainable_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainableFolder]:
    """A folder with the script, and one cluster for all tests: `ray start --head` with token authentication."""
    folder = tmp_path_factory.mktemp("trainable")
    cluster = RayCluster(folder / "worker.toml", cpus=HEAD_CPUS, has_short_health_checks=True)
    trainable_folder = TrainableFolder(cluster, folder)
    trainable_folder.write_script()
    try:
        cluster.start_head()
        yield trainable_folder
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceWithKeys]:
    """A service with long leases."""
    with run_service_with_keys(tmp_path_factory.mktemp("service"), LONG_LEASE) as service:
        yield service


@pytest.fixture(scope="session")
def _session_short_lease_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceWithKeys]:
    with run_service_with_keys(tmp_path_factory.mktemp("short-lease-service"), SHORT_LEASE) as service:
        yield service


@pytest.fixture
def short_lease_service(_session_short_lease_service: ServiceWithKeys) -> Iterator[ServiceWithKeys]:
    """A service with short leases. The test's reruns are cancelled at its end."""
    yield _session_short_lease_service
    with gradmedic.Client(_session_short_lease_service.url, _session_short_lease_service.user_key) as client:
        cancel_all_reruns(client)


@pytest.fixture
def user_client(service: ServiceWithKeys) -> Iterator[gradmedic.Client]:
    """A client with the user's key. The test's reruns are cancelled at its end."""
    with gradmedic.Client(service.url, service.user_key) as client:
        yield client
        cancel_all_reruns(client)


@pytest.fixture
def worker_client(service: ServiceWithKeys) -> Iterator[gradmedic.Client]:
    """A client with the worker's key."""
    with gradmedic.Client(service.url, service.worker_key) as client:
        yield client


@pytest.fixture(params=["local", "ray"])
def executor_under_test(
    request: pytest.FixtureRequest,
    trainable_folder: TrainableFolder,
    service: ServiceWithKeys,
    user_client: gradmedic.Client,
    worker_client: gradmedic.Client,
    tmp_path: Path,
) -> Iterator[ExecutorUnderTest]:
    """Each executor in turn, ready to start trials."""
    environment = {"PATH": os.environ["PATH"], "GRADMEDIC_API_KEY": service.worker_key, "HOME": str(tmp_path)}
    configuration = read_configuration(trainable_folder.configure(service.url, executor=request.param))
    executor: Executor
    if request.param == "ray":
        executor = RayExecutor(configuration, worker_client, environment=environment, print_line=lambda _: None)
    else:
        executor = LocalExecutor(configuration, service.url, gpus=[], environment=environment)
    executor.prepare()
    worker_client.work.register([trainable.describe() for trainable in configuration.trainables.values()], "test")
    yield ExecutorUnderTest(request.param, executor, user_client, worker_client, service)
    executor.close()


@pytest.fixture
def start_trial(executor_under_test: ExecutorUnderTest) -> Iterator[Callable[..., TrialProcess]]:
    """Start a trial of a kind. It is closed at the end of the test."""
    started: list[TrialProcess] = []

    def start(kind: str, pause: float = 0.0, seconds: float = PATIENCE) -> TrialProcess:
        claimed = executor_under_test.claim(kind, pause, seconds)
        started.append(executor_under_test.executor.start(claimed))
        return started[-1]

    yield start
    for trial in started:
        trial.close()
