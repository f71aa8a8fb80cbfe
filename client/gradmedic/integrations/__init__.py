"""Callbacks and trackers for training frameworks. Each module imports its framework."""
