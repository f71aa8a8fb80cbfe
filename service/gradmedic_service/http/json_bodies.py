"""JSON bodies: decoded and validated on a thread, within bounds of memory and of errors.

FastAPI would decode a body and validate it on the event loop, and pydantic would collect an error for each of a million
wrong values. Here the values of a body are counted on its bytes before the first of them is built. Each list of a body
is validated item by item, until enough errors are found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from fastapi import Depends, params
from fastapi.dependencies.models import Dependant
from pydantic import TypeAdapter
from pydantic_core import SchemaValidator, ValidationError

from gradmedic.protocol.service import FieldError, Limits
from gradmedic_service.http.bodies import JSON_TURN, VALUE_MARKS, SentBody, decompressed, has_more, read_body
from gradmedic_service.http.dependencies import LimitsDependency, require_json
from gradmedic_service.http.errors import InvalidRequest, MalformedBody
from gradmedic_service.http.validation import errors_of, stopping_validator

T = TypeVar("T")

CountCheck = Callable[[int, Limits], str | None]
"""Returns why a list must not have so many items, None if it may."""

MAX_BYTES = 2**21
"""Size of a body that has no large field. Trial output of 64 KiB takes less, even if each character is escaped."""
MAX_VALUES = 2**17
"""Values and names in a body. Trial output of 64 KiB passes although each of its characters may look like a value."""
MAX_NAMES = 2**16
"""Names in one object: pydantic reports every one that is unknown. A config of 256 KiB has fewer."""


def json_body(
    type_: type[Any],
    examples: Mapping[str, Any],
    *,
    max_bytes: int = MAX_BYTES,
    max_values: Callable[[Limits], int] = lambda _limits: MAX_VALUES,
    counts: Mapping[str, CountCheck] | None = None,
    check: Callable[[Any, Limits], None] = lambda _body, _limits: None,
) -> params.Depends:
    """Return the dependency of an endpoint that takes a JSON body. OpenAPI describes the body.

    Args:
        type_: class of `gradmedic.protocol` of which the endpoint gets an instance.
        examples: the examples in OpenAPI, by name.
        max_bytes: largest size, where it is below `max_body_bytes` of the limits.
        max_values: returns the largest number of values and names in the body.
        counts: checks of the lengths of lists, by field. They run before the items are validated.
        check: raises InvalidRequest for a field that the schema allows. Afterwards the body is short.
    """
    depends: params.Depends = Depends(JsonBody(type_, examples, max_bytes, max_values, counts or {}, check).read)
    return depends


def json_body_of(dependant: Dependant) -> JsonBody[Any] | None:
    """Return the JSON body of a route, None if it takes none."""
    readers = (getattr(dependency.call, "__self__", None) for dependency in dependant.dependencies)
    return next((reader for reader in readers if isinstance(reader, JsonBody)), None)


class JsonBody(Generic[T]):
    """The JSON body of a route, see `json_body`."""

    def __init__(
        self,
        type_: type[T],
        examples: Mapping[str, Any],
        max_bytes: int,
        max_values: Callable[[Limits], int],
        counts: Mapping[str, CountCheck],
        check: Callable[[T, Limits], None],
    ) -> None:
        self.type = type_
        self.examples = dict(examples)
        self._max_bytes = max_bytes
        self._max_values = max_values
        self._counts = counts
        self._check = check

    @cached_property
    def _validator(self) -> SchemaValidator:
        """The validator of the body. It is built for the first body: the service starts sooner."""
        return stopping_validator(TypeAdapter(self.type))

    @cached_property
    def _item_validators(self) -> dict[str, SchemaValidator]:
        """The validators of the items of each list, by field."""
        return dict(_item_validators(self.type))

    def read(
        self,
        _is_json: Annotated[None, Depends(require_json)],
        body: Annotated[SentBody, Depends(read_body)],
        limits: LimitsDependency,
    ) -> T:
        """Decode the body of a request. Raises UnsupportedMediaType, MalformedBody, BodyTooLarge, InvalidRequest."""
        with decompressed(body, min(limits.max_body_bytes, self._max_bytes), JSON_TURN) as content:
            return self.decode(content, limits)

    def decode(self, body: bytes, limits: Limits) -> T:
        """Decode and validate bytes. Raises MalformedBody, InvalidRequest."""
        content = _decode(body, self._max_values(limits))
        if not isinstance(content, dict):
            raise InvalidRequest.at("body", "must be an object")
        lists = {name: content[name] for name in self._item_validators if isinstance(content.get(name), list)}
        for name, check in self._counts.items():
            if name in lists and (message := check(len(lists[name]), limits)) is not None:
                raise InvalidRequest.at(name, message)
        validated: dict[str, list[Any]] = {name: [] for name in lists}
        instance: Any = None  # stays None only if there are errors
        errors: list[FieldError] = []
        try:
            instance = self._validator.validate_python(content | validated)
        except ValidationError as error:
            errors = errors_of(error)
        items = (self._validate_items(name, lists[name], validated[name]) for name in lists)
        InvalidRequest.raise_if_any(chain(errors, *items))
        complete: T = replace(instance, **validated)
        self._check(complete, limits)
        return complete

    def _validate_items(self, name: str, items: list[Any], validated: list[Any]) -> Iterator[FieldError]:
        """Append the items of a list to `validated`; yield the errors of those that are invalid."""
        validate = self._item_validators[name].validate_python
        for index, item in enumerate(items):
            try:
                validated.append(validate(item))
            except ValidationError as error:
                yield from errors_of(error, (name, index))


def _decode(body: bytes, max_values: int) -> Any:
    """Return JSON as Python's values. Raises MalformedBody, InvalidRequest."""
    if not body:
        raise InvalidRequest.at("body", "is required")
    if has_more(body, VALUE_MARKS, max_values):
        raise InvalidRequest.at("body", f"has more than {max_values} values")
    try:
        return json.loads(body, object_pairs_hook=_to_object)
    except json.JSONDecodeError as error:
        raise MalformedBody(f"The body is not JSON: {error.msg} at character {error.pos}.") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, too many digits, too deep
        raise MalformedBody(f"The body is not JSON: {error}.") from None


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_NAMES:
        raise InvalidRequest.at("body", f"has an object with more than {MAX_NAMES} names")
    return dict(pairs)


def _item_validators(type_: type[Any]) -> Iterator[tuple[str, SchemaValidator]]:
    """Yield the name of each field that is a list, or may be one, and the validator of its items."""
    for name, hint in get_type_hints(type_, include_extras=True).items():
        for choice in (hint, *get_args(hint)):
            if get_origin(choice) is list:
                yield name, stopping_validator(TypeAdapter(get_args(choice)[0]))
                break
