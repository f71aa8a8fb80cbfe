"""How often the advice repairs a failing training run, beside random search and AUTOTRAINER's published order.

Every configuration is a small real training, written as a script would be (`networks`, `tasks`, `train`), with one
fault, and a *twin* without it (`configurations`). Which of them truly fail is decided by their losses, before anything
is repaired. A *trial* is `train.py` started by the worker's own executor with remedies applied, against a real service
(`trials`); what a strategy would do next is asked of the service's own experiment (`strategies`).

Diagnosis and advice were mended on the listed configurations, so these are no untouched test: `--drawn SEED` measures
others, of the same faults in the same architectures, that were not used before.

    python -m benchmarks.reruns [--drawn SEED] [--part 1/4] [--family NAME] [--jobs 2]
"""
