"""The names and the cost of `import gradmedic`."""

from __future__ import annotations

import inspect
import subprocess
import sys

import gradmedic

NOT_NEEDED = (
    *("torch", "tensorflow", "jax", "fastapi", "sqlalchemy", "pydantic", "gradmedic_service"),
    *(
        "urllib3",
        "http.client",
        "ssl",
        "email",
        "asyncio",
        "multiprocessing",
        "concurrent.futures",
        "importlib.metadata",
    ),
    *("gradmedic.api", "gradmedic.cli", "gradmedic.torch", "gradmedic.integrations"),
)
"""What a training does not need before its first step. `make bench-start` measures what the rest costs."""


def test_the_public_names_are_sorted_documented_and_there() -> None:
    """`__all__` is the whole public API, in order; everything in it has a docstring."""
    assert gradmedic.__all__ == sorted(gradmedic.__all__)
    for name in gradmedic.__all__:
        value = getattr(gradmedic, name)
        assert isinstance(value, str) or inspect.getdoc(value), name


def test_importing_takes_no_framework_and_no_service() -> None:
    """A fresh interpreter that is about to call `gradmedic.init` has loaded no framework, service or HTTP library.

    Of the standard library it has loaded none of the parts that take long.
    """
    script = f"import sys, gradmedic; gradmedic.init; print([name for name in {NOT_NEEDED!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_names_are_loaded_at_their_first_use() -> None:
    """`import gradmedic` loads nothing more; each public name is there, is listed, and an unknown one is an error."""
    script = (
        "import sys, gradmedic\n"
        "print(sorted(name for name in sys.modules if name.startswith('gradmedic.')), 'numpy' in sys.modules)\n"
        "print({*gradmedic.__all__} <= {*dir(gradmedic)}, hasattr(gradmedic, 'Runs'))\n"
        "from gradmedic import *\n"
        "print(init is gradmedic.init, Run.__name__, ApiError.__name__, VerdictEvent.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "['gradmedic.version'] False",
        "True False",
        "True Run ApiError VerdictEvent",
    ]


def test_the_client_is_loaded_at_its_first_use() -> None:
    """`gradmedic.init` does not load `Client`; `gradmedic.Client` and `from gradmedic import Client` do."""
    for question in ("gradmedic.Client", "from gradmedic import Client"):
        script = (
            "import sys, gradmedic; gradmedic.init\n"
            "later = ('gradmedic.api', 'gradmedic.protocol.reruns')\n"
            "print([name in sys.modules for name in later])\n"
            f"{question}\n"
            "print([name in sys.modules for name in later], hasattr(gradmedic, 'Clients'))\n"
        )
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert result.stdout.split("\n")[:2] == ["[False, False]", "[True, True] False"]
