"""Applies remedies to the models and optimizers of a running script, so that the script is rerun unchanged.

`AppliedRemedies` applies the remedies of one trial. Each remedy is a class in the folder of what it acts on:
`optimizer`, `gradients` or `modules`. `registry` finds these classes by the remedy's id. To add a remedy, write its
class in one of the folders and add its row to `gradmedic.protocol.remedies`.
"""

from gradmedic.torch.remedies.applied import AppliedRemedies
from gradmedic.torch.remedies.base import NotApplicable

__all__ = ["AppliedRemedies", "NotApplicable"]
