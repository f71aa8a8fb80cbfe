"""Callbacks and trackers in the form that frameworks have for them; each module imports its framework."""
