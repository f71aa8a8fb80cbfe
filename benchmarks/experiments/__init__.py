"""Controlled experiments on the failing configurations of `benchmarks.reruns`, with tables and pictures.

`repairs`: which remedy repairs which failure in which architecture. `clipping`: how the threshold of gradient clipping
trades stability against signal. `evidence`: what repairs what cause in every other configuration, which corrects the
weights of the advice. All keep their trials where `make bench-reruns` does, and go on where they stopped.

    python -m benchmarks.experiments repairs|clipping [--pictures docs/images]
    python -m benchmarks.experiments evidence
"""
