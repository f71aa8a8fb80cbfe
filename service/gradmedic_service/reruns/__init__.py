"""Reruns: racing remedies on a suspect run against an unchanged control, and what was learned from it."""
