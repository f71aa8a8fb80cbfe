"""Measures how often the advice repairs a failing training run, beside random search and AUTOTRAINER's order.

Every configuration is a small real training, written as a script would be (`networks`, `tasks`, `train`), with one
fault, and a *twin* without it (`configurations`). Their losses decide which of them truly fail, before any remedy is
tried. A *trial* is `train.py` with remedies applied, started by the worker's own executor, against a real service
(`trials`). The service's own experiment decides which trials a strategy runs next (`strategies`).

The diagnosis and the advice were improved on the listed configurations, so these are no independent test. `--drawn
SEED` measures others, with the same faults in the same architectures, that were not used before.

    python -m benchmarks.reruns [--drawn SEED] [--part 1/4] [--family NAME] [--jobs 2]
"""
