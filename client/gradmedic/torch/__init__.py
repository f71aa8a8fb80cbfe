"""Observes the training of torch models. Imported by `Run.watch()` only, so that `import gradmedic` needs no torch."""

from __future__ import annotations

import re

import torch

if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
    raise ModuleNotFoundError(f"torch 2.6 or newer, not {torch.__version__}")
