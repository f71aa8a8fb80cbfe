"""Runs: creating, listing, changing and deleting training jobs."""
