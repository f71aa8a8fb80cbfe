"""Reruns: asking for one, reading it, and the experiment that it carries out."""
