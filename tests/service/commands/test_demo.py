"""`gradmedic demo --copy-to`; tests/docs/test_guides.py runs the demo itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradmedic.cli.main import main
from gradmedic_worker.configuration import read_configuration


def test_the_examples_are_copied_to_a_new_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder gets every script that its `worker.toml` allows. What exists already is not touched."""
    folder = tmp_path / "new" / "examples"
    assert main(["demo", "--copy-to", str(folder)]) == 0
    assert f"`gradmedic serve --with-worker {folder / 'worker.toml'}`" in capsys.readouterr().out
    trainables = read_configuration(folder / "worker.toml").trainables
    assert len(trainables) > 5
    scripts = {argument for trainable in trainables.values() for argument in trainable.command if ".py" in argument}
    assert scripts <= {file.name for file in folder.iterdir()}
    assert {file.suffix for file in folder.iterdir()} == {".py", ".toml"}
    (folder / "worker.toml").write_text("changed")
    for existing in (folder, folder / "worker.toml"):
        assert main(["demo", "--copy-to", str(existing)]) == 2
        assert capsys.readouterr().err == f"gradmedic: {existing} exists already: name a new folder\n"
    assert (folder / "worker.toml").read_text() == "changed"
    assert main(["demo", "--copy-to", str(folder / "worker.toml" / "x")]) == 2
    assert "cannot be copied to" in capsys.readouterr().err
