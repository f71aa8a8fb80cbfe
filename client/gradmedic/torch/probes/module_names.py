"""Names the modules of the watched models as the run names their layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from gradmedic.torch.structure import OwnedParameter, unwrap_model


def name_modules(models: Sequence[nn.Module], owned: Sequence[OwnedParameter]) -> dict[str, nn.Module]:
    """Return the modules of the models by name, in the order of registration, each once.

    A module has the name of its layers without the names of the parameters. The whole model is left out.
    """
    layer_names = {id(entry.parameter): entry.name for entry in owned}
    named: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for wrapped in models:
        model, _ = unwrap_model(wrapped)
        prefix = ""
        for name, parameter in model.named_parameters():
            layer = layer_names.get(id(parameter), "")
            if layer.endswith(plain := _remove_wrappers(name)):
                prefix = layer.removesuffix(plain)
                break
        for name, module in model.named_modules():
            if name and id(module) not in seen and not name.endswith("_orig_mod"):
                seen.add(id(module))
                named.setdefault(prefix + _remove_wrappers(name), module)
    return named


def _remove_wrappers(name: str) -> str:
    return name.replace("_orig_mod.", "")
