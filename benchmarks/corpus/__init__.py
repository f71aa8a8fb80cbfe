"""Our own labelled corpus of real small training runs, to judge a diagnostician on runs it has never seen.

Every recording is a training run that really took place: a *family* (`families/`) names programs, faults and repairs;
a *program* (`programs/`) builds a model and its data; `training` runs it and records what an SDK would send; `outcome`
labels it by what became of it - the loss, the weights and the skill on clean evaluation data, never the gradients.

    python -m benchmarks.corpus generate --split fit --out benchmarks/.cache/fit
"""
