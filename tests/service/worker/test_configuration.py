"""`worker.toml`: what it says, and what is wrong with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from gradmedic.exceptions import ConfigurationError
from gradmedic_service.commands.demo import examples_folder
from gradmedic_worker.configuration import program_of, read_configuration

GOOD = """
[worker]
name = "here"
slots = 2

[trainables.train]
command = ["python", "train.py", "--lr={lr}", "--clip={clip}", "{{literal}}", "--deep={deep}", "--seed={seed}"]
gpus = 1
timeout = 60
memory = "2GiB"
environment = { OMP_NUM_THREADS = "1" }
pass_environment = ["HF_HOME"]
links = ["data"]

[trainables.train.parameters]
lr = { type = "float", minimum = 1e-6, maximum = 1.0 }
clip = { type = "float", minimum = 0.0, maximum = 1.0, optional = true }
deep = { type = "bool", default = false }
"""


def write(folder: Path, text: str) -> Path:
    """Write a configuration."""
    (folder / "data").mkdir(exist_ok=True)
    path = folder / "worker.toml"
    path.write_text(text)
    return path


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    """Each field arrives, paths are relative to the file, and the service is told only what is its business."""
    configuration = read_configuration(write(tmp_path, GOOD))
    train = configuration.trainables["train"]
    assert (configuration.name, configuration.slots) == ("here", 2)
    assert (train.gpus, train.timeout, train.memory, train.links) == (1, 60.0, 2 * 2**30, ("data",))
    assert train.directory == tmp_path
    offered = train.on_the_wire()
    assert [one.name for one in offered.parameters] == ["lr", "clip", "deep"]
    assert "train.py" not in repr(offered)
    assert program_of(train) == sys.executable


def test_placeholders_are_filled(tmp_path: Path) -> None:
    """Values stand in their arguments, those without a value leave theirs out, doubled braces are braces."""
    train = read_configuration(write(tmp_path, GOOD)).trainables["train"]
    filled = train.arguments({"lr": 1e-5, "clip": None, "deep": True}, seed=7)
    assert filled == ["python", "train.py", "--lr=1e-05", "{literal}", "--deep=true", "--seed=7"]
    assert "--clip=0.5" in train.arguments({"lr": 1, "clip": 0.5, "deep": False}, seed=7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 2.0, "deep": True}, "lr must be from 1e-06 to 1, not 2.0"),
        ({"lr": float("nan"), "deep": True}, "lr must be from 1e-06 to 1, not nan"),
        ({"lr": 0.1, "clip": "; rm -rf /", "deep": True}, "clip must be of type float"),
        ({"deep": True}, "lr has no value"),
    ],
    ids=["range", "nan", "type", "missing"],
)
def test_the_worker_need_not_trust_the_service(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    """A value that the operator does not allow reaches no command, whoever sends it."""
    train = read_configuration(write(tmp_path, GOOD)).trainables["train"]
    with pytest.raises(ConfigurationError, match=message):
        train.arguments(values, seed=7)


RAY = """
[ray]
address = "http://head:8265/"
base_url = "http://service:8642"
"""


def of_a_cluster(text: str = GOOD) -> str:
    """Return a configuration whose trials run on a cluster, in folders that are there alone."""
    text = text.replace("[worker]", '[worker]\nexecutor = "ray"')
    return text.replace("[trainables.train]", "[trainables.train]\ndirectory = '/of/the/nodes'\ncpus = 4", 1) + RAY


def test_folders_of_the_nodes_need_not_be_here(tmp_path: Path) -> None:
    """Where Ray runs the trials, the supervisor does not look for their folders; a node does."""
    configuration = read_configuration(write(tmp_path, of_a_cluster()))
    assert configuration.ray is not None
    assert configuration.ray.address == "http://head:8265"
    assert configuration.ray.pending_timeout == 600
    assert configuration.trainables["train"].cpus == 4
    with pytest.raises(ConfigurationError, match="/of/the/nodes is not a folder"):
        read_configuration(tmp_path / "worker.toml", on_node=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("http://head:8265/", "head:8265", "ray.address: must be http://host:port"),
        ("http://head:8265/", "http://user:password@head:8265", "ray.address: must be"),
        ('base_url = "http://service:8642"', "", "ray.base_url: is required"),
        ("[ray]", "[ray]\npython = 'python; reboot'", "ray.python: must be the path of an interpreter"),
        ("[ray]", "[ray]\npending_timeout = 0", "ray.pending_timeout: must be a number from 1"),
        ("[ray]", "[ray]\ntoken = 'secret'", "ray.token: there is no such field"),
        ('executor = "ray"', 'executor = "slurm"', "worker.executor: must be one of local, ray"),
        ('executor = "ray"', "", "ray: there is no such field"),
    ],
)
def test_mistakes_about_the_cluster_name_the_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    """What is wrong in the table of the cluster is said with its field."""
    assert old in of_a_cluster()
    with pytest.raises(ConfigurationError, match=message):
        read_configuration(write(tmp_path, of_a_cluster().replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["python", ', '["{lr}", ', "its program must not be a parameter"),
        ("--lr={lr}", "--lr={lrr}", r"command.*\{lrr\}, which is no parameter"),
        ("--lr={lr}", "--lr={lr!r}", "command.*braces"),
        ("--lr={lr}", "--lr={0}", "command.*braces"),
        ('command = ["python"', 'command = "python train.py" #', "command: must be a list"),
        ("gpus = 1", "gpus = -1", "gpus: must be a whole number from 0"),
        ("gpus = 1", "gpu = 1", "gpu: there is no such field"),
        ("timeout = 60", "timeout = 0", "timeout: must be a number from 1"),
        ('"2GiB"', '"2 gigs"', "memory: must be bytes"),
        ('["data"]', '["../data"]', "leads out of the directory"),
        ('["data"]', '["nothing"]', "there is no"),
        ("slots = 2", "slots = 0", "worker.slots: must be a whole number from 1"),
        ("minimum = 1e-6, ", "", "parameters.lr.minimum: is required"),
        ("minimum = 1e-6", "minimum = 2.0", "is above the maximum"),
        ('type = "bool"', 'type = "shell"', "parameters.deep.type: must be one of"),
        ('type = "bool", default = false', 'type = "str"', "choices: is required"),
        ("deep =", '"de ep" =', "must be a name"),
        ("[trainables.train]", "[trainables.train]\ndirectory = 'no/where'", "is not a folder"),
        ("[worker]", "[workers]", "workers: there is no such field"),
        ("[worker]", "[worker", "is not TOML"),
    ],
)
def test_mistakes_name_the_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Whatever is wrong is said with its field, before anything is offered."""
    assert old in GOOD
    with pytest.raises(ConfigurationError, match=message):
        read_configuration(write(tmp_path, GOOD.replace(old, new)))


def test_missing_files_and_empty_ones(tmp_path: Path) -> None:
    """No file, and a file that allows nothing, are errors."""
    with pytest.raises(ConfigurationError, match=r"worker\.toml cannot be read"):
        read_configuration(tmp_path / "worker.toml")
    with pytest.raises(ConfigurationError, match="names none"):
        read_configuration(write(tmp_path, ""))


def test_the_examples_are_allowed() -> None:
    """The examples' own worker.toml is good, and names each script that is there."""
    configuration = read_configuration(examples_folder() / "worker.toml")
    scripts = {one.command[1] for one in configuration.trainables.values()}
    assert scripts == {path.name for path in examples_folder().glob("*.py")}
