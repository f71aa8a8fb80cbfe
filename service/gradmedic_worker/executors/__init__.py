"""Executors: they host the processes of trials, on this machine or on a Ray cluster."""
