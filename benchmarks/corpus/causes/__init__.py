"""Trainings whose cause of failure is known: small scripts with one fault each, recorded at the default sampling.

    python -m benchmarks.corpus generate --split causes-fit --out benchmarks/.cache/causes-fit

The true cause follows from how a run was made: it differs from a twin that learns in its fault alone. `labels` checks
by the outcome that it really fails. `causes-fit` is open. `causes-aside` has other programs and is not looked at run
by run (`set_aside.json`).
"""
