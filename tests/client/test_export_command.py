"""`gradmedic export --recording`, and `gradmedic diagnose FILE`, which needs no service."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from tests.client.runs import explode

import gradmedic
from gradmedic.cli import replay as replay_module
from gradmedic.cli.main import main
from gradmedic.export.anonymization import NameHasher, anonymize_layers, anonymize_probe, anonymize_training
from gradmedic.protocol.origins import BatchTensor, Origin, SourceLine
from gradmedic.protocol.recordings import MAGIC
from gradmedic.protocol.runs import Layer, Objective, Training


@pytest.fixture(scope="module")
def exploding(service_url: str) -> gradmedic.Run:
    """A run that exploded, and that is called wrong."""
    run = gradmedic.init(f"cli-{uuid4()}", base_url=service_url, silent=True)
    explode(run)
    run.finish()
    with gradmedic.Client(service_url) as client:
        client.runs.review(run.id, "wrong", verdict="healthy", level="attention")
    return run


@pytest.fixture(autouse=True)
def in_a_folder(service_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The commands find the service by the environment, and write to a folder of the test."""
    monkeypatch.setenv("GRADMEDIC_BASE_URL", service_url)
    monkeypatch.chdir(tmp_path)


def test_a_run_is_exported_and_replayed_without_a_service(
    exploding: gradmedic.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The replay of the file prints the diagnosis of the run, its history, and the review, and no service is asked."""
    assert main(["diagnose", str(exploding.id), "--json"]) == 0
    stored = json.loads(capsys.readouterr().out)
    assert main(["export", str(exploding.id), "--recording", "-o", "wrong.gradmedic", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["file"], written["steps"]) == ("wrong.gradmedic", stored["step"] + 1)
    assert written["bytes"] == Path("wrong.gradmedic").stat().st_size
    monkeypatch.setenv("GRADMEDIC_BASE_URL", "http://127.0.0.1:9")
    assert main(["diagnose", "wrong.gradmedic", "--json"]) == 0
    replayed = json.loads(capsys.readouterr().out)
    for name in ("step", "verdict", "learning", "level", "score", "since_step"):
        assert replayed[name] == stored[name]
    assert replayed["history"] == replayed["recorded"]["history"]
    assert replayed["recorded"]["review"]["verdict"] == "healthy"
    assert main(["diagnose", "wrong.gradmedic", "--fail-on", "exploding"]) == 3
    text = capsys.readouterr().out
    places = [text.index(part) for part in ("EXPLODING since step", "recording wrong.gradmedic, as of step", "History")]
    places += [text.index(part) for part in ("when exported: exploding", "review: exploding", "true by the review")]
    assert places == sorted(places)
    assert main(["diagnose", "wrong.gradmedic", "--fail-on", "vanishing"]) == 0
    assert main(["diagnose", "wrong.gradmedic", "--at-step", "0", "--json"]) == 0


def test_arguments_of_an_export_that_are_refused(exploding: gradmedic.Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing format, a file that exists, a folder that does not, and an unknown metric are errors."""
    run = str(exploding.id)
    Path("there.gradmedic").write_bytes(b"kept")
    for arguments, message in (
        ([], "name what to export: --format csv, jsonl, parquet, json, or --recording"),
        (["--recording", "-o", "there.gradmedic"], "there.gradmedic exists already"),
        (["--recording", "-o", "none/run.gradmedic"], "none/run.gradmedic cannot be written: No such file"),
        (["--recording", "--metric", "reward"], "the run has no metric 'reward'"),
        (["--recording", "--keep-names"], "--keep-names belongs to --metric"),
    ):
        assert main(["export", run, *arguments]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in Path().glob("*.gradmedic*")] == ["there.gradmedic"]
    assert Path("there.gradmedic").read_bytes() == b"kept"


def test_the_metric_of_the_objective_is_missed(service_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An export without the metric that the run is judged by warns of that, and one with it does not."""
    with gradmedic.Client(service_url) as client:
        run = gradmedic.init(f"cli-{uuid4()}", base_url=service_url, silent=True)
        run.log(1.0, gradients={"w": np.ones(2)}, reward=3.0)
        run.finish()
        path = f"/runs/{run.id}"
        training = {"objective": {"kind": "metric", "metric": "reward", "direction": "maximize"}}
        client._service.request("PATCH", path, body=json.dumps({"training": training}).encode())
    assert main(["export", str(run.id), "--recording", "-o", "without.gradmedic"]) == 0
    assert "the metric of the run's objective is not in the file" in capsys.readouterr().err
    assert main(["export", str(run.id), "--recording", "--metric", "reward", "-o", "with.gradmedic"]) == 0
    assert capsys.readouterr().err == ""


def test_files_that_are_no_recording(capsys: pytest.CaptureFixture[str]) -> None:
    """A file of another kind, a damaged one and a missing one are errors in one line, without asking the service."""
    Path("other.gradmedic").write_bytes(b"PK\x03\x04")
    Path("cut.gradmedic").write_bytes(MAGIC)
    for name, message in (
        ("other.gradmedic", "other.gradmedic is not a recording of gradmedic"),
        ("cut.gradmedic", "cut.gradmedic has format version missing"),
        ("missing.gradmedic", "missing.gradmedic cannot be read: No such file or directory"),
    ):
        assert main(["diagnose", name]) == 2
        assert message in capsys.readouterr().err


def test_a_file_that_has_the_name_of_a_run(
    exploding: gradmedic.Run, service_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of another kind does not hide the run of its name; a recording of any name is replayed."""
    with gradmedic.Client(service_url) as client:
        name = client.runs.update(exploding.id, name=f"name-{uuid4()}").name
    Path(name).write_bytes(b"a checkpoint")
    assert main(["diagnose", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == str(exploding.id)
    assert main(["export", name, "--recording", "-o", "recording"]) == 0
    capsys.readouterr()
    assert main(["diagnose", "recording"]) == 0
    assert "recording recording, as of step" in capsys.readouterr().out


def test_without_the_diagnosis_the_command_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no diagnosis is installed, or a module of it is missing, the error names the extra."""
    Path("run.gradmedic").write_bytes(b"")
    missing = importlib.metadata.EntryPoint("diagnosis", "gradmedic_no_diagnosis:replay", "gradmedic.replay")
    for found in ([], [missing]):
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda found=found, **_: found)
        with pytest.raises(gradmedic.ConfigurationError, match=r"pip install 'gradmedic\[service\]'"):
            replay_module.replay_recording(Path("run.gradmedic"), None)


def test_names_are_hashed_part_by_part() -> None:
    """Equal parts of names get one token in a file, other parts other tokens, and no two hashers agree."""
    hasher = NameHasher()
    layers = [Layer(name="block.0.weight"), Layer(name="block.1.weight"), Layer(name="block.1.norm.weight")]
    hashed = [layer.name.split(".") for layer in anonymize_layers(layers, hasher)]
    assert [len(parts) for parts in hashed] == [3, 3, 4]
    assert hashed[0][0] == hashed[1][0] == hashed[2][0]
    assert hashed[0][1] != hashed[1][1] == hashed[2][1]
    assert hasher.hash("block") == hasher.hash("block") != NameHasher().hash("block")


def test_a_probe_keeps_its_name_and_its_module_gets_the_tokens_of_its_layers() -> None:
    """The name of a module in a probe is hashed like those of its layers; of the whole model there is none to hash."""
    hasher = NameHasher()
    (layer,) = anonymize_layers([Layer(name="blocks.0.fc.weight")], hasher)
    module = layer.name.rpartition(".")[0]
    assert anonymize_probe("gradmedic/output_rms/blocks.0.fc", hasher) == f"gradmedic/output_rms/{module}"
    assert anonymize_probe("gradmedic/unchanged_share", hasher) == "gradmedic/unchanged_share"
    assert anonymize_probe("gradmedic/a_secret/blocks.0.fc", hasher) is None
    assert anonymize_probe("accuracy", hasher) is None


def test_what_a_name_shows_becomes_a_fact() -> None:
    """A layer without a role gets the role that its name shows; a given role and other facts stay."""
    names = ("emb.weight", "rnn.weight_hh_l0", "fc.weight", "fc.bias", "bn1.weight")
    layers = [*(Layer(name=name) for name in names), Layer(name="head.bias", role="weight", kind="Linear", frozen=True)]
    hashed = anonymize_layers(layers, NameHasher())
    assert [layer.role for layer in hashed] == ["embedding", "recurrent", "weight", "bias", "gain", "weight"]
    assert [layer.normalized for layer in hashed] == [None, None, None, None, True, None]
    assert (hashed[-1].kind, hashed[-1].frozen) == ("Linear", True)


def test_the_metric_of_the_objective_has_the_name_of_the_metric() -> None:
    """The objective names the token of its metric, or its name where names are kept."""
    training = Training(objective=Objective(kind="metric", metric="reward", direction="maximize"))
    hasher = NameHasher()
    hashed = anonymize_training(training, hasher, keeps_metric_names=False)
    assert hashed is not None
    assert hashed.objective is not None
    assert hashed.objective.metric == hasher.hash("reward")
    assert anonymize_training(training, hasher, keeps_metric_names=True) == training
    assert anonymize_training(None, hasher, keeps_metric_names=False) is None


@pytest.mark.parametrize("keeps_metric_names", [True, False])
def test_an_origin_has_neither_code_nor_names(keeps_metric_names: bool) -> None:
    """The module becomes the token that is in the names of its layers; line, file and sentences are left out."""
    hasher = NameHasher()
    origin = Origin(
        operation="sqrt", module="secret.norm", source=SourceLine(file="secret.py", line=7, text="secret()"),
        step=3, text="NaN is born in secret.py", reason="secret",
        batch_tensors=[BatchTensor(shape=[4], digest="secret")],
    )  # fmt: skip
    hashed = anonymize_training(Training(origin=origin), hasher, keeps_metric_names=keeps_metric_names)
    assert hashed is not None
    assert hashed.origin == Origin(operation="sqrt", module=hasher.hash("secret.norm"), step=3)
