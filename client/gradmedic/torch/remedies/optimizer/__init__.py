"""Remedies that act on the optimizer: its learning rate, its weight decay, or the optimizer itself."""
