"""The first split that a diagnostician may be developed on."""

from __future__ import annotations

from typing import Final

from benchmarks.corpus.families.family import Family

_digits = Family("digits-mlp", "mlp", 0.7, {"data": "digits", "hidden": [48, 48], "steps": 400, "lr": 2e-3})
_digits.exploding("sgd-lr", "learning_rate_too_high", {"optimizer": "sgd", "lr": 40.0})
_digits.exploding(
    "raw-inputs",
    "unscaled_inputs learning_rate_too_high",
    {"inputs": "1000", "optimizer": "sgd", "lr": 0.05},
)
_digits.exploding("naive-nll", "numerical_instability unscaled_inputs", {"loss": "nll_naive", "inputs": "200"})
_digits.vanishing("zeros", "poor_initialization", {"init": "zeros", "bias": 0.0})
_digits.vanishing("decay", "excessive_weight_decay", {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 60.0})
_digits.vanishing("choked", "excessive_clipping", {"optimizer": "sgd", "lr": 0.1, "clip_norm": 1e-6})
_digits.healthy("long", {"steps": 900, "lr": 5e-3})
_digits.healthy("to-zero", {"schedule": "zero:250", "steps": 500})
_digits.healthy("restarts", {"schedule": "cosine-restarts:120", "optimizer": "sgd", "lr": 0.2, "momentum": 0.9})
_digits.healthy("bad-batch", {"bad_batch": (200, 60.0), "optimizer": "sgd", "lr": 0.05, "steps": 500})
_digits.healthy("noisy-batch-1", {"batch": 1, "optimizer": "sgd", "lr": 0.01, "steps": 900})
_digits.healthy("burst", {"schedule": "burst:150:4:30", "steps": 500})
_digits.healthy("accumulate", {"accumulate": 4, "batch": 16, "clip_norm": 0.5, "optimizer": "sgd", "lr": 0.3})
_digits.healthy("lbfgs", {"optimizer": "lbfgs", "lr": 0.5, "batch": 256, "steps": 60})
_digits.healthy("label-noise", {"label_noise": 0.3, "steps": 500})
_digits.healthy("sum-loss", {"loss": "ce_sum", "optimizer": "sgd", "lr": 1e-3})
_digits.other("slow", {"optimizer": "sgd", "lr": 1e-6})
_digits.other("random-labels", {"label_noise": 1.0})

_sigmoid = Family(
    "deep-sigmoid",
    "mlp",
    0.6,
    {"data": "digits", "hidden": [32] * 8, "activation": "elu", "init": "he", "steps": 400, "lr": 1e-3},
)
_sigmoid.vanishing(
    "sigmoid",
    "saturating_activation poor_initialization missing_normalization",
    {"activation": "sigmoid", "init": "default", "optimizer": "sgd", "lr": 0.1},
)
_sigmoid.vanishing(
    "sigmoid-adam",
    "saturating_activation poor_initialization missing_normalization",
    {"activation": "sigmoid", "init": "xavier", "hidden": [32] * 14},
)
_sigmoid.vanishing(
    "hard-sigmoid",
    "saturating_activation poor_initialization missing_normalization",
    {"activation": "hard_sigmoid", "init": "default", "optimizer": "sgd", "lr": 0.1, "momentum": 0.9},
)
_sigmoid.vanishing(
    "tiny-normal",
    "poor_initialization missing_normalization",
    {"activation": "tanh", "init": "normal:0.01", "optimizer": "sgd", "lr": 0.1},
)
_sigmoid.vanishing(
    "tiny-relu", "poor_initialization missing_normalization", {"activation": "relu", "init": "he", "gain": 0.08}
)
_sigmoid.healthy("deep-tanh", {"activation": "tanh", "init": "xavier", "hidden": [32] * 10})
_sigmoid.healthy("sigmoid-norm", {"activation": "sigmoid", "norm": "batch", "init": "xavier", "gain": 2.0, "lr": 3e-3})
_sigmoid.healthy("shallow-sigmoid", {"activation": "sigmoid", "hidden": [48, 48], "init": "xavier", "lr": 5e-3})

_deep_relu = Family(
    "deep-relu-blobs",
    "mlp",
    0.6,
    {
        "data": "blobs:5",
        "hidden": [24] * 20,
        "activation": "relu",
        "init": "he",
        "norm": "batch",
        "steps": 300,
        "lr": 3e-3,
    },
)
_deep_relu.vanishing(
    "narrow",
    "dead_units poor_initialization missing_normalization",
    {"norm": None, "hidden": [4] * 20, "init": "default"},
)
_deep_relu.vanishing(
    "dead-bias", "dead_units poor_initialization", {"norm": None, "hidden": [24] * 4, "bias": -8.0, "lr": 1e-3}
)
_deep_relu.vanishing(
    "default-init",
    "poor_initialization missing_normalization",
    {"norm": None, "init": "default", "gain": 0.6, "hidden": [24] * 30, "optimizer": "sgd", "lr": 0.05},
)
_deep_relu.exploding(
    "large-init",
    "poor_initialization missing_normalization",
    {"norm": None, "gain": 3.0, "optimizer": "sgd", "lr": 0.01},
)
_deep_relu.exploding(
    "exp",
    "saturating_activation poor_initialization numerical_instability missing_normalization",
    {"activation": "exp", "norm": None, "hidden": [24] * 4},
)
_deep_relu.healthy("residual-zero", {"norm": None, "residual": "zero", "hidden": [24] * 30, "lr": 1e-3})
_deep_relu.healthy("layer-norm", {"norm": "layer", "hidden": [24] * 14})
_deep_relu.healthy("leaky", {"norm": None, "activation": "leaky_relu", "hidden": [32] * 12, "lr": 1e-3})

_friedman = Family("friedman", "mlp", 0.6, {"data": "friedman", "hidden": [32, 32], "steps": 500, "lr": 3e-3})
_friedman.exploding(
    "raw-targets", "unscaled_targets learning_rate_too_high", {"targets": "1000", "optimizer": "sgd", "lr": 0.01}
)
_friedman.exploding(
    "late-ramp",
    "learning_rate_too_high",
    {"optimizer": "sgd", "lr": 0.02, "schedule": "late:250:400:200", "hidden": [32]},
)
_friedman.exploding(
    "late-ramp-momentum",
    "learning_rate_too_high",
    {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "schedule": "ramp:3000", "activation": "tanh"},
)
_friedman.exploding("adam-lr", "learning_rate_too_high", {"lr": 30.0, "hidden": [32, 32, 32]})
_friedman.exploding(
    "quartic",
    "numerical_instability unscaled_targets learning_rate_too_high",
    {"loss": "quartic", "optimizer": "sgd", "lr": 0.02, "targets": "4"},
)
_friedman.exploding(
    "linear-slow", "learning_rate_too_high", {"hidden": [], "optimizer": "sgd", "lr": 1.06, "inputs": "1.4"}
)
_friedman.healthy("large-targets", {"targets": "300", "lr": 0.02, "steps": 900})
_friedman.healthy("raw-huber", {"targets": "raw", "loss": "huber", "lr": 0.01})
_friedman.healthy("edge", {"optimizer": "sgd", "lr": 0.25, "activation": "tanh"})
_friedman.healthy("adagrad", {"optimizer": "adagrad", "lr": 0.1})

_housing = Family("housing", "mlp", 0.6, {"data": "housing", "hidden": [16], "steps": 400, "lr": 0.02})
_housing.exploding(
    "raw",
    "unscaled_inputs unscaled_targets learning_rate_too_high",
    {"inputs": "raw", "targets": "raw", "optimizer": "sgd", "lr": 1e-3},
)
_housing.exploding(
    "raw-inputs-linear",
    "unscaled_inputs learning_rate_too_high",
    {"inputs": "raw", "hidden": [], "optimizer": "sgd", "lr": 2e-7, "batch": 256},
)
_housing.exploding(
    "raw-targets-momentum",
    "unscaled_targets learning_rate_too_high",
    {"targets": "raw", "optimizer": "sgd", "lr": 1e-4, "momentum": 0.9},
)
_housing.healthy("raw-targets-adam", {"targets": "1e5", "optimizer": "adam", "lr": 30.0, "hidden": [16], "steps": 700})

_conv = Family(
    "waves-conv1d",
    "convolutional",
    0.6,
    {
        "data": "waves",
        "dims": 1,
        "channels": [8] + [16] * 7,
        "pool_after": [1, 3],
        "norm": "batch",
        "init": "he",
        "steps": 220,
        "lr": 3e-3,
        "batch": 32,
    },
)
_conv.vanishing(
    "plain-deep",
    "poor_initialization missing_normalization saturating_activation",
    {"norm": None, "init": "default", "channels": [8] * 16, "optimizer": "sgd", "lr": 0.05},
)
_conv.vanishing(
    "tanh-small",
    "poor_initialization missing_normalization saturating_activation",
    {"norm": None, "activation": "sigmoid", "init": "xavier"},
)
_conv.exploding(
    "large-init",
    "poor_initialization missing_normalization",
    {"norm": None, "gain": 2.2, "optimizer": "sgd", "lr": 0.05},
)
_conv.exploding(
    "residual-unnormalized",
    "missing_normalization learning_rate_too_high",
    {"norm": None, "residual": True, "channels": [8] + [8] * 14, "optimizer": "sgd", "lr": 0.1},
)
_conv.healthy("group-norm", {"norm": "group"})
_conv.healthy("sgd-momentum", {"optimizer": "nesterov", "lr": 0.05, "momentum": 0.9, "schedule": "cosine"})

_lenet = Family(
    "lenet-digits",
    "convolutional",
    0.7,
    {
        "data": "digits",
        "channels": [6, 16],
        "pool_after": [0],
        "dense": [48, 32],
        "global_pool": False,
        "steps": 260,
        "lr": 3e-3,
        "batch": 32,
    },
)
_lenet.exploding("exp", "saturating_activation numerical_instability", {"activation": "exp", "init": "he", "lr": 0.01})
_lenet.exploding("raw-lr", "unscaled_inputs learning_rate_too_high", {"inputs": "255", "optimizer": "sgd", "lr": 0.05})
_lenet.vanishing(
    "sigmoid-sgd",
    "saturating_activation poor_initialization",
    {"activation": "sigmoid", "optimizer": "sgd", "lr": 0.01},
)
_lenet.vanishing("const", "poor_initialization", {"init": "const:0.0", "optimizer": "sgd", "lr": 0.05})
_lenet.healthy("cosine", {"schedule": "cosine", "optimizer": "adamw", "weight_decay": 0.05})
_lenet.healthy("rmsprop", {"optimizer": "rmsprop", "lr": 1e-3})

_auto = Family("autoencoder", "autoencoder", 0.3, {"hidden": [64, 32, 10], "steps": 500, "lr": 3e-3})
_auto.vanishing(
    "sigmoid-deep",
    "saturating_activation poor_initialization",
    {"activation": "sigmoid", "hidden": [64, 48, 32, 24, 10]},
)
_auto.vanishing("tiny", "poor_initialization", {"init": "normal:0.002", "optimizer": "sgd", "lr": 0.1})
_auto.exploding(
    "linear-lr", "learning_rate_too_high", {"activation": "linear", "inputs": "std", "optimizer": "sgd", "lr": 6.0}
)
_auto.exploding(
    "raw-late",
    "learning_rate_too_high unscaled_inputs",
    {"inputs": "std", "optimizer": "sgd", "lr": 0.05, "schedule": "late:200:3000:200", "activation": "linear"},
)
_auto.healthy("variational", {"variational": True, "hidden": [64, 8], "lr": 2e-3, "inputs": "std"})
_auto.healthy("tanh", {"activation": "tanh", "steps": 700})

_rnn = Family(
    "rnn-recall",
    "recurrent",
    0.7,
    {
        "task": "recall",
        "length": 20,
        "cell": "rnn-tanh",
        "init": "orthogonal",
        "clip_norm": 1.0,
        "steps": 400,
        "lr": 3e-3,
        "batch": 32,
    },
)
_rnn.vanishing("small", "poor_initialization long_recurrence", {"init": "normal:0.02", "length": 30})
_rnn.vanishing(
    "sigmoid",
    "saturating_activation long_recurrence poor_initialization",
    {"cell": "rnn-sigmoid", "init": "default", "length": 30},
)
_rnn.vanishing(
    "long", "long_recurrence poor_initialization", {"init": "default", "gain": 0.5, "length": 60, "steps": 300}
)
_rnn.exploding(
    "relu-gain",
    "poor_initialization long_recurrence missing_clipping",
    {"cell": "rnn-relu", "gain": 1.8, "length": 40, "clip_norm": None, "optimizer": "sgd", "lr": 0.05},
)
_rnn.exploding(
    "linear",
    "long_recurrence poor_initialization missing_clipping",
    {"cell": "rnn-linear", "gain": 1.15, "length": 40, "clip_norm": None, "optimizer": "sgd", "lr": 0.1},
)
_rnn.healthy("lstm", {"cell": "lstm", "init": None, "forget_bias": 3.0, "lr": 8e-3, "steps": 500, "length": 12})
_rnn.healthy("gru", {"cell": "gru", "init": None, "lr": 0.01, "length": 10, "steps": 500})
_rnn.healthy("irnn", {"cell": "rnn-relu", "init": "eye", "lr": 1e-3})

_late_rnn = Family(
    "rnn-accumulate",
    "recurrent",
    0.6,
    {
        "task": "accumulate",
        "length": 20,
        "cell": "rnn-relu",
        "width": 24,
        "init": "eye",
        "clip_norm": 1.0,
        "steps": 400,
        "lr": 3e-3,
        "batch": 32,
    },
)
_late_rnn.exploding(
    "no-clip",
    "missing_clipping learning_rate_too_high long_recurrence",
    {"clip_norm": None, "optimizer": "sgd", "lr": 0.08, "length": 40},
)
_late_rnn.exploding(
    "adam-no-clip",
    "learning_rate_too_high missing_clipping long_recurrence",
    {"clip_norm": None, "lr": 0.05, "length": 60},
)
_late_rnn.exploding(
    "late-ramp",
    "learning_rate_too_high missing_clipping long_recurrence",
    {"clip_norm": None, "optimizer": "sgd", "lr": 2e-3, "schedule": "late:150:300:150"},
)
_late_rnn.healthy("gru", {"cell": "gru", "init": None, "lr": 0.01})

_lm = Family(
    "lm-lstm",
    "recurrent_language_model",
    0.12,
    {"cell": "lstm", "width": 48, "steps": 260, "lr": 0.01, "batch": 16, "clip_norm": 1.0},
)
_lm.exploding(
    "relu-rnn",
    "poor_initialization learning_rate_too_high missing_clipping long_recurrence",
    {"cell": "rnn-relu", "init": "normal:0.35", "clip_norm": None, "optimizer": "sgd", "lr": 0.3, "length": 48},
)
_lm.healthy("gru-carry", {"cell": "gru", "carry": True})
_lm.healthy("tight-clip", {"clip_norm": 0.05})

_gpt = Family(
    "lm-transformer",
    "transformer",
    0.1,
    {"blocks": 2, "steps": 220, "lr": 4e-3, "batch": 16, "schedule": "warmup:20"},
)
_gpt.vanishing(
    "post-deep",
    "missing_normalization learning_rate_too_high poor_initialization",
    {"norm": "post", "blocks": 8, "lr": 0.01, "schedule": "const", "steps": 150},
)
_gpt.exploding(
    "sgd-unnormalized",
    "missing_normalization learning_rate_too_high poor_initialization",
    {"norm": "none", "blocks": 4, "gain": 3.0, "optimizer": "sgd", "lr": 1.0},
)
_gpt.healthy("post-warm", {"norm": "post", "blocks": 2, "lr": 2e-3})
_gpt.healthy("zero-branches", {"zero_branches": True, "embedding_scale": 0.02, "optimizer": "adamw"})
_gpt.healthy("onecycle", {"schedule": "onecycle", "lr": 8e-3})

_modular = Family(
    "modular-sum",
    "transformer",
    0.6,
    {
        "task": "sum",
        "modulus": 11,
        "blocks": 1,
        "steps": 700,
        "lr": 3e-3,
        "batch": 64,
        "optimizer": "adamw",
        "weight_decay": 0.1,
    },
)
_modular.vanishing(
    "unnormalized-deep",
    "missing_normalization poor_initialization",
    {"norm": "none", "residual": False, "blocks": 6, "steps": 400},
)
_modular.healthy("tiny-embedding", {"embedding_scale": 0.01})

_parity = Family("parity", "mlp", 0.7, {"data": "parity:3", "hidden": [64], "steps": 900, "lr": 5e-3})
_parity.healthy("sgd-plateau", {"optimizer": "sgd", "lr": 0.3, "batch": 32, "steps": 1600, "data": "parity:2"})
_parity.healthy("four", {"data": "parity:4", "hidden": [128], "steps": 1500})

_gan = Family(
    "gan-ring",
    "adversarial",
    0.6,
    {"modes": 5, "critic_steps": 2, "steps": 2000, "lr": 3e-3, "batch": 128, "hidden": 64, "beta1": 0.5, "beta2": 0.99},
)
_gan.exploding("growing-rate", "learning_rate_too_high", {"optimizer": "sgd", "lr": 0.05, "schedule": "ramp:1e8"})
_gan.healthy("in-turn", {"critic_steps": 1, "modes": 4, "lr": 4e-3, "hidden": 96})

_words = Family("bag-of-words", "bag_of_words", 0.6, {"hidden": 32, "steps": 500, "lr": 0.01, "batch": 32})
_words.healthy("sparse-adam", {"sparse": True, "optimizer": "sparse_adam", "hidden": None, "lr": 0.03})
_words.healthy("adagrad", {"optimizer": "adagrad", "lr": 0.1, "hidden": None})
_words.exploding("lr", "learning_rate_too_high", {"optimizer": "sgd", "lr": 3e4, "embedding_scale": 1.0})

_tune = Family("lora", "fine_tune", 0.7, {"method": "lora", "steps": 300, "lr": 5e-3})
_tune.exploding(
    "lr", "learning_rate_too_high poor_initialization", {"optimizer": "sgd", "lr": 1.5, "adapter_gain": 12.0}
)
_tune.healthy("frozen", {"method": "frozen", "lr": 0.01})
_tune.healthy("all-tiny-rate", {"method": "all", "lr": 5e-4})

_td = Family("q-learning", "temporal_difference", 0.6, {"steps": 1500, "lr": 2e-3, "batch": 32})
_td.exploding(
    "self-bootstrap",
    "learning_rate_too_high unscaled_inputs",
    {"target_every": 0, "optimizer": "sgd", "lr": 0.15, "feature_scale": 6.0},
)
_td.healthy("large-rewards", {"reward_scale": 50.0, "lr": 0.01})

_chain = Family("linear-chain", "linear_chain", 0.8, {"scale": 1.0, "optimizer": "sgd", "lr": 0.02, "steps": 600})
_chain.exploding("1.5", "poor_initialization", {"scale": 1.5, "lr": 0.01})
_chain.exploding("1.3-deep", "poor_initialization", {"scale": 1.3, "layers": 20, "lr": 1e-3})
_chain.vanishing("0.5", "poor_initialization", {"scale": 0.5})
_chain.vanishing("0.7-deep", "poor_initialization", {"scale": 0.7, "layers": 24})
_chain.healthy("residual", {"residual": True, "scale": 0.0, "layers": 16})

_mdn = Family("mixture-density", "mixture_density", 0.3, {"steps": 700, "lr": 3e-3})
_mdn.exploding(
    "exp-scale",
    "numerical_instability learning_rate_too_high unscaled_targets",
    {"scale_map": "exp", "optimizer": "sgd", "lr": 0.5, "target_scale": 10.0},
)
_mdn.exploding(
    "late",
    "learning_rate_too_high numerical_instability",
    {"scale_map": "exp", "optimizer": "sgd", "lr": 0.01, "schedule": "late:300:500:250"},
)
_mdn.healthy("exp-clipped", {"scale_map": "exp", "clip_norm": 1.0})

_contrast = Family("contrastive", "contrastive", 0.5, {"steps": 300, "lr": 2e-3, "batch": 64})
_contrast.vanishing(
    "sigmoid-deep",
    "saturating_activation poor_initialization missing_normalization",
    {"activation": "sigmoid", "hidden": [32] * 8, "init": "xavier", "optimizer": "sgd", "lr": 0.05},
)

_half = Family(
    "half-precision",
    "mlp",
    0.7,
    {
        "data": "digits",
        "hidden": [40, 40],
        "steps": 500,
        "lr": 2e-3,
        "loss_scale": 65536.0,
        "dynamic_scale": True,
        "scale_growth_interval": 60,
    },
)
_half.exploding("static", "precision_overflow", {"dynamic_scale": False, "loss_scale": 2.0**24})
_half.exploding(
    "static-late",
    "precision_overflow learning_rate_too_high",
    {"dynamic_scale": False, "loss_scale": 2.0**15, "optimizer": "sgd", "lr": 0.02, "schedule": "late:200:300:200"},
)
_half.vanishing(
    "underflow", "precision_underflow", {"dynamic_scale": False, "loss_scale": 1e-8, "optimizer": "sgd", "lr": 0.1}
)
_half.healthy("absent", {"record_skipped": False, "scale_growth_interval": 30})

_dying = Family("dying-relu", "mlp", 0.6, {"data": "teacher", "hidden": [32, 32], "steps": 500, "lr": 3e-3})
_dying.vanishing(
    "midway", "dead_units learning_rate_too_high", {"optimizer": "sgd", "lr": 0.05, "schedule": "burst:100:3:100"}
)
_dying.vanishing("burst-adam", "dead_units learning_rate_too_high", {"schedule": "burst:100:3:1000"})
_dying.vanishing("decay", "excessive_weight_decay", {"optimizer": "sgd", "lr": 0.05, "weight_decay": 2.0})
_dying.exploding(
    "slow-momentum", "learning_rate_too_high", {"hidden": [], "optimizer": "sgd", "momentum": 0.9, "lr": 2.2}
)
_dying.exploding(
    "growing-targets",
    "unscaled_targets learning_rate_too_high",
    {"activation": "linear", "hidden": [16], "optimizer": "sgd", "lr": 0.05, "targets": "30"},
)

# Explosions that take their time: a convex loss just beyond the edge of stability, Adam's bounded steps under a rate
# that grows by mistake, a momentum above one, a penalty of the wrong sign.

_linear = Family(
    "digits-least-squares",
    "mlp",
    0.4,
    {"data": "digits", "hidden": [], "loss": "mse_one_hot", "optimizer": "sgd", "lr": 0.05, "steps": 500, "batch": 128},
)
_linear.exploding("edge", "learning_rate_too_high", {"lr": 1.35})
_linear.exploding("sum-not-mean", "learning_rate_too_high", {"loss": "sum_one_hot", "lr": 0.0012})
_linear.exploding("momentum-above-one", "learning_rate_too_high", {"momentum": 1.12, "lr": 0.02, "steps": 900})
_linear.exploding("scaled-inputs", "unscaled_inputs learning_rate_too_high", {"inputs": "10", "lr": 0.012})
_linear.exploding("ramp", "learning_rate_too_high", {"lr": 0.05, "schedule": "late:200:80:300", "steps": 700})
_linear.healthy("just-below", {"lr": 0.5})

_runaway = Family(
    "friedman-runaway", "mlp", 0.6, {"data": "friedman", "hidden": [32, 32], "steps": 500, "lr": 3e-3, "batch": 32}
)
_runaway.exploding("adam-growing-rate", "learning_rate_too_high", {"schedule": "ramp:1e26", "lr": 1e-3})
_runaway.exploding(
    "adam-growing-rate-tanh",
    "learning_rate_too_high",
    {"schedule": "ramp:1e25", "lr": 1e-3, "activation": "tanh", "optimizer": "adamw"},
)
_runaway.exploding(
    "rmsprop-late", "learning_rate_too_high", {"optimizer": "rmsprop", "lr": 1e-3, "schedule": "late:250:1e15:200"}
)
_runaway.exploding(
    "momentum-above-one",
    "learning_rate_too_high",
    {"optimizer": "sgd", "lr": 1e-3, "momentum": 1.1, "activation": "tanh", "steps": 800},
)
_runaway.exploding("penalty-of-wrong-sign", "", {"wrong_sign_decay": 0.6, "optimizer": "sgd", "lr": 0.05})
_runaway.exploding("adam-hot-linear-head", "learning_rate_too_high", {"schedule": "step:120:1e6", "lr": 2e-3})
_runaway.exploding(
    "edge-linear", "learning_rate_too_high", {"hidden": [], "optimizer": "sgd", "lr": 1.15, "batch": 128}
)
_runaway.exploding(
    "adagrad-growing-rate",
    "learning_rate_too_high",
    {"optimizer": "adagrad", "lr": 0.02, "schedule": "late:150:1e24:300"},
)
_runaway.exploding(
    "nesterov-late",
    "learning_rate_too_high",
    {"optimizer": "nesterov", "momentum": 0.9, "lr": 1e-3, "hidden": [], "schedule": "late:150:3000:200"},
)
_runaway.healthy("warm-restarts", {"schedule": "cosine-restarts:100", "lr": 0.01})
_runaway.healthy("log-cosh", {"loss": "log_cosh", "lr": 0.01})
_runaway.healthy("late-burst", {"schedule": "burst:300:10:12", "lr": 2e-3, "steps": 700})

_plain = Family(
    "digits-plain-deep",
    "mlp",
    0.6,
    {
        "data": "digits",
        "hidden": [32] * 16,
        "activation": "relu",
        "init": "he",
        "norm": "layer",
        "steps": 350,
        "lr": 2e-3,
    },
)
_plain.vanishing(
    "default-init",
    "poor_initialization missing_normalization dead_units",
    {"norm": None, "init": "default", "optimizer": "sgd", "lr": 0.1, "hidden": [32] * 20},
)
_plain.vanishing(
    "linear-small",
    "poor_initialization missing_normalization",
    {"norm": None, "activation": "linear", "init": "lecun", "gain": 0.3, "optimizer": "sgd", "lr": 0.1},
)
_plain.vanishing(
    "saturated-tanh",
    "unscaled_inputs saturating_activation poor_initialization",
    {
        "norm": None,
        "activation": "tanh",
        "init": "normal:3.0",
        "inputs": "30",
        "optimizer": "sgd",
        "lr": 0.01,
        "loss": "mse_one_hot",
        "hidden": [32] * 10,
        "out_activation": "sigmoid",
    },
)
_plain.vanishing(
    "softsign-small",
    "poor_initialization missing_normalization saturating_activation",
    {"norm": None, "activation": "softsign", "init": "uniform:0.05", "optimizer": "rmsprop", "lr": 1e-4},
)
_plain.healthy("rms-norm", {"norm": "rms", "activation": "gelu"})
_plain.healthy("residual", {"norm": None, "residual": "plain", "init": "default", "lr": 1e-3})

_images = Family(
    "digits-conv-deep",
    "convolutional",
    0.6,
    {"data": "digits", "channels": [8] * 10, "norm": "batch", "pool_after": [3], "steps": 180, "lr": 3e-3, "batch": 32},
)
_images.vanishing(
    "plain-elu-small",
    "poor_initialization missing_normalization",
    {"norm": None, "activation": "elu", "init": "normal:0.01", "optimizer": "sgd", "lr": 0.1},
)
_images.vanishing(
    "plain-default",
    "poor_initialization missing_normalization dead_units",
    {"norm": None, "init": "default", "channels": [8] * 16, "optimizer": "sgd", "lr": 0.05},
)
_images.healthy("residual", {"residual": True})

_sums = Family(
    "rnn-majority",
    "recurrent",
    0.5,
    {"task": "majority", "length": 25, "cell": "gru", "width": 24, "steps": 350, "lr": 5e-3, "batch": 32},
)
_sums.vanishing(
    "elman-small",
    "long_recurrence poor_initialization",
    {"cell": "rnn-tanh", "init": "normal:0.03", "task": "recall", "length": 40},
    twin={"cell": "rnn-tanh", "init": "orthogonal", "length": 20, "clip_norm": 1.0, "lr": 3e-3},
)
_sums.exploding(
    "softplus",
    "long_recurrence poor_initialization missing_clipping",
    {"cell": "rnn-softplus", "gain": 3.0, "optimizer": "sgd", "lr": 0.05},
)

_bursts = Family(
    "digits-burst", "mlp", 0.7, {"data": "digits", "hidden": [24, 24, 24], "steps": 500, "optimizer": "sgd", "lr": 0.1}
)
_bursts.vanishing("dead-midway", "dead_units learning_rate_too_high", {"schedule": "burst:150:3:60"})
_bursts.vanishing(
    "dead-midway-momentum",
    "dead_units learning_rate_too_high",
    {"schedule": "burst:200:4:30", "momentum": 0.9, "lr": 0.05},
)
_bursts.vanishing("decay-late", "excessive_weight_decay", {"weight_decay": 1.2, "lr": 0.05})
_bursts.vanishing("choked-by-value", "excessive_clipping", {"clip_value": 1e-9})
_bursts.healthy("small-burst", {"schedule": "burst:150:3:5"})

# Runs that do not learn although nothing is wrong with their gradients.

_parity.other("linear", {"hidden": [], "steps": 600})
_conv.other("no-rate", {"lr": 1e-8})
_rnn.other("no-rate", {"lr": 1e-8, "steps": 300})
_friedman.other("shuffled", {"targets_shuffled": True})
_gpt.other("no-rate", {"optimizer": "sgd", "lr": 1e-7, "schedule": "const", "steps": 120})
_lenet.other("random-labels", {"label_noise": 1.0, "lr": 3e-4})

FAMILIES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Family))
