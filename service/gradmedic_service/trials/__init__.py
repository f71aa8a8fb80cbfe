"""Trials: how a worker runs one, from the claim to the result."""
