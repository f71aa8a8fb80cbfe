"""`worker.toml`: its fields, and the messages for mistakes in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from gradmedic.exceptions import ConfigurationError
from gradmedic_service.commands.demo import examples_folder
from gradmedic_worker.configuration import read_configuration

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
judge_by = " maximize  val_accuracy"

[trainables.train.parameters]
lr = { type = "float", minimum = 1e-6, maximum = 1.0 }
clip = { type = "float", minimum = 0.0, maximum = 1.0, optional = true }
deep = { type = "bool", default = false }
"""


def write(folder: Path, text: str) -> Path:
    """Write a configuration file and the folder that it links to."""
    (folder / "data").mkdir(exist_ok=True)
    path = folder / "worker.toml"
    path.write_text(text)
    return path


def test_every_field_is_read(tmp_path: Path) -> None:
    """Each field is read, paths are relative to the file, and the service gets neither command nor paths."""
    configuration = read_configuration(write(tmp_path, GOOD))
    train = configuration.trainables["train"]
    assert (configuration.name, configuration.slots) == ("here", 2)
    assert (train.gpus, train.timeout, train.memory, train.links) == (1, 60.0, 2 * 2**30, ("data",))
    assert (train.environment, train.pass_environment) == ({"OMP_NUM_THREADS": "1"}, ("HF_HOME",))
    assert train.directory == tmp_path
    assert train.judge_by == "maximize val_accuracy"
    description = train.describe()
    assert [parameter.name for parameter in description.parameters] == ["lr", "clip", "deep"]
    assert "train.py" not in repr(description)
    assert train.find_program() == sys.executable


def test_placeholders_are_filled(tmp_path: Path) -> None:
    """Placeholders are filled, an argument without a value is left out, and doubled braces become braces."""
    train = read_configuration(write(tmp_path, GOOD)).trainables["train"]
    command = train.fill_command({"lr": 1e-5, "clip": None, "deep": True}, seed=7)
    assert command == ["python", "train.py", "--lr=1e-05", "{literal}", "--deep=true", "--seed=7"]
    assert "--clip=0.5" in train.fill_command({"lr": 1, "clip": 0.5, "deep": False}, seed=7)


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
def test_the_worker_checks_the_values_of_the_service(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    """A value that the operator does not allow never reaches a command."""
    train = read_configuration(write(tmp_path, GOOD)).trainables["train"]
    with pytest.raises(ConfigurationError, match=message):
        train.fill_command(values, seed=7)


RAY_TABLE = """
[ray]
address = "http://head:8265/"
base_url = "http://service:8642"
"""


def configuration_for_ray() -> str:
    """Return a configuration whose trials run on a cluster, in folders that exist on its nodes only."""
    text = GOOD.replace("[worker]", '[worker]\nexecutor = "ray"')
    directory = "[trainables.train]\ndirectory = '/of/the/nodes'\ncpus = 4"
    return text.replace("[trainables.train]", directory, 1) + RAY_TABLE


def test_only_ray_nodes_check_the_directory(tmp_path: Path) -> None:
    """The worker's own machine need not have the folders of a cluster's trials, but a node must."""
    configuration = read_configuration(write(tmp_path, configuration_for_ray()))
    assert configuration.executor == "ray"
    assert configuration.ray is not None
    assert configuration.ray.address == "http://head:8265"
    assert configuration.ray.pending_timeout == 600
    assert configuration.trainables["train"].cpus == 4
    with pytest.raises(ConfigurationError, match="/of/the/nodes is not a folder"):
        read_configuration(tmp_path / "worker.toml", is_ray_node=True)


@pytest.mark.parametrize(
    ("field", "token_file"),
    [("", None), ("token_file = ''", None), ("token_file = 'token'", "token"), ("token_file = '/of/ray'", "/of/ray")],
)
def test_without_a_token_file_ray_finds_the_token(tmp_path: Path, field: str, token_file: str | None) -> None:
    """An empty path counts as none; others are relative to the folder of worker.toml."""
    configuration = read_configuration(write(tmp_path, configuration_for_ray() + field))
    assert configuration.ray is not None
    assert configuration.ray.token_file == (None if token_file is None else tmp_path / token_file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("http://head:8265/", "head:8265", "ray.address: must be http://host:port"),
        ("http://head:8265/", "http://user:password@head:8265", "ray.address: must be"),
        ('base_url = "http://service:8642"', "", "ray.base_url: is required"),
        ("[ray]", "[ray]\npython = 'python; reboot'", "ray.python: must be the path of an interpreter"),
        ("[ray]", "[ray]\npending_timeout = 0", "ray.pending_timeout: must be a number >= 1"),
        ("[ray]", "[ray]\ntoken = 'secret'", "ray.token: there is no such field; there are .*token_file"),
        ('executor = "ray"', 'executor = "slurm"', "worker.executor: must be one of local, ray"),
        ('executor = "ray"', "", 'ray: this table is allowed only with worker.executor = "ray"'),
    ],
)
def test_mistakes_about_the_cluster_name_the_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    """The message for a mistake about the cluster names the file and the field."""
    assert old in configuration_for_ray()
    with pytest.raises(ConfigurationError, match=rf"worker\.toml: {message}"):
        read_configuration(write(tmp_path, configuration_for_ray().replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["python", ', '["{lr}", ', "train.command: its program must not be a parameter"),
        ("--lr={lr}", "--lr={lrr}", r"train.command: .*\{lrr\}, which is no parameter"),
        ("--lr={lr}", "--lr={lr!r}", "train.command: .*braces"),
        ("--lr={lr}", "--lr={0}", "train.command: .*braces"),
        ('command = ["python"', 'command = "python train.py" #', "train.command: must be a list, not a text"),
        (
            'command = ["python"',
            'commands = ["python"',
            "train.commands: there is no such field; there are command,",
        ),
        ('["python", "train.py"', '[1, "train.py"', r"train.command\[0\]: must be a text, not a whole number"),
        ("gpus = 1", "gpus = -1", "train.gpus: must be a whole number >= 0"),
        ("gpus = 1", "gpus = true", "train.gpus: must be a whole number, not true or false"),
        ("gpus = 1", "gpu = 1", "train.gpu: there is no such field; there are .*gpus"),
        ("timeout = 60", "timeout = 0", "train.timeout: must be a number >= 1"),
        ("timeout = 60", "timeout = nan", "train.timeout: must be a number >= 1"),
        ('"2GiB"', '"2 gigs"', "train.memory: must be a number of bytes above 0, or a text such as '4GiB'"),
        ('"2GiB"', "0", "train.memory: must be a number of bytes above 0"),
        (
            '{ OMP_NUM_THREADS = "1" }',
            "{ OMP_NUM_THREADS = 1 }",
            "train.environment.*: must be a text, not a whole number",
        ),
        ('["data"]', '["../data"]', "train.links: .*leads out of the directory"),
        ('["data"]', '["nothing"]', "train.links: there is no"),
        ('" maximize  val_accuracy"', '"accuracy"', 'train.judge_by: must be "minimize loss"'),
        ('" maximize  val_accuracy"', '"maximize grad_norm"', "train.judge_by: must name the loss or a metric"),
        ('" maximize  val_accuracy"', "3", "train.judge_by: must be a text"),
        ("slots = 2", "slots = 0", "worker.slots: must be a whole number >= 1"),
        ("minimum = 1e-6, ", "", "train.parameters.lr.minimum: is required"),
        ("minimum = 1e-6", "minimum = 2.0", "train.parameters.lr.minimum: 2 is above the maximum 1"),
        ("minimum = 1e-6", "minimum = -inf", "train.parameters.lr.minimum: must be a number >= -1e"),
        ('type = "bool"', 'type = "shell"', "train.parameters.deep.type: must be one of float, int, str, bool"),
        ('type = "bool", default = false', 'type = "str"', "train.parameters.deep.choices: is required"),
        ('type = "bool"', 'type = "bool", minimum = 0', "train.parameters.deep.minimum: is not allowed"),
        ('type = "bool"', 'type = "bool", remedy = "pray"', "train.parameters.deep.remedy: 'pray' is not one of"),
        ("deep =", '"de ep" =', "train.parameters.de ep: must be a name"),
        ("deep =", "seed =", "train.parameters.seed: this name is reserved"),
        ("[trainables.train]", "[trainables.train]\ndirectory = 'no/where'", "train.directory: .*is not a folder"),
        ("[worker]", "[workers]", "workers: there is no such field; there are worker, ray, trainables"),
        ("[worker]", "[worker", "is not TOML"),
    ],
)
def test_mistakes_name_the_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    """The message for a mistake names the file, the field and what is allowed."""
    assert old in GOOD
    with pytest.raises(ConfigurationError, match=rf"worker\.toml.*{message}"):
        read_configuration(write(tmp_path, GOOD.replace(old, new)))


def test_a_missing_or_empty_file_is_an_error(tmp_path: Path) -> None:
    """No file, and a file without trainables, are errors."""
    with pytest.raises(ConfigurationError, match=r"worker\.toml cannot be read"):
        read_configuration(tmp_path / "worker.toml")
    with pytest.raises(ConfigurationError, match=r"worker\.toml: trainables: there is none"):
        read_configuration(write(tmp_path, ""))


def test_the_examples_are_allowed() -> None:
    """The examples' own worker.toml is valid, and has a trainable for each script."""
    configuration = read_configuration(examples_folder() / "worker.toml")
    scripts = {trainable.command[1] for trainable in configuration.trainables.values()}
    assert scripts == {path.name for path in examples_folder().glob("*.py")}
