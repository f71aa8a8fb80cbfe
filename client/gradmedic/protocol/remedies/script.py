"""Remedies that only the script itself can carry out."""

from __future__ import annotations

from collections.abc import Mapping

from gradmedic.protocol.remedies.row import POSITIVE, SHARE, make_row
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
    "extend_schedule": make_row(
        Target.SCRIPT,
        code={
            "torch": Code(
                "scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(  # with one scheduler.step() a batch\n"
                "    optimizer, T_max=epochs * len(loader)\n)"
            ),
            "keras": Code(
                "schedule = keras.optimizers.schedules.CosineDecay(rate, decay_steps=epochs * steps_per_epoch)"
            ),
            "jax": Code("schedule = optax.cosine_decay_schedule(rate, decay_steps=epochs * steps_per_epoch)"),
        },
    ),
    "call_zero_grad": make_row(
        Target.SCRIPT,
        code={"torch": Code("optimizer.zero_grad()\nloss.backward()\noptimizer.step()")},
    ),
    "remove_extra_softmax": make_row(
        Target.SCRIPT,
        code={
            "torch": Code(
                "loss = torch.nn.functional.cross_entropy(logits, target)  # no softmax or sigmoid before it"
            ),
            "keras": Code("keras.layers.Dense(classes)  # no softmax, with from_logits=True in the loss"),
            "jax": Code("loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)  # of logits"),
        },
    ),
    "use_log_softmax": make_row(
        Target.SCRIPT,
        code={
            "torch": Code(
                "log_probabilities = torch.nn.functional.log_softmax(logits, -1)\n"
                'loss = torch.nn.functional.kl_div(log_probabilities, target, reduction="batchmean")'
            ),
            "keras": Code("loss = keras.losses.KLDivergence()(target, keras.ops.softmax(logits))  # of probabilities"),
            "jax": Code("loss = optax.kl_divergence(jax.nn.log_softmax(logits), target)  # of log-probabilities"),
        },
    ),
    "leave_out_impossible_alignments": make_row(
        Target.SCRIPT,
        code={
            "torch": Code(
                "# an input needs a frame for each label, and one more between equal labels\n"
                "loss = torch.nn.functional.ctc_loss(log_probabilities, labels, frames, lengths, zero_infinity=True)"
            ),
            "keras": Code("is_possible = frames >= lengths + repeats  # leave the other examples out of the loss"),
            "jax": Code("loss = jnp.where(frames >= lengths + repeats, loss, 0.0)  # of each example"),
        },
    ),
    "match_target_shape": make_row(
        Target.SCRIPT,
        code={
            "torch": Code("target = target.view_as(output)  # before the loss"),
            "keras": Code("target = keras.ops.reshape(target, keras.ops.shape(output))  # before the loss"),
            "jax": Code("target = target.reshape(output.shape)  # before the loss"),
        },
    ),
    "filter_nonfinite_batches": make_row(
        Target.SCRIPT,
        code={
            "torch": Code("for x, y in loader:\n    if not torch.isfinite(x).all():\n        continue"),
            "keras": Code("data = data.filter(lambda x, y: tf.reduce_all(tf.math.is_finite(x)))"),
            "jax": Code("for x, y in loader:\n    if not jnp.isfinite(x).all():\n        continue"),
        },
    ),
    "connect_parameters": make_row(
        Target.SCRIPT,
        code={
            "torch": Code(
                "optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)  # every trained parameter\n"
                "# layers in an nn.ModuleList, not in a list, and no detach(), .data or torch.no_grad() before the loss"
            ),
            "keras": Code("gradients = tape.gradient(loss, model.trainable_variables)  # every trained variable"),
            "jax": Code("gradients = jax.grad(loss_function)(parameters)  # no stop_gradient on the way"),
        },
    ),
    "check_labels": make_row(
        Target.SCRIPT,
        code={
            "torch": Code("assert (target != -100).any()  # at least one label of each batch counts"),
            "keras": Code("assert keras.ops.any(sample_weight > 0)  # at least one label of each batch counts"),
            "jax": Code("assert (mask > 0).any()  # at least one label of each batch counts"),
        },
    ),
    "slow_down_adversary": make_row(
        Target.SCRIPT,
        code={
            "torch": Code("for group in discriminator_optimizer.param_groups:\n    group['lr'] *= {factor}"),
            "keras": Code("discriminator_optimizer.learning_rate = discriminator_optimizer.learning_rate * {factor}"),
            "jax": Code("discriminator_optimizer = optax.chain(discriminator_optimizer, optax.scale({factor}))"),
        },
        factor=SHARE,
    ),
    "balance_router": make_row(
        Target.SCRIPT,
        code={
            "torch": Code("loss = loss + 0.01 * experts * (token_share * probabilities.mean(0)).sum()"),
            "keras": Code("loss = loss + 0.01 * experts * keras.ops.sum(token_share * mean_probability)"),
            "jax": Code("loss = loss + 0.01 * experts * (token_share * probabilities.mean(0)).sum()"),
        },
    ),
    "smooth_schedule": make_row(
        Target.SCRIPT,
        code={
            "torch": Code(
                "scheduler = torch.optim.lr_scheduler.LinearLR(  # from the step of the jump on\n"
                "    optimizer, start_factor=0.1, total_iters={steps}\n)"
            ),
            "keras": Code(
                "schedule = keras.optimizers.schedules.CosineDecay(\n"
                "    0.1 * rate, decay_steps, warmup_target=rate, warmup_steps={steps}\n)"
            ),
            "jax": Code("schedule = optax.linear_schedule(0.1 * rate, rate, transition_steps={steps})"),
        },
        steps=NumberRange(minimum=1, maximum=1_000_000_000, is_whole=True),
    ),
}
