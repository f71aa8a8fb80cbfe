"""Finds the origin of a training's first non-finite number: the operation, its module and its source line.

`finder` checks every operation that runs inside of it; a rerun may enter it in an optimizer's hook. `locator`
uses it in the process of the training: `tape` and `kept_calls` remember a step by reference, and `replay` repeats it
on copies when its gradients are not finite.
"""
