"""The sentence that tells a person where a non-finite number arose."""

from __future__ import annotations

import math

from gradmedic.protocol.origins import Origin


def describe_origin(origin: Origin) -> str:
    """Return one line about an origin.

    >>> describe_origin(Origin(operation="log", direction="forward", step=3, value=float("-inf"), is_loss_finite=False))
    'Infinity is born at step 3 in `log`; the loss was not finite.'
    """
    step = "" if origin.step is None else f" at step {origin.step}"
    if origin.operation is None:
        chain = f" The loss was computed by {', '.join(origin.operations[:8])}." if origin.operations else ""
        return f"A gradient or the loss is not finite{step}, and its origin was not found: {origin.reason}.{chain}"
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
