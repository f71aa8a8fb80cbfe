"""The class of each remedy, by the remedy's id."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import MappingProxyType, ModuleType

from gradmedic.torch.remedies import gradients, modules, optimizer
from gradmedic.torch.remedies.base import TorchRemedy


def _find_classes(folder: ModuleType) -> Iterator[type[TorchRemedy]]:
    """Iterate over the classes with an id that the modules of a folder define."""
    for module_info in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}."):
        module = importlib.import_module(module_info.name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, TorchRemedy) and "id" in vars(value):
                yield value


REMEDY_CLASSES: Mapping[str, type[TorchRemedy]] = MappingProxyType(
    {remedy.id: remedy for folder in (optimizer, gradients, modules) for remedy in _find_classes(folder)}
)
"""Every remedy that changes an optimizer or modules. Remedies that only the script can carry out are not here."""
