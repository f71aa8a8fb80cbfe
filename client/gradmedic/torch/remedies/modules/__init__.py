"""Remedies that change what a model's modules compute. The modules and parameters stay the same objects.

They use hooks, other numbers in the same parameters, or another class for the same module.
"""
