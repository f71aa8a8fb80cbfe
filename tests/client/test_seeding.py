"""Seeding by `GRADMEDIC_SEED`: a script draws the same in a trial and by hand, and torch costs only its users."""

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
IN_A_THREAD = """
import threading, gradmedic
gradmedic.init()
importing = threading.Thread(target=__import__, args=["torch"])
importing.start()
importing.join()
import torch
"""
PRINT = "print(json.dumps([random.random(), numpy.random.rand(), torch.rand(3).tolist()]))\n"


def run(tmp_path: Path, script: str) -> Any:
    """Run a script in a process of its own, and return what it prints as JSON."""
    path = tmp_path / "script.py"
    path.write_text(script)
    environment = {"PATH": os.environ["PATH"], "GRADMEDIC_MODE": "disabled", "GRADMEDIC_SEED": "7"}
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def seeded_by_itself(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What is drawn after every generator was seeded by its own function."""
    script = DRAW + "import torch\nrandom.seed(7); numpy.random.seed(7); torch.manual_seed(7)\n" + PRINT
    return run(tmp_path_factory.mktemp("seeded"), script)


@pytest.mark.parametrize(
    "script",
    [
        "import torch, gradmedic\ngradmedic.init()\n",
        "import gradmedic\ngradmedic.init()\nimport torch\n",
        "import gradmedic\ngradmedic.init()\ngradmedic.init()\nfrom torch import nn\nimport torch\n",
        "import gradmedic\ngradmedic.init()\nimport importlib\ntorch = importlib.import_module('torch')\n",
        "import importlib.util, gradmedic\ngradmedic.init()\nassert importlib.util.find_spec('torch')\nimport torch\n",
        IN_A_THREAD,
    ],
    ids=["before", "after", "twice", "by name", "looked for", "in a thread"],
)
def test_torch_is_seeded_whenever_it_is_imported(tmp_path: Path, script: str, seeded_by_itself: Any) -> None:
    """Before init() or after it, in whichever way: the first numbers are those of the seed."""
    assert run(tmp_path, DRAW + script + PRINT) == seeded_by_itself


def test_the_scripts_own_seed_wins(tmp_path: Path) -> None:
    """What the script seeds after init() stays as it seeded it."""
    script = DRAW + "import gradmedic\ngradmedic.init()\nimport torch\ntorch.manual_seed(3)\n"
    ours = run(tmp_path, script + "print(json.dumps(torch.rand(3).tolist()))\n")
    assert ours == run(
        tmp_path, "import json, torch\ntorch.manual_seed(3)\nprint(json.dumps(torch.rand(3).tolist()))\n"
    )


def test_a_script_without_torch_never_imports_it(tmp_path: Path) -> None:
    """init() seeds random and numpy, and leaves torch where it is."""
    script = DRAW + "import sys, gradmedic\ngradmedic.init()\nprint(json.dumps('torch' in sys.modules))\n"
    assert run(tmp_path, script) is False


def test_torch_looks_as_if_nobody_had_been_there(tmp_path: Path) -> None:
    """Loader and spec are torch's own, and nothing waits for a further import."""
    script = (
        "import json, sys, gradmedic\ngradmedic.init()\nimport torch, inspect\n"
        "left = [type(one).__module__ for one in sys.meta_path if type(one).__module__.startswith('gradmedic')]\n"
        "loaders = {type(torch.__loader__).__module__, type(torch.__spec__.loader).__module__}\n"
        "gradmedic.init()\n"
        "print(json.dumps([sorted(loaders), 'torch' in inspect.getsource(torch), len(sys.meta_path)]))\n"
    )
    plain = "import json, sys, gradmedic, torch\ngradmedic.init()\nprint(json.dumps(len(sys.meta_path)))\n"
    loaders, has_source, finders = run(tmp_path, script)
    assert (loaders, has_source) == (["_frozen_importlib_external"], True)
    assert finders == run(tmp_path, plain)


def test_where_there_is_no_torch_nothing_happens(tmp_path: Path) -> None:
    """An import that fails fails as ever, also the second time."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('not here', name='torch')")
    script = (
        "import json, gradmedic\ngradmedic.init()\nfailed = []\n"
        "for _ in range(2):\n    try: import torch\n    except ImportError as error: failed.append(str(error))\n"
        "print(json.dumps(failed))\n"
    )
    assert run(tmp_path, script) == ["not here", "not here"]
