"""Reruns: creating, reading and ending them, and the experiment that each of them carries out."""
