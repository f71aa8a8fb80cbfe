"""One row of the catalogue of advice, and sources that several rows have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gradmedic.protocol.remedies import Remedy
from gradmedic_diagnosis.remedy_fit import Parameters
from gradmedic_diagnosis.run_evidence import RunEvidence

PASCANU = "Pascanu et al. 2013, On the difficulty of training recurrent neural networks, section 3.2"
GLOROT = (
    "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, section 4.2"
)
HE = "He et al. 2015, Delving deep into rectifiers, section 2.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemedyRow:
    """One row of the catalogue: a remedy, with one choice of its parameters."""

    id: str
    variant: str = ""
    """Distinguishes the rows of one remedy."""
    chances: Mapping[str, float]
    """Chance, by cause, that the remedy repairs what the cause broke, judged from publications.

    Our own trials correct it (`repair_counts`).
    """
    clips: bool = False
    """Whether it makes gradients or updates smaller where they are large. It makes no NaN finite."""
    bounds_gradients: bool = False
    """Whether it bounds the gradient as a whole, which an optimizer that divides by its size hardly notices."""
    changes_update: bool = False
    """Whether it changes the update whatever the gradient's size is."""
    reason: str
    cost: str
    """Cost of the remedy: time, signal, exactness, or work."""
    sources: tuple[str, ...]
    fixed_parameters: Parameters = field(default_factory=dict)
    """Parameters that are the same for every run."""
    choose_parameters: Callable[[RunEvidence], Parameters] | None = None
    """Returns the parameters that depend on the run."""
    is_applicable: Callable[[RunEvidence], bool] = lambda _: True
    """Returns whether the remedy makes sense for a run at all."""
    estimate_fit: Callable[[RunEvidence], float] = lambda _: 1.0
    """Returns the share of its chances that the remedy has in a run, from 0 to 1."""

    @property
    def name(self) -> str:
        """Name of the row: the id and the variant."""
        return f"{self.id} {self.variant}".rstrip()

    def create_remedy(self, run: RunEvidence) -> Remedy:
        """Return the remedy with its parameters for a run."""
        chosen = self.choose_parameters(run) if self.choose_parameters is not None else {}
        return Remedy(id=self.id, parameters={**self.fixed_parameters, **chosen})
