"""Probes of a torch training: a meter a file. `PROBE_METERS` lists them."""

from gradmedic.torch.probes.meter import ProbeContext, ProbeMeter, ProbeValues
from gradmedic.torch.probes.probing import Probing

__all__ = ["ProbeContext", "ProbeMeter", "ProbeValues", "Probing"]
