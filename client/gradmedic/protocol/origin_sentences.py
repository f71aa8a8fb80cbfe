"""The sentence that tells a person where a non-finite number arose, and how a training finds it."""

from __future__ import annotations

import math
from typing import NamedTuple

from gradmedic.protocol.origins import Origin


class Search(NamedTuple):
    """How a training finds the origin of a non-finite number."""

    text: str
    """A sentence that leads to the code."""
    code: str
    """A line of code for the script."""


_SEARCHES = {
    "torch": Search(
        "Run the script again with this argument. The SDK then repeats the step that fails, and names the operation, "
        "its line and its input:",
        'run = gradmedic.init(on_nonfinite="locate")',
    ),
    "jax": Search(
        "Run the script again with this line. JAX then stops at the first operation that makes a NaN:",
        'jax.config.update("jax_debug_nans", True)',
    ),
    "tensorflow": Search(
        "Run the script again with this line. TensorFlow then stops at the first operation that makes a NaN or an "
        'infinity. With Keras on JAX, use `jax.config.update("jax_debug_nans", True)`:',
        "tf.debugging.enable_check_numerics()",
    ),
}
_FRAMEWORKS = {"jax": "jax", "flax": "jax", "tensorflow": "tensorflow", "keras": "tensorflow"}


def explain_search(framework: str | None) -> Search:
    """Return how a training with a framework (`"torch 2.13.0"`) finds the origin; the way of torch where it is unknown.

    >>> explain_search("jax 0.10").code
    'jax.config.update("jax_debug_nans", True)'
    """
    return _SEARCHES[_FRAMEWORKS.get((framework or "").split(" ")[0].lower(), "torch")]


def describe_origin(origin: Origin) -> str:
    """Return one line about an origin.

    >>> describe_origin(Origin(operation="log", direction="forward", step=3, value=float("-inf"), is_loss_finite=False))
    'Infinity is born at step 3 in `log`; the loss was not finite.'
    """
    step = "" if origin.step is None else f" at step {origin.step}"
    if origin.operation is None:
        chain = f" The loss was computed by {', '.join(origin.operations[:8])}." if origin.operations else ""
        reason = "" if origin.reason is None else f": {origin.reason}"
        return f"A gradient or the loss is not finite{step}, and its origin was not found{reason}.{chain}"
    value = "NaN" if origin.value is None or math.isnan(origin.value) else "Infinity"
    operation = f"`{origin.operation}`"
    if origin.direction == "backward":
        operation = f"the backward of {operation}"
    places = []
    if origin.source is not None:
        places.append(f"{origin.source.file}:{origin.source.line}")
    if origin.module is not None:
        places.append(f"module `{origin.module}`" if origin.module else "the model")
    where = f" ({', '.join(places)})" if places else ""
    facts = []
    if origin.input is not None and origin.input.text:
        facts.append(origin.input.text)
    if origin.is_loss_finite is not None:
        facts.append("the loss was finite" if origin.is_loss_finite else "the loss was not finite")
    if origin.is_eager:
        facts.append("the compiled model was repeated without the compiler")
    reached = "is in the data" if origin.kind == "data" else "is born"
    details = (
        f": {'; '.join(facts)}" if origin.input is not None and origin.input.text else "".join(f"; {f}" for f in facts)
    )
    return f"{value} {reached}{step} {'and reaches' if origin.kind == 'data' else 'in'} {operation}{where}{details}."
