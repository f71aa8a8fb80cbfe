"""Reruns on a real Ray cluster. When a part of it is lost, each attempt has an outcome, and the rerun goes on."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import uuid4

import msgspec
import psutil
import pytest
from tests.support.network_link import NetworkLink
from tests.support.patience import PATIENCE
from tests.support.ray_cluster import RayCluster
from tests.support.ray_trials import HEAD_CPUS, ServiceWithKeys, TrainableFolder, stream_bad_run
from tests.support.workers import (
    WaitUntil,
    attempt_statuses,
    find_running_trial,
    set_parameters,
    wait_for_end,
)

import gradmedic
from gradmedic.cli.rerun import follow_rerun
from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.reruns import RerunDetail
from gradmedic_worker.configuration import read_configuration
from gradmedic_worker.executors.base import LostAttempt, TrialEnd
from gradmedic_worker.executors.ray import ENTRYPOINT_MODULE, RayExecutor, RayTrial
from gradmedic_worker.executors.ray_jobs import JobSubmission, RayJobs, RayUnreachable
from gradmedic_worker.executors.ray_tickets import compute_ticket

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

StartRayWorker = Callable[..., AbstractContextManager["subprocess.Popen[str]"]]
PROGRAMS = {ENTRYPOINT_MODULE, "gradmedic_worker.attempt"}
SECRET = re.compile(rb"gradmedic_[A-Za-z0-9_-]{43}")


@pytest.fixture
def start_ray_worker(trainable_folder: TrainableFolder, tmp_path: Path) -> StartRayWorker:
    """Run `gradmedic worker` for the cluster. It is killed at the end if it still runs."""

    @contextmanager
    def start(service: ServiceWithKeys, base_url: str | None = None) -> Iterator[subprocess.Popen[str]]:
        command = [str(Path(sys.executable).with_name("gradmedic")), "worker", "--base-url", base_url or service.url]
        command += ["--config", str(trainable_folder.configuration)]
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GRADMEDIC_API_KEY": service.worker_key}
        with (tmp_path / "worker.log").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    return start


def create_rerun(service: ServiceWithKeys, kind: str = "learn") -> RerunDetail:
    """Create a rerun with one candidate, which learns. If the control learns too, it is the only trial."""
    with gradmedic.Client(service.url, service.user_key) as client:
        run_id = stream_bad_run(service, "ray", kind)
        remedies = [set_parameters(kind="learn", pause=0.0)]
        return client.reruns.create(run_id, remedies=remedies, seeds=1, steps=80, executor="ray")


def register_trainable(service: ServiceWithKeys, trainable_folder: TrainableFolder) -> None:
    """Register the trainable, as the worker does when it starts later."""
    configuration = read_configuration(trainable_folder.configuration)
    with gradmedic.Client(service.url, service.worker_key) as client:
        client.work.register([trainable.describe() for trainable in configuration.trainables.values()], "test")


def find_trial_processes(trainable_folder: TrainableFolder) -> list[psutil.Process]:
    """Return the running processes of the cluster's trials: entrypoints, launchers and scripts."""
    folder = str(trainable_folder.folder)
    found = []
    for process in psutil.process_iter():
        try:
            texts = {*process.cmdline()[1:3], *process.environ().values()}
            is_trial = not texts.isdisjoint({*PROGRAMS, str(trainable_folder.folder / "train.py")})
            is_of_cluster = any(folder in text for text in texts)  # other tests have trials too
            if is_trial and is_of_cluster and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def describe_attempts(rerun: RerunDetail) -> str:
    """Return what happened in each attempt, for the message of a failed test."""
    lines = [
        f"{trial.candidate}.{attempt.number} {attempt.status} {attempt.started_at:%M:%S}-{attempt.ended_at:%M:%S} "
        f"step {trial.step}, {trial.verdict}, loss {trial.loss}: {attempt.reason}"
        for trial in rerun.trials
        for attempt in trial.attempts
    ]
    return "\n".join([f"{rerun.reason}; {[candidate.reason for candidate in rerun.candidates]}", *lines])


def test_a_rerun_leaves_no_secret_on_the_cluster(
    trainable_folder: TrainableFolder,
    service: ServiceWithKeys,
    user_client: gradmedic.Client,
    start_ray_worker: StartRayWorker,
    tmp_path: Path,
) -> None:
    """Jobs have the names of their attempts. No key, ticket or token is in Ray's files or in the worker's log."""
    trainable_folder.configure(service.url)
    register_trainable(service, trainable_folder)
    with start_ray_worker(service):
        rerun = wait_for_end(user_client, create_rerun(service, "explode"))
    assert (rerun.status, rerun.reason, rerun.executor) == ("done", "1 of 1 candidates verified", "ray")
    assert attempt_statuses(rerun) == [["done"], ["done"]]
    cluster = trainable_folder.cluster
    jobs = {job["submission_id"]: job for job in json.loads(cluster.get("/api/jobs/") or b"[]")}
    for trial in rerun.trials:
        name = f"{trial.id}-1"
        assert jobs[name]["entrypoint"] == f"{sys.executable} -m {ENTRYPOINT_MODULE} {name}"
        assert not jobs[name]["metadata"]
        assert not jobs[name]["runtime_env"]
        assert compute_ticket(cluster.token, name).encode() not in cluster.read_all_files()
    content = cluster.read_all_files() + (tmp_path / "worker.log").read_bytes()
    assert f"{rerun.trials[0].id}-1".encode() in content
    assert SECRET.search(content) is None
    assert cluster.token.encode() not in content


def test_a_job_of_another_user_gets_no_trial(
    trainable_folder: TrainableFolder,
    service: ServiceWithKeys,
    user_client: gradmedic.Client,
    worker_client: gradmedic.Client,
    wait_until: WaitUntil,
) -> None:
    """An entrypoint that another user submits for an attempt is refused by the service, and runs nothing."""
    trainable_folder.configure(service.url)
    register_trainable(service, trainable_folder)
    create_rerun(service)
    claimed = worker_client.work.claim("test", ["train-ray"], "ray")
    assert claimed is not None
    jobs = RayJobs(trainable_folder.cluster.address, trainable_folder.cluster.token)
    name = f"{claimed.trial_id}-{claimed.attempt}"
    entrypoint = f"{sys.executable} -m {ENTRYPOINT_MODULE} {name}"
    jobs.submit(JobSubmission(id=f"stranger-{name}", entrypoint=entrypoint, cpus=0, gpus=0, memory=None))
    wait_until(lambda: (job := jobs.find(f"stranger-{name}")) is not None and job.has_ended)
    assert '"lost": ' in jobs.read_log(f"stranger-{name}")
    assert "is not one of this service's" in jobs.read_log(f"stranger-{name}")
    jobs.close()


def test_a_job_that_is_submitted_twice_exists_once(trainable_folder: TrainableFolder) -> None:
    """A second submission, as after a lost answer, is no error and changes nothing."""
    jobs = RayJobs(trainable_folder.cluster.address, trainable_folder.cluster.token)
    submission = JobSubmission(id=f"twice-{uuid4()}", entrypoint="sleep 600", cpus=0, gpus=0, memory=None)
    jobs.submit(submission)
    first = jobs.find(submission.id)
    jobs.submit(submission)
    assert first is not None
    jobs.stop(submission.id)
    listed = json.loads(trainable_folder.cluster.get("/api/jobs/") or b"[]")
    assert sum(job["submission_id"] == submission.id for job in listed) == 1
    jobs.close()


class LosesFirstAnswer(RayJobs):
    """Jobs of a cluster whose answer to the first submission is lost after `wait` has returned."""

    def __init__(self, cluster: RayCluster, wait: Callable[[], None]) -> None:
        super().__init__(cluster.address, cluster.token)
        self._wait = wait
        self.submissions = 0

    def submit(self, submission: JobSubmission) -> None:
        """Submit a job, and raise RayUnreachable the first time."""
        super().submit(submission)
        self.submissions += 1
        if self.submissions == 1:
            self._wait()
            raise RayUnreachable("the answer was lost")


def test_a_job_may_start_before_its_submission_is_answered(
    trainable_folder: TrainableFolder,
    service: ServiceWithKeys,
    user_client: gradmedic.Client,
    worker_client: gradmedic.Client,
    wait_until: WaitUntil,
) -> None:
    """A job that has redeemed its ticket before its second submission is found, and its end counts."""
    configuration = read_configuration(trainable_folder.configure(service.url))
    register_trainable(service, trainable_folder)
    rerun = create_rerun(service)
    claimed = worker_client.work.claim("test", ["train-ray"], "ray")
    assert claimed is not None
    executor = RayExecutor(configuration, worker_client, environment={}, print_line=lambda _: None)
    jobs = executor._jobs = LosesFirstAnswer(
        trainable_folder.cluster, lambda: wait_until(lambda: find_running_trial(user_client, rerun) is not None)
    )
    with trainable_folder.hold_trials() as release_trials:
        trial = executor.start(claimed)
        wait_until(lambda: jobs.submissions == 2 or trial.wait(0) is not None)
        release_trials()
        wait_until(lambda: trial.wait(0.1) is not None)
    end = trial.wait(0)
    assert isinstance(end, TrialEnd), end
    assert end.exit_code == 0
    trial.close()
    executor.close()


def test_another_job_with_the_id_of_an_attempt_is_left_alone(
    trainable_folder: TrainableFolder, wait_until: WaitUntil
) -> None:
    """If Ray has another job with the id of an attempt, the attempt is lost, and that job runs on."""
    jobs = RayJobs(trainable_folder.cluster.address, trainable_folder.cluster.token)
    name = f"taken-{uuid4()}"
    jobs.submit(JobSubmission(id=name, entrypoint="sleep 600", cpus=0, gpus=0, memory=None))
    submission = JobSubmission(id=name, entrypoint="true", cpus=0, gpus=0, memory=None)
    trial = RayTrial(jobs, submission, lambda: None, pending_timeout=PATIENCE, awaited="a place")
    wait_until(lambda: isinstance(trial.wait(0.1), LostAttempt))
    end = trial.wait(0)
    assert isinstance(end, LostAttempt)
    assert "another job" in end.reason
    trial.close()
    job = jobs.find(name)
    assert job is not None
    assert not job.has_ended
    jobs.stop(name)
    jobs.close()


def test_a_job_that_cannot_start_is_lost_with_its_output(
    trainable_folder: TrainableFolder, wait_until: WaitUntil
) -> None:
    """The reason of an attempt whose interpreter does not exist names the interpreter."""
    jobs = RayJobs(trainable_folder.cluster.address, trainable_folder.cluster.token)
    submission = JobSubmission(
        id=f"broken-{uuid4()}", entrypoint="/no/such/python -m nothing", cpus=0, gpus=0, memory=None
    )
    trial = RayTrial(jobs, submission, lambda: None, pending_timeout=PATIENCE, awaited="a place")
    wait_until(lambda: trial.wait(0.1) is not None)
    end = trial.wait(0)
    assert isinstance(end, LostAttempt)
    assert "/no/such/python" in end.reason
    trial.close()
    jobs.close()


def test_a_wrong_or_missing_token_is_an_error_at_the_start(
    trainable_folder: TrainableFolder, worker_client: gradmedic.Client, service: ServiceWithKeys, tmp_path: Path
) -> None:
    """A worker with a wrong token, or with none, does not start. A worker whose cluster does not answer waits."""
    configuration = read_configuration(trainable_folder.configure(service.url))
    ray = configuration.ray
    assert ray is not None
    printed: list[str] = []

    def make_executor(**changes: object) -> RayExecutor:
        from dataclasses import replace

        changed = replace(configuration, ray=msgspec.structs.replace(ray, **changes))
        return RayExecutor(changed, worker_client, environment={"HOME": str(tmp_path)}, print_line=printed.append)

    (tmp_path / "token").write_text("not the token of this cluster")
    with pytest.raises(ConfigurationError, match="refuses the token"):
        make_executor(token_file=tmp_path / "token").prepare()
    with pytest.raises(ConfigurationError, match=r"token_file, RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"):
        make_executor(token_file=None)
    with NetworkLink(1) as link_to_nothing:
        executor = make_executor(address=f"http://127.0.0.1:{link_to_nothing.port}")
        executor.prepare()
        assert executor.list_startable_trainables() == []
    assert len(printed) == 1
    assert "does not answer" in printed[0]


def test_a_trial_that_waits_too_long_for_a_place_is_lost(
    trainable_folder: TrainableFolder,
    service: ServiceWithKeys,
    user_client: gradmedic.Client,
    start_ray_worker: StartRayWorker,
) -> None:
    """A waiting trial is shown as waiting. Its attempts are lost without costing seconds, and the third is the last."""
    trainable_folder.configure(service.url, cpus=64, pending=4)
    register_trainable(service, trainable_folder)
    progress = io.StringIO()
    with start_ray_worker(service):
        rerun = follow_rerun(user_client, create_rerun(service).id, progress, timeout=PATIENCE)
    assert rerun.status == "failed"
    assert attempt_statuses(rerun) == [["lost"] * 3]
    assert "control, seed 0: running (it waits for a place on the cluster)\n" in progress.getvalue()
    assert "waited longer than 4 s for a place with 64 CPUs" in (rerun.reason or "")
    assert rerun.cost_seconds == 0


def test_cancelling_a_rerun_ends_its_job(
    trainable_folder: TrainableFolder,
    service: ServiceWithKeys,
    user_client: gradmedic.Client,
    start_ray_worker: StartRayWorker,
    wait_until: WaitUntil,
) -> None:
    """Soon after a rerun is cancelled, none of its processes is left on the cluster."""
    trainable_folder.configure(service.url)
    register_trainable(service, trainable_folder)
    with trainable_folder.hold_trials(), start_ray_worker(service):
        rerun = create_rerun(service)
        wait_until(lambda: find_running_trial(user_client, rerun) is not None)
        user_client.reruns.cancel(rerun.id)
        wait_until(lambda: not find_trial_processes(trainable_folder))
    assert attempt_statuses(user_client.reruns.get(rerun.id)) == [["cancelled"]]


def test_a_killed_worker_leaves_no_trial_behind(
    trainable_folder: TrainableFolder,
    short_lease_service: ServiceWithKeys,
    start_ray_worker: StartRayWorker,
    wait_until: WaitUntil,
) -> None:
    """The job of a killed worker ends with its lease, and the next worker makes another attempt."""
    service = short_lease_service
    trainable_folder.configure(service.url)
    register_trainable(service, trainable_folder)
    with gradmedic.Client(service.url, service.user_key) as client, trainable_folder.hold_trials() as release_trials:
        with start_ray_worker(service) as worker:
            rerun = create_rerun(service)
            wait_until(lambda: find_running_trial(client, rerun) is not None)
            worker.kill()
            wait_until(lambda: not find_trial_processes(trainable_folder))
        release_trials()
        with start_ray_worker(service):
            rerun = wait_for_end(client, rerun)
    assert attempt_statuses(rerun) == [["lost", "done"]], describe_attempts(rerun)


@pytest.mark.parametrize("target", ["Ray", "the service"])
def test_a_worker_survives_a_cut_network_link(
    trainable_folder: TrainableFolder,
    short_lease_service: ServiceWithKeys,
    start_ray_worker: StartRayWorker,
    wait_until: WaitUntil,
    target: str,
) -> None:
    """Without a link to Ray, the trial goes on and is published once. Without one to the service, it is run again."""
    service = short_lease_service
    target_url = trainable_folder.cluster.address if target == "Ray" else service.url
    with (
        gradmedic.Client(service.url, service.user_key) as client,
        NetworkLink(int(target_url.rpartition(":")[2])) as link,
        trainable_folder.hold_trials() as release_trials,
    ):
        link_url = f"http://127.0.0.1:{link.port}"
        trainable_folder.configure(service.url, address=link_url if target == "Ray" else None)
        register_trainable(service, trainable_folder)
        with start_ray_worker(service, None if target == "Ray" else link_url):
            rerun = create_rerun(service)
            wait_until(lambda: find_running_trial(client, rerun) is not None)
            link.cut()
            if target == "Ray":
                release_trials()
                wait_until(lambda: client.reruns.get(rerun.id).trials[0].step == 79)
            else:
                wait_until(lambda: not find_trial_processes(trainable_folder))
                release_trials()
            link.mend()
            rerun = wait_for_end(client, rerun)
    expected = [["done"]] if target == "Ray" else [["lost", "done"]]
    assert attempt_statuses(rerun) == expected, describe_attempts(rerun)


def test_a_lost_node_loses_an_attempt(
    trainable_folder: TrainableFolder,
    service: ServiceWithKeys,
    user_client: gradmedic.Client,
    start_ray_worker: StartRayWorker,
    wait_until: WaitUntil,
) -> None:
    """If the node of a trial is killed, the trial is run again on another node."""
    trainable_folder.configure(service.url)
    register_trainable(service, trainable_folder)
    cluster = trainable_folder.cluster
    jobs = RayJobs(cluster.address, cluster.token)
    blocker = JobSubmission(id=f"blocker-{uuid4()}", entrypoint="sleep 600", cpus=HEAD_CPUS, gpus=0, memory=None)
    with trainable_folder.hold_trials() as release_trials, start_ray_worker(service):
        jobs.submit(blocker)  # takes all places of the head
        cluster.start_node("node", 1)
        wait_until(lambda: (job := jobs.find(blocker.id)) is not None and job.status == "RUNNING")
        rerun = create_rerun(service)
        wait_until(lambda: find_running_trial(user_client, rerun) is not None)
        cluster.kill("node")
        wait_until(lambda: not find_trial_processes(trainable_folder))
        release_trials()
        jobs.stop(blocker.id)
        rerun = wait_for_end(user_client, rerun)
    jobs.close()
    assert attempt_statuses(rerun) == [["lost", "done"]], describe_attempts(rerun)
    assert "died" in (rerun.trials[0].attempts[0].reason or "")


def test_a_restarted_head_loses_an_attempt(
    trainable_folder: TrainableFolder,
    service: ServiceWithKeys,
    user_client: gradmedic.Client,
    start_ray_worker: StartRayWorker,
    wait_until: WaitUntil,
) -> None:
    """A restarted head has no record of its earlier jobs. Their processes end, and each trial is run again."""
    trainable_folder.configure(service.url)
    register_trainable(service, trainable_folder)
    cluster = trainable_folder.cluster
    with trainable_folder.hold_trials() as release_trials, start_ray_worker(service):
        rerun = create_rerun(service)
        wait_until(lambda: find_running_trial(user_client, rerun) is not None)
        cluster.kill("head")
        wait_until(lambda: not find_trial_processes(trainable_folder))
        with pytest.raises(RayUnreachable):
            RayJobs(cluster.address, cluster.token).check()
        release_trials()
        cluster.start_head()
        rerun = wait_for_end(user_client, rerun)
    assert attempt_statuses(rerun) == [["lost", "done"]], describe_attempts(rerun)
    assert "has no job of it any more" in (rerun.trials[0].attempts[0].reason or "")
