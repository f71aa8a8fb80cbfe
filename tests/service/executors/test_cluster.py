"""Reruns on a real Ray cluster, whose parts are lost: each attempt has an outcome, and the rerun goes on."""

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

import psutil
import pytest
from benchmarks.cable import Cable
from benchmarks.ray_cluster import RayCluster
from tests.service.executors.conftest import HEAD_CPUS, Guarded, Workshop, setting, suspect
from tests.support.patience import PATIENCE

import gradmedic
from gradmedic.cli.rerun import follow_rerun
from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.reruns import RerunDetail, Trial
from gradmedic_worker.configuration import read_configuration
from gradmedic_worker.executors.base import Lost, TrialEnd
from gradmedic_worker.executors.ray import RayExecutor, RayTrial
from gradmedic_worker.executors.ray_jobs import RayJobs, RayUnreachable, Submission
from gradmedic_worker.tickets import ticket_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

Wait = Callable[[Callable[[], bool]], None]
Supervise = Callable[..., AbstractContextManager["subprocess.Popen[str]"]]
PROGRAMS = {"gradmedic_worker.node", "gradmedic_worker.attempt"}
SECRET = re.compile(rb"gradmedic_[A-Za-z0-9_-]{43}")


@pytest.fixture
def supervise(workshop: Workshop, tmp_path: Path) -> Supervise:
    """Start `gradmedic worker` for the cluster; it is killed at the end if it has not ended."""

    @contextmanager
    def start(guarded: Guarded, base_url: str | None = None) -> Iterator[subprocess.Popen[str]]:
        command = [str(Path(sys.executable).with_name("gradmedic")), "worker", "--base-url", base_url or guarded.url]
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GRADMEDIC_API_KEY": guarded.worker}
        with (tmp_path / "worker.log").open("a") as log:
            process = subprocess.Popen(
                [*command, "--config", str(workshop.configuration)], stdout=log, stderr=log, text=True, env=environment
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    return start


def ask(guarded: Guarded, kind: str = "learn") -> RerunDetail:
    """Ask for a rerun with one candidate, which learns. A control that does so too is the only trial."""
    with gradmedic.Client(guarded.url, guarded.person) as person:
        run_id = suspect(guarded, "ray", kind)
        remedies = [setting(kind="learn", pause=0.0)]
        return person.reruns.create(run_id, remedies=remedies, seeds=1, steps=80, executor="ray")


def offer(guarded: Guarded, workshop: Workshop) -> None:
    """Offer the trainable, as the supervisor will once it is there."""
    configuration = read_configuration(workshop.configuration)
    with gradmedic.Client(guarded.url, guarded.worker) as working:
        working.work.register([one.on_the_wire() for one in configuration.trainables.values()], "test")


def ended(client: gradmedic.Client, rerun: RerunDetail) -> RerunDetail:
    """Wait for the end of a rerun."""
    return client.reruns.wait(rerun.id, timeout=PATIENCE, interval=0.1)


def running(client: gradmedic.Client, rerun: RerunDetail) -> Trial | None:
    """Return the trial that runs and has steps, if one does."""
    found = client.reruns.get(rerun.id).trials
    return next((one for one in found if one.status == "running" and one.step is not None), None)


def processes_of_trials(workshop: Workshop) -> list[psutil.Process]:
    """Return what runs of the cluster's trials: nodes' processes, launchers, scripts."""
    found = []
    for process in psutil.process_iter():
        try:
            names = {*process.cmdline()[1:3], *process.environ().values()}
            is_trials = not names.isdisjoint({*PROGRAMS, str(workshop.folder / "train.py")})
            is_here = any(str(workshop.folder) in name for name in names)  # other tests have trials too
            if is_trials and is_here and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def outcomes(rerun: RerunDetail) -> list[list[str]]:
    """Return how each attempt at each trial ended."""
    return [[attempt.status for attempt in trial.attempts] for trial in rerun.trials]


def story(rerun: RerunDetail) -> str:
    """Say what became of each attempt, for whoever reads of a failure."""
    lines = [
        f"{trial.candidate}.{attempt.number} {attempt.status} {attempt.started_at:%M:%S}-{attempt.ended_at:%M:%S} "
        f"step {trial.step}, {trial.verdict}, loss {trial.loss}: {attempt.reason}"
        for trial in rerun.trials
        for attempt in trial.attempts
    ]
    return "\n".join([f"{rerun.reason}; {[one.reason for one in rerun.candidates]}", *lines])


def test_a_rerun_on_the_cluster_leaves_no_secret_there(
    workshop: Workshop, guarded: Guarded, person: gradmedic.Client, supervise: Supervise, tmp_path: Path
) -> None:
    """Jobs are named for their attempts and verify a remedy; no key, ticket or token is in what Ray keeps or logs."""
    workshop.configure(guarded.url)
    offer(guarded, workshop)
    with supervise(guarded):
        rerun = ended(person, ask(guarded, "explode"))
    assert (rerun.status, rerun.reason, rerun.executor) == ("done", "1 of 1 candidates verified", "ray")
    assert outcomes(rerun) == [["done"], ["done"]]
    jobs = {job["submission_id"]: job for job in json.loads(workshop.cluster.ask("/api/jobs/") or b"[]")}
    for trial in rerun.trials:
        name = f"{trial.id}-1"
        assert jobs[name]["entrypoint"] == f"{sys.executable} -m gradmedic_worker.node {name}"
        assert not jobs[name]["metadata"]
        assert not jobs[name]["runtime_env"]
        assert ticket_of(workshop.cluster.token, name).encode() not in workshop.cluster.written()
    kept = workshop.cluster.written() + (tmp_path / "worker.log").read_bytes()
    assert f"{rerun.trials[0].id}-1".encode() in kept
    assert SECRET.search(kept) is None
    assert workshop.cluster.token.encode() not in kept


def test_a_job_that_somebody_else_submits_gets_nothing(
    workshop: Workshop, guarded: Guarded, person: gradmedic.Client, working: gradmedic.Client, wait_until: Wait
) -> None:
    """Whoever starts our program for an attempt that waits for no such process is refused, and runs nothing."""
    workshop.configure(guarded.url)
    offer(guarded, workshop)
    ask(guarded)
    claimed = working.work.claim("test", ["train-ray"], "ray")
    assert claimed is not None
    jobs = RayJobs(workshop.cluster.address, workshop.cluster.token)
    name = f"{claimed.trial_id}-{claimed.attempt}"
    entrypoint = f"{sys.executable} -m gradmedic_worker.node {name}"
    jobs.submit(Submission(id=f"stranger-{name}", entrypoint=entrypoint, cpus=0, gpus=0, memory=None))
    wait_until(lambda: (job := jobs.find(f"stranger-{name}")) is not None and job.has_ended)
    assert '"lost": ' in jobs.logs(f"stranger-{name}")
    assert "is not one of this service's" in jobs.logs(f"stranger-{name}")
    jobs.close()


def test_a_submission_that_arrives_twice_is_one_job(workshop: Workshop) -> None:
    """Submitting again after a lost answer is no error, and the job that is there stays."""
    jobs = RayJobs(workshop.cluster.address, workshop.cluster.token)
    submission = Submission(id=f"twice-{uuid4()}", entrypoint="sleep 600", cpus=0, gpus=0, memory=None)
    jobs.submit(submission)
    first = jobs.find(submission.id)
    jobs.submit(submission)
    assert first is not None
    jobs.stop(submission.id)
    known = json.loads(workshop.cluster.ask("/api/jobs/") or b"[]")
    assert sum(job["submission_id"] == submission.id for job in known) == 1
    jobs.close()


class UnheardJobs(RayJobs):
    """Jobs of a cluster whose answer to the first submission is lost, once something has happened."""

    def __init__(self, cluster: RayCluster, until: Callable[[], None]) -> None:
        super().__init__(cluster.address, cluster.token)
        self._until = until
        self.submissions = 0

    def submit(self, submission: Submission) -> None:
        """Submit, and say the first time that nobody has answered."""
        super().submit(submission)
        self.submissions += 1
        if self.submissions == 1:
            self._until()
            raise RayUnreachable("the answer was lost")


def test_a_job_may_start_before_its_submission_is_answered(
    workshop: Workshop, guarded: Guarded, person: gradmedic.Client, working: gradmedic.Client, wait_until: Wait
) -> None:
    """One that has redeemed its ticket when it is submitted again is found, and its end is the attempt's."""
    configuration = read_configuration(workshop.configure(guarded.url))
    offer(guarded, workshop)
    rerun = ask(guarded)
    claimed = working.work.claim("test", ["train-ray"], "ray")
    assert claimed is not None
    executor = RayExecutor(configuration, working, environment={}, tell=lambda _: None)
    jobs = executor._jobs = UnheardJobs(
        workshop.cluster, lambda: wait_until(lambda: running(person, rerun) is not None)
    )
    with workshop.holding() as go_on:
        trial = executor.start(claimed)
        wait_until(lambda: jobs.submissions == 2 or trial.wait(0) is not None)
        go_on()
        wait_until(lambda: trial.wait(0.1) is not None)
    end = trial.wait(0)
    assert isinstance(end, TrialEnd), end
    assert end.exit_code == 0
    trial.close()
    executor.close()


def test_a_job_of_somebody_else_is_not_taken_for_ours(workshop: Workshop, wait_until: Wait) -> None:
    """Where Ray has another job under the id of an attempt, the attempt is lost, and that job is left alone."""
    jobs = RayJobs(workshop.cluster.address, workshop.cluster.token)
    name = f"taken-{uuid4()}"
    jobs.submit(Submission(id=name, entrypoint="sleep 600", cpus=0, gpus=0, memory=None))
    ours = Submission(id=name, entrypoint="true", cpus=0, gpus=0, memory=None)
    trial = RayTrial(jobs, ours, lambda: None, pending_timeout=PATIENCE, waits_for="a place")
    wait_until(lambda: isinstance(trial.wait(0.1), Lost))
    end = trial.wait(0)
    assert isinstance(end, Lost)
    assert "another job" in end.reason
    trial.close()
    job = jobs.find(name)
    assert job is not None
    assert not job.has_ended
    jobs.stop(name)
    jobs.close()


def test_a_job_that_cannot_start_is_lost_with_what_it_said(workshop: Workshop, wait_until: Wait) -> None:
    """An interpreter without gradmedic is named in the reason of the attempt."""
    jobs = RayJobs(workshop.cluster.address, workshop.cluster.token)
    broken = Submission(id=f"broken-{uuid4()}", entrypoint="/no/such/python -m nothing", cpus=0, gpus=0, memory=None)
    trial = RayTrial(jobs, broken, lambda: None, pending_timeout=PATIENCE, waits_for="a place")
    wait_until(lambda: trial.wait(0.1) is not None)
    end = trial.wait(0)
    assert isinstance(end, Lost)
    assert "/no/such/python" in end.reason
    trial.close()
    jobs.close()


def test_a_token_that_is_refused_or_missing_is_an_error_at_the_start(
    workshop: Workshop, working: gradmedic.Client, guarded: Guarded, tmp_path: Path
) -> None:
    """A worker with a wrong token, or none, does not start; one whose cluster is away waits for it."""
    configuration = read_configuration(workshop.configure(guarded.url))
    assert configuration.ray is not None
    told: list[str] = []

    def executor(**changes: object) -> RayExecutor:
        from dataclasses import replace

        changed = replace(configuration, ray=replace(configuration.ray, **changes))  # type: ignore[type-var]
        return RayExecutor(changed, working, environment={"HOME": str(tmp_path)}, tell=told.append)

    (tmp_path / "token").write_text("not the token of this cluster")
    with pytest.raises(ConfigurationError, match="refuses the token"):
        executor(token_file=tmp_path / "token").prepare()
    with pytest.raises(ConfigurationError, match=r"token_file, RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"):
        executor(token_file=None)
    with Cable(1) as nowhere:
        away = executor(address=f"http://127.0.0.1:{nowhere.port}")
        away.prepare()
        assert away.fitting() == []
    assert len(told) == 1
    assert "does not answer" in told[0]


def test_a_trial_that_finds_no_place_is_given_up(
    workshop: Workshop, guarded: Guarded, person: gradmedic.Client, supervise: Supervise
) -> None:
    """It is said to wait; waiting too long loses the attempt, which costs no time, and the third is the last."""
    workshop.configure(guarded.url, cpus=64, pending=4)
    offer(guarded, workshop)
    told = io.StringIO()
    with supervise(guarded):
        rerun = follow_rerun(person, ask(guarded).id, told, timeout=PATIENCE)
    assert rerun.status == "failed"
    assert outcomes(rerun) == [["lost"] * 3]
    assert "control, seed 0: running (it waits for a place on the cluster)\n" in told.getvalue()
    assert "waited longer than 4 s for a place with 64 CPUs" in (rerun.reason or "")
    assert rerun.cost_seconds == 0


def test_cancelling_ends_the_job(
    workshop: Workshop, guarded: Guarded, person: gradmedic.Client, supervise: Supervise, wait_until: Wait
) -> None:
    """Soon after a rerun was cancelled nothing of it runs on the cluster."""
    workshop.configure(guarded.url)
    offer(guarded, workshop)
    with workshop.holding(), supervise(guarded):
        rerun = ask(guarded)
        wait_until(lambda: running(person, rerun) is not None)
        person.reruns.cancel(rerun.id)
        wait_until(lambda: not processes_of_trials(workshop))
    assert outcomes(person.reruns.get(rerun.id)) == [["cancelled"]]


def test_a_killed_supervisor_leaves_no_trial_behind(
    workshop: Workshop, brisk: Guarded, supervise: Supervise, wait_until: Wait
) -> None:
    """Its job finds out that nobody waits for it and ends; the next supervisor makes another attempt."""
    workshop.configure(brisk.url)
    offer(brisk, workshop)
    with gradmedic.Client(brisk.url, brisk.person) as person, workshop.holding() as go_on:
        with supervise(brisk) as supervisor:
            rerun = ask(brisk)
            wait_until(lambda: running(person, rerun) is not None)
            supervisor.kill()
            wait_until(lambda: not processes_of_trials(workshop))
        go_on()
        with supervise(brisk):
            rerun = ended(person, rerun)
    assert outcomes(rerun) == [["lost", "done"]], story(rerun)


@pytest.mark.parametrize("to", ["Ray", "the service"])
def test_a_cut_cable_is_survived(
    workshop: Workshop, brisk: Guarded, supervise: Supervise, wait_until: Wait, to: str
) -> None:
    """Without a way to Ray the trial goes on and is published once; without one to the service it is made again."""
    with (
        gradmedic.Client(brisk.url, brisk.person) as person,
        Cable(int((workshop.cluster.address if to == "Ray" else brisk.url).rpartition(":")[2])) as cable,
        workshop.holding() as go_on,
    ):
        near = f"http://127.0.0.1:{cable.port}"
        workshop.configure(brisk.url, address=near if to == "Ray" else None)
        offer(brisk, workshop)
        with supervise(brisk, None if to == "Ray" else near):
            rerun = ask(brisk)
            wait_until(lambda: running(person, rerun) is not None)
            cable.cut()
            if to == "Ray":
                go_on()
                wait_until(lambda: person.reruns.get(rerun.id).trials[0].step == 79)
            else:
                wait_until(lambda: not processes_of_trials(workshop))
                go_on()
            cable.mend()
            rerun = ended(person, rerun)
    assert outcomes(rerun) == ([["done"]] if to == "Ray" else [["lost", "done"]]), story(rerun)


def test_a_lost_node_loses_an_attempt(
    workshop: Workshop, guarded: Guarded, person: gradmedic.Client, supervise: Supervise, wait_until: Wait
) -> None:
    """The machine that a trial runs on is gone: the trial is run again on another one."""
    workshop.configure(guarded.url)
    offer(guarded, workshop)
    jobs = RayJobs(workshop.cluster.address, workshop.cluster.token)
    others = Submission(id=f"others-{uuid4()}", entrypoint="sleep 600", cpus=HEAD_CPUS, gpus=0, memory=None)
    with workshop.holding() as go_on, supervise(guarded):
        jobs.submit(others)  # so that the head has no place
        workshop.cluster.start_node("node", 1)
        wait_until(lambda: (job := jobs.find(others.id)) is not None and job.status == "RUNNING")
        rerun = ask(guarded)
        wait_until(lambda: running(person, rerun) is not None)
        workshop.cluster.kill("node")
        wait_until(lambda: not processes_of_trials(workshop))
        go_on()
        jobs.stop(others.id)
        rerun = ended(person, rerun)
    jobs.close()
    assert outcomes(rerun) == [["lost", "done"]], story(rerun)
    assert "died" in (rerun.trials[0].attempts[0].reason or "")


def test_a_restarted_head_loses_an_attempt(
    workshop: Workshop, guarded: Guarded, person: gradmedic.Client, supervise: Supervise, wait_until: Wait
) -> None:
    """A head that is killed forgets its jobs: nothing of them runs on, and each is made again."""
    workshop.configure(guarded.url)
    offer(guarded, workshop)
    with workshop.holding() as go_on, supervise(guarded):
        rerun = ask(guarded)
        wait_until(lambda: running(person, rerun) is not None)
        workshop.cluster.kill("head")
        wait_until(lambda: not processes_of_trials(workshop))
        with pytest.raises(RayUnreachable):
            RayJobs(workshop.cluster.address, workshop.cluster.token).check()
        go_on()
        workshop.cluster.start_head()
        rerun = ended(person, rerun)
    assert outcomes(rerun) == [["lost", "done"]], story(rerun)
    assert "does not know its job" in (rerun.trials[0].attempts[0].reason or "")
