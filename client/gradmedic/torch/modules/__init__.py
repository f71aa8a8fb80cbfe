"""Remedies that change a live model: what its modules compute, never which objects the script holds.

One idea: the modules stay, and so do their parameters; what changes is done by hooks, by new numbers in old parameters,
or by another class of the same module. `trace` runs a copy and writes down what it computes, `plan` finds in that the
places of each remedy, and `treatment` applies them in a fixed order. What finds no place is not applicable.
"""
