"""The faulty configurations: each a setting with one fault, and its twin without it.

A family is one fault in one architecture. Its members differ in size, data, optimizer and strength of the fault.
Whether a configuration fails is measured (`trials`): those that do not fail, or whose twin does not learn, are left out
before any remedy is tried.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Final

MEMBERS_PER_FAMILY: Final = 5
"""Number of configurations of a family, spread evenly over its settings."""
DRAWN: Final = "-of-"
"""Text before the seed in the name of a drawn configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """All settings of a training run."""

    network: str
    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float | None = None
    batch: int = 32
    steps: int = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A faulty setting and its known good twin."""

    name: str
    family: str
    faulty: Setting
    twin: Setting


def _changed(setting: Setting, **changes: Any) -> Setting:
    """Return a setting with other fields; `options` are merged."""
    options = {**setting.options, **changes.pop("options", {})}
    return replace(setting, options=options, **changes)


def _sigmoid_mlp() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for (depth, width), data in product(((5, 32), (7, 40), (9, 24), (6, 48)), ("digits", "wine")):
        setting = Setting(
            network="mlp" if depth % 2 else "functional_mlp",
            task=f"data:{data}",
            options={"depth": depth, "width": width, "activation": "sigmoid", "init": "default"},
            lr=0.1,
        )
        yield setting, {"options": {"activation": "relu", "init": "he"}, "lr": 0.02}


def _sigmoid_autoencoder() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for depth, data, optimizer in product((3, 4), ("digits", "waves"), ("sgd", "rmsprop")):
        lr = 0.1 if optimizer == "sgd" else 1e-3
        options = {"depth": depth, "width": 32, "activation": "sigmoid", "init": "default"}
        setting = Setting(network="autoencoder", task=f"copy:{data}", options=options, lr=lr, optimizer=optimizer)
        yield (
            setting,
            {"options": {"activation": "elu", "init": "he"}, "lr": 0.02 if optimizer == "sgd" else 1e-3},
        )


def _small_weights() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for activation, depth, std in product(("tanh", "relu"), (4, 6), (0.005, 0.02)):
        options = {"depth": depth, "width": 48, "activation": activation, "init": f"normal:{std}"}
        yield (
            Setting(network="functional_mlp", task="data:digits", options=options, lr=0.05),
            {"options": {"init": "xavier" if activation == "tanh" else "he"}, "lr": 0.02},
        )


def _deep_default() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for depth, activation, data in product((14, 20, 26), ("relu", "tanh"), ("digits", "breast_cancer")):
        options = {"depth": depth, "width": 24, "activation": activation, "init": "default"}
        fixed = {"init": "he" if activation == "relu" else "xavier"}
        yield Setting(network="mlp", task=f"data:{data}", options=options, lr=0.02), {"options": fixed, "lr": 0.01}


def _large_weights() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for depth, gain, data in product((5, 8), (3.0, 6.0), ("digits", "friedman")):
        options = {"depth": depth, "width": 48, "activation": "relu", "init": f"he*{gain}"}
        yield Setting(network="mlp", task=f"data:{data}", options=options, lr=0.01), {"options": {"init": "he"}}


def _learning_rate() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for (network, data), rate, width in product(
        (("mlp", "digits"), ("functional_mlp", "friedman")), (1.0, 10.0), (32, 64)
    ):
        options = {"depth": 3, "width": width, "activation": "relu", "init": "he"}
        yield Setting(network=network, task=f"data:{data}", options=options, lr=rate), {"lr": 0.02}


def _unscaled_data() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for data, depth, rate in product(("housing", "diabetes"), (1, 2), (1e-3, 1e-2)):
        options = {"depth": depth, "width": 32, "activation": "relu", "init": "default"}
        yield (
            Setting(network="mlp", task=f"data:{data},raw,raw", options=options, lr=rate),
            {"task": f"data:{data}", "lr": 0.01},
        )


def _unscaled_targets() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for data, scale, width in product(("friedman", "teacher"), ("100", "1000"), (32, 64)):
        options = {"depth": 2, "width": width, "activation": "relu", "init": "default"}
        yield (
            Setting(network="mlp", task=f"data:{data},std,{scale}", options=options, lr=0.01),
            {"task": f"data:{data}"},
        )


def _plain_convolutions() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for depth, init in product((8, 12), ("normal:0.01", "normal:0.03", "he*2.5")):
        options = {"depth": depth, "width": 8, "init": init}
        yield (
            Setting(network="convolutional", task="data:stripes", options=options, lr=0.05, batch=16, steps=150),
            {"options": {"init": "he", "norm": True}},
        )


def _linear_chain() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for factor, depth in product((0.3, 0.45, 2.2, 3.0), (10, 16)):
        setting = Setting(
            network="chain", task="data:teacher", options={"factor": factor, "depth": depth}, lr=0.005, momentum=0.0
        )
        yield setting, {"options": {"factor": 1.0}}


def _unbounded_activation() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for depth, data, rate in product((3, 4), ("digits", "friedman"), (0.02, 0.05)):
        options = {"depth": depth, "width": 32, "activation": "square", "init": "default"}
        yield (
            Setting(network="mlp", task=f"data:{data}", options=options, lr=rate),
            {"options": {"activation": "elu", "init": "he"}, "lr": 0.02},
        )


def _recurrent_language_model() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for rate, length, hidden in product((2.0, 5.0), (40, 60), (32, 64)):
        yield (
            Setting(
                network="language_model",
                task=f"text:{length}",
                options={"hidden": hidden, "init": "default"},
                lr=rate,
                batch=8,
                steps=200,
            ),
            {"lr": 0.3, "clip": 0.5},
        )


def _large_recurrence() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for cell, gain, which in product(("rnn-relu", "rnn-tanh"), (3.0, 6.0), ("frequency", "accumulate")):
        options = {"cell": cell, "hidden": 32, "recurrent_gain": gain}
        yield (
            Setting(network="sequence_classifier", task=f"sequence:{which}:30", options=options, lr=0.02),
            {"options": {"recurrent_gain": None, "init": "orthogonal"}, "clip": 1.0, "lr": 0.01},
        )


def _forgetful_recurrence() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for which, length, gain in product(("recall", "latch"), (12, 20), (0.2, 0.4)):
        options = {"cell": "rnn-tanh", "hidden": 32, "recurrent_gain": gain}
        yield (
            Setting(
                network="sequence_classifier",
                task=f"sequence:{which}:{length}",
                options=options,
                optimizer="adam",
                lr=3e-3,
                steps=300,
            ),
            {"options": {"recurrent_gain": None, "init": "orthogonal"}},
        )


def _post_norm_transformer() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for depth, rate, optimizer in product((4, 6), (0.02, 0.05), ("adam", "adamw")):
        yield (
            Setting(
                network="transformer",
                task="text:24",
                options={"depth": depth},
                optimizer=optimizer,
                lr=rate,
                batch=8,
                steps=150,
            ),
            {"options": {"is_pre_norm": True}, "lr": 2e-3},
        )


def _weight_decay() -> Iterator[tuple[Setting, dict[str, Any]]]:
    for depth, decay, activation in product((4, 6), (0.1, 0.3), ("relu", "tanh")):
        options = {"depth": depth, "width": 32, "activation": activation, "init": "he"}
        yield (
            Setting(network="mlp", task="data:digits", options=options, lr=0.05, weight_decay=decay),
            {"weight_decay": 1e-4},
        )


FAMILIES: Final = {
    "sigmoid-mlp": _sigmoid_mlp,
    "sigmoid-autoencoder": _sigmoid_autoencoder,
    "small-weights": _small_weights,
    "deep-default": _deep_default,
    "large-weights": _large_weights,
    "learning-rate": _learning_rate,
    "unscaled-data": _unscaled_data,
    "unscaled-targets": _unscaled_targets,
    "plain-convolutions": _plain_convolutions,
    "linear-chain": _linear_chain,
    "unbounded-activation": _unbounded_activation,
    "recurrent-language-model": _recurrent_language_model,
    "large-recurrence": _large_recurrence,
    "forgetful-recurrence": _forgetful_recurrence,
    "post-norm-transformer": _post_norm_transformer,
    "weight-decay": _weight_decay,
}


def _configuration(name: str, family: str, setting: Setting, changes: Mapping[str, Any]) -> Configuration:
    return Configuration(name=name, family=family, faulty=setting, twin=_changed(setting, **changes))


def _configurations() -> Iterator[Configuration]:
    for family, settings in FAMILIES.items():
        members = list(settings())
        for index in sorted(
            {round(place * (len(members) - 1) / (MEMBERS_PER_FAMILY - 1)) for place in range(MEMBERS_PER_FAMILY)}
        ):
            yield _configuration(f"{family}-{index}", family, *members[index])


CONFIGURATIONS: Final = {configuration.name: configuration for configuration in _configurations()}
"""The listed configurations, by name."""
FITTED: Final = frozenset(list(CONFIGURATIONS)[::2])
"""Names of every other configuration. Their trials correct the chances of the advice (`experiments.evidence`); the
others test the advice."""


def drawn(seed: int) -> dict[str, Configuration]:
    """Draw new members of every family, each with another size, data order and fault.

    Widths, depths, batches, learning rates and the numbers of the fault differ from those of the families, by up to
    about a half. The same seed draws the same configurations.
    """
    configurations = {}
    for family, settings in FAMILIES.items():
        members = list(settings())
        draw = random.Random(f"{seed} {family}")
        for place, index in enumerate(sorted(draw.choices(range(len(members)), k=MEMBERS_PER_FAMILY))):
            setting, changes = members[index]
            name = f"{family}-{place}{DRAWN}{seed}"
            configurations[name] = _configuration(name, family, _varied(setting, draw), changes)
    return configurations


def _varied(setting: Setting, draw: random.Random) -> Setting:
    """Return a setting of another size, rate and fault."""

    def scaled(value: float, most: float) -> float:
        return float(f"{value * most ** draw.uniform(-1, 1):.2g}")

    options = dict(setting.options)
    for size in ("width", "hidden"):
        if size in options:
            options[size] = 4 * round(options[size] * 1.4 ** draw.uniform(-1, 1) / 4)
    if "depth" in options:
        options["depth"] = max(1, options["depth"] + draw.choice((-1, 0, 1)))
    for fault in ("factor", "recurrent_gain"):
        if fault in options:
            options[fault] = scaled(options[fault], 1.15)
    return replace(
        setting,
        options=options,
        lr=scaled(setting.lr, 1.5),
        weight_decay=scaled(setting.weight_decay, 1.3),
        batch=draw.choice((setting.batch // 2, setting.batch, setting.batch * 2)),
    )


def by_name(name: str) -> Configuration:
    """Return a configuration, listed or drawn.

    Raises:
        ValueError: there is none of this name.
    """
    _, is_drawn, seed = name.partition(DRAWN)
    configurations = drawn(int(seed)) if is_drawn else CONFIGURATIONS
    if name not in configurations:
        raise ValueError(f"there is no configuration {name!r}")
    return configurations[name]
