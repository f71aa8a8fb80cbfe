"""The origin of a run's first non-finite number: the operation, its source line and its input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from gradmedic.protocol.schema import SCHEMA, Number, OneOf, StrictBool, StrictInt, Text

ORIGIN_PASSES = ("forward", "backward")
ORIGIN_KINDS = ("data", "numeric", "not_deterministic")
ORIGIN_REPRODUCED = ("0 of 1", "1 of 1", "1 of 2", "2 of 2")
ORIGIN_UNITS = ("element", "row", "label", "example")
LONGEST_TEXT = 2_000
"""Characters of a sentence, a path or a line of code that the service accepts."""
MOST_BATCH_TENSORS = 8
"""Tensors of a batch that are described."""
MOST_EXAMPLES = 16
"""Examples of a batch that are listed."""
SPECIAL_INPUTS = (
    "zero", "negative", "out_of_range", "at_boundary", "overflow", "masked_row", "empty", "single_element",
    "ignored_labels", "impossible_alignment", "nonfinite", "unused_branch",
)  # fmt: skip
"""What may be special about the input of an operation without a finite result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLine:
    """A line of the training's source code."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    file: Text
    """File, relative to the working directory of the training if it lies below it."""
    line: StrictInt
    """Number of the line, from 1."""
    text: Text | None = None
    """The code of the line, at most 200 characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginInput:
    """Facts about the input of an operation without a finite result. Every field is optional."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    shape: list[StrictInt] | None = None
    """Shape of the input."""
    dtype: Text | None = None
    """Dtype of the input, for example `float16`."""
    special: Annotated[Text, OneOf(*SPECIAL_INPUTS)] | None = None
    """Property of the input that explains the result. Null if none was found."""
    count: StrictInt | None = None
    """Number of elements or rows that are special."""
    total: StrictInt | None = None
    """Number of all elements or rows."""
    unit: Annotated[Text, OneOf(*ORIGIN_UNITS)] | None = None
    """Unit of `count` and `total`."""
    value: Number | None = None
    """Value that stands out, for example the largest one of an overflow."""
    text: Text | None = None
    """Description of the input, for example `the input was 0 in 3 of 512 elements`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTensor:
    """A tensor that the script gave to the step: an input or a target. Every field is optional."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    shape: list[StrictInt] | None = None
    """Shape of the tensor."""
    dtype: Text | None = None
    """Dtype of the tensor, for example `float32`."""
    digest: Text | None = None
    """First 16 hexadecimal digits of the SHA-256 of its elements' bytes. Null for more than 256 MiB."""
    nonfinite_count: StrictInt | None = None
    """Number of elements that are NaN or infinite."""
    min: Number | None = None
    """Smallest finite element. Null if there is none."""
    max: Number | None = None
    """Largest finite element. Null if there is none."""
    examples: list[StrictInt] = field(default_factory=list)
    """Positions in the first dimension, from 0, that have NaN or infinite elements: at most 16, the first ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Origin of the first non-finite number, or the reason why it was not found."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    operation: Text | None = None
    """Name of the operation as users call it, for example `sqrt`. Null if it was not found."""
    direction: Annotated[Text, OneOf(*ORIGIN_PASSES)] | None = None
    """Pass in which the number arose: `backward` means the gradient of the operation."""
    module: Text | None = None
    """Path of the module that called the operation. Empty for the model itself, null outside of it."""
    source: SourceLine | None = None
    """The line that called the operation."""
    step: StrictInt | None = None
    """Step at which the number arose."""
    input: OriginInput | None = None
    """Facts about the input of the operation."""
    value: Number | None = None
    """The first non-finite value: NaN, Infinity or -Infinity."""
    kind: Annotated[Text, OneOf(*ORIGIN_KINDS)] | None = None
    """`data` if the batch itself is not finite, or fails with other weights too. `numeric` if the operation has no
    finite result. `not_deterministic` if a second trial with the same losses stayed finite."""
    reproduced: Annotated[Text, OneOf(*ORIGIN_REPRODUCED)] | None = None
    """Number of repetitions that became non-finite in the same place, of all: `1 of 1`. A training repeats its step,
    and a rerun of the kind `locate` the whole training."""
    is_loss_finite: StrictBool | None = None
    """True if the loss of the step was finite, so that the backward pass failed. Null if it is not known."""
    is_eager: StrictBool | None = None
    """True if the model is compiled, and was repeated without the compiler."""
    operations: list[Text] = field(default_factory=list)
    """Operations of the loss, from the loss backwards, if only its autograd graph is known."""
    batch_tensors: list[BatchTensor] = field(default_factory=list)
    """The batch of the step: at most 8 inputs and targets, in the order in which the step used them."""
    reason: Text | None = None
    """Reason why no operation was found. Null if one was found."""
    text: Text | None = None
    """The origin as one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginFix:
    """Change of the script for an operation that has no finite result."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    page: str
    """Name of the documentation page about this kind of operation. The service shows it at `/operations/{page}`."""
    advice: str
    """The change in one or two sentences."""
    snippet: str
    """Code to paste and adapt, in the run's framework. In it, `x` is the input of the operation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosedOrigin(Origin):
    """Origin of the first non-finite number in a diagnosis: the recorded facts, and a change of the script."""

    fix: OriginFix | None = None
    """Change of the script. Null if the operation was not found, or no change is known for it."""
