"""Remedies that change modules of the model, its inputs and targets, or its loss."""

from __future__ import annotations

from collections.abc import Mapping

from gradmedic.protocol.remedies.row import POSITIVE, SHARE, make_row
from gradmedic.protocol.remedy_kind import Choice, Code, NumberRange, RemedyKind, Target


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


MODULE_REMEDIES: Mapping[str, RemedyKind] = {
    "reinitialize": make_row(
        Target.PARAMETERS,
        code={
            "torch": Code(
                _initialize_layers("torch.nn.init.{scheme}_"),
                {
                    "lecun_normal": _initialize_layers(
                        "functools.partial(torch.nn.init.kaiming_normal_, nonlinearity='linear')",
                        "import functools\n\n",
                    )
                },
            ),
            "keras": Code(
                "keras.layers.Dense(units, kernel_initializer='{scheme}')",
                {
                    "kaiming_normal": "keras.layers.Dense(units, kernel_initializer='he_normal')",
                    "xavier_uniform": "keras.layers.Dense(units, kernel_initializer='glorot_uniform')",
                    "orthogonal": "keras.layers.SimpleRNN(units, recurrent_initializer='orthogonal')",
                },
            ),
            "jax": Code(
                "flax.linen.Dense(units, kernel_init=jax.nn.initializers.{scheme}())",
                {
                    "kaiming_normal": "flax.linen.Dense(units, kernel_init=jax.nn.initializers.he_normal())",
                    "xavier_uniform": "flax.linen.Dense(units, kernel_init=jax.nn.initializers.glorot_uniform())",
                },
            ),
        },
        scheme=Choice(("orthogonal", "xavier_uniform", "kaiming_normal", "lecun_normal")),
    ),
    "replace_activation": make_row(
        Target.SIGNALS,
        code={
            "torch": Code("activation = torch.nn.{activation}()  # the hidden ones; gates and the output's stay"),
            "keras": Code(
                "keras.layers.Dense(units, activation='{activation}'.lower())",
                {"LeakyReLU": "keras.layers.Dense(units, activation='leaky_relu')"},
            ),
            "jax": Code(
                "x = jax.nn.elu(x)",
                {
                    "ReLU": "x = jax.nn.relu(x)",
                    "SELU": "x = jax.nn.selu(x)",
                    "GELU": "x = jax.nn.gelu(x)",
                    "Tanh": "x = jax.nn.tanh(x)",
                    "LeakyReLU": "x = jax.nn.leaky_relu(x)",
                },
            ),
        },
        activation=Choice(("ReLU", "LeakyReLU", "ELU", "SELU", "GELU", "Tanh")),
    ),
    "insert_normalization": make_row(
        Target.SIGNALS,
        code={
            "torch": Code(
                (
                    "block = torch.nn.Sequential(\n    torch.nn.Linear(n_in, n_out), "
                    "torch.nn.{kind}(n_out, elementwise_affine=False), activation\n)"
                ),
                {
                    "BatchNorm": (
                        "block = torch.nn.Sequential(  # BatchNorm2d behind a convolution\n"
                        "    torch.nn.Linear(n_in, n_out), torch.nn.BatchNorm1d(n_out, affine=False), activation\n)"
                    )
                },
            ),
            "keras": Code(
                "keras.layers.LayerNormalization()  # between a Dense layer and its activation",
                {
                    "RMSNorm": "keras.layers.RMSNormalization()  # between a Dense layer and its activation",
                    "BatchNorm": "keras.layers.BatchNormalization()  # between a Dense layer and its activation",
                },
            ),
            "jax": Code(
                "x = flax.linen.LayerNorm()(x)",
                {
                    "RMSNorm": "x = flax.linen.RMSNorm()(x)",
                    "BatchNorm": "x = flax.linen.BatchNorm(use_running_average=not training)(x)",
                },
            ),
        },
        kind=Choice(("BatchNorm", "LayerNorm", "RMSNorm")),
    ),
    "add_residual": make_row(
        Target.SIGNALS,
        code={
            "torch": Code("x = x + activation(layer(x))  # around layers that keep the shape"),
            "keras": Code("x = keras.layers.Add()([x, block(x)])  # around blocks that keep the shape"),
        },
    ),
    "replace_recurrent_cell": make_row(
        Target.PARAMETERS,
        code={
            "torch": Code(
                "rnn = torch.nn.{cell}(input_size, hidden_size, batch_first=True)",
                {
                    "LSTM": (
                        "rnn = torch.nn.LSTM(input_size, hidden_size, batch_first=True)\n"
                        "output, (hidden, cell) = rnn(x)  # the state is a pair: hand both back"
                    )
                },
            ),
            "keras": Code("keras.layers.{cell}(units)"),
            "jax": Code(
                "flax.linen.RNN(flax.linen.{cell}Cell(features))",
                {"LSTM": "flax.linen.RNN(flax.linen.OptimizedLSTMCell(features))"},
            ),
        },
        cell=Choice(("GRU", "LSTM")),
    ),
    "weight_normalization": make_row(
        Target.PARAMETERS,
        code={
            "torch": Code("layer = torch.nn.utils.parametrizations.weight_norm(layer)  # each Linear and Conv"),
            "keras": Code("layer = keras.layers.SpectralNormalization(layer)  # the nearest built-in"),
            "jax": Code("flax.linen.WeightNorm(flax.linen.Dense(units))(x)"),
        },
    ),
    "standardize_inputs": make_row(
        Target.INPUTS_AND_TARGETS, code={"torch": Code("x = (x - x_train.mean(0)) / x_train.std(0)")}
    ),
    "standardize_targets": make_row(
        Target.INPUTS_AND_TARGETS, code={"torch": Code("y = (y - y_train.mean()) / y_train.std()")}
    ),
    "scale_loss": make_row(
        Target.LOSS,
        Target.GRADIENTS,
        code={
            "torch": Code(
                "scaler = torch.amp.GradScaler()\nscaler.scale(loss).backward()\n"
                "scaler.step(optimizer)\nscaler.update()"
            ),
            "keras": Code("optimizer = keras.optimizers.LossScaleOptimizer(optimizer)"),
            "jax": Code(
                "loss_scale = jmp.DynamicLossScale(2.0**15)  # scale, unscale, and skip steps that are not finite"
            ),
        },
    ),
    "forget_gate_bias": make_row(
        Target.PARAMETERS,
        code={
            "torch": Code("""for module in model.modules():
    if isinstance(module, torch.nn.LSTM):
        for name, p in module.named_parameters():
            if name.startswith("bias"):
                p.data.chunk(4)[1].fill_({bias} if "ih" in name else 0)"""),
            "keras": Code("keras.layers.LSTM(units, unit_forget_bias=True)"),
            "jax": Code("# after init: set the bias of the forget gate to {bias}"),
        },
        bias=NumberRange(minimum=0.0, maximum=20.0),
    ),
    "depth_scaled_initialization": make_row(
        Target.SIGNALS,
        code={
            "torch": Code(
                "for layer in last_layers:  # the last layer of each residual branch\n"
                "    layer.weight.data *= len(last_layers) ** -0.5"
            ),
            "keras": Code("initializer = keras.initializers.RandomNormal(stddev=0.02 * branches**-0.5)"),
            "jax": Code("kernel_init = jax.nn.initializers.normal(0.02 * branches**-0.5)"),
        },
    ),
    "zero_residual_branches": make_row(
        Target.SIGNALS,
        code={
            "torch": Code(
                "for layer in last_layers:  # the last layer of each residual branch\n"
                "    torch.nn.init.zeros_(layer.weight)\n    torch.nn.init.zeros_(layer.bias)"
            ),
            "keras": Code("keras.layers.Dense(units, kernel_initializer='zeros')  # the last layer of each branch"),
            "jax": Code(
                "flax.linen.Dense(units, kernel_init=jax.nn.initializers.zeros)  # the last layer of each branch"
            ),
        },
    ),
    "unit_variance_initialization": make_row(
        Target.SIGNALS,
        code={
            "torch": Code("""layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
for layer in layers:  # in the order of their calls
    torch.nn.init.orthogonal_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    outputs = []
    hook = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        model(first_batch)
        layer.weight /= outputs[0].std()  # of what the activation gets
    hook.remove()"""),
            "keras": Code(
                "layer.kernel.assign(layer.kernel / keras.ops.std(layer(x)))  # layer by layer, on a first batch"
            ),
            "jax": Code("kernel = kernel / jnp.std(x @ kernel)  # layer by layer, on a first batch"),
        },
    ),
    "initialize_embeddings": make_row(
        Target.PARAMETERS,
        code={
            "torch": Code(
                "for module in model.modules():\n    if isinstance(module, torch.nn.Embedding):\n"
                "        torch.nn.init.normal_(module.weight, std={standard_deviation})"
            ),
            "keras": Code(
                "initializer = keras.initializers.RandomNormal(stddev={standard_deviation})\n"
                "embedding = keras.layers.Embedding(rows, width, embeddings_initializer=initializer)"
            ),
            "jax": Code(
                "initializer = jax.nn.initializers.normal({standard_deviation})\n"
                "embedding = flax.linen.Embed(rows, width, embedding_init=initializer)"
            ),
        },
        standard_deviation=POSITIVE,
    ),
    "guard_operations": make_row(
        Target.FUNCTIONS,
        code={
            "torch": Code("""is_zero = x == 0  # the same for a quotient; for a logarithm: torch.log(x.clamp(min=1e-8))
root = torch.sqrt(x.masked_fill(is_zero, 1)).masked_fill(is_zero, 0)"""),
            "keras": Code(
                "root = keras.ops.sqrt(keras.ops.maximum(x, keras.config.epsilon()))  # and for log and division"
            ),
            "jax": Code("root = jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))  # and for log and division"),
        },
    ),
    "use_float32": make_row(
        Target.FUNCTIONS,
        code={
            "torch": Code("model = model.float()  # and no half(), bfloat16() or torch.autocast"),
            "keras": Code("keras.mixed_precision.set_global_policy('float32')"),
            "jax": Code("model = Model(dtype=jnp.float32, param_dtype=jnp.float32)"),
        },
    ),
    "embedding_gradient_shrink": make_row(
        Target.BACKWARD,
        code={
            "torch": Code("x = {share} * x + (1 - {share}) * x.detach()  # behind the embedding"),
            "keras": Code("x = {share} * x + (1 - {share}) * keras.ops.stop_gradient(x)  # behind the embedding"),
            "jax": Code("x = {share} * x + (1 - {share}) * jax.lax.stop_gradient(x)  # behind the embedding"),
        },
        share=SHARE,
    ),
    "qk_norm": make_row(
        Target.SIGNALS,
        code={
            "torch": Code("q, k = (torch.nn.functional.rms_norm(x, x.shape[-1:]) for x in (q, k))  # head by head"),
            "keras": Code("q, k = (keras.layers.RMSNormalization()(x) for x in (q, k))  # head by head"),
            "jax": Code("flax.linen.MultiHeadDotProductAttention(heads, normalize_qk=True)"),
        },
    ),
    "z_loss": make_row(
        Target.LOSS,
        code={
            "torch": Code("loss = loss + {strength} * logits.logsumexp(-1).square().mean()"),
            "keras": Code("loss = loss + {strength} * keras.ops.mean(keras.ops.logsumexp(logits, axis=-1) ** 2)"),
            "jax": Code("loss = loss + {strength} * jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean()"),
        },
        strength=SHARE,
    ),
    "logit_soft_cap": make_row(
        Target.LOSS,
        code={
            "torch": Code("logits = {cap} * torch.tanh(logits / {cap})  # before the loss"),
            "keras": Code("logits = {cap} * keras.ops.tanh(logits / {cap})  # before the loss"),
            "jax": Code("logits = {cap} * jnp.tanh(logits / {cap})  # before the loss"),
        },
        cap=POSITIVE,
    ),
}
