"""Remedies that change what an optimizer does at its steps: its rate, its gradients, its weight decay."""

from __future__ import annotations

from collections.abc import Mapping

from gradmedic.protocol.remedies.row import POSITIVE, SHARE, make_row
from gradmedic.protocol.remedy_kind import Choice, Code, NumberRange, RemedyKind, Target

OPTIMIZERS = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")
"""The optimizers that `switch_optimizer` can switch to."""

UPDATE_REMEDIES: Mapping[str, RemedyKind] = {
    "clip_grad_norm": make_row(
        Target.GRADIENTS,
        code={
            "torch": Code("torch.nn.utils.clip_grad_norm_(model.parameters(), {max_norm})  # before optimizer.step()"),
            "keras": Code("optimizer = keras.optimizers.SGD(learning_rate, global_clipnorm={max_norm})"),
            "jax": Code("optimizer = optax.chain(optax.clip_by_global_norm({max_norm}), optimizer)"),
        },
        max_norm=POSITIVE,
    ),
    "clip_grad_value": make_row(
        Target.GRADIENTS,
        code={
            "torch": Code(
                "torch.nn.utils.clip_grad_value_(model.parameters(), {clip_value})  # before optimizer.step()"
            ),
            "keras": Code("optimizer = keras.optimizers.SGD(learning_rate, clipvalue={clip_value})"),
            "jax": Code("optimizer = optax.chain(optax.clip({clip_value}), optimizer)"),
        },
        clip_value=POSITIVE,
    ),
    "clip_grad_norm_per_layer": make_row(
        Target.GRADIENTS,
        code={
            "torch": Code("for p in model.parameters():\n    torch.nn.utils.clip_grad_norm_([p], {max_norm})"),
            "keras": Code("optimizer = keras.optimizers.SGD(learning_rate, clipnorm={max_norm})"),
            "jax": Code("optimizer = optax.chain(optax.clip_by_block_rms({max_norm}), optimizer)"),
        },
        max_norm=POSITIVE,
    ),
    "adaptive_clip": make_row(
        Target.GRADIENTS,
        code={
            "torch": Code("""for p in model.parameters():  # before optimizer.step()
    if p.grad is not None and p.ndim > 1:
        bound = {clipping} * p.flatten(1).norm(dim=1).clamp(min=1e-3)
        factor = (bound / p.grad.flatten(1).norm(dim=1).clamp(min=1e-6)).clamp(max=1)
        p.grad.mul_(factor.view(-1, *[1] * (p.ndim - 1)))"""),
            "keras": Code("# no built-in: clip each row by {clipping} of its weights' norm in a custom train_step"),
            "jax": Code("optimizer = optax.chain(optax.adaptive_grad_clip({clipping}), optimizer)"),
        },
        clipping=POSITIVE,
    ),
    "scale_learning_rate": make_row(
        Target.LEARNING_RATE,
        code={
            "torch": Code("for group in optimizer.param_groups:\n    group['lr'] *= {factor}"),
            "keras": Code("optimizer.learning_rate = optimizer.learning_rate * {factor}"),
            "jax": Code("optimizer = optax.chain(optimizer, optax.scale({factor}))"),
        },
        factor=POSITIVE,
    ),
    "warm_up": make_row(
        Target.LEARNING_RATE,
        code={
            "torch": Code(
                "scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters={steps})"
            ),
            "keras": Code(
                "schedule = keras.optimizers.schedules.CosineDecay(\n"
                "    0.01 * rate, decay_steps, warmup_target=rate, warmup_steps={steps}\n)"
            ),
            "jax": Code("schedule = optax.linear_schedule(0.01 * rate, rate, transition_steps={steps})"),
        },
        steps=NumberRange(minimum=1, maximum=1_000_000_000, is_whole=True),
    ),
    "switch_optimizer": make_row(
        Target.LEARNING_RATE,
        Target.GRADIENTS,
        Target.WEIGHTS,
        code={
            "torch": Code("optimizer = torch.optim.{optimizer}(model.parameters(), lr={learning_rate})"),
            "keras": Code("optimizer = keras.optimizers.{optimizer}({learning_rate})"),
            "jax": Code(
                "optimizer = optax.adam({learning_rate})",
                {
                    "RMSprop": "optimizer = optax.rmsprop({learning_rate})",
                    "Adagrad": "optimizer = optax.adagrad({learning_rate})",
                },
            ),
        },
        optimizer=Choice(OPTIMIZERS),
        learning_rate=POSITIVE,
    ),
    "weight_decay": make_row(
        Target.LEARNING_RATE,
        Target.WEIGHTS,
        code={
            "torch": Code("optimizer = torch.optim.AdamW(model.parameters(), weight_decay={weight_decay})"),
            "keras": Code("optimizer = keras.optimizers.AdamW(weight_decay={weight_decay})"),
            "jax": Code("optimizer = optax.chain(optimizer, optax.add_decayed_weights({weight_decay}))"),
        },
        weight_decay=SHARE,
    ),
    "l1_penalty": make_row(
        Target.GRADIENTS,
        code={
            "torch": Code("loss = loss + {strength} * sum(p.abs().sum() for p in model.parameters())"),
            "keras": Code("keras.layers.Dense(units, kernel_regularizer=keras.regularizers.L1({strength}))"),
            "jax": Code("loss += {strength} * sum(jnp.abs(p).sum() for p in jax.tree.leaves(parameters))"),
        },
        strength=SHARE,
    ),
    "rescale_loss_gradient": make_row(
        Target.GRADIENTS,
        code={
            "torch": Code("(loss * {factor}).backward()"),
            "keras": Code("model.compile(optimizer, loss=loss, loss_weights={factor})"),
            "jax": Code("loss, gradients = jax.value_and_grad(lambda p: {factor} * loss_function(p))(parameters)"),
        },
        factor=POSITIVE,
    ),
    "reduce_weight_decay": make_row(
        Target.WEIGHT_DECAY,
        code={
            "torch": Code("for group in optimizer.param_groups:\n    group['weight_decay'] *= {factor}"),
            "keras": Code("optimizer = keras.optimizers.AdamW(weight_decay={factor} * weight_decay)"),
            "jax": Code("optimizer = optax.adamw(rate, weight_decay={factor} * weight_decay)"),
        },
        factor=NumberRange(minimum=0.0, maximum=1.0),
    ),
    "skip_nonfinite_steps": make_row(
        Target.GRADIENTS,
        code={
            "torch": Code(
                "if all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None):\n"
                "    optimizer.step()"
            ),
            "keras": Code("callbacks = [keras.callbacks.TerminateOnNaN()]  # stops in place of skipping"),
            "jax": Code("optimizer = optax.apply_if_finite(optimizer, max_consecutive_errors=10)"),
        },
    ),
}
