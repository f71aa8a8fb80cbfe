"""Computes what a predictor gets that gives the same output for every example, from targets of the first batches.

An example is an element of the first dimension; of class indices, each element. Functions of numpy arrays: nothing here
depends on a framework.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_SEARCH_STEPS = 60
"""Steps of the search for the best constant: each shortens the interval by 0.618, together to 3e-13 of it."""


def shrink_frequencies(frequencies: Array, count: float) -> Array:
    """Return estimates of probabilities `[class, ...]` that sum to 1 along the first axis, from observed frequencies.

    A few batches do not show every class, and the entropy of the plain frequencies is too small then: of 4 examples it
    is at most ln 4. The James-Stein estimator (Hausser and Strimmer 2009, equations 4 and 6) draws the frequencies to
    equal ones by as much as their error explains; with many examples, it leaves them as they are.

    Args:
        frequencies: shares of the classes.
        count: number of observed examples.
    """
    uniform = 1.0 / len(frequencies)
    distance = np.square(frequencies - uniform).sum(axis=0)
    variance = (1.0 - np.square(frequencies).sum(axis=0)) / max(count - 1.0, 1.0)
    intensity = np.clip(np.divide(variance, distance, out=np.ones_like(distance), where=distance > 0), 0.0, 1.0)
    shrunk: Array = intensity * uniform + (1.0 - intensity) * frequencies
    return shrunk


def cross_entropy_sum(mass: Array) -> float:
    """Return `-sum(mass * ln q)` for the probabilities `q` that make it smallest: `mass` divided by its sum."""
    mass = mass[mass > 0]
    return float(-(mass * np.log(mass / mass.sum())).sum()) if mass.size else 0.0


def binary_cross_entropy_sum(positive: Array, negative: Array) -> float:
    """Return the sum over outputs of `-positive * ln q - negative * ln(1 - q)` for the best `q` of each output."""
    total = positive + negative
    return float(
        sum(
            (part * np.log(np.divide(total, part, out=np.ones_like(part), where=part > 0))).sum()
            for part in (positive, negative)
        )
    )


def squared_error(targets: Array) -> float:
    """Return the mean over outputs of the variance of targets `[example, output]`, without the bias of few examples."""
    return float(targets.var(axis=0, ddof=1 if len(targets) > 1 else 0).mean())


def absolute_error(targets: Array) -> float:
    """Return the mean over outputs of the mean distance of targets `[example, output]` from their median."""
    return float(np.abs(targets - np.median(targets, axis=0)).mean())


def huber_error(targets: Array, threshold: float, *, is_smooth_l1: bool) -> float:
    """Return the mean Huber error of targets `[example, output]` from the best constant of each output.

    Args:
        targets: the targets.
        threshold: distance from which the error is linear: `delta` of the Huber loss, `beta` of the smooth L1 loss.
        is_smooth_l1: whether the error is divided by the threshold, as that of the smooth L1 loss.
    """
    if threshold <= 0:
        return absolute_error(targets)

    def error(constant: Array) -> Array:
        distance = np.abs(targets - constant)
        values = np.where(distance < threshold, 0.5 * np.square(distance), threshold * (distance - 0.5 * threshold))
        means: Array = values.mean(axis=0)
        return means

    low, high = targets.min(axis=0), targets.max(axis=0)
    for _ in range(_SEARCH_STEPS):  # the error is convex: golden-section search, in all outputs at once
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        is_left = error(left) <= error(right)
        low, high = np.where(is_left, low, left), np.where(is_left, right, high)
    return float(error((low + high) / 2.0).mean()) / (threshold if is_smooth_l1 else 1.0)
