"""Trainables: the commands that workers offer to rerun."""
