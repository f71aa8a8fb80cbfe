"""Foreign trainings: scripts as other people write them, recorded through the SDK at its default sampling.

    python -m benchmarks.corpus generate --split foreign-fit --sampling auto --out benchmarks/.cache/foreign-fit-auto
    python -m benchmarks.corpus generate --split foreign-aside --sampling every --out DIR --jobs 2

`foreign-fit` is for the development of detectors. `foreign-aside` has other programs of other families and is not read
while detectors change (`set_aside.json`). `loading.load_foreign(split, sampling)` returns the labelled runs as blocks.
"""
