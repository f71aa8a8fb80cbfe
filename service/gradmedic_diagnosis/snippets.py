"""Code to paste, by framework and remedy, with the remedy's parameters filled in.

Every remedy has code for torch. Another framework has its own code where it differs. A key `remedy:value` holds the
code for one value of a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gradmedic.protocol.remedies import Remedy


def _initialize_layers(initialize: str, imports: str = "") -> str:
    """Return torch code that initializes every layer; weights that stack several gates, gate by gate."""
    return f"""{imports}for module in model.modules():
    if isinstance(module, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
        {initialize}(module.weight)
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)
    elif isinstance(module, torch.nn.RNNBase):
        for name, p in module.named_parameters():
            for gate in p.data.chunk(len(p) // module.hidden_size):
                {initialize}(gate) if name.startswith("weight") else gate.zero_()"""


_TORCH: Final = {
    "clip_grad_norm": "torch.nn.utils.clip_grad_norm_(model.parameters(), {max_norm})  # before optimizer.step()",
    "clip_grad_value": "torch.nn.utils.clip_grad_value_(model.parameters(), {clip_value})  # before optimizer.step()",
    "clip_grad_norm_per_layer": "for p in model.parameters():\n    torch.nn.utils.clip_grad_norm_([p], {max_norm})",
    "adaptive_clip": """for p in model.parameters():  # before optimizer.step()
    if p.grad is not None and p.ndim > 1:
        bound = {clipping} * p.flatten(1).norm(dim=1).clamp(min=1e-3)
        factor = (bound / p.grad.flatten(1).norm(dim=1).clamp(min=1e-6)).clamp(max=1)
        p.grad.mul_(factor.view(-1, *[1] * (p.ndim - 1)))""",
    "scale_learning_rate": "for group in optimizer.param_groups:\n    group['lr'] *= {factor}",
    "warm_up": "scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters={steps})",
    "rescale_loss_gradient": "(loss * {factor}).backward()",
    "reinitialize": _initialize_layers("torch.nn.init.{scheme}_"),
    "reinitialize:lecun_normal": _initialize_layers(
        "functools.partial(torch.nn.init.kaiming_normal_, nonlinearity='linear')", "import functools\n\n"
    ),
    "replace_activation": "activation = torch.nn.{activation}()  # the hidden ones; gates and the output's stay",
    "insert_normalization": (
        "block = torch.nn.Sequential(\n    torch.nn.Linear(n_in, n_out), "
        "torch.nn.{kind}(n_out, elementwise_affine=False), activation\n)"
    ),
    "insert_normalization:BatchNorm": (
        "block = torch.nn.Sequential(  # BatchNorm2d behind a convolution\n"
        "    torch.nn.Linear(n_in, n_out), torch.nn.BatchNorm1d(n_out, affine=False), activation\n)"
    ),
    "add_residual": "x = x + activation(layer(x))  # around layers that keep the shape",
    "replace_recurrent_cell": "rnn = torch.nn.{cell}(input_size, hidden_size, batch_first=True)",
    "replace_recurrent_cell:LSTM": (
        "rnn = torch.nn.LSTM(input_size, hidden_size, batch_first=True)\n"
        "output, (hidden, cell) = rnn(x)  # the state is a pair: hand both back"
    ),
    "truncate_backpropagation": "hidden = hidden.detach()  # between pieces of {time_steps} time steps",
    "standardize_inputs": "x = (x - x_train.mean(0)) / x_train.std(0)",
    "standardize_targets": "y = (y - y_train.mean()) / y_train.std()",
    "switch_optimizer": "optimizer = torch.optim.{optimizer}(model.parameters(), lr={learning_rate})",
    "weight_normalization": "layer = torch.nn.utils.parametrizations.weight_norm(layer)  # each Linear and Conv",
    "weight_decay": "optimizer = torch.optim.AdamW(model.parameters(), weight_decay={weight_decay})",
    "l1_penalty": "loss = loss + {strength} * sum(p.abs().sum() for p in model.parameters())",
    "reduce_weight_decay": "for group in optimizer.param_groups:\n    group['weight_decay'] *= {factor}",
    "relax_clipping": "torch.nn.utils.clip_grad_norm_(model.parameters(), {max_norm})",
    "scale_loss": (
        "scaler = torch.amp.GradScaler()\nscaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()"
    ),
    "use_bfloat16": "with torch.autocast(device_type, dtype=torch.bfloat16):\n    loss = step(batch)",
    "stable_loss": "loss = torch.nn.functional.cross_entropy(logits, target)  # not log(softmax(x))",
    "skip_nonfinite_steps": (
        "if all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None):\n    optimizer.step()"
    ),
}
_KERAS: Final = {
    "clip_grad_norm": "optimizer = keras.optimizers.SGD(learning_rate, global_clipnorm={max_norm})",
    "clip_grad_value": "optimizer = keras.optimizers.SGD(learning_rate, clipvalue={clip_value})",
    "clip_grad_norm_per_layer": "optimizer = keras.optimizers.SGD(learning_rate, clipnorm={max_norm})",
    "adaptive_clip": "# no built-in: clip each row by {clipping} of its weights' norm in a custom train_step",
    "scale_learning_rate": "optimizer.learning_rate = optimizer.learning_rate * {factor}",
    "warm_up": (
        "schedule = keras.optimizers.schedules.CosineDecay(\n"
        "    0.01 * rate, decay_steps, warmup_target=rate, warmup_steps={steps}\n)"
    ),
    "rescale_loss_gradient": "model.compile(optimizer, loss=loss, loss_weights={factor})",
    "reinitialize": "keras.layers.Dense(units, kernel_initializer='{scheme}')",
    "reinitialize:kaiming_normal": "keras.layers.Dense(units, kernel_initializer='he_normal')",
    "reinitialize:xavier_uniform": "keras.layers.Dense(units, kernel_initializer='glorot_uniform')",
    "reinitialize:orthogonal": "keras.layers.SimpleRNN(units, recurrent_initializer='orthogonal')",
    "replace_activation": "keras.layers.Dense(units, activation='{activation}'.lower())",
    "replace_activation:LeakyReLU": "keras.layers.Dense(units, activation='leaky_relu')",
    "insert_normalization": "keras.layers.LayerNormalization()  # between a Dense layer and its activation",
    "insert_normalization:RMSNorm": "keras.layers.RMSNormalization()  # between a Dense layer and its activation",
    "insert_normalization:BatchNorm": "keras.layers.BatchNormalization()  # between a Dense layer and its activation",
    "add_residual": "x = keras.layers.Add()([x, block(x)])  # around blocks that keep the shape",
    "replace_recurrent_cell": "keras.layers.{cell}(units)",
    "truncate_backpropagation": "# cut the sequences into pieces of {time_steps} and use stateful=True",
    "switch_optimizer": "optimizer = keras.optimizers.{optimizer}({learning_rate})",
    "weight_normalization": "layer = keras.layers.SpectralNormalization(layer)  # the nearest built-in",
    "weight_decay": "optimizer = keras.optimizers.AdamW(weight_decay={weight_decay})",
    "l1_penalty": "keras.layers.Dense(units, kernel_regularizer=keras.regularizers.L1({strength}))",
    "reduce_weight_decay": "optimizer = keras.optimizers.AdamW(weight_decay={factor} * weight_decay)",
    "relax_clipping": "optimizer = keras.optimizers.SGD(learning_rate, global_clipnorm={max_norm})",
    "scale_loss": "optimizer = keras.optimizers.LossScaleOptimizer(optimizer)",
    "use_bfloat16": "keras.mixed_precision.set_global_policy('mixed_bfloat16')",
    "stable_loss": "loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)",
    "skip_nonfinite_steps": "callbacks = [keras.callbacks.TerminateOnNaN()]  # stops in place of skipping",
}
_JAX: Final = {
    "clip_grad_norm": "optimizer = optax.chain(optax.clip_by_global_norm({max_norm}), optimizer)",
    "clip_grad_value": "optimizer = optax.chain(optax.clip({clip_value}), optimizer)",
    "clip_grad_norm_per_layer": "optimizer = optax.chain(optax.clip_by_block_rms({max_norm}), optimizer)",
    "adaptive_clip": "optimizer = optax.chain(optax.adaptive_grad_clip({clipping}), optimizer)",
    "scale_learning_rate": "optimizer = optax.chain(optimizer, optax.scale({factor}))",
    "warm_up": "schedule = optax.linear_schedule(0.01 * rate, rate, transition_steps={steps})",
    "rescale_loss_gradient": "loss, gradients = jax.value_and_grad(lambda p: {factor} * loss_function(p))(parameters)",
    "reinitialize": "flax.linen.Dense(units, kernel_init=jax.nn.initializers.{scheme}())",
    "reinitialize:kaiming_normal": "flax.linen.Dense(units, kernel_init=jax.nn.initializers.he_normal())",
    "reinitialize:xavier_uniform": "flax.linen.Dense(units, kernel_init=jax.nn.initializers.glorot_uniform())",
    "replace_activation": "x = jax.nn.elu(x)",
    "replace_activation:ReLU": "x = jax.nn.relu(x)",
    "replace_activation:SELU": "x = jax.nn.selu(x)",
    "replace_activation:GELU": "x = jax.nn.gelu(x)",
    "replace_activation:Tanh": "x = jax.nn.tanh(x)",
    "replace_activation:LeakyReLU": "x = jax.nn.leaky_relu(x)",
    "insert_normalization": "x = flax.linen.LayerNorm()(x)",
    "insert_normalization:RMSNorm": "x = flax.linen.RMSNorm()(x)",
    "insert_normalization:BatchNorm": "x = flax.linen.BatchNorm(use_running_average=not training)(x)",
    "replace_recurrent_cell": "flax.linen.RNN(flax.linen.{cell}Cell(features))",
    "replace_recurrent_cell:LSTM": "flax.linen.RNN(flax.linen.OptimizedLSTMCell(features))",
    "truncate_backpropagation": "carry = jax.lax.stop_gradient(carry)  # between pieces of {time_steps} time steps",
    "switch_optimizer": "optimizer = optax.adam({learning_rate})",
    "switch_optimizer:RMSprop": "optimizer = optax.rmsprop({learning_rate})",
    "switch_optimizer:Adagrad": "optimizer = optax.adagrad({learning_rate})",
    "weight_normalization": "flax.linen.WeightNorm(flax.linen.Dense(units))(x)",
    "weight_decay": "optimizer = optax.chain(optimizer, optax.add_decayed_weights({weight_decay}))",
    "l1_penalty": "loss += {strength} * sum(jnp.abs(p).sum() for p in jax.tree.leaves(parameters))",
    "reduce_weight_decay": "optimizer = optax.adamw(rate, weight_decay={factor} * weight_decay)",
    "relax_clipping": "optimizer = optax.chain(optax.clip_by_global_norm({max_norm}), optimizer)",
    "scale_loss": "loss_scale = jmp.DynamicLossScale(2.0**15)  # scale, unscale, and skip steps that are not finite",
    "use_bfloat16": "flax.linen.Dense(units, dtype=jnp.bfloat16)",
    "stable_loss": "loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)",
    "skip_nonfinite_steps": "optimizer = optax.apply_if_finite(optimizer, max_consecutive_errors=10)",
}
_BY_FRAMEWORK: Final[Mapping[str, Mapping[str, str]]] = {
    "keras": _KERAS,
    "tensorflow": _KERAS,
    "jax": _JAX,
    "flax": _JAX,
}


def write_snippet(remedy: Remedy, framework: str | None) -> str:
    """Return code that applies a remedy, for the run's framework (`"jax 0.10"`), or for torch where that has no code.

    Raises KeyError for an id that the catalogue does not have.

    >>> write_snippet(Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0}), "jax 0.10")
    'optimizer = optax.chain(optax.clip_by_global_norm(1.0), optimizer)'
    """
    own_code = _BY_FRAMEWORK.get((framework or "").split(" ")[0].lower(), {})
    variants = [f"{remedy.id}:{value}" for value in remedy.parameters.values() if isinstance(value, str)]
    for templates in (own_code, _TORCH):
        for key in (*variants, remedy.id):
            if key in templates:
                return templates[key].format(**remedy.parameters)
    raise KeyError(remedy.id)
