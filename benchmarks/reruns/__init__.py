"""Measures how often the advice repairs a failing training run, beside random search and AUTOTRAINER's order.

Every configuration is a small real training, written as a script would be (`networks`, `tasks`, `train`), with one
fault, and a *twin* without it (`configurations`). Their losses decide which of them truly fail, before any remedy is
tried. A *trial* is `train.py` with remedies applied, started by the worker's own executor, against a real service
(`trials`). The service's own experiment decides which trials a strategy runs next (`strategies`).

The diagnosis and the advice were improved on the listed configurations (set `own`), so these are no independent test.
The set `drawn` has others, with the same faults in the same architectures, that a seed draws. The set `published` has
failing programs that papers, studies of bugs and public threads describe (`published`); nothing was fitted to them.

A remedy that the experiment verifies may still be no repair. `measurement` compares the skill that it reaches with
those of the faulty training and the twin, and counts such false proofs.

    python -m benchmarks.reruns [--set own|drawn|published] [--seed 1] [--part 1/4] [--family NAME] [--jobs 2]
"""
