"""Finds the order in which the first forward passes of models use the parameters.

Sequence numbers of the autograd graph give the order. Parameters that are not in the graph, since they are frozen or
used inside of a checkpoint, are placed by the call of their module. One that is not used at all takes the place behind
its predecessor in the order of registration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import nn

from gradmedic.torch.first_forward import FirstForward
from gradmedic.torch.parameter_use import Execution, ParameterUse
from gradmedic.torch.structure import OwnedParameter

_Place = tuple[int, int, float]
"""Position of the model, sequence number, and position of the module's call."""
_LARGEST_UNORDERED_SHARE = 0.5
"""Share of the parameters whose place only the order of registration decides, beyond which the order is not known: a
compiled model uses all parameters in one operation."""


def read_execution(
    models: Sequence[nn.Module], passes: Sequence[FirstForward], owned: Sequence[OwnedParameter]
) -> Execution:
    """Return what the first forward passes of some models showed.

    Args:
        models: the models.
        passes: first forward pass of each model.
        owned: parameters of the models, in the order of registration.
    """
    own = [{id(parameter) for parameter in model.parameters()} for model in models]
    uses: dict[int, ParameterUse] = {}
    places: dict[int, _Place] = {}
    calls: Counter[int] = Counter()
    order = _order_models(own, passes)
    for rank, model in enumerate(order):
        forward, parameters = passes[model], own[model]
        first_calls = forward.calls.list_first_calls()
        calls.update(forward.calls.count_calls())
        uses = {**forward.uses, **uses}
        uses.update((identity, use) for identity, use in forward.uses.items() if identity in parameters)
        for entry in owned:
            identity = id(entry.parameter)
            if identity not in parameters or identity in places:
                continue
            call, use = first_calls.get(id(entry.module)), forward.uses.get(identity)
            if use is not None:
                places[identity] = (rank, use.first_use, float("inf") if call is None else call[1])
            elif call is not None:
                places[identity] = (rank, *call)
        uses.update(_complete_from_twins(models[model], forward))
        for inner in forward.recomputed:  # what joins the output of a module with its input may lie behind it, unseen
            uses.update((parameter, replace(use, branch=use.branch or None)) for parameter, use in inner.uses.items())
    ranks = {identity: rank for rank, model in enumerate(order) for identity in own[model]}
    return Execution(uses=uses, depths=_number(places, owned, ranks), calls=calls)


def _complete_from_twins(model: nn.Module, forward: FirstForward) -> dict[int, ParameterUse]:
    """Return the uses on branches whose identity path has no gradient, as in the block that the input enters.

    Such a branch ends in a sum with something that has no gradient, which may be anything. It counts as a branch if it
    is one in the next block, which has the same class and the same parameters.
    """
    uses = {}
    for chain in model.modules():
        if not isinstance(chain, (nn.ModuleList, nn.Sequential)):
            continue
        for block, twin in pairwise(chain):
            if type(block) is not type(twin) or id(block) not in forward.constant_sums:
                continue
            twins = dict(twin.named_parameters())
            for name, parameter in block.named_parameters():
                use, twin_use = forward.uses.get(id(parameter)), forward.uses.get(id(twins.get(name)))
                if use is not None and twin_use is not None and twin_use.branch and twin_use.block == id(twin):
                    uses[id(parameter)] = replace(use, branch=True, block=id(block))
    return uses


def _order_models(own: Sequence[set[int]], passes: Sequence[FirstForward]) -> list[int]:
    """Return the positions of the models, so that a model whose output another one uses comes before it."""
    waiting, ordered = list(range(len(passes))), list[int]()
    while waiting:
        ready = (
            model
            for model in waiting
            if not any(own[other] & passes[model].uses.keys() for other in waiting if other != model)
        )
        chosen = next(ready, waiting[0])
        waiting.remove(chosen)
        ordered.append(chosen)
    return ordered


def _number(places: dict[int, _Place], owned: Sequence[OwnedParameter], ranks: Mapping[int, int]) -> dict[int, int]:
    """Return the depth of each parameter; nothing if too many have the same place.

    Args:
        places: place of each parameter that is used, by its id.
        owned: all parameters.
        ranks: position of each parameter's model, by the parameter's id.
    """
    modules_of: dict[_Place, set[int]] = {}
    for entry in owned:
        if (place := places.get(id(entry.parameter))) is not None:
            modules_of.setdefault(place, set()).add(id(entry.module))
    unordered = sum(len(modules_of[place]) > 1 for place in places.values())
    if not places or unordered > _LARGEST_UNORDERED_SHARE * len(places):
        return {}
    latest: _Place = (-1, -1, -1.0)
    keys = []
    for position, entry in enumerate(owned):
        rank = ranks.get(id(entry.parameter), latest[0])
        latest = places.get(id(entry.parameter), latest if rank == latest[0] else (rank, -1, -1.0))
        keys.append((latest, position))
    return {id(owned[position].parameter): depth for depth, (_, position) in enumerate(sorted(keys))}
