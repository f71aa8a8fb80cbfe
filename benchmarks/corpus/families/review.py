"""The third split that a diagnostician may be developed on: families that `fit` and `tune` do not have."""

from __future__ import annotations

from typing import Final

from benchmarks.corpus.families.causes import DEAD, LARGE, MEMORY, RATE, SATURATION, SMALL, UNROLLED
from benchmarks.corpus.families.family import Family

# --- tables -----------------------------------------------------------------------------------------------------------

_iris = Family("iris", "mlp", 0.7, {"data": "iris", "hidden": [16, 16], "steps": 300, "lr": 5e-3, "batch": 16})
_iris.vanishing(
    "tanh-saturated",
    "unscaled_inputs saturating_activation poor_initialization",
    {
        "activation": "tanh",
        "inputs": "500",
        "hidden": [16] * 5,
        "init": "normal:4",
        "optimizer": "sgd",
        "lr": 1e-3,
        "loss": "mse_one_hot",
        "out_activation": "sigmoid",
    },
)
_iris.vanishing(
    "nielsen",
    "saturating_activation",
    {
        "bias": 14.0,
        "activation": "sigmoid",
        "out_activation": "sigmoid",
        "loss": "mse_one_hot",
        "optimizer": "sgd",
        "lr": 0.3,
    },
)
_iris.vanishing(
    "softsign-deep",
    SATURATION,
    {"activation": "softsign", "hidden": [16] * 12, "init": "uniform:0.05", "optimizer": "sgd", "lr": 0.05},
)
_iris.exploding("huge-rate-momentum", RATE, {"optimizer": "sgd", "lr": 30.0, "momentum": 0.99})
_iris.healthy("rprop", {"optimizer": "rprop", "lr": 1e-3, "batch": 120, "steps": 200})
_iris.healthy("memorized", {"steps": 900, "lr": 0.02})
_iris.healthy("batch-2", {"batch": 2, "optimizer": "sgd", "lr": 0.03, "steps": 800})
_iris.healthy("label-floor", {"label_noise": 0.35, "steps": 500})

_table = Family("gaussian-table", "mlp", 0.6, {"data": "gaussians:5", "hidden": [32, 32], "steps": 350, "lr": 3e-3})
_table.vanishing(
    "sigmoid-9-sgd",
    SATURATION,
    {"activation": "sigmoid", "hidden": [32] * 9, "optimizer": "sgd", "lr": 0.3, "momentum": 0.9},
)
_table.vanishing("sigmoid-12-adam", SATURATION, {"activation": "sigmoid", "hidden": [32] * 12, "lr": 1e-3})
_table.vanishing(
    "hard-sigmoid-8", SATURATION, {"activation": "hard_sigmoid", "hidden": [24] * 8, "optimizer": "nadam", "lr": 1e-3}
)
_table.vanishing("normal-1e-4", SMALL, {"init": "normal:0.0001", "hidden": [32] * 5, "optimizer": "sgd", "lr": 0.1})
_table.vanishing(
    "gelu-small",
    SMALL,
    {"activation": "gelu", "init": "normal:0.02", "hidden": [32] * 7, "optimizer": "adamax", "lr": 2e-4},
)
_table.vanishing(
    "dead-start",
    "dead_units learning_rate_too_high",
    {"schedule": "burst:0:3:60", "optimizer": "sgd", "lr": 0.1, "hidden": [32] * 4},
)
_table.vanishing("choked-by-norm", "excessive_clipping", {"clip_norm": 3e-6, "optimizer": "sgd", "lr": 0.3})
_table.vanishing(
    "choked-by-value", "excessive_clipping", {"clip_value": 1e-8, "optimizer": "sgd", "lr": 1.0, "momentum": 0.9}
)
_table.vanishing("decay-sgd", "excessive_weight_decay", {"optimizer": "sgd", "lr": 0.1, "weight_decay": 1.5})
_table.vanishing("decay-adamw", "excessive_weight_decay", {"optimizer": "adamw", "weight_decay": 120.0})
_table.vanishing(
    "decay-late",
    "excessive_weight_decay",
    {"hidden": [32] * 4, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.35, "momentum": 0.5, "steps": 500},
)
_table.vanishing("half-underflow", "precision_underflow", {"loss_scale": 2e-8, "optimizer": "sgd", "lr": 0.3})
_table.exploding("ascent", "", {"loss_factor": -1.0, "optimizer": "sgd", "lr": 0.05, "loss": "mse_one_hot"})
_table.exploding(
    "half-activations", "precision_overflow unscaled_inputs", {"half": True, "inputs": "30000", "hidden": [32] * 3}
)
_table.exploding(
    "accumulated-sum",
    RATE,
    {
        "accumulate": 16,
        "average": False,
        "optimizer": "sgd",
        "lr": 0.4,
        "batch": 8,
        "loss": "mse_one_hot",
        "hidden": [],
    },
)
_table.exploding("doubling", RATE, {"schedule": "doubling:12", "optimizer": "sgd", "lr": 0.01, "loss": "mse_one_hot"})
_table.healthy("lion", {"optimizer": "lion", "lr": 1e-3})
_table.healthy("adadelta", {"optimizer": "adadelta", "lr": 1.0})
_table.healthy("dropout", {"dropout": 0.7, "hidden": [96, 96], "steps": 500})
_table.healthy("private", {"gradient_noise": 0.05, "clip_norm": 0.5, "optimizer": "sgd", "lr": 0.2})
_table.healthy("clipped-always", {"clip_norm": 0.05, "optimizer": "sgd", "lr": 1.0, "steps": 500})
_table.healthy("tiny-units", {"loss_factor": 1e-7, "lr": 3e-3})
_table.healthy("huge-units", {"loss_factor": 1e6, "lr": 3e-3})
_table.healthy("below-zero", {"loss_offset": -1.5})
_table.healthy("other-names", {"switch": (200, "labels"), "steps": 600, "lr": 5e-3})
_table.healthy("mirrored", {"switch": (150, "mirror"), "steps": 500, "optimizer": "sgd", "lr": 0.2})
_table.healthy("grid", {"weight_grid": 0.01, "optimizer": "sgd", "lr": 0.1})
_table.healthy("onecycle-high", {"schedule": "onecycle", "optimizer": "sgd", "lr": 1.5, "steps": 400})
_table.healthy("triangle", {"schedule": "triangle:80:20", "lr": 5e-4, "steps": 500})
_table.healthy(
    "wild-batch", {"bad_batch": (180, 300.0), "optimizer": "sgd", "lr": 0.02, "clip_norm": 1.0, "steps": 500}
)
_table.healthy("flat-after-100", {"steps": 1000, "hidden": [96], "lr": 0.01, "data": "gaussians:3"})
_table.other("shuffled", {"targets_shuffled": True})
_table.other("no-rate", {"optimizer": "sgd", "lr": 1e-8})

_rare = Family("rare-class", "mlp", 0.3, {"data": "rare:4", "hidden": [24], "loss": "bce", "steps": 500, "lr": 5e-3})
_rare.healthy("low-from-the-start", {"bias": 0.0, "loss_factor": 0.1, "steps": 700})
_rare.vanishing(
    "saturated-deep",
    SATURATION,
    {"activation": "sigmoid", "hidden": [24] * 8, "optimizer": "sgd", "lr": 0.5, "batch": 400},
)
_rare.exploding(
    "naive", "numerical_instability unscaled_inputs", {"loss": "bce_naive", "out_activation": "sigmoid", "inputs": "60"}
)

_board = Family("checkerboard", "mlp", 0.6, {"data": "checkerboard:2", "hidden": [32, 32], "steps": 500, "lr": 5e-3})
_board.vanishing(
    "tanh-small",
    SMALL + " saturating_activation",
    {"activation": "tanh", "init": "normal:0.05", "hidden": [24] * 8, "optimizer": "sgd", "lr": 0.1},
)
_board.vanishing("uniform-elu", SMALL, {"activation": "elu", "init": "uniform:0.05", "hidden": [24] * 10, "lr": 1e-4})
_board.vanishing("negative-bias", DEAD, {"bias": -3.0, "hidden": [24] * 3, "optimizer": "sgd", "lr": 0.05})
_board.vanishing("narrow", DEAD, {"hidden": [2] * 12, "lr": 2e-3})
_board.healthy("plateau-tanh", {"activation": "tanh", "optimizer": "sgd", "lr": 0.4, "steps": 1500, "hidden": [32]})
_board.healthy("three", {"data": "checkerboard:3", "hidden": [64, 64], "steps": 900})
_board.healthy("deep-tanh", {"activation": "tanh", "init": "xavier", "hidden": [24] * 9, "lr": 1e-3})
_board.exploding("ascent", "", {"loss_factor": -1.0, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9})
_board.other("linear", {"hidden": [], "steps": 300})

_rings = Family(
    "shells",
    "mlp",
    0.6,
    {
        "data": "rings:3",
        "hidden": [32] * 12,
        "activation": "relu",
        "init": "he",
        "norm": "layer",
        "steps": 260,
        "lr": 2e-3,
    },
)
_rings.vanishing(
    "unnormalized-xavier",
    SMALL + " dead_units",
    {"norm": None, "init": "xavier", "gain": 0.5, "hidden": [32] * 18, "optimizer": "sgd", "lr": 0.05},
)
_rings.vanishing("silu-small", SMALL, {"norm": None, "activation": "silu", "init": "lecun", "gain": 0.25})
_rings.vanishing(
    "elu-normal", SMALL, {"norm": None, "activation": "elu", "init": "normal:0.02", "optimizer": "rmsprop", "lr": 1e-4}
)
_rings.exploding(
    "leaky-large", LARGE, {"norm": None, "activation": "leaky_relu", "gain": 2.5, "optimizer": "sgd", "lr": 1e-3}
)
_rings.healthy("batch-norm", {"norm": "batch", "optimizer": "sgd", "lr": 0.1})

_strength = Family("strength", "mlp", 0.6, {"data": "strength", "hidden": [24, 24], "steps": 500, "lr": 5e-3})
_strength.vanishing(
    "raw-tanh",
    "unscaled_inputs saturating_activation unscaled_targets poor_initialization",
    {
        "inputs": "raw",
        "targets": "raw",
        "activation": "tanh",
        "hidden": [24] * 3,
        "gain": 3.0,
        "optimizer": "sgd",
        "lr": 1e-3,
    },
)
_strength.vanishing(
    "sigmoid-6", SATURATION, {"activation": "sigmoid", "hidden": [24] * 6, "optimizer": "sgd", "lr": 0.1}
)
_strength.vanishing(
    "only-the-bias",
    SMALL,
    {"targets": "raw", "init": "normal:0.0005", "hidden": [24] * 4, "optimizer": "sgd", "lr": 2e-3},
)
_strength.vanishing(
    "dead-at-once",
    "dead_units learning_rate_too_high unscaled_targets",
    {"targets": "raw", "optimizer": "sgd", "lr": 0.02, "clip_norm": 50.0, "schedule": "burst:0:6:400"},
)
_strength.exploding(
    "raw",
    "unscaled_inputs unscaled_targets learning_rate_too_high",
    {"inputs": "raw", "targets": "raw", "optimizer": "sgd", "lr": 1e-3},
)
_strength.exploding(
    "raw-linear",
    "unscaled_inputs learning_rate_too_high",
    {"inputs": "raw", "hidden": [], "optimizer": "sgd", "lr": 2.2e-6, "batch": 256},
)
_strength.exploding(
    "momentum-0.99", RATE, {"hidden": [], "optimizer": "sgd", "lr": 4.2, "momentum": 0.99, "batch": 256, "steps": 900}
)
_strength.exploding("sum", RATE, {"loss": "mse_sum", "optimizer": "sgd", "lr": 0.02, "hidden": [], "batch": 60})
_strength.exploding(
    "rising-restarts", RATE, {"schedule": "rising-restarts:60:6", "optimizer": "sgd", "lr": 0.02, "hidden": []}
)
_strength.exploding(
    "rising-restarts-deep",
    RATE,
    {"schedule": "rising-restarts:50:5", "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "activation": "elu"},
)
_strength.exploding("adamw-doubling", RATE, {"schedule": "doubling:6", "optimizer": "adamw", "lr": 1e-3, "steps": 800})
_strength.exploding(
    "nadam-doubling",
    RATE,
    {"schedule": "doubling:5", "optimizer": "nadam", "lr": 1e-3, "steps": 800, "activation": "gelu"},
)
_strength.exploding(
    "doubling-leaky", RATE, {"schedule": "doubling:20", "optimizer": "sgd", "lr": 1e-3, "activation": "leaky_relu"}
)
_strength.exploding(
    "accumulated-sum",
    RATE,
    {"accumulate": 8, "average": False, "optimizer": "sgd", "lr": 0.14, "hidden": [], "batch": 32},
)
_strength.healthy("raw-targets-lion", {"targets": "raw", "optimizer": "lion", "lr": 0.01, "steps": 900})
_strength.healthy("raw-targets-rmsprop", {"targets": "raw", "optimizer": "rmsprop", "lr": 0.05, "steps": 700})
_strength.healthy("larger-world", {"switch": (250, "targets"), "steps": 800})
_strength.healthy("edge", {"hidden": [], "optimizer": "sgd", "lr": 0.6, "batch": 256})
_strength.other("shuffled", {"targets_shuffled": True})

_counts = Family(
    "visits",
    "mlp",
    0.5,
    {"data": "counts", "targets": "raw", "loss": "poisson", "hidden": [24], "steps": 500, "lr": 5e-3},
)
_counts.exploding("hot", "numerical_instability learning_rate_too_high", {"optimizer": "sgd", "lr": 3.0})
_counts.exploding(
    "late",
    "numerical_instability learning_rate_too_high",
    {"optimizer": "sgd", "lr": 1e-3, "schedule": "late:200:1000:200"},
)
_counts.exploding(
    "raw-inputs", "numerical_instability unscaled_inputs", {"inputs": "40", "optimizer": "sgd", "lr": 1e-3}
)
_counts.vanishing(
    "hard-sigmoid", SATURATION, {"activation": "hard_sigmoid", "hidden": [24] * 6, "optimizer": "sgd", "lr": 0.01}
)
_counts.healthy("sgd-clipped", {"optimizer": "sgd", "lr": 0.05, "clip_norm": 1.0})

_decay = Family(
    "three-decades", "mlp", 0.6, {"data": "decay", "targets": "raw", "hidden": [32, 32], "steps": 500, "lr": 3e-3}
)
_decay.exploding(
    "relative-error",
    "numerical_instability learning_rate_too_high",
    {"loss": "relative", "optimizer": "sgd", "lr": 0.01},
)
_decay.vanishing("collapsed", SMALL, {"init": "normal:0.01", "hidden": [32] * 6, "optimizer": "sgd", "lr": 0.05})

_saddle = Family("product", "mlp", 0.6, {"data": "saddle", "hidden": [32, 32], "steps": 500, "lr": 5e-3})
_saddle.healthy(
    "slow-escape",
    {"init": "normal:0.05", "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "steps": 1200, "activation": "tanh"},
)
_saddle.vanishing(
    "softplus-dead",
    SMALL,
    {
        "activation": "softplus",
        "init": "normal:0.003",
        "hidden": [32] * 6,
        "optimizer": "sgd",
        "lr": 0.02,
        "batch": 256,
    },
)
_saddle.vanishing("dead-bias", DEAD, {"bias": -6.0, "optimizer": "nesterov", "momentum": 0.9, "lr": 0.02})
_saddle.exploding(
    "quartic-hot",
    "numerical_instability learning_rate_too_high",
    {"loss": "quartic", "optimizer": "sgd", "lr": 0.1, "momentum": 0.9},
)
_saddle.exploding(
    "square-units",
    "numerical_instability poor_initialization missing_normalization",
    {"activation": "square", "hidden": [16] * 4, "init": "he", "optimizer": "sgd", "lr": 0.02},
)
_saddle.exploding(
    "restart-too-high", RATE, {"schedule": "step:250:60", "optimizer": "sgd", "lr": 0.05, "activation": "softplus"}
)

# --- depth ------------------------------------------------------------------------------------------------------------

_gates = Family("gated-units", "gated_stack", 0.6, {"norm": "layer", "steps": 300, "lr": 3e-3})
_gates.vanishing(
    "closed",
    "saturating_activation poor_initialization missing_normalization",
    {"norm": None, "gate_bias": -5.0, "optimizer": "sgd", "lr": 0.1},
)
_gates.vanishing(
    "closed-adam",
    "saturating_activation poor_initialization missing_normalization",
    {"norm": None, "gate_bias": -4.0, "layers": 10, "lr": 3e-4},
)
_gates.vanishing(
    "deep",
    "saturating_activation poor_initialization missing_normalization",
    {"norm": None, "layers": 12, "optimizer": "sgd", "lr": 0.1},
)
_gates.exploding(
    "bilinear", LARGE, {"norm": None, "gate": "linear", "init": "he", "layers": 5, "optimizer": "sgd", "lr": 0.01}
)

_blocks = Family("residual-blocks", "pre_activation", 0.6, {"steps": 260, "lr": 2e-3, "batch": 48})
_blocks.vanishing(
    "no-identity-small-scale",
    "missing_normalization poor_initialization",
    {"identity": False, "layer_scale": 1e-3, "norm": "none", "optimizer": "sgd", "lr": 0.1},
)
_blocks.vanishing(
    "no-identity-zero-end",
    "poor_initialization missing_normalization",
    {"identity": False, "norm": "none", "layer_scale": 0.0},
)
_blocks.vanishing(
    "no-identity-sigmoid",
    SATURATION,
    {"identity": False, "norm": "none", "activation": "sigmoid", "init": "xavier", "optimizer": "sgd", "lr": 0.2},
)
_blocks.exploding("unnormalized", LARGE, {"norm": "none", "blocks": 14, "optimizer": "sgd", "lr": 0.05})
_blocks.healthy("layer-scale", {"layer_scale": 1e-4, "blocks": 12, "optimizer": "adamw"})
_blocks.healthy("post-norm", {"norm": "post", "schedule": "warmup:40", "lr": 1e-3})
_blocks.healthy("left-out", {"branch_dropout": 0.5, "blocks": 12, "steps": 350})
_blocks.healthy("zero-scale", {"layer_scale": 0.0, "norm": "none", "blocks": 16, "lr": 1e-3})

_signs = Family("sign-units", "sign_network", 0.6, {"steps": 300, "lr": 3e-3})
_signs.vanishing(
    "narrow-window",
    "saturating_activation dead_units",
    {"window": 1e-4, "hidden": [24] * 10, "optimizer": "sgd", "lr": 0.05},
)
_signs.healthy("sgd", {"optimizer": "sgd", "lr": 0.3, "momentum": 0.9})

_chain = Family(
    "deep-linear",
    "mlp",
    0.6,
    {
        "data": "powers:4",
        "activation": "linear",
        "hidden": [12] * 6,
        "init": "orthogonal",
        "optimizer": "sgd",
        "lr": 0.01,
        "steps": 600,
    },
)
_chain.vanishing("half", SMALL, {"gain": 0.35, "hidden": [12] * 10})
_chain.vanishing("normal", SMALL, {"init": "normal:0.05", "hidden": [12] * 8, "optimizer": "nesterov", "momentum": 0.9})
_chain.exploding("twice", LARGE, {"gain": 1.7, "hidden": [12] * 10, "lr": 1e-3})
_chain.exploding("hot", RATE, {"lr": 0.3})
_chain.exploding("slowly-hotter", RATE, {"schedule": "ramp:150"})
_chain.healthy("from-the-saddle", {"gain": 0.5, "hidden": [12] * 3, "lr": 0.05, "steps": 1200})

_shapes = Family(
    "shapes-conv",
    "convolutional",
    0.6,
    {"data": "shapes", "channels": [8] * 6, "norm": "batch", "pool_after": [1], "steps": 200, "lr": 4e-3, "batch": 32},
)
_shapes.vanishing("sigmoid", SATURATION, {"norm": None, "activation": "sigmoid", "optimizer": "sgd", "lr": 0.1})
_shapes.vanishing("tanh-normal", SMALL, {"norm": None, "activation": "tanh", "init": "normal:0.01", "lr": 1e-4})
_shapes.vanishing(
    "softsign-deep",
    SATURATION,
    {"norm": None, "activation": "softsign", "channels": [8] * 14, "optimizer": "sgd", "lr": 0.05, "steps": 150},
)
_shapes.exploding("no-norm-hot", LARGE, {"norm": None, "init": "he", "optimizer": "sgd", "lr": 1.0, "momentum": 0.9})
_shapes.exploding("he-times-three", LARGE, {"norm": None, "init": "he", "gain": 3.0, "optimizer": "sgd", "lr": 0.05})
_shapes.exploding(
    "residual-momentum",
    LARGE,
    {
        "norm": None,
        "init": "he",
        "residual": True,
        "channels": [8] * 12,
        "optimizer": "sgd",
        "lr": 0.05,
        "momentum": 0.9,
    },
)
_shapes.healthy("nesterov-onecycle", {"optimizer": "nesterov", "lr": 0.4, "momentum": 0.9, "schedule": "onecycle"})
_shapes.healthy("switch", {"switch": (120, "labels"), "steps": 260})
_shapes.other("random-labels", {"label_noise": 1.0, "steps": 120})

_chirps = Family(
    "chirps-conv",
    "convolutional",
    0.6,
    {
        "data": "chirps",
        "dims": 1,
        "channels": [12] * 5,
        "norm": "group",
        "pool_after": [1, 3],
        "steps": 240,
        "lr": 4e-3,
        "batch": 32,
    },
)
_chirps.vanishing(
    "hard-sigmoid",
    SATURATION,
    {"norm": None, "activation": "hard_sigmoid", "optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
)
_chirps.vanishing(
    "gelu-small",
    SMALL,
    {"norm": None, "activation": "gelu", "init": "normal:0.01", "channels": [12] * 8, "optimizer": "sgd", "lr": 0.1},
)
_chirps.exploding(
    "loud",
    "unscaled_inputs learning_rate_too_high missing_normalization",
    {"norm": None, "inputs": "32768", "optimizer": "sgd", "lr": 0.01},
)
_chirps.healthy("click", {"bad_batch": (120, 100.0), "optimizer": "sgd", "lr": 0.1, "steps": 300})

# --- reconstruction ---------------------------------------------------------------------------------------------------

_auto = Family(
    "shapes-autoencoder",
    "autoencoder",
    0.25,
    {"data": "shapes", "hidden": [48, 24, 8], "inputs": "std", "steps": 500, "lr": 3e-3},
)
_auto.vanishing(
    "to-the-mean-sigmoid",
    SATURATION,
    {"activation": "sigmoid", "hidden": [48, 32, 24, 8], "optimizer": "sgd", "lr": 0.5},
)
_auto.vanishing("to-the-mean-dead", DEAD, {"init": "normal:0.002", "optimizer": "sgd", "lr": 0.1})
_auto.vanishing("to-the-mean-decay", "excessive_weight_decay", {"optimizer": "sgd", "lr": 0.2, "weight_decay": 0.3})
_auto.vanishing(
    "to-the-mean-softsign",
    SATURATION,
    {"activation": "softsign", "hidden": [48, 32, 24, 16, 8], "init": "normal:0.01", "optimizer": "adam", "lr": 3e-5},
)
_auto.exploding("linear-momentum", RATE, {"activation": "linear", "optimizer": "sgd", "lr": 0.5, "momentum": 0.99})
_auto.exploding("sum", RATE, {"loss": "mse_sum", "optimizer": "sgd", "lr": 0.02, "activation": "linear"})
_auto.exploding(
    "linear-doubling", RATE, {"activation": "linear", "optimizer": "sgd", "lr": 0.02, "schedule": "doubling:35"}
)
_auto.healthy("sparse-code", {"sparsity": 0.02})
_auto.healthy("denoising", {"blur": 0.7})

# --- sequences --------------------------------------------------------------------------------------------------------

_rows = Family(
    "digit-rows",
    "recurrent",
    0.6,
    {"task": "rows", "length": 8, "cell": "gru", "width": 32, "steps": 300, "lr": 0.01, "batch": 32},
)
_rows.exploding("relu-sgd", UNROLLED, {"cell": "rnn-relu", "init": "normal:0.6", "optimizer": "sgd", "lr": 0.1})
_rows.exploding(
    "softplus-hot", UNROLLED, {"cell": "rnn-softplus", "optimizer": "sgd", "lr": 0.05, "schedule": "late:120:3000:120"}
)
_rows.healthy("lstm-clipped", {"cell": "lstm", "clip_norm": 0.1, "optimizer": "adamw"})

_pixels = Family(
    "digit-pixels",
    "recurrent",
    0.35,
    {
        "task": "pixels",
        "length": 64,
        "cell": "gru",
        "width": 32,
        "steps": 450,
        "lr": 0.01,
        "batch": 32,
        "clip_norm": 1.0,
    },
)
_pixels.exploding(
    "irnn-hot",
    UNROLLED,
    {"cell": "rnn-relu", "init": "eye", "gain": 1.1, "clip_norm": None, "optimizer": "sgd", "lr": 0.05, "steps": 200},
)

_latch = Family(
    "latch",
    "recurrent",
    0.8,
    {
        "task": "latch",
        "length": 14,
        "cell": "lstm",
        "steps": 350,
        "lr": 0.01,
        "batch": 32,
        "clip_norm": 1.0,
        "forget_bias": 4.0,
    },
)
_latch.vanishing(
    "forgets",
    "long_recurrence saturating_activation poor_initialization",
    {"forget_bias": -8.0, "length": 40, "optimizer": "sgd", "lr": 0.1},
)
_latch.vanishing(
    "forgets-gru",
    "long_recurrence saturating_activation poor_initialization",
    {"cell": "gru", "forget_bias": -10.0, "length": 40, "lr": 1e-3, "steps": 250},
)
_latch.vanishing(
    "elman-contracting",
    MEMORY,
    {"cell": "rnn-tanh", "init": "orthogonal", "gain": 0.3, "length": 60, "lr": 3e-3, "steps": 250},
)
_latch.vanishing(
    "relu-small",
    "long_recurrence poor_initialization dead_units",
    {"cell": "rnn-relu", "init": "normal:0.02", "length": 50, "optimizer": "sgd", "lr": 0.1, "steps": 250},
)
_latch.vanishing(
    "elu-contracting",
    "long_recurrence poor_initialization",
    {
        "cell": "rnn-elu",
        "init": "orthogonal",
        "gain": 0.25,
        "length": 40,
        "optimizer": "rmsprop",
        "lr": 1e-3,
        "steps": 200,
    },
)
_latch.healthy("elman-orthogonal", {"cell": "rnn-tanh", "init": "orthogonal", "lr": 2e-3})
_latch.other("no-rate", {"lr": 1e-9, "steps": 200})

_lag = Family(
    "say-the-first",
    "recurrent",
    0.6,
    {
        "task": "lag",
        "length": 12,
        "cell": "lstm",
        "steps": 500,
        "lr": 0.01,
        "batch": 32,
        "forget_bias": 2.0,
        "clip_norm": 1.0,
    },
)
_lag.vanishing(
    "tanh-small",
    MEMORY,
    {
        "cell": "rnn-tanh",
        "forget_bias": None,
        "init": "normal:0.03",
        "length": 30,
        "batch": 128,
        "lr": 3e-3,
        "steps": 300,
    },
)
_lag.vanishing(
    "softsign",
    MEMORY,
    {
        "cell": "rnn-softsign",
        "forget_bias": None,
        "init": "orthogonal",
        "gain": 0.4,
        "length": 30,
        "optimizer": "sgd",
        "lr": 0.1,
        "steps": 200,
    },
)
_lag.exploding(
    "relu-slowly",
    UNROLLED,
    {
        "cell": "rnn-relu",
        "forget_bias": None,
        "init": "eye",
        "clip_norm": None,
        "optimizer": "sgd",
        "lr": 1e-3,
        "schedule": "ramp:5000",
        "steps": 400,
    },
)

_order = Family(
    "temporal-order",
    "recurrent",
    0.6,
    {"task": "order", "length": 16, "cell": "gru", "steps": 350, "lr": 0.01, "batch": 32},
)
_order.vanishing("sigmoid", MEMORY, {"cell": "rnn-sigmoid", "length": 40, "optimizer": "sgd", "lr": 0.1, "steps": 200})
_order.healthy("two-layers", {"layers": 2, "clip_value": 0.05})

_bits = Family(
    "running-parity",
    "recurrent",
    0.7,
    {"task": "parity", "length": 3, "cell": "rnn-tanh", "width": 32, "steps": 900, "lr": 5e-3, "batch": 64},
)
_bits.vanishing("sigmoid", MEMORY, {"cell": "rnn-sigmoid", "length": 12, "optimizer": "sgd", "lr": 0.05, "steps": 300})

_map = Family(
    "logistic-map",
    "recurrent",
    0.6,
    {"task": "chaos", "length": 10, "cell": "gru", "width": 24, "steps": 350, "lr": 0.01, "batch": 32},
)
_map.exploding(
    "relu-momentum",
    UNROLLED,
    {"cell": "rnn-relu", "init": "orthogonal", "optimizer": "sgd", "lr": 0.05, "momentum": 0.97},
)
_map.exploding(
    "large-targets",
    "unscaled_targets learning_rate_too_high missing_clipping",
    {"cell": "rnn-relu", "target_scale": 500.0, "optimizer": "sgd", "lr": 0.005},
)
_map.exploding("linear-ramp", UNROLLED, {"cell": "rnn-linear", "optimizer": "sgd", "lr": 5e-3, "schedule": "ramp:3000"})

_copy = Family(
    "substitution",
    "sequence_to_sequence",
    0.5,
    {
        "reverse": False,
        "length": 5,
        "cell": "gru",
        "steps": 350,
        "lr": 0.01,
        "batch": 32,
        "attention": True,
        "clip_norm": 1.0,
    },
)
_copy.vanishing(
    "long-contracting",
    MEMORY,
    {
        "cell": "rnn-tanh",
        "init": "normal:0.02",
        "attention": False,
        "length": 24,
        "optimizer": "sgd",
        "lr": 0.1,
        "steps": 160,
    },
)
_copy.vanishing(
    "long-sigmoid",
    MEMORY,
    {"cell": "rnn-sigmoid", "attention": False, "length": 16, "optimizer": "sgd", "lr": 0.05, "steps": 160},
)
_copy.healthy("frozen-embedding", {"freeze_first": 1, "freeze_by": "hook"})

_text = Family(
    "lm-module",
    "recurrent_language_model",
    0.12,
    {
        "source": "difflib",
        "cell": "gru",
        "width": 48,
        "steps": 220,
        "lr": 0.01,
        "batch": 12,
        "length": 24,
        "clip_norm": 1.0,
    },
)
_text.exploding(
    "relu-momentum",
    UNROLLED,
    {
        "cell": "rnn-relu",
        "init": "orthogonal",
        "clip_norm": None,
        "optimizer": "sgd",
        "lr": 0.1,
        "momentum": 0.99,
        "length": 30,
    },
)
_text.healthy("clip-every-step", {"clip_norm": 0.02, "optimizer": "sgd", "lr": 20.0, "steps": 260})
_text.healthy("frozen-embedding", {"freeze_first": 1})
_text.other("no-rate", {"optimizer": "sgd", "lr": 1e-7, "steps": 100})

_sort = Family(
    "sorting-transformer",
    "transformer",
    0.35,
    {"task": "sort", "length": 6, "blocks": 2, "steps": 260, "lr": 3e-3, "batch": 32},
)
_sort.vanishing(
    "post-norm-hot",
    "learning_rate_too_high missing_normalization poor_initialization",
    {"norm": "post", "blocks": 12, "lr": 0.02, "steps": 120},
)
_sort.vanishing(
    "no-skip",
    "missing_normalization poor_initialization saturating_activation",
    {"norm": "none", "residual": False, "blocks": 6, "steps": 140},
)
_sort.exploding(
    "sgd-ramp",
    RATE + " missing_normalization",
    {"norm": "none", "optimizer": "sgd", "lr": 0.05, "schedule": "ramp:100000", "activation": "relu"},
)
_sort.healthy("zero-branches", {"zero_branches": True})
_sort.healthy("post-warm", {"norm": "post", "schedule": "warmup:60", "lr": 2e-3})
_sort.healthy("lion", {"optimizer": "lion", "lr": 5e-4})

_vit = Family(
    "digit-patches", "transformer", 0.6, {"task": "digits", "blocks": 2, "steps": 200, "lr": 3e-3, "batch": 32}
)
_vit.vanishing(
    "post-norm-deep",
    "missing_normalization learning_rate_too_high poor_initialization",
    {"norm": "post", "blocks": 14, "lr": 0.02, "steps": 100},
)
_vit.vanishing(
    "sigmoid-no-skip",
    SATURATION,
    {
        "norm": "none",
        "residual": False,
        "blocks": 5,
        "activation": "sigmoid",
        "optimizer": "sgd",
        "lr": 0.1,
        "steps": 120,
    },
)
_vit.exploding("large", LARGE, {"norm": "none", "blocks": 4, "gain": 5.0, "optimizer": "sgd", "lr": 0.1, "steps": 120})
_vit.healthy("layer-by-layer", {"freeze_first": 6, "freeze_by": "group", "group_rates": (1.0, 0.0)})

# --- fine-tuning ------------------------------------------------------------------------------------------------------

_transfer = Family("shapes-transfer", "transfer", 0.7, {"world": "labels", "method": "all", "steps": 250, "lr": 2e-3})
_transfer.healthy("head-by-flag", {"method": "head", "lr": 0.01})
_transfer.healthy("head-by-hook", {"freeze_first": 6, "freeze_by": "hook", "lr": 0.01})
_transfer.healthy("head-by-group", {"freeze_first": 6, "freeze_by": "group", "group_rates": (1.0, 0.0), "lr": 0.01})
_transfer.healthy("biases", {"method": "bias", "lr": 0.02, "steps": 350})
_transfer.healthy("adapters", {"method": "adapter", "lr": 5e-3})
_transfer.healthy("prompt", {"method": "prompt", "world": "noise", "lr": 0.02})
_transfer.healthy("near-convergence", {"world": "", "pretraining": 400, "lr": 1e-4, "steps": 300})
_transfer.healthy(
    "near-convergence-sgd",
    {"world": "", "pretraining": 400, "optimizer": "sgd", "lr": 1e-3, "steps": 300, "label_noise": 0.2},
)
_transfer.exploding("hot", RATE, {"optimizer": "sgd", "lr": 3.0, "momentum": 0.95, "world": "mirror"})
_transfer.exploding(
    "adapters-large",
    "poor_initialization learning_rate_too_high",
    {"method": "adapter", "adapter_scale": 6.0, "optimizer": "sgd", "lr": 0.1},
)
_transfer.other("no-rate", {"optimizer": "sgd", "lr": 1e-8, "steps": 200})

_bag = Family("frozen-words", "bag_of_words", 0.5, {"words": 800, "hidden": 24, "steps": 450, "lr": 0.01, "batch": 48})
_bag.vanishing(
    "frozen-tiny", "poor_initialization", {"embedding_scale": 1e-5, "freeze_first": 1, "optimizer": "sgd", "lr": 0.1}
)
_bag.healthy("frozen-random", {"embedding_scale": 1.0, "freeze_first": 1, "width": 64})
_bag.healthy("many-words", {"words": 5000, "batch": 8, "steps": 800})

# --- several losses, moving targets -----------------------------------------------------------------------------------

_uncertain = Family("uncertain", "heteroscedastic", 0.6, {"steps": 500, "lr": 5e-3})
_uncertain.exploding(
    "exp-unbounded",
    "numerical_instability learning_rate_too_high",
    {"scale_map": "exp", "floor": 0.0, "optimizer": "sgd", "lr": 0.3},
)
_uncertain.exploding(
    "exp-late",
    "numerical_instability learning_rate_too_high",
    {"scale_map": "exp", "floor": 0.0, "optimizer": "sgd", "lr": 5e-3, "schedule": "late:200:500:200"},
)
_uncertain.healthy("crosses-zero", {"data": "decay", "lr": 3e-3, "floor": 0.02})
_uncertain.vanishing(
    "sigmoid-7", SATURATION, {"activation": "sigmoid", "hidden": [24] * 7, "optimizer": "sgd", "lr": 0.02}
)

_teacher = Family("mean-teacher", "mean_teacher", 0.5, {"steps": 350, "lr": 3e-3, "batch": 32})
_teacher.healthy("heavy", {"weight": 10.0, "ramp": 200})
_teacher.exploding("growing-rate", RATE, {"optimizer": "sgd", "lr": 0.05, "schedule": "ramp:1e8"})

_sets = Family("sets", "pooled_set", 0.5, {"pool": "max", "steps": 400, "lr": 5e-3, "batch": 32})
_sets.exploding(
    "sum",
    "missing_normalization learning_rate_too_high unscaled_inputs",
    {"pool": "sum", "size": 150, "optimizer": "sgd", "lr": 0.02},
)
_sets.vanishing(
    "sigmoid",
    SATURATION,
    {"pool": "mean", "activation": "sigmoid", "init": "normal:0.05", "optimizer": "sgd", "lr": 0.02},
)

_company = Family("word-counts", "word_vectors", 0.5, {"steps": 900, "lr": 0.05, "batch": 512})
_company.exploding("hot", RATE, {"optimizer": "sgd", "lr": 2000.0, "scale": 0.5})
_company.exploding(
    "raw-counts", "unscaled_targets learning_rate_too_high", {"optimizer": "sgd", "lr": 2.0, "count_scale": 200.0}
)
_company.exploding("ramp", RATE, {"optimizer": "sgd", "lr": 0.5, "schedule": "ramp:2000"})
_company.healthy("adagrad", {"optimizer": "adagrad", "lr": 0.3})

_values = Family("drifting-values", "drifting_values", 0.6, {"optimizer": "sgd", "lr": 0.05, "steps": 500})
_values.exploding("grows", "", {"growth": 1.6, "discount": 0.99, "lr": 0.1, "steps": 900}, twin={"growth": 0.8})
_values.exploding("grows-slowly", "", {"growth": 1.3, "discount": 0.98, "lr": 0.1, "steps": 1600}, twin={"growth": 0.7})
_values.exploding(
    "network", "", {"growth": 2.5, "discount": 0.95, "hidden": [24], "lr": 0.05, "steps": 900}, twin={"growth": 0.6}
)
_values.healthy("adam", {"hidden": [24, 24], "optimizer": "adam", "lr": 3e-3})

_game = Family(
    "bilinear-game", "bilinear_game", 0.6, {"damping": 1.0, "optimizer": "sgd", "lr": 0.1, "steps": 500, "batch": 16}
)
_game.exploding("spiral", RATE, {"damping": 0.0, "lr": 0.5, "steps": 900})
_game.exploding("spiral-momentum", RATE, {"damping": 0.0, "lr": 0.1, "momentum": 0.9, "steps": 900})
_game.healthy("in-turns", {"turns": True, "steps": 800})

_component = Family("component", "principal_component", 0.6, {"optimizer": "sgd", "lr": 0.05, "steps": 500})
_component.exploding("unbounded", "", {"penalty": 0.0, "lr": 0.2, "steps": 700})
_component.exploding("unbounded-slowly", "", {"penalty": 0.0, "lr": 0.08, "steps": 1200})
_component.healthy("weak-penalty", {"penalty": 0.1, "lr": 0.1})

_actor = Family("ring-actor", "actor_critic", 0.6, {"steps": 700, "lr": 5e-3, "batch": 48})
_actor.healthy("larger-rewards", {"reward_scale": 10.0, "clip_norm": 1.0})
_actor.exploding(
    "hot", RATE + " unscaled_targets", {"activation": "relu", "optimizer": "sgd", "lr": 0.5, "reward_scale": 30.0}
)
_actor.exploding("ramp", RATE, {"activation": "relu", "optimizer": "sgd", "lr": 0.05, "schedule": "ramp:5000"})

_meta = Family("sine-tasks", "meta_learning", 0.3, {"steps": 300, "lr": 5e-3, "batch": 10, "inner_rate": 0.05})
_meta.exploding(
    "inner-hot",
    "learning_rate_too_high missing_clipping long_recurrence",
    {"inner_rate": 1.5, "inner_steps": 4, "optimizer": "sgd", "lr": 0.02},
)
_meta.exploding("outer-ramp", RATE, {"optimizer": "sgd", "lr": 5e-3, "schedule": "ramp:3000"})
_meta.healthy("one-task", {"tasks": 1, "clip_norm": 1.0, "steps": 400})

_critic = Family(
    "gan-wasserstein",
    "adversarial",
    0.5,
    {
        "wasserstein": True,
        "modes": 4,
        "critic_steps": 3,
        "weight_clamp": 0.1,
        "optimizer": "rmsprop",
        "lr": 2e-3,
        "batch": 96,
        "steps": 1600,
        "hidden": 64,
    },
)
_critic.exploding(
    "unclamped",
    "learning_rate_too_high missing_clipping",
    {"weight_clamp": 1e30, "optimizer": "sgd", "lr": 0.05, "together": True},
)

_views = Family("views", "contrastive", 0.5, {"data": "gaussians:6", "steps": 250, "lr": 3e-3, "batch": 48})
_views.exploding(
    "cold",
    "numerical_instability learning_rate_too_high unscaled_inputs",
    {"temperature": 1e-3, "normalize": False, "optimizer": "sgd", "lr": 0.1},
)
_views.vanishing(
    "hard-sigmoid",
    SATURATION,
    {"activation": "hard_sigmoid", "hidden": [24] * 8, "init": "lecun", "optimizer": "sgd", "lr": 0.1},
)

_mixed = Family(
    "unequal-tasks",
    "multi_task",
    0.6,
    {"regression_scale": 100.0, "regression_weight": 1e-3, "steps": 800, "lr": 0.02, "hidden": [64]},
)
_mixed.exploding(
    "unweighted", "unscaled_targets learning_rate_too_high", {"regression_weight": 1.0, "optimizer": "sgd", "lr": 0.02}
)
_mixed.healthy("weighted-by-turns", {"alternate": True, "steps": 600})

_pair = Family(
    "noisy-teacher", "distillation", 0.6, {"data": "gaussians:4", "temperature": 8.0, "steps": 350, "lr": 5e-3}
)
_pair.healthy("very-hot", {"temperature": 40.0})

_field = Family(
    "image-relu",
    "coordinate_network",
    0.5,
    {"activation": "relu", "siren_init": False, "steps": 500, "lr": 5e-3, "batch": 144, "hidden": [64, 64]},
)
_field.vanishing("sigmoid", SATURATION, {"activation": "sigmoid", "hidden": [32] * 6, "optimizer": "sgd", "lr": 0.1})

_halves = Family(
    "half-table",
    "mlp",
    0.6,
    {
        "data": "gaussians:4",
        "hidden": [48],
        "steps": 350,
        "lr": 3e-3,
        "loss_scale": 2.0**20,
        "dynamic_scale": True,
        "scale_growth_interval": 30,
    },
)
_halves.exploding("fixed", "precision_overflow", {"dynamic_scale": False, "loss_scale": 2.0**22})
_halves.exploding(
    "fixed-later",
    "precision_overflow learning_rate_too_high",
    {"dynamic_scale": False, "loss_scale": 2.0**14, "optimizer": "sgd", "lr": 0.05, "schedule": "late:150:200:200"},
)

# --- which take their time, or never learn for other reasons ----------------------------------------------------------

_slow = Family(
    "shells-least-squares",
    "mlp",
    0.3,
    {"data": "gaussians:3", "hidden": [], "loss": "mse_one_hot", "optimizer": "sgd", "lr": 0.05, "steps": 400},
)
_slow.exploding("just-above", RATE, {"lr": 1.3, "batch": 256})
_slow.exploding("wide-columns", "unscaled_inputs learning_rate_too_high", {"inputs": "6", "lr": 0.025})
_slow.exploding("sum", RATE, {"loss": "sum_one_hot", "lr": 5e-3})
_slow.exploding("triangle", RATE, {"schedule": "triangle:200:60", "batch": 128})
_slow.exploding("nesterov-ramp", RATE, {"optimizer": "nesterov", "momentum": 0.9, "schedule": "ramp:300", "lr": 0.01})
_slow.healthy("just-below", {"lr": 0.3, "batch": 256})

_iris.other("shuffled", {"targets_shuffled": True, "steps": 250, "optimizer": "sgd", "lr": 0.01})
_rings.other("random-labels", {"label_noise": 1.0, "hidden": [32, 32], "steps": 200})
_saddle.other("linear", {"hidden": []})
_counts.other("no-rate", {"lr": 1e-9, "steps": 200})
_map.other("no-rate", {"optimizer": "sgd", "lr": 1e-8, "steps": 150})
_sort.other("no-rate", {"lr": 1e-9, "steps": 100})

FAMILIES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Family))
