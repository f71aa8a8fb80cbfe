"""Remedies that only the script itself can carry out."""

from __future__ import annotations

from collections.abc import Mapping

from gradmedic.protocol.remedies.row import POSITIVE, make_row
from gradmedic.protocol.remedy_kind import Code, NumberRange, RemedyKind, Target

SCRIPT_REMEDIES: Mapping[str, RemedyKind] = {
    "truncate_backpropagation": make_row(
        Target.SCRIPT,
        code={
            "torch": Code("hidden = hidden.detach()  # between pieces of {time_steps} time steps"),
            "keras": Code("# cut the sequences into pieces of {time_steps} and use stateful=True"),
            "jax": Code("carry = jax.lax.stop_gradient(carry)  # between pieces of {time_steps} time steps"),
        },
        time_steps=NumberRange(minimum=1, maximum=1_000_000, is_whole=True),
    ),
    "relax_clipping": make_row(
        Target.SCRIPT,
        code={
            "torch": Code("torch.nn.utils.clip_grad_norm_(model.parameters(), {max_norm})"),
            "keras": Code("optimizer = keras.optimizers.SGD(learning_rate, global_clipnorm={max_norm})"),
            "jax": Code("optimizer = optax.chain(optax.clip_by_global_norm({max_norm}), optimizer)"),
        },
        max_norm=POSITIVE,
    ),
    "use_bfloat16": make_row(
        Target.SCRIPT,
        code={
            "torch": Code("with torch.autocast(device_type, dtype=torch.bfloat16):\n    loss = step(batch)"),
            "keras": Code("keras.mixed_precision.set_global_policy('mixed_bfloat16')"),
            "jax": Code("flax.linen.Dense(units, dtype=jnp.bfloat16)"),
        },
    ),
    "stable_loss": make_row(
        Target.SCRIPT,
        code={
            "torch": Code("loss = torch.nn.functional.cross_entropy(logits, target)  # not log(softmax(x))"),
            "keras": Code("loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)"),
            "jax": Code("loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)"),
        },
    ),
}
