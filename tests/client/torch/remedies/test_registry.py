"""The classes of remedies agree with the catalogue."""

from __future__ import annotations

from gradmedic.protocol.remedies import REMEDIES, RemedyKind
from gradmedic.torch.remedies.module_remedy import ModuleRemedy
from gradmedic.torch.remedies.registry import REMEDY_CLASSES
from gradmedic.torch.remedies.step_remedy import StepRemedy


def kind_of(row: RemedyKind) -> str:
    """Return what a row of the catalogue says must be changed: optimizer, modules or script."""
    return {1: "optimizer", 2: "modules", 3: "script"}[row.tier]


def test_each_remedy_of_optimizers_and_modules_has_a_class() -> None:
    """A remedy has a class of the catalogue's kind, unless only the script can carry it out; no other id has one."""
    expected = {id: kind_of(row) for id, row in REMEDIES.items() if kind_of(row) != "script"}
    assert {id: remedy_class.kind for id, remedy_class in REMEDY_CLASSES.items()} == expected


def test_each_class_acts_at_steps_or_on_modules() -> None:
    """Remedies of the optimizer act at each of its steps, and remedies of modules act on modules."""
    bases = {"optimizer": StepRemedy, "modules": ModuleRemedy}
    for remedy_class in REMEDY_CLASSES.values():
        assert issubclass(remedy_class, bases[remedy_class.kind])
