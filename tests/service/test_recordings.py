"""Anonymous recordings of stored runs: what they contain, and that a replay is the stored diagnosis."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from benchmarks.corpus.recording import load
from starlette.testclient import TestClient
from tests.support.app_client import client_of_app
from tests.support.approximation import approximately

import gradmedic
from gradmedic.exceptions import UsageError
from gradmedic.export.recording import export_recording
from gradmedic.protocol.diagnosis import DiagnosisAtStep
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.recordings import MAGIC, RecordingReader
from gradmedic.protocol.runs import Layer, RunCreate, Training
from gradmedic_diagnosis import Block
from gradmedic_diagnosis.replay import replay

RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"
SENT_AT_ONCE = 90


def store(client: TestClient, layers: tuple[Layer, ...], training: Training | None, block: Block, **more: Any) -> str:
    """Send a run to the service and return its id."""
    run = RunCreate(
        project="tests", layers=list(layers), training=training, statistics=list(block.statistics),
        framework="torch 2.13.0", **more,
    )  # fmt: skip
    created = client.post("/api/v1/runs", content=to_json(run), headers={"Content-Type": "application/json"})
    assert created.status_code == 201, created.text
    run_id: str = created.json()["id"]
    for start in range(0, len(block), SENT_AT_ONCE):
        part = block.cut(start, min(start + SENT_AT_ONCE, len(block)))
        series = {
            name: [float(value) if present else None for value, present in zip(each.values, each.present, strict=True)]
            for name, each in part.series.items()
        }
        body = {
            "steps": part.steps.tolist(), "sampled": part.sampled.tolist(), "skipped": part.skipped.tolist(),
            "statistics": {
                name: np.ascontiguousarray(part.values[:, :, index]).astype("<f4").tobytes()
                for index, name in enumerate(part.statistics)
            },
            "present": np.packbits(part.present, bitorder="little").tobytes(), **series,
        }  # fmt: skip
        sent = client.post(
            f"/api/v1/runs/{run_id}/steps",
            content=msgspec.msgpack.encode(body),
            headers={"Content-Type": "application/vnd.msgpack"},
        )
        assert sent.status_code == 200, sent.text
    return run_id


def with_tokens(text: str, names: list[str], tokens: list[str]) -> str:
    """Return a text with each name of a layer replaced by its token."""
    token_of = dict(zip(names, tokens, strict=True))
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    return re.sub(rf"(?<![\w.])(?:{'|'.join(longest_first)})(?![\w])", lambda found: token_of[found[0]], text)


@pytest.mark.parametrize("is_bare", [False, True], ids=["all facts", "names only"])
@pytest.mark.parametrize("name", ["E-late-rnn-noclip", "V-zero-init", "H-finetune-hook", "E-late-lr-ramp-reg"])
def test_a_replay_is_the_stored_diagnosis(client: TestClient, tmp_path: Path, name: str, is_bare: bool) -> None:
    """A recording of a stored run has its verdict, learning, level, history, findings, causes and advice.

    This also holds where the roles of layers follow from their names alone, which a recording does not contain.
    """
    layers, training, block = load(RECORDINGS / f"{name}.npz", bare=is_bare)
    run_id = store(client, layers, training, block)
    sdk = client_of_app(client)
    stored = sdk.runs.diagnosis(run_id)
    file = tmp_path / "run.gradmedic"
    export_recording(sdk, sdk.runs.get(run_id).id, file)
    replayed = replay(file)
    assert replayed.history == replayed.header.history == sdk.runs.history(run_id)
    assert stored.verdict == {"E": "exploding", "V": "vanishing", "H": "healthy"}[name[0]]
    tokens = [layer.name for layer in replayed.header.layers]
    assert len(set(tokens)) == len(layers)
    names = {field.name for field in fields(DiagnosisAtStep)}
    text = to_json({key: value for key, value in asdict(stored).items() if key in names}).decode()
    expected = json.loads(with_tokens(text, [layer.name for layer in layers], tokens))
    assert json.loads(to_json(asdict(replayed.diagnosis))) == approximately(expected)


def frames(file: Path) -> list[bytes]:
    """Return the decompressed frames of a recording."""
    data, found = file.read_bytes()[len(MAGIC) + 1 :], []
    while data:
        length = int.from_bytes(data[1:5], "little")
        found.append(zlib.decompress(data[9 : 9 + length]))
        data = data[9 + length :]
    return found


SECRET = {
    "name": "secret-run", "tags": ["secret-tag"], "notes": "secret-notes", "group": "secret-group",
    "config": {"secret-key": "secret-value"}, "trainable": "secret-trainable",
}  # fmt: skip
OBJECTIVE = {"kind": "metric", "metric": "secret-reward", "direction": "maximize"}
START = 1.7e9


@pytest.fixture
def secret_run(client: TestClient) -> str:
    """Create a run with names that identify it everywhere, and odd numbers; return its id."""
    body = {
        "project": "secret-project", **SECRET, "framework": "torch 2.13.0", "statistics": ["grad_norm", "grad_mean"],
        "training": {"optimizers": [{"name": "SGD", "learning_rate": 0.1}], "objective": OBJECTIVE,
                     "loss": {"kind": "cross_entropy", "operations": ["NllLoss"], "classes": 10}},
        "layers": [{"name": "secret_encoder.0.weight", "kind": "Linear", "shape": [4, 3], "depth": 7},
                   {"name": "secret_encoder.0.bias", "kind": "Linear", "shape": [4]},
                   {"name": "secret_head.weight", "kind": "Linear", "shape": [2, 4]}],
    }  # fmt: skip
    run_id: str = client.post("/api/v1/runs", json=body).json()["id"]
    row: list[Any] = [0.1, "NaN", None]
    steps = {
        "steps": [3, 4, 6], "sampled": [True, False, True], "skipped": [False, True, False],
        "loss": [1.5, None, "Infinity"], "time": [START, START + 0.25, START + 1], "learning_rate": [0.1, 0.1, 0.2],
        "loss_scale": [1, 2, 2], "clip_coefficient": [None, 0.5, 1], "output_gradient_norm": [0, None, 2],
        "metrics": {"secret-reward": [1, None, "-Infinity"], "secret-other": [5, 6, 7]},
        "statistics": {"grad_norm": [row, [1e-45, "Infinity", 3]], "grad_mean": [row, [-1e-45, "-Infinity", 3]]},
    }  # fmt: skip
    sent = client.post(f"/api/v1/runs/{run_id}/steps", json=steps)
    assert sent.status_code == 200, sent.text
    review = {"answer": "wrong", "verdict": "healthy", "note": "secret-note", "step": 4}
    assert client.put(f"/api/v1/runs/{run_id}/review", json=review).status_code == 200
    return run_id


def export(client: TestClient, run_id: str, file: Path, **more: Any) -> gradmedic.Client:
    """Write a recording of a run; return the client of the SDK."""
    sdk = client_of_app(client)
    export_recording(sdk, sdk.runs.get(run_id).id, file, **more)
    return sdk


def test_a_recording_names_nothing_of_the_run(client: TestClient, secret_run: str, tmp_path: Path) -> None:
    """No name, config, tag, note, group, id or absolute time is in the file; structure, kinds and facts are."""
    file = tmp_path / "run.gradmedic"
    export(client, secret_run, file, metrics=["secret-reward"])
    content = b"".join(frames(file))
    assert b"secret" not in content
    assert secret_run.encode() not in content
    assert np.array([START], dtype="<f8").tobytes()[4:] not in content
    with RecordingReader(file) as reader:
        header, (block,) = reader.header, list(reader.read_blocks())
    names = [layer.name.split(".") for layer in header.layers]
    assert [len(parts) for parts in names] == [3, 3, 2]
    assert names[0][:2] == names[1][:2]
    assert names[0][2] == names[2][1]
    assert names[0][0] != names[2][0]
    assert [(layer.kind, layer.shape, layer.depth) for layer in header.layers] == [
        ("Linear", [4, 3], 7), ("Linear", [4], None), ("Linear", [2, 4], None),
    ]  # fmt: skip
    assert [layer.role for layer in header.layers] == ["weight", "bias", "weight"]
    assert header.framework == "torch 2.13.0"
    assert header.training is not None
    assert header.training.objective is not None
    assert header.training.optimizers[0].name == "SGD"
    assert header.training.loss is not None
    assert header.training.loss.classes == 10
    assert list(block.metrics) == [header.training.objective.metric]
    assert header.review is not None
    assert (header.review.answer, header.review.verdict, header.review.step) == ("wrong", "healthy", 4)
    assert header.review.judged_verdict == "exploding"
    assert block.series["time"].values.tolist() == [0.0, 0.25, 1.0]


def test_two_recordings_have_no_token_in_common(client: TestClient, secret_run: str, tmp_path: Path) -> None:
    """Each file has a salt of its own, so that a dictionary of names hashed once says nothing about it."""
    tokens: list[set[str]] = []
    for number in range(2):
        file = tmp_path / f"{number}.gradmedic"
        export(client, secret_run, file)
        with RecordingReader(file) as reader:
            tokens.append({part for layer in reader.header.layers for part in layer.name.split(".")})
    assert len(tokens[0]) == len(tokens[1]) == 5
    assert tokens[0].isdisjoint(tokens[1])


def test_metrics_are_exported_by_name_only(client: TestClient, secret_run: str, tmp_path: Path) -> None:
    """Without a name no metric is exported; a name is kept on request; a metric that the run lacks is an error."""
    export(client, secret_run, tmp_path / "none.gradmedic")
    export(client, secret_run, tmp_path / "kept.gradmedic", metrics=["secret-other"], keeps_metric_names=True)
    found = []
    for name in ("none", "kept"):
        with RecordingReader(tmp_path / f"{name}.gradmedic") as reader:
            found.append({key for block in reader.read_blocks() for key in block.metrics})
    assert found == [set(), {"secret-other"}]
    with pytest.raises(UsageError, match="the run has no metric 'nothing'"):
        export(client, secret_run, tmp_path / "missing.gradmedic", metrics=["nothing"])
    assert sorted(path.name for path in tmp_path.glob("*.gradmedic*")) == ["kept.gradmedic", "none.gradmedic"]


def test_every_value_is_kept_bit_by_bit(client: TestClient, secret_run: str, tmp_path: Path) -> None:
    """A recording has the steps as they were sent: every bit of each number, and what was absent is absent."""
    sdk = export(client, secret_run, tmp_path / "run.gradmedic", metrics=["secret-other"], keeps_metric_names=True)
    (sent,) = sdk.runs.blocks(secret_run)
    with RecordingReader(tmp_path / "run.gradmedic") as reader:
        (read,) = reader.read_blocks()
    for name in ("steps", "sampled", "skipped", "present"):
        assert np.array_equal(getattr(read, name), getattr(sent, name))
    for name, values in sent.statistics.items():
        assert np.array_equal(read.statistics[name].view(np.uint32), values.view(np.uint32))
    for name, series in [*sent.series.items(), ("secret-other", sent.metrics["secret-other"])]:
        found = read.metrics[name] if name == "secret-other" else read.series[name]
        assert np.array_equal(found.present, series.present)
        if name != "time":
            assert np.array_equal(found.values.view(np.uint64), series.values.view(np.uint64))


def test_muted_detectors_stay_muted(client: TestClient, tmp_path: Path) -> None:
    """A detector that the run or its project mutes is muted in the replay."""
    layers, training, block = load(RECORDINGS / "E-late-rnn-noclip.npz")
    deciding = {finding.detector for finding in find(client, store(client, layers, training, block)).findings}
    by_run, *by_project = sorted(deciding)
    client.patch("/api/v1/projects/tests", json={"muted_detectors": by_project})
    run_id = store(client, layers, training, block, muted_detectors=[by_run])
    export(client, run_id, tmp_path / "run.gradmedic")
    replayed = replay(tmp_path / "run.gradmedic")
    assert set(replayed.header.muted_detectors) == deciding
    assert (replayed.diagnosis.verdict, replayed.diagnosis.findings) == (find(client, run_id).verdict, [])


def find(client: TestClient, run_id: str) -> Any:
    """Return the diagnosis of a run."""
    return client_of_app(client).runs.diagnosis(run_id)


def test_a_run_that_is_rewound_meanwhile_is_not_exported(client: TestClient, secret_run: str) -> None:
    """Blocks of another generation than the run had at first are refused."""
    sdk = client_of_app(client)
    rewound = sdk.runs.blocks(secret_run, generation=0)
    assert client.post(f"/api/v1/runs/{secret_run}/rewind", json={"step": 3, "generation": 0}).status_code == 200
    with pytest.raises(UsageError, match="was rewound while its steps were read"):
        list(rewound)


def test_a_run_without_steps_is_exported(client: TestClient, create_run: Any, tmp_path: Path) -> None:
    """The recording of a run without steps is undetermined."""
    run_id = create_run(client).rpartition("/")[2]
    export(client, run_id, tmp_path / "run.gradmedic")
    replayed = replay(tmp_path / "run.gradmedic")
    assert (replayed.diagnosis.verdict, replayed.diagnosis.step, replayed.history) == ("undetermined", None, [])


def test_a_recording_is_read_up_to_a_step(client: TestClient, tmp_path: Path) -> None:
    """The replay as of a step is the service's diagnosis as of that step."""
    layers, training, block = load(RECORDINGS / "E-late-rnn-noclip.npz")
    run_id = store(client, layers, training, block)
    sdk = export(client, run_id, tmp_path / "run.gradmedic")
    for step in (3, 40, 10_000):
        replayed, stored = replay(tmp_path / "run.gradmedic", step).diagnosis, sdk.runs.diagnosis(run_id, at_step=step)
        assert (replayed.step, replayed.verdict, replayed.score) == (stored.step, stored.verdict, stored.score)
