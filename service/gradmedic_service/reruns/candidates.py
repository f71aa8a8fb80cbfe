"""Which candidates a rerun races, and with which parameters its trainable runs.

One idea: everything that reaches a worker is decided here from what the operator declared: a value that is not of the
declared type and range is refused, and what no trainable has a parameter for, only the optimizer can be asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gradmedic.protocol.remedies import REMEDIES, SET_PARAMETER, Remedy, remedy_errors
from gradmedic.protocol.service import FieldError
from gradmedic.protocol.trainables import (
    LONGEST_TIMEOUT,
    PARAMETER_TYPES,
    Trainable,
    TrainableParameter,
    Value,
    value_error,
)
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.reruns.errors import NotRerunnable

COMPOUNDS = (
    ("standardize_inputs", "standardize_targets"),
    ("clip_grad_norm", "scale_learning_rate"),
    ("switch_optimizer", "clip_grad_norm"),
    ("replace_recurrent_cell", "clip_grad_norm"),
    ("reinitialize", "scale_learning_rate"),
    ("reinitialize", "clip_grad_norm"),
    ("insert_normalization", "scale_learning_rate"),
)
"""Remedies of the advice that are also tried together: where one alone is not enough, these often are."""
INITIALIZATIONS = {"SELU": "lecun_normal", "Tanh": "xavier_uniform"}
"""Of the activations that need another than He's; Klambauer et al. 2017 for SELU, Glorot and Bengio 2010 for tanh."""
MAX_COMPOUNDS = 6
"""So many combinations beside the single remedies."""


def candidates_of_advice(
    advice: Sequence[tuple[str, Mapping[str, Any]]], parameters: Sequence[TrainableParameter]
) -> list[list[Remedy]]:
    """Return what of a run's advice can be tried, the most promising first, with some of it combined.

    A combination stands behind the later of its parts: where two remedies are promising, both together are more so than
    what comes after them.
    """
    remedies = [Remedy(id=id, parameters=dict(values)) for id, values in advice]
    possible = [
        remedy
        for remedy in remedies
        if (REMEDIES[remedy.id].tier <= 2 or _is_carried_out(remedy, parameters))
        and not list(_placing_errors("", remedy, parameters))
    ]
    candidates: list[list[Remedy]] = []
    first: dict[str, Remedy] = {}
    left = MAX_COMPOUNDS
    for remedy in possible:
        candidates.append([remedy])
        combined: list[list[Remedy]] = []
        # In weights that were drawn for another activation, one often learns no better: it is tried with its own, too.
        if remedy.id == "replace_activation" and not _is_carried_out(remedy, parameters):
            combined.append([remedy, _initialization_of(remedy)])
        if remedy.id not in first:
            first[remedy.id] = remedy
            combined += [
                [first[one], first[other]]
                for one, other in COMPOUNDS
                if remedy.id in (one, other) and one in first and other in first
            ]
        candidates += combined[:left]
        left -= len(combined[:left])
    return candidates


def check_candidates(candidates: Sequence[Sequence[Remedy]], parameters: Sequence[TrainableParameter]) -> None:
    """Raise InvalidRequest naming every remedy that cannot be asked for."""
    errors: list[FieldError] = []
    if not candidates:
        errors.append(FieldError(path="remedies", message="names none; leave it out to race the advice"))
    for index, remedies in enumerate(candidates):
        path = f"remedies[{index}]"
        if not remedies:
            errors.append(FieldError(path=path, message="is empty: the control is always run"))
        if list(remedies) in [list(other) for other in candidates[:index]]:
            errors.append(FieldError(path=path, message="repeats another candidate"))
        errors += remedy_errors(path, remedies)
        for position, remedy in enumerate(remedies):
            errors += _placing_errors(f"{path}[{position}]", remedy, parameters)
    if errors:
        raise InvalidRequest(errors)


def control_parameters(config: Mapping[str, Any], parameters: Sequence[TrainableParameter]) -> dict[str, Value]:
    """Return the trainable's parameters as the suspect run had them.

    Raises NotRerunnable where its config lacks one, or has one that the operator does not allow.
    """
    values: dict[str, Value] = {}
    for parameter in parameters:
        value = _looked_up(config, parameter.name)
        if value is None:
            value = parameter.default
        message = value_error(parameter, value)
        if message is not None:
            raise NotRerunnable(f"The run's config does not fit the trainable: {parameter.name} {message}.")
        values[parameter.name] = value
    return values


def with_remedies(
    control: Mapping[str, Value], remedies: Sequence[Remedy], parameters: Sequence[TrainableParameter]
) -> dict[str, Value]:
    """Return the trainable's parameters for a candidate: those of the control, but what its remedies set."""
    values = dict(control)
    for remedy in remedies:
        if remedy.id == SET_PARAMETER:
            values.update(remedy.parameters)
        for parameter in parameters:
            if parameter.remedy == remedy.id:
                values[parameter.name] = True
            elif parameter.remedy is not None and parameter.remedy.partition(".")[0] == remedy.id:
                values[parameter.name] = remedy.parameters[parameter.remedy.partition(".")[2]]
    return values


def of_the_optimizer(remedies: Iterable[Remedy], parameters: Sequence[TrainableParameter]) -> list[Remedy]:
    """Return the remedies that are applied inside the script, not by a parameter of it."""
    return [remedy for remedy in remedies if remedy.id != SET_PARAMETER and not _is_carried_out(remedy, parameters)]


def trainable_errors(trainable: Trainable, path: str) -> Iterator[FieldError]:
    """Say what is wrong with what a worker declares."""
    if trainable.gpus < 0:
        yield FieldError(path=f"{path}.gpus", message="must not be negative")
    if not 0 < trainable.timeout <= LONGEST_TIMEOUT:
        yield FieldError(path=f"{path}.timeout", message=f"must be above 0 and at most {LONGEST_TIMEOUT:g} seconds")
    seen: set[str] = set()
    for index, parameter in enumerate(trainable.parameters):
        at = f"{path}.parameters[{index}]"
        if parameter.name in seen:
            yield FieldError(path=f"{at}.name", message=f"repeats {parameter.name!r}")
        seen.add(parameter.name)
        if parameter.type not in PARAMETER_TYPES:
            yield FieldError(
                path=f"{at}.type", message=f"{parameter.type!r} is not one of {', '.join(PARAMETER_TYPES)}"
            )
            continue
        if parameter.type == "str" and not parameter.choices:
            yield FieldError(path=f"{at}.choices", message="is required: a text must be one of some")
        if parameter.default is not None and (message := value_error(parameter, parameter.default)) is not None:
            yield FieldError(path=f"{at}.default", message=message)
        if parameter.remedy is not None and (message := _remedy_name_error(parameter)) is not None:
            yield FieldError(path=f"{at}.remedy", message=message)


def _remedy_name_error(parameter: TrainableParameter) -> str | None:
    id, _, of = (parameter.remedy or "").partition(".")
    kind = REMEDIES.get(id)
    if kind is None:
        return f"{id!r} is not one of {', '.join(REMEDIES)}"
    if kind.parameters and of not in kind.parameters:
        return f"must name a parameter: one of {', '.join(f'{id}.{one}' for one in kind.parameters)}"
    if kind.parameters:
        return None
    return f"{id} has no parameters" if of else None if parameter.type == "bool" else f"{id} is done or not: a bool"


def _initialization_of(activation: Remedy) -> Remedy:
    scheme = INITIALIZATIONS.get(str(activation.parameters["activation"]), "kaiming_normal")
    return Remedy(id="reinitialize", parameters={"scheme": scheme})


def _is_carried_out(remedy: Remedy, parameters: Sequence[TrainableParameter]) -> bool:
    """Whether the script itself carries out a remedy: it has a parameter for each of the remedy's, or for it alone."""
    offered = {parameter.remedy for parameter in parameters if parameter.remedy is not None}
    needed = {f"{remedy.id}.{name}" for name in remedy.parameters} or {remedy.id}
    return needed <= offered


def _placing_errors(path: str, remedy: Remedy, parameters: Sequence[TrainableParameter]) -> Iterator[FieldError]:
    by_name = {parameter.name: parameter for parameter in parameters}
    if remedy.id == SET_PARAMETER:
        if not remedy.parameters:
            yield FieldError(path=f"{path}.parameters", message="names none")
        for name, value in remedy.parameters.items():
            if name not in by_name:
                offered = ", ".join(by_name) or "none"
                yield FieldError(
                    path=f"{path}.parameters.{name}", message=f"the trainable has no such parameter: {offered}"
                )
            elif (message := value_error(by_name[name], value)) is not None:
                yield FieldError(path=f"{path}.parameters.{name}", message=message)
        return
    kind = REMEDIES.get(remedy.id)
    if kind is None:
        return
    if kind.tier == 3 and not _is_carried_out(remedy, parameters):
        yield FieldError(
            path=f"{path}.id",
            message=f"only the script can carry out {remedy.id!r}, and the trainable has no parameter for it",
        )
    for parameter in parameters:
        id, _, of = (parameter.remedy or "").partition(".")
        if id == remedy.id and of in remedy.parameters:
            message = value_error(parameter, remedy.parameters[of])
            if message is not None:
                yield FieldError(path=f"{path}.parameters.{of}", message=message)


def _looked_up(config: Mapping[str, Any], name: str) -> Any:
    if name in config:
        return config[name]
    found: Any = config
    for part in name.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found
