"""Seeding by `GRADMEDIC_SEED`: `init()` seeds random, numpy and torch."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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


def draw_torch(seed: int) -> list[float]:
    """Return the first numbers of torch's generator after a seed."""
    drawn: list[float] = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
    return drawn


@pytest.mark.parametrize(
    "script",
    [
        "import torch, gradmedic\ngradmedic.init()\n",
        "import gradmedic\ngradmedic.init()\nimport torch\n",
        "import gradmedic\ngradmedic.init()\ngradmedic.init()\nfrom torch import nn\nimport torch\n",
    ],
    ids=["before", "after", "twice"],
)
def test_torch_is_seeded_whenever_it_is_imported(tmp_path: Path, script: str) -> None:
    """Whether the script imports torch before init() or after it, the first numbers are those of the seed."""
    seeded = [random.Random(7).random(), np.random.RandomState(7).rand(), draw_torch(7)]
    assert run(tmp_path, DRAW + script + PRINT) == seeded


def test_the_scripts_own_seed_wins(tmp_path: Path) -> None:
    """A seed that the script sets after init() counts."""
    script = DRAW + "import gradmedic\ngradmedic.init()\nimport torch\ntorch.manual_seed(3)\n"
    ours = run(tmp_path, script + "print(json.dumps(torch.rand(3).tolist()))\n")
    assert ours == draw_torch(3)


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
