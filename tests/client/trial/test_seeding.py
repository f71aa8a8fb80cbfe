"""Seeding by `GRADMEDIC_SEED`: `init()` seeds random, numpy and torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # processes of their own, with torch

DRAW = "import json, random, numpy\n"
PRINT = "print(json.dumps([random.random(), numpy.random.rand(), torch.rand(3).tolist()]))\n"


def run(tmp_path: Path, script: str) -> Any:
    """Run a script in a process of its own, and return what it prints as JSON."""
    path = tmp_path / "script.py"
    path.write_text(script)
    environment = {
        "PATH": os.environ["PATH"],
        "GRADMEDIC_MODE": "disabled",
        "GRADMEDIC_SEED": "7",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def seeded_by_itself(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The numbers that are drawn after each generator was seeded by its own function."""
    script = DRAW + "import torch\nrandom.seed(7); numpy.random.seed(7); torch.manual_seed(7)\n" + PRINT
    return run(tmp_path_factory.mktemp("seeded"), script)


@pytest.mark.parametrize(
    "script",
    [
        "import torch, gradmedic\ngradmedic.init()\n",
        "import gradmedic\ngradmedic.init()\nimport torch\n",
        "import gradmedic\ngradmedic.init()\ngradmedic.init()\nfrom torch import nn\nimport torch\n",
    ],
    ids=["before", "after", "twice"],
)
def test_torch_is_seeded_whenever_it_is_imported(tmp_path: Path, script: str, seeded_by_itself: Any) -> None:
    """Whether the script imports torch before init() or after it, the first numbers are those of the seed."""
    assert run(tmp_path, DRAW + script + PRINT) == seeded_by_itself


def test_the_scripts_own_seed_wins(tmp_path: Path) -> None:
    """A seed that the script sets after init() counts."""
    script = DRAW + "import gradmedic\ngradmedic.init()\nimport torch\ntorch.manual_seed(3)\n"
    ours = run(tmp_path, script + "print(json.dumps(torch.rand(3).tolist()))\n")
    assert ours == run(
        tmp_path, "import json, torch\ntorch.manual_seed(3)\nprint(json.dumps(torch.rand(3).tolist()))\n"
    )


def test_without_a_seed_torch_is_not_imported(tmp_path: Path) -> None:
    """A run that has no seed does not import torch."""
    script = "import os, sys, json, gradmedic\ndel os.environ['GRADMEDIC_SEED']\ngradmedic.init()\n"
    assert run(tmp_path, script + "print(json.dumps('torch' in sys.modules))\n") is False


@pytest.mark.parametrize(
    "error", ["ModuleNotFoundError('not here', name='torch')", "OSError('not here')"], ids=["missing", "broken"]
)
def test_without_a_torch_that_loads_init_works(tmp_path: Path, error: str) -> None:
    """init() seeds the others, and the script's own import of torch fails as without gradmedic."""
    (tmp_path / "torch.py").write_text(f"raise {error}")
    script = (
        "import json, gradmedic\ngradmedic.init()\nfailed = []\n"
        "for _ in range(2):\n    try: import torch\n"
        "    except (ImportError, OSError) as error: failed.append(str(error))\n"
        "print(json.dumps(failed))\n"
    )
    assert run(tmp_path, script) == ["not here", "not here"]
