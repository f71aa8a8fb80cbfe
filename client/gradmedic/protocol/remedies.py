"""The catalogue of remedies: for each its id, what it changes, its parameters with their ranges, and code to paste.

The service refuses remedies that are not in the catalogue, the diagnosis advises only remedies of it, and
`gradmedic.torch` applies them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from gradmedic.protocol.remedy_kind import Choice, Code, NumberRange, RemedyKind, Target
from gradmedic.protocol.schema import SCHEMA, Scalar, Text
from gradmedic.protocol.service import FieldError


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One fix, by id and parameters."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    id: Text
    """Id of the remedy in the catalogue, for example `clip_grad_norm`."""
    parameters: dict[Text, Scalar] = field(default_factory=dict)
    """Values of the remedy's parameters, by name."""


OPTIMIZERS = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")
"""The optimizers that `switch_optimizer` can switch to."""
_SMALLEST = 1e-12
_LARGEST = 1e6
"""The bounds of factors, norms and rates. No sensible experiment goes beyond them."""
_POSITIVE = NumberRange(minimum=_SMALLEST, maximum=_LARGEST)
_SHARE = NumberRange(minimum=_SMALLEST, maximum=1.0)


def _row(*targets: Target, code: Mapping[str, Code], **parameters: NumberRange | Choice) -> RemedyKind:
    return RemedyKind(targets=frozenset(targets), parameters=MappingProxyType(parameters), code=code)


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


REMEDIES: Mapping[str, RemedyKind] = MappingProxyType(
    {
        "clip_grad_norm": _row(
            Target.GRADIENTS,
            code={
                "torch": Code(
                    "torch.nn.utils.clip_grad_norm_(model.parameters(), {max_norm})  # before optimizer.step()"
                ),
                "keras": Code("optimizer = keras.optimizers.SGD(learning_rate, global_clipnorm={max_norm})"),
                "jax": Code("optimizer = optax.chain(optax.clip_by_global_norm({max_norm}), optimizer)"),
            },
            max_norm=_POSITIVE,
        ),
        "clip_grad_value": _row(
            Target.GRADIENTS,
            code={
                "torch": Code(
                    "torch.nn.utils.clip_grad_value_(model.parameters(), {clip_value})  # before optimizer.step()"
                ),
                "keras": Code("optimizer = keras.optimizers.SGD(learning_rate, clipvalue={clip_value})"),
                "jax": Code("optimizer = optax.chain(optax.clip({clip_value}), optimizer)"),
            },
            clip_value=_POSITIVE,
        ),
        "clip_grad_norm_per_layer": _row(
            Target.GRADIENTS,
            code={
                "torch": Code("for p in model.parameters():\n    torch.nn.utils.clip_grad_norm_([p], {max_norm})"),
                "keras": Code("optimizer = keras.optimizers.SGD(learning_rate, clipnorm={max_norm})"),
                "jax": Code("optimizer = optax.chain(optax.clip_by_block_rms({max_norm}), optimizer)"),
            },
            max_norm=_POSITIVE,
        ),
        "adaptive_clip": _row(
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
            clipping=_POSITIVE,
        ),
        "scale_learning_rate": _row(
            Target.LEARNING_RATE,
            code={
                "torch": Code("for group in optimizer.param_groups:\n    group['lr'] *= {factor}"),
                "keras": Code("optimizer.learning_rate = optimizer.learning_rate * {factor}"),
                "jax": Code("optimizer = optax.chain(optimizer, optax.scale({factor}))"),
            },
            factor=_POSITIVE,
        ),
        "warm_up": _row(
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
        "switch_optimizer": _row(
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
            learning_rate=_POSITIVE,
        ),
        "weight_decay": _row(
            Target.LEARNING_RATE,
            Target.WEIGHTS,
            code={
                "torch": Code("optimizer = torch.optim.AdamW(model.parameters(), weight_decay={weight_decay})"),
                "keras": Code("optimizer = keras.optimizers.AdamW(weight_decay={weight_decay})"),
                "jax": Code("optimizer = optax.chain(optimizer, optax.add_decayed_weights({weight_decay}))"),
            },
            weight_decay=_SHARE,
        ),
        "l1_penalty": _row(
            Target.GRADIENTS,
            code={
                "torch": Code("loss = loss + {strength} * sum(p.abs().sum() for p in model.parameters())"),
                "keras": Code("keras.layers.Dense(units, kernel_regularizer=keras.regularizers.L1({strength}))"),
                "jax": Code("loss += {strength} * sum(jnp.abs(p).sum() for p in jax.tree.leaves(parameters))"),
            },
            strength=_SHARE,
        ),
        "rescale_loss_gradient": _row(
            Target.GRADIENTS,
            code={
                "torch": Code("(loss * {factor}).backward()"),
                "keras": Code("model.compile(optimizer, loss=loss, loss_weights={factor})"),
                "jax": Code("loss, gradients = jax.value_and_grad(lambda p: {factor} * loss_function(p))(parameters)"),
            },
            factor=_POSITIVE,
        ),
        "reduce_weight_decay": _row(
            Target.WEIGHT_DECAY,
            code={
                "torch": Code("for group in optimizer.param_groups:\n    group['weight_decay'] *= {factor}"),
                "keras": Code("optimizer = keras.optimizers.AdamW(weight_decay={factor} * weight_decay)"),
                "jax": Code("optimizer = optax.adamw(rate, weight_decay={factor} * weight_decay)"),
            },
            factor=NumberRange(minimum=0.0, maximum=1.0),
        ),
        "skip_nonfinite_steps": _row(
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
        "reinitialize": _row(
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
        "replace_activation": _row(
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
        "insert_normalization": _row(
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
        "add_residual": _row(
            Target.SIGNALS,
            code={
                "torch": Code("x = x + activation(layer(x))  # around layers that keep the shape"),
                "keras": Code("x = keras.layers.Add()([x, block(x)])  # around blocks that keep the shape"),
            },
        ),
        "replace_recurrent_cell": _row(
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
        "weight_normalization": _row(
            Target.PARAMETERS,
            code={
                "torch": Code("layer = torch.nn.utils.parametrizations.weight_norm(layer)  # each Linear and Conv"),
                "keras": Code("layer = keras.layers.SpectralNormalization(layer)  # the nearest built-in"),
                "jax": Code("flax.linen.WeightNorm(flax.linen.Dense(units))(x)"),
            },
        ),
        "standardize_inputs": _row(
            Target.INPUTS_AND_TARGETS, code={"torch": Code("x = (x - x_train.mean(0)) / x_train.std(0)")}
        ),
        "standardize_targets": _row(
            Target.INPUTS_AND_TARGETS, code={"torch": Code("y = (y - y_train.mean()) / y_train.std()")}
        ),
        "scale_loss": _row(
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
        "truncate_backpropagation": _row(
            Target.SCRIPT,
            code={
                "torch": Code("hidden = hidden.detach()  # between pieces of {time_steps} time steps"),
                "keras": Code("# cut the sequences into pieces of {time_steps} and use stateful=True"),
                "jax": Code("carry = jax.lax.stop_gradient(carry)  # between pieces of {time_steps} time steps"),
            },
            time_steps=NumberRange(minimum=1, maximum=1_000_000, is_whole=True),
        ),
        "relax_clipping": _row(
            Target.SCRIPT,
            code={
                "torch": Code("torch.nn.utils.clip_grad_norm_(model.parameters(), {max_norm})"),
                "keras": Code("optimizer = keras.optimizers.SGD(learning_rate, global_clipnorm={max_norm})"),
                "jax": Code("optimizer = optax.chain(optax.clip_by_global_norm({max_norm}), optimizer)"),
            },
            max_norm=_POSITIVE,
        ),
        "use_bfloat16": _row(
            Target.SCRIPT,
            code={
                "torch": Code("with torch.autocast(device_type, dtype=torch.bfloat16):\n    loss = step(batch)"),
                "keras": Code("keras.mixed_precision.set_global_policy('mixed_bfloat16')"),
                "jax": Code("flax.linen.Dense(units, dtype=jnp.bfloat16)"),
            },
        ),
        "stable_loss": _row(
            Target.SCRIPT,
            code={
                "torch": Code("loss = torch.nn.functional.cross_entropy(logits, target)  # not log(softmax(x))"),
                "keras": Code("loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)"),
                "jax": Code("loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)"),
            },
        ),
    }
)
"""The catalogue: every remedy, by id."""

SET_PARAMETER = "set_parameter"
"""Id of the one remedy outside the catalogue. It sets parameters of the trainable itself, by their own names."""

MAX_COMBINED = 16
"""The largest number of remedies in one candidate."""


def remedy_errors(path: str, remedies: Sequence[Remedy]) -> Iterator[FieldError]:
    """Yield an error for each remedy of a candidate that is unknown or repeated, or has a bad parameter.

    >>> [error.message for error in remedy_errors("remedies[0]", [Remedy(id="warm_up", parameters={"steps": 0})])]
    ['must be from 1 to 1e+09, not 0']
    """
    if len(remedies) > MAX_COMBINED:
        yield FieldError(path=path, message=f"combines {len(remedies)} remedies; at most {MAX_COMBINED} are allowed")
        return
    seen: set[str] = set()
    for index, remedy in enumerate(remedies):
        remedy_path = f"{path}[{index}]"
        if remedy.id in seen:
            yield FieldError(path=f"{remedy_path}.id", message=f"repeats {remedy.id!r}: a remedy is applied once")
        seen.add(remedy.id)
        if remedy.id == SET_PARAMETER:
            continue  # its parameters are the trainable's, which are checked elsewhere
        kind = REMEDIES.get(remedy.id)
        if kind is None:
            ids = ", ".join([*REMEDIES, SET_PARAMETER])
            yield FieldError(path=f"{remedy_path}.id", message=f"{remedy.id!r} is not one of {ids}")
            continue
        for name in kind.parameters.keys() - remedy.parameters.keys():
            yield FieldError(path=f"{remedy_path}.parameters.{name}", message="is required")
        for name, value in remedy.parameters.items():
            parameter = kind.parameters.get(name)
            if parameter is None:
                expected = ", ".join(kind.parameters) or "none"
                yield FieldError(
                    path=f"{remedy_path}.parameters.{name}", message=f"there is no such parameter; it has {expected}"
                )
            elif (message := parameter.error(value)) is not None:
                yield FieldError(path=f"{remedy_path}.parameters.{name}", message=message)


def describe_remedies(remedies: Sequence[Remedy]) -> str:
    """Return the remedies of a candidate as one line of text.

    >>> describe_remedies([Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0}), Remedy(id="add_residual")])
    'clip_grad_norm(1.0) + add_residual()'
    >>> describe_remedies([])
    'control'
    """
    written = []
    for remedy in remedies:
        has_several = len(remedy.parameters) > 1
        values = (f"{name}={value}" if has_several else str(value) for name, value in remedy.parameters.items())
        written.append(f"{remedy.id}({', '.join(values)})")
    return " + ".join(written) or "control"
