"""Attention logits that grow without bound, so that each query attends to one key and learns no other."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from gradmedic_diagnosis.detectors.base import STUCK_PATIENCE, Detector, FindingState
from gradmedic_diagnosis.detectors.step_view import MAX_LAYERS_NAMED, StepView
from gradmedic_diagnosis.loss_progress import UNMOVED_SHARE

HIGH = 100.0
"""A logit above this is high: the bound at which QK-clip keeps logits (Kimi K2, arXiv 2507.20534, section 2.1). A key
whose logit is 100 below the largest one of its row has a weight of e^-100."""
EXTREME = 1000.0
"""Logits above this come before instabilities of large trainings (same source, figure 2), whether they grow or not."""
SATURATED = 1e4
"""Logits above this from the start, of weights that choose a single key, are a fault also while the loss falls.
A softmax over them passes no gradient to queries and keys, and no learned task has made attention so sharp. Trainings
diverge at such logits (Wortsman et al. 2023, arXiv 2309.14322, section 3.1). In bfloat16 they are multiples of 64."""
GROWN = 10.0
"""Extreme logits must be this many times those at the start. A pretrained model may have large ones from before."""
RISE = 1.1
"""Factor above their own slow average from which on logits grow. A judgement: the largest logit of a healthy module
differs by a tenth from batch to batch."""
HORIZON = 8
"""Probes over which that average goes."""
INITIAL = 3
"""Probes whose median is the start."""
PERSISTENCE = 3
"""Probes on which the evidence must hold, and must have been absent again to end: a single batch may be odd."""
COLLAPSED = 0.05
"""Entropy of the weights over its largest value, below which a head attends to one key: of 64 keys, to 1.2 keys."""
OPEN_ENTROPY = 0.3
"""Entropy at the start from which on a later collapse is a change."""
COLLAPSED_SHARE = 0.5
"""More than this share of the measured modules must have collapsed. Single heads that look at one key are common."""
SATURATED_SHARE = 0.5
"""More than this share of the measured modules must be saturated. A network can do without a few of many."""
LEARNED_SHARE = 0.9
"""A loss that fell by this share of its start has learned its task: that it is flat is no harm. As for `depth_gap`."""
RISEN_SHARE = 0.1
"""Share of its start by which a loss must be above its lowest level to have risen."""

FIRST_SCORE = 0.75
"""Score of logits of `HIGH` that were so before the loss rose."""
EXTREME_SCORE = 0.95
"""The same for those of ten times `EXTREME` and more: then they are how a high learning rate does harm. In between, the
score grows with the logarithm."""
LATER_SCORE = 0.5
"""Score of logits that were not high before the loss rose, as where an absurd learning rate overwrites all weights."""
COLLAPSE_SCORE = 0.6

_QUERY_OR_KEY = frozenset({
    "q", "k", "qk", "qkv", "kv", "query", "key", "query_key_value", "wq", "wk", "wqkv", "in", "attn",
})  # fmt: skip
"""Parts of names of weights that queries and keys are computed by: `q_proj`, `in_proj_weight`, `c_attn`, `to_q`."""
_SEPARATOR = re.compile(r"[._]")


@dataclass(slots=True)
class AttentionModule:
    """What the probes of one module have shown."""

    initial_logits: list[float] = field(default_factory=list)
    """The first `INITIAL` largest logits."""
    initial_entropy: float = math.nan
    logit: float = 0.0
    """The last largest logit."""
    slow_log: float = math.nan
    """Slow average of its logarithm."""
    entropy: float = math.nan
    """The last entropy."""
    held: int = 0
    """Probes on which logits grew beyond `HIGH`, or were extreme, less those on which not; 0 to twice `PERSISTENCE`."""
    is_suspect: bool = False
    """Whether that held on `PERSISTENCE` probes, and has not been absent for as many since."""
    high_since: int = -1
    """First step of the logits that are above `HIGH` now; -1 while they are not."""
    was_first: bool = False
    """Whether the loss had not risen at that step."""

    @property
    def initial_logit(self) -> float:
        """The largest logit at the start."""
        return sorted(self.initial_logits)[len(self.initial_logits) // 2] if self.initial_logits else math.nan

    @property
    def is_extreme(self) -> bool:
        """Whether the last largest logit is extreme."""
        return self.logit > EXTREME and self.logit >= GROWN * self.initial_logit

    @property
    def is_saturated(self) -> bool:
        """Whether logits always were so large that the softmax passes no gradient, and a head attends to one key."""
        return min(self.logit, self.initial_logit) > SATURATED and self.entropy < COLLAPSED

    @property
    def is_collapsed(self) -> bool:
        """Whether a head attended to many keys at the start, and one does to a single key now."""
        return self.entropy < COLLAPSED and self.initial_entropy >= OPEN_ENTROPY

    def add(self, logit: float, entropy: float, step: int, *, has_loss_risen: bool) -> None:
        """Add the numbers of a probe. NaN is no news: other detectors find it."""
        if not math.isnan(entropy):
            self.entropy = entropy
            if math.isnan(self.initial_entropy):
                self.initial_entropy = entropy
        if math.isnan(logit):
            return
        self.logit = logit
        logarithm = math.log(min(max(logit, 1e-30), 1e30))
        is_rising = logarithm - self.slow_log > math.log(RISE)
        if len(self.initial_logits) < INITIAL:
            self.initial_logits = [*self.initial_logits, logit]
            is_rising = False
        weight = 1 / HORIZON if math.isfinite(self.slow_log) else 1.0
        self.slow_log = logarithm if weight == 1.0 else self.slow_log + weight * (logarithm - self.slow_log)
        if logit <= HIGH:
            self.high_since = -1
        elif self.high_since < 0:
            self.high_since, self.was_first = step, not has_loss_risen
        is_known = len(self.initial_logits) == INITIAL
        holds = (logit > HIGH and is_rising) or (is_known and (self.is_extreme or self.is_saturated))
        self.held = min(max(self.held + (1 if holds else -1), 0), 2 * PERSISTENCE)
        self.is_suspect = self.held >= PERSISTENCE or (self.is_suspect and self.held > 0)


class AttentionLogitGrowth(Detector):
    """The largest attention logits grow probe after probe, or most modules' weights collapse while the loss is bad.

    It is a note while the objective improves, or has been reached: a learned task sharpens attention. Where nothing
    measures progress, it is a warning if the logits are extreme. It always is if most modules were
    saturated from the start.
    """

    id = "attention_logit_growth"
    verdict = "healthy"
    reads_only_probes = True
    stored_keys: ClassVar[Mapping[str, str]] = {
        "stored_modules": "modules", "collapsed_probes": "collapsed", "module": "module",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.modules: dict[str, AttentionModule] = {}
        """By name."""
        self.collapsed_probes = 0
        """Consecutive probes on which most modules were collapsed and the loss was bad."""
        self.module = ""
        """Name of the module that the finding is about: that with the largest logit when it was opened."""

    @property
    def stored_modules(self) -> dict[str, dict[str, Any]]:
        """The modules, as the state holds them."""
        return {name: asdict(module) for name, module in self.modules.items()}

    @stored_modules.setter
    def stored_modules(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        self.modules = {name: AttentionModule(**numbers) for name, numbers in stored.items()}

    @property
    def cause_score(self) -> float:
        """Score of an open warning: high where logits are extreme, and were high before the loss rose."""
        state = self.finding_state
        if state is None or not self.is_open or state.severity != "warning":
            return 0.0
        suspects = [module for module in self.modules.values() if module.is_suspect]
        if not suspects:
            return COLLAPSE_SCORE
        if not any(module.was_first for module in suspects):
            return LATER_SCORE
        largest = max(module.logit for module in suspects if module.was_first)
        share = math.log(max(largest, HIGH) / HIGH) / math.log(10 * EXTREME / HIGH)
        return FIRST_SCORE + (EXTREME_SCORE - FIRST_SCORE) * min(share, 1.0)

    def observe(self, view: StepView) -> None:
        """Read the probes of the step, if it has any."""
        logits = view.probes.get("attention_logit_max")
        if not logits:
            return
        progress = view.objective
        has_risen = progress.count > 0 and progress.current - progress.lowest_current > RISEN_SHARE * progress.scale
        entropies = view.probes.get("attention_entropy", {})
        for name, logit in logits.items():
            module = self.modules.setdefault(name, AttentionModule())
            module.add(logit, entropies.get(name, math.nan), view.step, has_loss_risen=has_risen)
        is_flat = view.is_stuck and progress.count >= STUCK_PATIENCE
        is_bad = view.measures_progress and (has_risen or (is_flat and progress.fallen_share < LEARNED_SHARE))
        is_unlearned = view.measures_progress and (has_risen or (is_flat and progress.fallen_share < UNMOVED_SHARE))
        collapsed = [name for name, module in self.modules.items() if module.is_collapsed]
        has_collapsed = is_unlearned and len(collapsed) > COLLAPSED_SHARE * len(self.modules)
        self.collapsed_probes = self.collapsed_probes + 1 if has_collapsed else 0
        suspects = [name for name, module in self.modules.items() if module.is_suspect]
        if suspects:
            is_unmeasured = progress.count == 0 or not view.measures_progress
            is_extreme = any(self.modules[name].is_extreme for name in suspects)
            is_saturated = sum(module.is_saturated for module in self.modules.values()) > SATURATED_SHARE * len(
                self.modules
            )
            self._report(view, suspects, is_warning=is_bad or is_saturated or (is_unmeasured and is_extreme))
        elif self.collapsed_probes >= PERSISTENCE:
            self._report(view, collapsed, is_warning=True)
        else:
            self.close_finding(view.step)

    def explain(self, finding: FindingState, layers: Sequence[str]) -> str:
        """Explain how large the logits are, and how few keys the weights choose."""
        del layers
        numbers = finding.evidence
        where = f"of {self.module}" if self.module else "of the model"
        text = (
            f"The largest attention logit {where} is {numbers['attention_logit_max']:.3g}, after "
            f"{numbers['initial_logit_max']:.3g} at the start; up to about {HIGH:g} is healthy."
        )
        if "attention_entropy" in numbers:
            text += (
                f" The entropy of a head's weights is {numbers['attention_entropy']:.2f} of its largest value "
                f"({numbers['initial_entropy']:.2f} at the start); near 0, it sees a single key, and its softmax "
                "passes no gradient."
            )
        if finding.severity == "note":
            text += " No harm is seen so far: the objective improves, has been reached, or is not measured."
        return text

    def _report(self, view: StepView, names: Sequence[str], *, is_warning: bool) -> None:
        was_warning = self.is_open and self.finding_state is not None and self.finding_state.severity == "warning"
        worst = sorted(names, key=lambda name: (-self.modules[name].logit, name))
        if not self.is_open:
            self.module = worst[0]
        module = self.modules[self.module]
        evidence = {
            "attention_logit_max": module.logit,
            "initial_logit_max": module.initial_logit,
            "modules_affected": float(len(names)),
            "modules_measured": float(len(self.modules)),
        }
        if not math.isnan(module.entropy):
            evidence |= {"attention_entropy": module.entropy, "initial_entropy": module.initial_entropy}
        layers = [i for name in worst for i in find_projections(name, view.architecture.names)][:MAX_LAYERS_NAMED]
        since = min((s for name in names if (s := self.modules[name].high_since) >= 0), default=view.step)
        self.update_finding(
            view.step, "warning" if is_warning or was_warning else "note", layers, evidence, since=since
        )


def find_projections(module: str, layers: Sequence[str]) -> list[int]:
    """Return the indices of the weights that compute queries and keys in a module; of all its weights if none is known.

    >>> find_projections("attn", ["attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight", "mlp.weight"])
    [0, 1]
    """
    prefix = f"{module}." if module else ""
    own = [i for i, name in enumerate(layers) if name.startswith(prefix) and not name.endswith("bias")]
    chosen = [i for i in own if _QUERY_OR_KEY & set(_SEPARATOR.split(layers[i].removeprefix(prefix)))]
    return chosen or (own if module else [])
