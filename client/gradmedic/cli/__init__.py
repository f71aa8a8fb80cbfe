"""The `gradmedic` program: one module per command.

The commands of the service and of the worker join through the entry-point group `gradmedic.commands`.
"""

from gradmedic.cli.main import main

__all__ = ["main"]
