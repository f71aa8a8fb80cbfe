"""Controlled experiments on the failing configurations of `benchmarks.reruns`, with tables and pictures.

- `repairs`: which remedy repairs which failure in which architecture.
- `clipping`: how the threshold of gradient clipping affects stability and skill.
- `evidence`: which remedy repairs which cause in every other configuration. The counts correct the chances of the
  advice.
- `conditions`: one small training for each condition, with a picture of what the run's page shows.

All but the last keep the results of their trials with those of `make bench-reruns`, and continue after an interruption.

    python -m benchmarks.experiments repairs|clipping [--pictures docs/images]
    python -m benchmarks.experiments conditions [--pictures docs/conditions/images]
    python -m benchmarks.experiments evidence
"""
