"""Trials: what a worker does with one, from the claim to the result."""
