"""Examples of successful answers, for OpenAPI: the story of one run that explodes, and of the rerun that repairs it."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from math import inf, nan
from typing import Any
from uuid import UUID

from gradmedic.protocol.access import ApiKey, ApiKeyCreated, ApiKeyList, AuditRecord, AuditRecordList, BrowserSession
from gradmedic.protocol.diagnosis import Advice, Cause, Diagnosis, Finding, Outcome, VerdictChange, VerdictHistory
from gradmedic.protocol.encoding import to_plain
from gradmedic.protocol.guards import GuardActionList, RecordedGuardAction
from gradmedic.protocol.origins import BatchTensor, DiagnosedOrigin, OriginFix, OriginInput, SourceLine
from gradmedic.protocol.projects import Project, ProjectList
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.reruns import (
    Attempt,
    Candidate,
    RerunBudget,
    RerunDetail,
    RerunList,
    RerunPlan,
    RerunSummary,
    Trial,
)
from gradmedic.protocol.reviews import Review
from gradmedic.protocol.run_lists import RunColumn, RunColumns, RunCounts, RunsChange
from gradmedic.protocol.runs import Layer, Optimizer, RunDetail, RunList, RunSummary, Training
from gradmedic.protocol.series import Series, SeriesResult
from gradmedic.protocol.service import JSON_MEDIA_TYPE, Health, Limits, Liveness
from gradmedic.protocol.steps import AppendResult, RewindResult
from gradmedic.protocol.trainables import Trainable, TrainableParameter, Trainables
from gradmedic.protocol.trials import ClaimedTrial, HeartbeatResult, TrialLease, TrialOutput
from gradmedic_service.http.alert_examples import alert_examples

PROJECT = "char-lm"
WORKER = "gpu-7"
RUN_ID = UUID("0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50")
RERUN_ID = UUID("0199b7f3-4c10-7b02-9d11-51a2b3c4d5e6")
CONTROL_TRIAL_ID = UUID("0199b7f3-4c11-7c13-8e22-62b3c4d5e6f7")
TRIAL_ID = UUID("0199b7f3-4c12-7d24-9f33-73c4d5e6f708")
CONTROL_RUN_ID = UUID("0199b7f3-5d20-7e35-8044-84d5e6f70819")
TRIAL_RUN_ID = UUID("0199b7f3-6e31-7f46-9155-95e6f708192a")
KEY_ID = UUID("0199b7e1-2b3c-7057-8266-a6f708192a3b")
RECORD_ID = UUID("0199b7f0-c8d3-7168-9377-b708192a3b4c")
LAYER = "rnn.weight_hh_l0"
SUMMARY = f"Gradients grow 1.9x per step since step 371, first in {LAYER}."
CLIP = Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0})
ENVIRONMENT = {"python": "3.11.9", "torch": "2.13.0", "device": "NVIDIA H200"}


def _at(minute: int, second: int = 0) -> datetime:
    return datetime(2025, 10, 6, 5, minute, second, tzinfo=UTC)


OUTCOME = Outcome(
    state="verified",
    rerun_id=RERUN_ID,
    seeds=3,
    healthy=3,
    loss=1.31,
    control_loss=nan,
    cost_seconds=41.0,
    environment=ENVIRONMENT,
)
RUN = RunDetail(
    id=RUN_ID,
    project=PROJECT,
    name="lr 3e-3",
    status="failed",
    verdict="exploding",
    score=0.97,
    since_step=371,
    last_step=412,
    generation=0,
    revision=9,
    tags=["baseline"],
    group="learning rates",
    framework="torch 2.13.0",
    trainable="train",
    created_at=_at(13),
    updated_at=_at(15),
    learning="worsening",
    level="critical",
    notes="The first run with 256 hidden units.",
    config={"lr": 0.003, "hidden": 256},
    statistics=["grad_norm", "weight_norm", "update_norm"],
    layers=[
        Layer(
            name=LAYER,
            kind="RNN",
            shape=[256, 256],
            numel=65_536,
            depth=0,
            role="recurrent",
            fan_in=256,
            fan_out=256,
            activation="tanh",
            initial_rms=0.036,
            spectral_norm=1.31,
        ),
        Layer(
            name="head.weight",
            kind="Linear",
            shape=[96, 256],
            numel=24_576,
            depth=1,
            role="weight",
            fan_in=256,
            fan_out=96,
            activation="linear",
            initial_rms=0.036,
        ),
    ],
    training=Training(optimizers=[Optimizer(name="SGD", learning_rate=0.003)], precision="float32"),
    metrics=["val_accuracy"],
)
RUN_SUMMARY = RunSummary(**{field.name: getattr(RUN, field.name) for field in fields(RunSummary)})
REVIEW = Review(
    answer="right",
    verdict=None,
    level=None,
    note="The loss is NaN from step 413 on.",
    step=412,
    judged_verdict="exploding",
    judged_level="critical",
    diagnosis_version="0.1.0",
    reviewed_at=_at(16),
)
DIAGNOSIS = Diagnosis(
    run_id=RUN_ID,
    step=412,
    verdict="exploding",
    learning="worsening",
    level="critical",
    score=0.97,
    since_step=371,
    summary=SUMMARY,
    findings=[
        Finding(
            detector="growth_in_time",
            verdict="exploding",
            severity="critical",
            layers=[LAYER, "head.weight"],
            first_step=371,
            last_step=412,
            resolved_step=None,
            evidence={"growth_per_step": 1.9, "baseline_log10_rms": -2.1, "log10_rms": 3.4},
            explanation=f"The gradient of {LAYER} grows 1.9x per step, from its baseline of 0.008 to 2512.",
        )
    ],
    causes=[
        Cause(
            cause="long_recurrence",
            score=0.8,
            evidence={"recurrent_spectral_norm": 1.31},
            explanation="The largest singular value of the recurrent matrix is 1.31, so each time step can enlarge the "
            "gradient.",
        )
    ],
    advice=[
        Advice(
            remedy=CLIP,
            rank=1,
            reason="It bounds the gradient that a long sequence enlarges.",
            cost="one norm per step; the direction of the gradient stays",
            snippet="torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # before optimizer.step()",
            sources=["Pascanu et al. 2013, section 3.2"],
            outcome=OUTCOME,
        )
    ],
    origin=DiagnosedOrigin(
        operation="sqrt",
        direction="backward",
        module="rnn.norm",
        source=SourceLine(file="model.py", line=57, text="length = squares.sum(-1).sqrt()"),
        step=409,
        input=OriginInput(
            shape=[32, 256],
            dtype="float32",
            special="zero",
            count=3,
            total=8192,
            unit="element",
            text="the input was 0 in 3 of 8,192 elements",
        ),
        value=nan,
        kind="numeric",
        reproduced="1 of 1",
        is_loss_finite=True,
        is_eager=False,
        batch_tensors=[
            BatchTensor(shape=[32, 100], dtype="int64", digest="9f86d081884c7d65", nonfinite_count=0, min=0.0, max=95.0)
        ],
        text="NaN is born at step 409 in the backward of `sqrt` (model.py:57, module `rnn.norm`): the input was 0 in 3 "
        "of 8,192 elements; the loss was finite.",
        fix=OriginFix(
            page="root",
            advice="The slope of a root at 0 is infinite, and a negative number has no root: add a small number inside "
            "of the root.",
            snippet="y = torch.sqrt(x.clamp_min(0) + 1e-8)",
        ),
    ),
)
GUARD_ACTION = RecordedGuardAction(
    sequence=4,
    generation=0,
    step=412,
    to_step=320,
    verdict="exploding",
    since_step=371,
    action="rewind",
    reason="nonfinite_loss",
    numbers={"loss": nan},
    explanation="The loss of step 412 is NaN, so the run goes back to the state after step 320.",
    is_dropped=False,
    created_at=_at(15),
)
HISTORY = VerdictHistory(
    items=[
        VerdictChange(step=20, verdict="healthy", score=0.6, finding=None, learning="learning", level="ok"),
        VerdictChange(
            step=378,
            verdict="exploding",
            score=0.91,
            finding="growth_in_time",
            learning="worsening",
            level="critical",
        ),
    ]
)
SERIES = SeriesResult(
    run_id=RUN_ID,
    first_step=[0, 200],
    last_step=[199, 412],
    series=[
        Series(
            statistic="loss",
            layer=None,
            min=[1.92, 1.48],
            mean=[2.47, 3.05],
            max=[4.56, 88.1],
            count=[200, 213],
            nonfinite=[0, 4],
            infinite=[0, 1],
        )
    ],
)
TABLE = "step,loss\n411,88.1\n412,NaN\n"
EVENTS = """\
retry: 2000

event: status
data: {"status":"running"}

event: verdict
data: {"verdict":"exploding","learning":"worsening","level":"critical","score":0.97,"since_step":371}

id: 9
event: steps
data: {"revision":9,"generation":0,"last_step":412}

"""
METRICS = """\
# HELP gradmedic_blocks_total Blocks that were stored.
# TYPE gradmedic_blocks_total counter
gradmedic_blocks_total 9.0
"""


def _attempt(run_id: UUID, started_at: datetime, ended_at: datetime) -> Attempt:
    return Attempt(
        number=1,
        run_id=run_id,
        worker=WORKER,
        status="done",
        reason=None,
        exit_code=0,
        started_at=started_at,
        ended_at=ended_at,
        environment=ENVIRONMENT,
        start_seconds=2.5,
    )


RERUN = RerunDetail(
    id=RERUN_ID,
    run_id=RUN_ID,
    project=PROJECT,
    trainable="train",
    status="done",
    reason="clip_grad_norm(1.0) is verified: healthy in 1 of 1 seed.",
    is_automatic=False,
    created_at=_at(17),
    started_at=_at(17, 2),
    ended_at=_at(17, 43),
    budget=RerunBudget(steps=500, seconds=600.0, trials=10, rounds=1),
    seeds=[0],
    executor="local",
    parameters={"lr": 0.003, "hidden": 256},
    candidates=[
        Candidate(remedies=[], outcome=None, reason=None, round=1, steps=500),
        Candidate(
            remedies=[CLIP], outcome=OUTCOME, reason="It is healthy and learns on every seed.", round=1, steps=500
        ),
    ],
    trials=[
        Trial(
            id=CONTROL_TRIAL_ID,
            candidate=0,
            seed=0,
            status="done",
            reason=None,
            verdict="exploding",
            step=418,
            start_loss=4.56,
            loss=inf,
            seconds=19.0,
            attempts=[_attempt(CONTROL_RUN_ID, _at(17, 2), _at(17, 21))],
            lease_expires_at=None,
            judged_by="loss",
            judged_value=inf,
            constant_level=4.17,
        ),
        Trial(
            id=TRIAL_ID,
            candidate=1,
            seed=0,
            status="done",
            reason=None,
            verdict="healthy",
            step=499,
            start_loss=4.56,
            loss=1.31,
            seconds=22.0,
            attempts=[_attempt(TRIAL_RUN_ID, _at(17, 21), _at(17, 43))],
            lease_expires_at=None,
            judged_by="loss in eval()",
            judged_value=1.29,
            constant_level=4.17,
        ),
    ],
    cost_seconds=41.0,
)
PLAN = RerunPlan(
    candidates=1,
    trials=2,
    steps=500,
    step_seconds=0.044,
    seconds_left=44.0,
    budget=RerunBudget(steps=500, seconds=600.0, trials=10, rounds=1),
)
RERUN_SUMMARY = RerunSummary(**{field.name: getattr(RERUN, field.name) for field in fields(RerunSummary)})
CLAIMED = ClaimedTrial(
    trial_id=TRIAL_ID,
    attempt=1,
    rerun_id=RERUN_ID,
    run_id=TRIAL_RUN_ID,
    parent_id=RUN_ID,
    project=PROJECT,
    candidate=1,
    trainable="train",
    parameters={"lr": 0.003, "hidden": 256},
    seed=0,
    remedies=[CLIP],
    steps=500,
    seconds=600.0,
    lease_seconds=60.0,
    api_key="gradmedic_" + 43 * "A",
)
LEASE = TrialLease(trial_id=TRIAL_ID, attempt=1, seconds=58.2)
TRAINABLES = Trainables(
    items=[
        Trainable(
            name="train",
            parameters=[TrainableParameter(name="lr", type="float", minimum=1e-6, maximum=10.0)],
            gpus=1,
        )
    ]
)
PROJECT_SETTINGS = Project(name=PROJECT, muted_detectors=[], created_at=_at(13))
KEY = ApiKey(
    id=KEY_ID,
    name="nightly",
    prefix="gradmedic_AAAA",
    project=PROJECT,
    run_id=None,
    scopes=["ingest"],
    created_at=_at(1),
    expires_at=None,
    revoked_at=None,
    last_used_at=_at(15),
)
CREATED_KEY = ApiKeyCreated(
    secret="gradmedic_" + 43 * "A", **{field.name: getattr(KEY, field.name) for field in fields(ApiKey)}
)
SESSION = BrowserSession(name="nightly", key_id=KEY_ID, project=PROJECT, run_id=None, scopes=["read"])
RECORD = AuditRecord(
    id=RECORD_ID,
    at=_at(13),
    actor="nightly",
    actor_key_id=KEY_ID,
    action="create_run",
    project=PROJECT,
    object_id=RUN_ID,
)


RUNS_CHANGE = RunsChange(changed=[RUN_ID], unchanged=[], failed=[])


def answer_examples(limits: Limits) -> dict[tuple[str, str], Any]:
    """Return an example of each successful answer that is text, by the id of the operation and the media type."""
    answers: dict[str, Any] = {
        "service.alive": Liveness(version="0.1.0", started_at=_at(0)),
        "service.ready": Health(),
        "service.limits": limits,
        "api_keys.create": CREATED_KEY,
        "api_keys.list": ApiKeyList(items=[KEY], next_page_token=None),
        "session.open": SESSION,
        "session.get": SESSION,
        "audit_records.list": AuditRecordList(items=[RECORD], next_page_token=None),
        "projects.list": ProjectList(items=[PROJECT_SETTINGS], next_page_token=None),
        "projects.get": PROJECT_SETTINGS,
        "projects.update": PROJECT_SETTINGS,
        "runs.create": RUN,
        "runs.list": RunList(items=[RUN_SUMMARY], next_page_token=None),
        "runs.count": RunCounts(
            total=44,
            levels={"critical": 6, "ok": 38},
            verdicts={"exploding": 6, "healthy": 38},
            statuses={"failed": 6, "finished": 38},
        ),
        "runs.list_columns": RunColumns(items=[RunColumn(name="config.lr", varies=True)]),
        "runs.change_tags": RUNS_CHANGE,
        "runs.delete_many": RUNS_CHANGE,
        "runs.get": RUN,
        "runs.update": RUN,
        "runs.review": REVIEW,
        "steps.append": AppendResult(
            accepted=2,
            ignored=0,
            last_step=378,
            generation=0,
            revision=8,
            verdict="exploding",
            since_step=371,
            alerts=[SUMMARY],
            stop=False,
        ),
        "steps.rewind": RewindResult(generation=1, last_step=300, revision=10, verdict="healthy", since_step=0),
        "steps.read": SERIES,
        "guard_actions.list": GuardActionList(items=[GUARD_ACTION], next_page_token=None),
        "diagnosis.get": DIAGNOSIS,
        "diagnosis.history": HISTORY,
        "reruns.create": RERUN,
        "reruns.plan": PLAN,
        "reruns.list": RerunList(items=[RERUN_SUMMARY], next_page_token=None),
        "reruns.get": RERUN,
        "reruns.cancel": RERUN,
        "trials.output": TrialOutput(trial_id=TRIAL_ID, attempt=1, output="step 499: loss 1.31\n"),
        "trials.claim": CLAIMED,
        "trials.heartbeat": HeartbeatResult(stop=False, reason=None, seconds=571.0, step=120, verdict="healthy"),
        "trials.issue_ticket": LEASE,
        "trials.redeem_ticket": CLAIMED,
        "trials.lease": LEASE,
        "trials.publish_result": RERUN,
        "trainables.list": TRAINABLES,
        "trainables.register": TRAINABLES,
        **alert_examples(PROJECT, RUN_ID, RUN.name, SUMMARY, _at(14)),
    }
    texts = {
        ("service.metrics", "text/plain"): METRICS,
        ("steps.read", "text/csv"): TABLE,
        ("runs.follow", "text/event-stream"): EVENTS,
    }
    return {(operation, JSON_MEDIA_TYPE): to_plain(answer) for operation, answer in answers.items()} | texts
