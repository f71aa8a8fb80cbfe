"""Candidates of a rerun: which remedies it races, and with which parameters its trainable runs.

Everything that reaches a worker is checked here against what the worker's operator declared. A value that is not of the
declared type and range is refused. A remedy is carried out by a parameter of the trainable where it has one, otherwise
by the SDK inside the script.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gradmedic.protocol.remedies import REMEDIES, SET_PARAMETER, Remedy, remedy_errors
from gradmedic.protocol.service import FieldError
from gradmedic.protocol.trainables import TrainableParameter, Value, value_error
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.reruns.errors import NotRerunnable

COMBINATIONS = (
    ("standardize_inputs", "standardize_targets"),
    ("clip_grad_norm", "scale_learning_rate"),
    ("switch_optimizer", "clip_grad_norm"),
    ("replace_recurrent_cell", "clip_grad_norm"),
    ("reinitialize", "scale_learning_rate"),
    ("reinitialize", "clip_grad_norm"),
    ("insert_normalization", "scale_learning_rate"),
    ("clip_update", "beta2"),
    ("qk_norm", "scale_learning_rate"),
    ("forget_gate_bias", "clip_grad_norm"),
    ("float32_master_weights", "optimizer_epsilon"),
    ("initialize_embeddings", "scale_learning_rate"),
    ("zero_residual_branches", "scale_learning_rate"),
    ("unit_variance_initialization", "scale_learning_rate"),
)
"""Pairs of remedies of the advice that are also tried together: often both are enough where one alone is not."""
NEW_WEIGHTS = frozenset({"reinitialize", "unit_variance_initialization", "initialize_embeddings"})
"""Remedies that replace the initial weights."""
LEAST_FACTOR_OF_NEW_WEIGHTS = 0.01
"""Smallest factor of the learning rate beside them: the advice has measured its factor with the weights that they
replace, whose updates may have been huge because the signals were."""
MAX_COMBINATIONS = 6
"""Number of combinations that are tried beside the single remedies."""
GENERAL = (
    Remedy(id="scale_learning_rate", parameters={"factor": 0.1}),
    Remedy(id="insert_normalization", parameters={"kind": "LayerNorm"}),
    Remedy(id="unit_variance_initialization"),
    Remedy(id="add_residual"),
    Remedy(id="zero_residual_branches"),
    Remedy(id="reinitialize", parameters={"scheme": "kaiming_normal"}),
    Remedy(id="switch_optimizer", parameters={"optimizer": "AdamW", "learning_rate": 0.001}),
)
"""Remedies that race where the advice names few, or has verified nothing. They need no known cause: rate, scale of the
signals, initial weights, depth, and the size of each update are what training fails by most often."""
LEAST_CANDIDATES = 8
"""Number of candidates up to which those of the advice are completed."""
INITIALIZATIONS = {"SELU": "lecun_normal", "Tanh": "xavier_uniform"}
"""Initialization of the activations that need another than He's: Klambauer et al. 2017 for SELU, Glorot and Bengio 2010
for tanh."""


def candidates_of_advice(
    advice: Sequence[tuple[str, Mapping[str, Any]]], parameters: Sequence[TrainableParameter]
) -> list[list[Remedy]]:
    """Return the candidates for a run that fails, the most promising first: single remedies and combinations.

    A combination stands behind the later of its two remedies: it is more promising than the advice after it. Where the
    advice gives few candidates, or none, general remedies complete them.

    Args:
        advice: id and parameters of each remedy of the run's advice.
        parameters: the parameters of the trainable, which limit what can be tried.
    """
    remedies = [Remedy(id=id, parameters=dict(values)) for id, values in advice]
    possible = [
        remedy
        for remedy in remedies
        if (not REMEDIES[remedy.id].needs_script or _is_set_by_parameters(remedy, parameters))
        and not list(_errors_for_trainable("", remedy, parameters))
    ]
    candidates: list[list[Remedy]] = []
    first_by_id: dict[str, Remedy] = {}
    combinations_left = MAX_COMBINATIONS
    for remedy in possible:
        candidates.append([remedy])
        combined: list[list[Remedy]] = []
        # Weights that were drawn for another activation often learn no better. It is also tried with its own ones.
        if remedy.id == "replace_activation" and not _is_set_by_parameters(remedy, parameters):
            combined.append([remedy, _initialization_for(remedy)])
        if remedy.id not in first_by_id:
            first_by_id[remedy.id] = remedy
            combined += [
                _combine(first_by_id[first_id], first_by_id[second_id])
                for first_id, second_id in COMBINATIONS
                if remedy.id in (first_id, second_id) and first_id in first_by_id and second_id in first_by_id
            ]
        candidates += combined[:combinations_left]
        combinations_left -= len(combined[:combinations_left])
    general = [[remedy] for remedy in GENERAL if remedy.id not in first_by_id and is_possible([remedy], parameters)]
    return candidates + general[: max(0, LEAST_CANDIDATES - len(candidates))]


def _combine(first: Remedy, second: Remedy) -> list[Remedy]:
    """Return two remedies as one candidate; beside new weights, the learning rate is not scaled by a tiny factor."""
    if first.id in NEW_WEIGHTS and second.id == "scale_learning_rate":
        factor = max(float(second.parameters["factor"]), LEAST_FACTOR_OF_NEW_WEIGHTS)
        second = Remedy(id=second.id, parameters={**second.parameters, "factor": factor})
    return [first, second]


def is_possible(remedies: Sequence[Remedy], parameters: Sequence[TrainableParameter]) -> bool:
    """Whether a trainable with these parameters can be rerun with all of these remedies together."""
    return not any(remedy_errors("", remedies)) and not any(
        error for remedy in remedies for error in _errors_for_trainable("", remedy, parameters)
    )


def check_candidates(candidates: Sequence[Sequence[Remedy]], parameters: Sequence[TrainableParameter]) -> None:
    """Raise InvalidRequest with an error for each remedy that the trainable cannot be rerun with."""
    errors: list[FieldError] = []
    if not candidates:
        errors.append(FieldError(path="remedies", message="is empty; leave it out to race the run's advice"))
    for index, remedies in enumerate(candidates):
        path = f"remedies[{index}]"
        if not remedies:
            errors.append(FieldError(path=path, message="is empty: the control is always run"))
        if list(remedies) in [list(other) for other in candidates[:index]]:
            errors.append(FieldError(path=path, message="repeats another candidate"))
        errors += remedy_errors(path, remedies)
        for position, remedy in enumerate(remedies):
            errors += _errors_for_trainable(f"{path}[{position}]", remedy, parameters)
    if errors:
        raise InvalidRequest(errors)


def parameters_of_control(config: Mapping[str, Any], parameters: Sequence[TrainableParameter]) -> dict[str, Value]:
    """Return the trainable's parameters as the suspect run had them.

    Raises NotRerunnable where the run's config lacks a parameter, or has a value that the operator does not allow.
    """
    values: dict[str, Value] = {}
    for parameter in parameters:
        value = _config_value(config, parameter.name)
        if value is None:
            value = parameter.default
        message = value_error(parameter, value)
        if message is not None:
            raise NotRerunnable(f"The run's config does not fit the trainable: {parameter.name} {message}.")
        values[parameter.name] = value
    return values


def parameters_of_candidate(
    control: Mapping[str, Value], remedies: Sequence[Remedy], parameters: Sequence[TrainableParameter]
) -> dict[str, Value]:
    """Return the trainable's parameters for a candidate: the control's, with the changes of its remedies."""
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


def remedies_for_sdk(remedies: Iterable[Remedy], parameters: Sequence[TrainableParameter]) -> list[Remedy]:
    """Return the remedies that the SDK applies inside the script: those that no parameter carries out."""
    return [
        remedy for remedy in remedies if remedy.id != SET_PARAMETER and not _is_set_by_parameters(remedy, parameters)
    ]


def _is_set_by_parameters(remedy: Remedy, parameters: Sequence[TrainableParameter]) -> bool:
    """Whether the trainable has a parameter for the remedy, or for each of the remedy's parameters."""
    offered = {parameter.remedy for parameter in parameters if parameter.remedy is not None}
    needed = {f"{remedy.id}.{name}" for name in remedy.parameters} or {remedy.id}
    return needed <= offered


def _initialization_for(activation: Remedy) -> Remedy:
    scheme = INITIALIZATIONS.get(str(activation.parameters["activation"]), "kaiming_normal")
    return Remedy(id="reinitialize", parameters={"scheme": scheme})


def _errors_for_trainable(path: str, remedy: Remedy, parameters: Sequence[TrainableParameter]) -> Iterator[FieldError]:
    """Yield an error for each part of a remedy that a trainable with these parameters cannot carry out."""
    if remedy.id == SET_PARAMETER:
        yield from _set_parameter_errors(path, remedy, parameters)
        return
    kind = REMEDIES.get(remedy.id)
    if kind is None:
        return
    if kind.needs_script and not _is_set_by_parameters(remedy, parameters):
        yield FieldError(
            path=f"{path}.id",
            message=f"only the script can carry out {remedy.id!r}, and the trainable has no parameter for it",
        )
    for parameter in parameters:
        remedy_id, _, name = (parameter.remedy or "").partition(".")
        if remedy_id == remedy.id and name in remedy.parameters:
            message = value_error(parameter, remedy.parameters[name])
            if message is not None:
                yield FieldError(path=f"{path}.parameters.{name}", message=message)


def _set_parameter_errors(path: str, remedy: Remedy, parameters: Sequence[TrainableParameter]) -> Iterator[FieldError]:
    by_name = {parameter.name: parameter for parameter in parameters}
    if not remedy.parameters:
        yield FieldError(path=f"{path}.parameters", message="is empty: name at least one parameter")
    for name, value in remedy.parameters.items():
        if name not in by_name:
            offered = ", ".join(by_name) or "none"
            yield FieldError(
                path=f"{path}.parameters.{name}", message=f"the trainable has no such parameter; it has {offered}"
            )
        elif (message := value_error(by_name[name], value)) is not None:
            yield FieldError(path=f"{path}.parameters.{name}", message=message)


def _config_value(config: Mapping[str, Any], name: str) -> Any:
    """Return the value of a config under a name; dots lead into nested mappings. None if there is none."""
    if name in config:
        return config[name]
    value: Any = config
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value
