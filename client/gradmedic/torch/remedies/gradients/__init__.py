"""Remedies that act on the gradients, between the backward pass and the optimizer's step."""
