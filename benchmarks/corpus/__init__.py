"""Our own labelled corpus of small training runs, to judge a diagnostician on runs that it has never read.

Every recording comes from a real training run. A *family* (`families/`) names programs, faults and repairs. A *program*
(`programs/`) builds a model and its data. `training` runs it and records what an SDK would send. `outcome` labels it by
its loss, its weights and its skill on clean evaluation data, never by its gradients.

    python -m benchmarks.corpus generate --split fit --out benchmarks/.cache/fit
"""
