"""Exports of runs: anonymous recordings."""
