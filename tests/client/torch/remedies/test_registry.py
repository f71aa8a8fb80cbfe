"""The classes of remedies agree with the catalogue."""

from __future__ import annotations

from gradmedic.protocol.remedies import REMEDIES
from gradmedic.protocol.remedy_kind import Target
from gradmedic.torch.remedies.module_remedy import CallRemedy, EdgeRemedy, ModuleRemedy, WeightRemedy
from gradmedic.torch.remedies.modules.function_remedy import FunctionRemedy
from gradmedic.torch.remedies.registry import REMEDY_CLASSES
from gradmedic.torch.remedies.step_remedy import StepRemedy


def test_each_remedy_of_optimizers_and_modules_has_a_class() -> None:
    """Every remedy has a class, except those that only the script can carry out."""
    assert REMEDY_CLASSES.keys() == {id for id, row in REMEDIES.items() if row.targets != {Target.SCRIPT}}


def test_each_class_acts_on_what_the_catalogue_names() -> None:
    """A class has the base of the part of the training that its remedy changes."""
    bases: dict[Target, type] = {
        Target.PARAMETERS: WeightRemedy,
        Target.BACKWARD: WeightRemedy,
        Target.SIGNALS: CallRemedy,
        Target.INPUTS_AND_TARGETS: EdgeRemedy,
        Target.FUNCTIONS: FunctionRemedy,
        Target.LOSS: ModuleRemedy,
    }
    for id, remedy_class in REMEDY_CLASSES.items():
        row = REMEDIES[id]
        assert issubclass(remedy_class, StepRemedy) is row.works_on_any_optimizer, id
        assert issubclass(remedy_class, ModuleRemedy) is not row.works_on_any_optimizer, id
        for target, base in bases.items():
            assert issubclass(remedy_class, base) or target not in row.targets, id
