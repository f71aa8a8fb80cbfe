"""The training scripts. Each module belongs to one split: `fit_*` to foreign-fit, `aside_*` to foreign-aside."""
