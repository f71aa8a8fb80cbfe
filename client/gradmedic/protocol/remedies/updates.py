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
    "limit_learning_rate": make_row(
        Target.LEARNING_RATE,
        code={
            "torch": Code(
                "for group in optimizer.param_groups:  # before each optimizer.step()\n"
                "    group['lr'] = min(group['lr'], {max_learning_rate})"
            ),
            "keras": Code(
                "optimizer.learning_rate = min(float(optimizer.learning_rate), {max_learning_rate})  # before each step"
            ),
            "jax": Code("limited = lambda step: jax.numpy.minimum(schedule(step), {max_learning_rate})"),
        },
        max_learning_rate=POSITIVE,
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
    "clip_update": make_row(
        Target.LEARNING_RATE,
        Target.GRADIENTS,
        Target.WEIGHTS,
        code={
            "torch": Code("""before = [p.detach().clone() for p in model.parameters()]
optimizer.step()
beta2, eps = optimizer.param_groups[0]["betas"][1], optimizer.param_groups[0]["eps"]
with torch.no_grad():
    for p, weights in zip(model.parameters(), before):
        state = optimizer.state[p]
        square = (state["exp_avg_sq"] / (1 - beta2 ** state["step"])).clamp(min=eps**2)
        rms = (p.grad.square() / square).mean().sqrt()
        p.lerp_(weights, 1 - 1 / (rms / {threshold}).clamp(min=1))"""),
            "keras": Code(
                "optimizer = keras.optimizers.Adafactor(rate, clip_threshold={threshold})  # the nearest built-in"
            ),
            "jax": Code(
                "optimizer = optax.chain(\n    optax.scale_by_adam(), optax.clip_by_block_rms({threshold}), "
                "optax.scale_by_learning_rate(rate)\n)"
            ),
        },
        threshold=POSITIVE,
    ),
    "optimizer_epsilon": make_row(
        Target.SECOND_MOMENT,
        code={
            "torch": Code("optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, eps={epsilon})"),
            "keras": Code("optimizer = keras.optimizers.AdamW(learning_rate, epsilon={epsilon})"),
            "jax": Code("optimizer = optax.adamw(learning_rate, eps={epsilon})"),
        },
        epsilon=NumberRange(minimum=1e-30, maximum=1.0),
    ),
    "beta2": make_row(
        Target.SECOND_MOMENT,
        code={
            "torch": Code("optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, {beta2}))"),
            "keras": Code("optimizer = keras.optimizers.AdamW(learning_rate, beta_2={beta2})"),
            "jax": Code("optimizer = optax.adamw(learning_rate, b2={beta2})"),
        },
        beta2=NumberRange(minimum=0.0, maximum=0.999999),
    ),
    "adaptive_clip_per_tensor": make_row(
        Target.GRADIENTS,
        code={
            "torch": Code("""running = dict()  # before the loop

for p in model.parameters():  # before optimizer.step(), after 100 steps of clip_grad_norm_ to {max_norm}
    if p.grad is not None:
        norm = p.grad.norm()
        bound = {relative_norm} * running.get(p, norm)
        p.grad.mul_((bound / norm.clamp(min=1e-6)).clamp(max=1))
        running[p] = 0.98 * running.get(p, norm) + 0.02 * p.grad.norm()"""),
            "keras": Code("# no built-in: clip each gradient to {relative_norm} times its running norm in train_step"),
            "jax": Code("# no built-in: clip each leaf to {relative_norm} times its running norm"),
        },
        relative_norm=NumberRange(minimum=1.0, maximum=1000.0),
        max_norm=POSITIVE,
    ),
    "skip_spikes": make_row(
        Target.GRADIENTS,
        code={
            "torch": Code("""norms = collections.deque(maxlen=100)  # before the loop

norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
if len(norms) < 20 or norm <= {times_usual} * numpy.quantile(norms, 0.95):
    norms.append(norm)
    optimizer.step()"""),
            "keras": Code("# no built-in: in train_step, apply no gradient of {times_usual} times the usual norm"),
            "jax": Code(
                "optimizer = optax.MultiSteps(  # {times_usual} times the usual norm\n    optimizer, 1, "
                "should_skip_update_fn=functools.partial(optax.skip_large_updates, max_squared_norm=limit**2)\n)"
            ),
        },
        times_usual=NumberRange(minimum=1.0, maximum=1e6),
    ),
    "float32_master_weights": make_row(
        Target.WEIGHTS,
        code={
            "torch": Code(
                "model = model.float()  # the optimizer steps on float32 weights\n"
                "with torch.autocast(device_type, dtype=torch.bfloat16):\n    loss = step(batch)"
            ),
            "keras": Code("keras.mixed_precision.set_global_policy('mixed_bfloat16')"),
            "jax": Code("flax.linen.Dense(units, dtype=jnp.bfloat16, param_dtype=jnp.float32)"),
        },
    ),
}
