"""A router of a mixture of experts that sends almost all tokens to one expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gradmedic_diagnosis.detectors.base import Detector, FindingState
from gradmedic_diagnosis.detectors.step_view import MAX_LAYERS_NAMED, StepView

COLLAPSED = 0.9
"""Share of the tokens at one expert from which on the others learn hardly anything: routers that are measured have at
least four experts, so that the others together get less than a seventh of their fair share."""
SPREAD = 0.8
"""Share below which the finding is resolved."""
PERSISTENCE = 3
"""Consecutive probes that must agree: single batches may be of one kind. Of a small model, probes are rare."""
MIN_STEPS = 100
"""Steps over which they must agree. A freshly made router may prefer one expert until the loss that balances the load
has acted (Shazeer et al. 2017, section 4)."""
CAUSE_SCORE = 0.96
"""The load itself is measured. What the idle experts show, such as weak gradients, follows from it."""


class RouterCollapse(Detector):
    """Almost all tokens go to one expert, probe after probe: of the model, the other experts train on nothing.

    Experts that are idle while the others share the tokens are no finding.
    """

    id = "router_collapse"
    verdict = "healthy"
    reads_only_probes = True
    stored_keys: ClassVar[Mapping[str, str]] = {"collapsed": "collapsed", "shares": "shares"}

    def __init__(self) -> None:
        super().__init__()
        self.collapsed: dict[str, list[int]] = {}
        """Of each router that sends almost all tokens to one expert: the first step, and the number of probes since."""
        self.shares: dict[str, float] = {}
        """The last share of the same routers."""

    @property
    def cause_score(self) -> float:
        """Score of an open finding."""
        return CAUSE_SCORE if self.is_open else 0.0

    def observe(self, view: StepView) -> None:
        """Read the largest share of each router."""
        measured = view.probes.get("router_largest_share")
        if not measured:
            return
        for router, share in measured.items():
            bound = SPREAD if self.is_open and router in self.collapsed else COLLAPSED
            if not share >= bound:
                self.collapsed.pop(router, None)
                self.shares.pop(router, None)
                continue
            since, probes = self.collapsed.get(router, (view.step, 0))
            self.collapsed[router] = [since, probes + 1]
            self.shares[router] = share
        lasting = {
            router: since
            for router, (since, probes) in self.collapsed.items()
            if probes >= PERSISTENCE and view.step - since >= MIN_STEPS
        }
        if not lasting:
            self.close_finding(view.step)
            return
        worst = max(lasting, key=lambda router: self.shares[router])
        evidence = {"largest_share": self.shares[worst], "routers_affected": float(len(lasting))}
        names = view.architecture.names
        layers = [i for i, name in enumerate(names) if name.rpartition(".")[0] in lasting][:MAX_LAYERS_NAMED]
        self.update_finding(view.step, "warning", layers, evidence, since=min(lasting.values()))

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain how many tokens one expert gets, and what would be healthy."""
        share, count = finding.evidence["largest_share"], int(finding.evidence["routers_affected"])
        gate = layers[0].rpartition(".")[0] if layers else "A router"
        others = f", and {count - 1} more routers do the same" if count > 1 else ""
        return (
            f"{gate} sends {share:.0%} of the tokens to one expert{others}; balanced, each expert gets about the same "
            "number. The other experts hardly train. Is the loss that balances the load added, and large enough?"
        )
