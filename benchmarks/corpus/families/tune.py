"""The second split that a diagnostician may be developed on: families that `fit` does not have."""

from __future__ import annotations

from typing import Final

from benchmarks.corpus.families.family import Family

_wine = Family("wine", "mlp", 0.8, {"data": "wine", "hidden": [24, 24], "steps": 400, "lr": 3e-3, "batch": 32})
_wine.exploding(
    "raw-sgd",
    "unscaled_inputs learning_rate_too_high",
    {"inputs": "raw", "loss": "mse_one_hot", "optimizer": "sgd", "lr": 0.01},
)
_wine.exploding("naive-nll-raw", "numerical_instability unscaled_inputs", {"inputs": "raw", "loss": "nll_naive"})
_wine.vanishing(
    "sigmoid-10",
    "saturating_activation poor_initialization missing_normalization",
    {"activation": "sigmoid", "hidden": [24] * 10, "init": "xavier", "optimizer": "rmsprop", "lr": 1e-3},
)
_wine.vanishing("tiny", "poor_initialization", {"init": "uniform:0.0005", "optimizer": "sgd", "lr": 0.05})
_wine.healthy("memorized", {"steps": 900, "lr": 0.01})
_wine.healthy(
    "softsign", {"activation": "softsign", "init": "xavier", "optimizer": "nesterov", "lr": 0.05, "momentum": 0.9}
)

_cancer = Family(
    "breast-cancer", "mlp", 0.7, {"data": "breast_cancer", "hidden": [16], "loss": "bce", "steps": 400, "lr": 5e-3}
)
_cancer.exploding(
    "naive-bce",
    "numerical_instability unscaled_inputs",
    {"loss": "bce_naive", "out_activation": "sigmoid", "inputs": "40", "optimizer": "sgd", "lr": 0.1},
)
_cancer.vanishing(
    "saturated-output",
    "saturating_activation poor_initialization unscaled_inputs",
    {
        "loss": "mse_one_hot",
        "out_activation": "sigmoid",
        "inputs": "raw",
        "gain": 60.0,
        "init": "xavier",
        "optimizer": "sgd",
        "lr": 0.01,
    },
)
_cancer.vanishing("decay", "excessive_weight_decay", {"optimizer": "sgd", "lr": 0.1, "weight_decay": 4.0})
_cancer.healthy("logistic", {"hidden": [], "optimizer": "sgd", "lr": 1.0, "steps": 800})
_cancer.healthy("lbfgs", {"optimizer": "lbfgs", "lr": 1.0, "batch": 400, "steps": 40, "activation": "tanh"})
_cancer.other("frozen-rate", {"optimizer": "sgd", "lr": 1e-7})

_diabetes = Family("diabetes", "mlp", 0.25, {"data": "diabetes", "hidden": [16], "steps": 500, "lr": 5e-3, "batch": 32})
_diabetes.exploding(
    "raw",
    "unscaled_inputs unscaled_targets learning_rate_too_high",
    {"inputs": "raw", "targets": "raw", "optimizer": "sgd", "lr": 1e-4},
)
_diabetes.exploding(
    "raw-linear-slow",
    "unscaled_inputs learning_rate_too_high",
    {"inputs": "raw", "hidden": [], "optimizer": "sgd", "lr": 1.7e-5, "batch": 200},
)
_diabetes.exploding(
    "ramp",
    "learning_rate_too_high",
    {"optimizer": "sgd", "lr": 0.01, "schedule": "late:200:300:250", "activation": "elu"},
)
_diabetes.healthy("raw-targets-adam", {"targets": "raw", "lr": 0.3, "steps": 800})
_diabetes.healthy("huber-raw", {"targets": "raw", "loss": "huber", "optimizer": "adagrad", "lr": 2.0, "steps": 700})
_diabetes.other("noise-only", {"targets": "raw", "optimizer": "sgd", "lr": 1e-9})

_spirals = Family("spirals", "mlp", 0.6, {"data": "spirals:3", "hidden": [48, 48, 48], "steps": 900, "lr": 3e-3})
_spirals.vanishing(
    "deep-selu-small",
    "poor_initialization missing_normalization",
    {"activation": "selu", "hidden": [24] * 16, "init": "lecun", "gain": 0.12, "steps": 500},
)
_spirals.vanishing(
    "dead", "dead_units poor_initialization", {"bias": -5.0, "inputs": "1", "optimizer": "sgd", "lr": 0.1, "steps": 500}
)
_spirals.exploding(
    "square",
    "saturating_activation poor_initialization missing_normalization numerical_instability",
    {"activation": "square", "hidden": [32] * 6, "init": "he", "gain": 1.5},
)
_spirals.healthy("slow-start", {"optimizer": "sgd", "lr": 0.15, "momentum": 0.9, "steps": 1500, "activation": "tanh"})
_spirals.healthy("gelu-onecycle", {"activation": "gelu", "schedule": "onecycle", "lr": 0.02})
_spirals.healthy("silu-norm", {"activation": "silu", "norm": "rms", "hidden": [32] * 8, "steps": 500})

_powers = Family(
    "polynomial",
    "mlp",
    0.6,
    {"data": "powers:3", "hidden": [], "inputs": "std", "optimizer": "sgd", "lr": 0.05, "steps": 800},
)
_powers.exploding("raw", "unscaled_inputs learning_rate_too_high", {"inputs": "raw", "lr": 0.06, "targets": "raw"})
_powers.exploding(
    "raw-fifth", "unscaled_inputs learning_rate_too_high", {"data": "powers:5", "inputs": "raw", "lr": 0.01}
)
_powers.exploding("edge", "learning_rate_too_high", {"lr": 1.1, "batch": 256})
_powers.exploding("momentum", "learning_rate_too_high", {"lr": 1.6, "momentum": 0.9, "batch": 256})
_powers.healthy("batch-1", {"batch": 1, "lr": 0.02, "steps": 1800})

_vae = Family(
    "vae",
    "autoencoder",
    0.2,
    {"variational": True, "inputs": "std", "hidden": [64, 10], "steps": 500, "lr": 2e-3},
)
_vae.vanishing(
    "sigmoid-deep",
    "saturating_activation poor_initialization missing_normalization",
    {"activation": "sigmoid", "hidden": [48, 48, 48, 48, 10], "init": "xavier", "lr": 1e-3},
)
_vae.exploding("raw-sgd", "unscaled_inputs learning_rate_too_high", {"inputs": "raw", "optimizer": "sgd", "lr": 1e-3})
_vae.exploding(
    "wide-code", "poor_initialization numerical_instability", {"init": "normal:0.6", "optimizer": "sgd", "lr": 1e-4}
)
_vae.healthy("low-beta", {"beta": 0.1, "clip_norm": 5.0})

_stripes = Family(
    "stripes-resnet",
    "convolutional",
    0.6,
    {
        "data": "stripes",
        "channels": [8] * 9,
        "norm": "batch",
        "residual": True,
        "pool_after": [2],
        "steps": 160,
        "lr": 3e-3,
        "batch": 32,
    },
)
_stripes.vanishing(
    "plain-sigmoid",
    "saturating_activation missing_normalization poor_initialization",
    {"norm": None, "residual": False, "activation": "sigmoid", "channels": [8] * 6},
)
_stripes.vanishing(
    "plain-small",
    "poor_initialization missing_normalization",
    {"norm": None, "residual": False, "init": "normal:0.03", "optimizer": "nesterov", "lr": 0.05, "momentum": 0.9},
)
_stripes.exploding(
    "unnormalized-he",
    "missing_normalization poor_initialization learning_rate_too_high",
    {"norm": None, "init": "he", "channels": [8] * 18, "optimizer": "sgd", "lr": 0.1, "steps": 120},
)
_stripes.exploding(
    "gain",
    "poor_initialization missing_normalization",
    {"norm": None, "residual": False, "init": "he", "gain": 3.0, "optimizer": "sgd", "lr": 0.02, "channels": [8] * 8},
)
_stripes.healthy("cosine-sgd", {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "schedule": "cosine"})
_stripes.healthy("spike", {"bad_batch": (80, 40.0), "norm": "group", "optimizer": "sgd", "lr": 0.05, "steps": 240})

_adding = Family(
    "adding-problem",
    "recurrent",
    0.5,
    {"task": "adding", "length": 16, "cell": "lstm", "steps": 700, "lr": 0.01, "batch": 32, "clip_norm": 1.0},
)
_adding.vanishing(
    "tanh-long",
    "long_recurrence poor_initialization saturating_activation",
    {"cell": "rnn-tanh", "length": 60, "init": "orthogonal", "gain": 0.4, "lr": 3e-3, "steps": 350},
)
_adding.vanishing(
    "sigmoid",
    "saturating_activation long_recurrence poor_initialization",
    {"cell": "rnn-sigmoid", "length": 40, "lr": 3e-3, "steps": 350},
)
_adding.exploding(
    "relu-no-clip",
    "missing_clipping poor_initialization long_recurrence learning_rate_too_high",
    {
        "cell": "rnn-relu",
        "init": "eye",
        "gain": 1.12,
        "length": 40,
        "clip_norm": None,
        "optimizer": "sgd",
        "lr": 0.02,
        "steps": 300,
    },
)
_adding.exploding(
    "irnn-ramp",
    "missing_clipping learning_rate_too_high long_recurrence",
    {
        "cell": "rnn-relu",
        "init": "eye",
        "gain": 0.95,
        "clip_norm": None,
        "optimizer": "sgd",
        "lr": 1e-3,
        "schedule": "ramp:3000",
        "steps": 500,
    },
)
_adding.healthy("gru", {"cell": "gru"})

_frequency = Family(
    "wave-frequency",
    "recurrent",
    0.6,
    {"task": "frequency", "length": 24, "cell": "gru", "width": 24, "steps": 400, "lr": 0.01, "batch": 32},
)
_frequency.exploding(
    "linear-cell",
    "long_recurrence poor_initialization missing_clipping",
    {"cell": "rnn-linear", "init": "orthogonal", "gain": 1.25, "optimizer": "sgd", "lr": 0.05},
)
_frequency.exploding(
    "raw-targets",
    "unscaled_targets learning_rate_too_high missing_clipping",
    {"cell": "rnn-relu", "init": "eye", "target_scale": 200.0, "optimizer": "sgd", "lr": 0.01},
)
_frequency.exploding(
    "softplus-ramp",
    "learning_rate_too_high missing_clipping long_recurrence",
    {
        "cell": "rnn-softplus",
        "init": "orthogonal",
        "gain": 0.5,
        "optimizer": "sgd",
        "lr": 2e-3,
        "schedule": "late:150:500:200",
    },
)
_frequency.healthy("bad-batch", {"bad_batch": (250, 50.0), "clip_norm": 1.0, "steps": 600})
_frequency.healthy("tanh-orthogonal", {"cell": "rnn-tanh", "init": "orthogonal", "lr": 3e-3, "steps": 600})

_majority = Family(
    "majority-vote",
    "recurrent",
    0.6,
    {
        "task": "majority",
        "length": 31,
        "cell": "rnn-tanh",
        "init": "orthogonal",
        "steps": 400,
        "lr": 3e-3,
        "batch": 32,
        "clip_norm": 1.0,
    },
)
_majority.vanishing(
    "forgetful",
    "long_recurrence poor_initialization saturating_activation",
    {"cell": "rnn-sigmoid", "init": "normal:0.05", "optimizer": "sgd", "lr": 0.05},
)
_majority.vanishing("choked", "excessive_clipping", {"clip_norm": 1e-7, "optimizer": "sgd", "lr": 0.5})
_majority.exploding(
    "elu-large",
    "poor_initialization long_recurrence missing_clipping",
    {"cell": "rnn-elu", "gain": 1.5, "clip_norm": None, "optimizer": "sgd", "lr": 0.1},
)
_majority.healthy("clip-value", {"clip_norm": None, "clip_value": 0.01})

_translate = Family(
    "translation",
    "sequence_to_sequence",
    0.5,
    {"length": 6, "cell": "gru", "steps": 450, "lr": 0.01, "batch": 32, "clip_norm": 1.0, "attention": True},
)
_translate.exploding(
    "relu-rnn",
    "poor_initialization long_recurrence missing_clipping learning_rate_too_high",
    {"cell": "rnn-relu", "init": "normal:0.45", "length": 20, "clip_norm": None, "optimizer": "sgd", "lr": 0.3},
)
_translate.vanishing(
    "long-sigmoid",
    "long_recurrence saturating_activation poor_initialization",
    {"cell": "rnn-sigmoid", "attention": False, "length": 20, "lr": 3e-3, "steps": 250, "init": "normal:0.05"},
)
_translate.healthy("lstm", {"cell": "lstm", "steps": 600})

_vit = Family(
    "signal-transformer",
    "transformer",
    0.6,
    {"task": "waves", "blocks": 2, "steps": 260, "lr": 3e-3, "batch": 32},
)
_vit.vanishing(
    "no-skip",
    "missing_normalization poor_initialization saturating_activation",
    {"norm": "none", "residual": False, "blocks": 6, "activation": "sigmoid", "steps": 160},
)
_vit.exploding(
    "no-norm-large",
    "missing_normalization poor_initialization",
    {"norm": "none", "blocks": 6, "gain": 4.0, "optimizer": "sgd", "lr": 0.1},
)
_vit.healthy("post-norm", {"norm": "post", "lr": 1e-3, "schedule": "warmup:40"})
_vit.healthy("relu-sgd", {"activation": "relu", "optimizer": "sgd", "lr": 0.1, "momentum": 0.9})

_reverse = Family(
    "reverse-transformer",
    "transformer",
    0.6,
    {"task": "reverse", "length": 8, "blocks": 2, "steps": 420, "lr": 4e-3, "batch": 32},
)
_reverse.vanishing(
    "post-deep-hot",
    "learning_rate_too_high missing_normalization poor_initialization",
    {"norm": "post", "blocks": 10, "lr": 0.02, "steps": 200},
)
_reverse.healthy("delayed", {"lr": 1e-3, "steps": 700, "embedding_scale": 0.05})
_reverse.healthy("half", {"loss_scale": 2.0**18, "dynamic_scale": True, "scale_growth_interval": 25})

_gan = Family(
    "gan-grid",
    "adversarial",
    0.5,
    {
        "data": "grid",
        "modes": 4,
        "critic_steps": 2,
        "lr": 4e-3,
        "batch": 128,
        "hidden": 96,
        "beta1": 0.5,
        "beta2": 0.99,
        "steps": 2000,
    },
)
_gan.exploding("growing-rate", "learning_rate_too_high", {"schedule": "late:800:1e20:1000"})
_gan.healthy("other-seed", {"critic_steps": 1, "modes": 4})

_skip = Family("skip-gram", "skip_gram", 0.6, {"steps": 700, "lr": 0.03, "batch": 128})
_skip.vanishing("zeros", "poor_initialization", {"scale": 0.0, "optimizer": "sgd", "lr": 5.0})
_skip.exploding("hot", "learning_rate_too_high", {"optimizer": "sgd", "lr": 3e4, "scale": 1.0})
_skip.healthy("adagrad", {"optimizer": "adagrad", "lr": 0.5})
_skip.healthy("tiny-start", {"scale": 1e-3, "lr": 0.02})

_flow = Family("coupling-flow", "coupling_flow", 0.4, {"steps": 350, "lr": 3e-3, "batch": 64, "couplings": 4})
_flow.exploding(
    "unbounded",
    "numerical_instability poor_initialization learning_rate_too_high",
    {"bounded": False, "gain": 2.5, "optimizer": "sgd", "lr": 0.05},
)
_flow.exploding(
    "late-hot",
    "learning_rate_too_high numerical_instability",
    {"bounded": False, "optimizer": "sgd", "lr": 5e-3, "schedule": "late:150:1000:150", "data_scale": 0.5},
)
_flow.healthy("negative-loss", {"data": "circle", "lr": 5e-3, "steps": 600})

_pinn = Family("oscillator-pinn", "physics_informed", 0.6, {"steps": 900, "lr": 5e-3, "batch": 64, "hidden": [24, 24]})
_pinn.vanishing(
    "sigmoid-deep",
    "saturating_activation poor_initialization missing_normalization",
    {"activation": "sigmoid", "hidden": [24] * 8, "steps": 500},
)
_pinn.exploding(
    "hot", "learning_rate_too_high", {"optimizer": "sgd", "lr": 0.02, "schedule": "ramp:500", "frequency": 3.0}
)
_pinn.exploding(
    "large-init", "poor_initialization", {"gain": 5.0, "activation": "softplus", "optimizer": "sgd", "lr": 1e-3}
)
_pinn.healthy("low-frequency", {"frequency": 1.0, "activation": "sin", "lr": 2e-3})

_triplet = Family(
    "triplets", "contrastive", 0.5, {"margin": 1.0, "normalize": False, "steps": 350, "lr": 2e-3, "batch": 48}
)
_triplet.exploding(
    "late-hot",
    "learning_rate_too_high",
    {"optimizer": "sgd", "lr": 0.01, "schedule": "late:120:2000:150", "hidden": [64, 64]},
)
_triplet.exploding(
    "raw-init", "poor_initialization", {"init": "normal:1.0", "hidden": [64, 64], "optimizer": "sgd", "lr": 0.02}
)
_triplet.healthy("unit-sphere", {"normalize": True, "margin": 0.3})

_tied = Family(
    "tied-weights",
    "tied_network",
    0.6,
    {
        "data": "digits",
        "applications": 12,
        "residual": 0.1,
        "activation": "tanh",
        "init": "xavier",
        "steps": 350,
        "lr": 3e-3,
    },
)
_tied.vanishing(
    "contracting",
    "poor_initialization missing_normalization saturating_activation",
    {"residual": None, "gain": 0.15, "optimizer": "sgd", "lr": 0.1, "applications": 20},
)
_tied.vanishing(
    "sigmoid",
    "saturating_activation poor_initialization missing_normalization",
    {"residual": None, "activation": "sigmoid", "optimizer": "sgd", "lr": 0.1, "applications": 16},
)
_tied.exploding(
    "expanding",
    "poor_initialization missing_normalization",
    {
        "residual": None,
        "activation": "relu",
        "init": "he",
        "gain": 1.8,
        "applications": 20,
        "optimizer": "sgd",
        "lr": 0.01,
    },
)
_tied.exploding(
    "stiff",
    "missing_normalization learning_rate_too_high poor_initialization",
    {"residual": 1.0, "activation": "relu", "init": "he", "applications": 14, "optimizer": "sgd", "lr": 0.1},
)
_tied.healthy("normalized", {"residual": None, "norm": "layer", "activation": "relu", "init": "he"})

_tasks = Family("multi-task", "multi_task", 0.7, {"steps": 500, "lr": 3e-3, "batch": 48})
_tasks.exploding(
    "one-unscaled",
    "unscaled_targets learning_rate_too_high",
    {"regression_scale": 500.0, "optimizer": "sgd", "lr": 0.02},
)
_tasks.exploding(
    "growing-rate",
    "learning_rate_too_high",
    {"optimizer": "sgd", "lr": 0.02, "schedule": "ramp:1000", "regression_scale": 2.0},
)
_tasks.vanishing(
    "deep-sigmoid",
    "saturating_activation poor_initialization missing_normalization",
    {"hidden": [32] * 9, "activation": "sigmoid", "init": "xavier"},
)
_tasks.healthy("alternating", {"alternate": True, "steps": 900})

_policy = Family("bandit-policy", "policy_gradient", 0.5, {"steps": 900, "lr": 0.01, "batch": 64})
_policy.healthy("no-baseline", {"baseline": False, "steps": 1200})
_policy.healthy("large-rewards", {"reward_scale": 30.0, "lr": 5e-3, "clip_norm": 1.0})

_factors = Family("matrix-factors", "matrix_factorization", 0.6, {"steps": 900, "lr": 0.03, "batch": 512})
_factors.exploding("full-hot", "learning_rate_too_high", {"full": True, "optimizer": "sgd", "lr": 1.3, "scale": 0.05})
_factors.exploding(
    "large-ratings",
    "unscaled_targets learning_rate_too_high",
    {"full": True, "rating_scale": 50.0, "optimizer": "sgd", "lr": 0.05, "scale": 0.1},
)
_factors.exploding(
    "ramp",
    "learning_rate_too_high",
    {"full": True, "optimizer": "sgd", "lr": 0.02, "schedule": "ramp:400", "steps": 700},
)
_factors.vanishing("tiny", "poor_initialization", {"scale": 1e-8, "optimizer": "sgd", "lr": 0.5, "steps": 500})
_factors.healthy("escape", {"full": True, "scale": 1e-3, "optimizer": "sgd", "lr": 0.15, "momentum": 0.9, "steps": 900})

_graph = Family("graph", "graph_network", 0.5, {"layers": 2, "steps": 300, "lr": 0.01, "batch": 160})
_graph.exploding(
    "unnormalized",
    "missing_normalization unscaled_inputs poor_initialization",
    {"normalized_graph": False, "layers": 10, "optimizer": "sgd", "lr": 0.01},
)
_graph.vanishing(
    "deep",
    "missing_normalization poor_initialization",
    {"layers": 24, "init": "xavier", "gain": 0.5, "optimizer": "sgd", "lr": 0.1},
)
_graph.healthy("deep-residual", {"layers": 8, "residual": True, "norm": "layer"})

_diffusion = Family("diffusion", "denoising_diffusion", 0.25, {"steps": 700, "lr": 3e-3, "batch": 64})
_diffusion.exploding(
    "large-data", "unscaled_inputs learning_rate_too_high", {"data_scale": 200.0, "optimizer": "sgd", "lr": 0.02}
)
_diffusion.exploding(
    "late-hot",
    "learning_rate_too_high",
    {"optimizer": "sgd", "lr": 0.02, "schedule": "late:200:300:450", "activation": "relu"},
)
_diffusion.vanishing(
    "deep-small",
    "poor_initialization missing_normalization",
    {"hidden": [24] * 14, "activation": "tanh", "init": "lecun", "gain": 0.2, "steps": 400},
)
_diffusion.healthy("residual", {"hidden": [48] * 6, "residual": "plain", "norm": "layer"})

_siren = Family("image-siren", "coordinate_network", 0.7, {"steps": 600, "lr": 1e-3, "batch": 144})
_siren.healthy("high-frequency", {"omega": 25.0, "lr": 5e-4})
_siren.exploding(
    "linear-hot",
    "learning_rate_too_high",
    {"activation": "relu", "siren_init": False, "optimizer": "sgd", "lr": 0.05, "schedule": "ramp:2000"},
)

_experts = Family("experts", "mixture_of_experts", 0.6, {"steps": 700, "lr": 5e-3, "batch": 48})
_experts.healthy("few-examples", {"batch": 6, "steps": 1000, "lr": 3e-3})

_simulation = Family(
    "simulated-pendulum", "unrolled_simulation", 0.6, {"steps": 300, "lr": 5e-3, "batch": 32, "horizon": 12}
)
_simulation.exploding(
    "hot",
    "learning_rate_too_high missing_clipping long_recurrence",
    {"optimizer": "sgd", "lr": 0.05, "schedule": "ramp:2000", "activation": "softplus"},
)
_simulation.exploding(
    "large-init",
    "poor_initialization long_recurrence missing_clipping",
    {"gain": 6.0, "activation": "relu", "horizon": 40, "optimizer": "sgd", "lr": 0.01},
)
_simulation.healthy("predator", {"system": "predator", "clip_norm": 1.0})

_bayes = Family("bayesian", "variational_regression", 0.6, {"steps": 700, "lr": 5e-3, "batch": 64})
_bayes.exploding(
    "wide-weights",
    "poor_initialization numerical_instability learning_rate_too_high",
    {"initial_log_std": 6.0, "optimizer": "sgd", "lr": 0.05},
)
_bayes.healthy("tight-noise", {"noise_scale": 0.05, "lr": 3e-3})

_highway = Family("highway", "highway", 0.6, {"layers": 16, "steps": 220, "lr": 3e-3, "batch": 48})
_highway.vanishing(
    "ungated-tanh",
    "poor_initialization missing_normalization saturating_activation",
    {"gated": False, "activation": "sigmoid", "init": "lecun", "optimizer": "sgd", "lr": 0.2},
)
_highway.exploding(
    "ungated-large",
    "poor_initialization missing_normalization",
    {"gated": False, "activation": "leaky_relu", "init": "normal:0.9", "optimizer": "sgd", "lr": 1e-3},
)
_highway.healthy("sgd", {"optimizer": "sgd", "lr": 2e-3, "momentum": 0.9, "steps": 400})

_distil = Family("distillation", "distillation", 0.6, {"steps": 500, "lr": 3e-3})
_distil.healthy("hot-teacher", {"temperature": 20.0, "lr": 5e-3, "steps": 700})
_distil.vanishing("zeros", "poor_initialization", {"init": "const:0.0", "optimizer": "sgd", "lr": 1.0})

_words = Family("neural-words", "count_words", 0.1, {"steps": 600, "lr": 5e-3, "batch": 64})
_words.exploding(
    "relu-hot",
    "learning_rate_too_high",
    {"activation": "relu", "optimizer": "sgd", "lr": 0.1, "schedule": "ramp:100000"},
)
_words.healthy("embedding-sgd", {"optimizer": "sgd", "lr": 0.5, "schedule": "cosine"})
_words.other("no-rate", {"optimizer": "sgd", "lr": 1e-7, "steps": 300})

_twin = Family(
    "two-states",
    "temporal_difference",
    0.6,
    {"off_policy_twin": True, "discount": 0.3, "optimizer": "sgd", "lr": 0.02, "steps": 600},
)
_twin.exploding("off-policy", "", {"discount": 0.95, "lr": 0.05, "steps": 1200})
_twin.exploding("off-policy-slow", "", {"discount": 0.7, "lr": 0.05, "steps": 1800})

_heat = Family(
    "circle", "mlp", 0.6, {"data": "circle", "loss": "bce", "hidden": [12, 12, 12], "steps": 500, "lr": 5e-3}
)
_heat.vanishing(
    "tanh-16",
    "saturating_activation poor_initialization missing_normalization",
    {"activation": "hard_sigmoid", "hidden": [12] * 9, "init": "xavier", "lr": 1e-3},
)
_heat.vanishing(
    "burst-kills",
    "dead_units learning_rate_too_high",
    {"schedule": "burst:150:2:30", "optimizer": "sgd", "lr": 0.3, "steps": 500},
)
_heat.other("half-lost", {"label_noise": 0.98, "optimizer": "sgd", "lr": 0.05, "steps": 300})
_heat.other("random-labels", {"label_noise": 1.0, "steps": 300, "optimizer": "sgd", "lr": 0.01})
_heat.healthy("dropout", {"hidden": [48, 48], "dropout": 0.3})

_moons_half = Family(
    "half-moons",
    "mlp",
    0.6,
    {
        "data": "moons",
        "hidden": [24, 24],
        "steps": 400,
        "lr": 5e-3,
        "loss_scale": 2.0**16,
        "dynamic_scale": True,
        "scale_growth_interval": 40,
    },
)
_moons_half.exploding("static-overflow", "precision_overflow", {"dynamic_scale": False, "loss_scale": 2.0**23})
_moons_half.vanishing(
    "underflow", "precision_underflow", {"dynamic_scale": False, "loss_scale": 1e-9, "optimizer": "sgd", "lr": 0.3}
)
_moons_half.healthy("absent", {"record_skipped": False, "loss_scale": 2.0**24})

_trees = Family(
    "wine-least-squares",
    "mlp",
    0.6,
    {"data": "wine", "hidden": [], "loss": "mse_one_hot", "optimizer": "sgd", "lr": 0.1, "steps": 400, "batch": 96},
)
_trees.exploding("edge", "learning_rate_too_high", {"lr": 0.95})
_trees.exploding("sum", "learning_rate_too_high", {"loss": "sum_one_hot", "lr": 4e-3})
_trees.exploding(
    "nesterov-growing",
    "learning_rate_too_high",
    {"optimizer": "nesterov", "momentum": 0.9, "lr": 0.01, "schedule": "late:120:200:200"},
)
_trees.exploding("momentum-above-one", "learning_rate_too_high", {"momentum": 1.05, "lr": 0.01})

_sine = Family("sine", "mlp", 0.6, {"data": "sine", "hidden": [24, 24], "steps": 500, "lr": 5e-3, "batch": 48})
_sine.exploding("gamma-above-one", "learning_rate_too_high", {"schedule": "ramp:1e20"})
_sine.exploding(
    "gamma-above-one-elu",
    "learning_rate_too_high",
    {"schedule": "late:100:1e22:350", "activation": "elu", "optimizer": "rmsprop", "lr": 2e-3},
)
_sine.exploding(
    "reward-for-weights", "", {"wrong_sign_decay": 0.4, "optimizer": "sgd", "lr": 0.1, "activation": "tanh"}
)
_sine.exploding(
    "momentum", "learning_rate_too_high", {"optimizer": "sgd", "momentum": 1.015, "lr": 2e-3, "activation": "softplus"}
)
_sine.exploding(
    "adamw-step-up", "learning_rate_too_high", {"schedule": "step:200:1e7", "optimizer": "adamw", "steps": 700}
)
_sine.vanishing(
    "sigmoid-deep",
    "saturating_activation poor_initialization missing_normalization",
    {"activation": "sigmoid", "hidden": [24] * 7, "optimizer": "sgd", "lr": 0.05},
)
_sine.vanishing("relu-dead", "dead_units poor_initialization", {"bias": -12.0, "optimizer": "adam"})
_sine.healthy("mae", {"loss": "mae", "schedule": "cosine"})
_sine.healthy(
    "exp-units", {"activation": "exp", "hidden": [16], "init": "xavier", "gain": 0.5, "lr": 2e-3, "clip_norm": 1.0}
)
_sine.healthy("log-cosh-burst", {"loss": "log_cosh", "schedule": "burst:200:5:10"})

_cancer_deep = Family(
    "breast-cancer-deep",
    "mlp",
    0.6,
    {"data": "breast_cancer", "hidden": [20] * 12, "activation": "selu", "init": "lecun", "steps": 300, "lr": 1e-3},
)
_cancer_deep.vanishing(
    "relu-default",
    "poor_initialization missing_normalization dead_units",
    {"activation": "relu", "init": "default", "hidden": [20] * 24, "optimizer": "sgd", "lr": 0.02},
)
_cancer_deep.vanishing(
    "tanh-small",
    "poor_initialization missing_normalization",
    {"activation": "tanh", "init": "normal:0.05", "optimizer": "sgd", "lr": 0.1},
)
_cancer_deep.vanishing(
    "ungained-orthogonal",
    "poor_initialization missing_normalization",
    {"activation": "linear", "init": "orthogonal", "gain": 0.4, "optimizer": "sgd", "lr": 0.05},
)
_cancer_deep.exploding(
    "selu-large", "poor_initialization missing_normalization", {"gain": 4.0, "optimizer": "sgd", "lr": 0.1}
)
_cancer_deep.healthy("relu-he", {"activation": "relu", "init": "he", "norm": "batch"})

_stripes_plain = Family(
    "stripes-plain",
    "convolutional",
    0.6,
    {
        "data": "stripes",
        "channels": [6, 12, 12],
        "pool_after": [1],
        "steps": 160,
        "lr": 3e-3,
        "batch": 32,
        "global_pool": False,
        "dense": [32],
    },
)
_stripes_plain.vanishing(
    "hard-sigmoid",
    "saturating_activation poor_initialization missing_normalization",
    {"activation": "hard_sigmoid", "optimizer": "sgd", "lr": 0.05, "channels": [6, 12, 12, 12]},
)
_stripes_plain.exploding(
    "unscaled", "unscaled_inputs learning_rate_too_high", {"inputs": "500", "optimizer": "sgd", "lr": 0.01}
)
_stripes_plain.healthy("leaky-adagrad", {"activation": "leaky_relu", "optimizer": "adagrad", "lr": 0.02})
_stripes_plain.healthy("label-noise", {"label_noise": 0.4, "steps": 260})

_lm_window = Family(
    "recurrent-source-code",
    "recurrent_language_model",
    0.12,
    {
        "source": "argparse",
        "cell": "gru",
        "width": 40,
        "steps": 220,
        "lr": 0.01,
        "batch": 12,
        "length": 24,
        "clip_norm": 1.0,
    },
)
_lm_window.exploding(
    "linear-cell",
    "long_recurrence poor_initialization missing_clipping learning_rate_too_high",
    {"cell": "rnn-linear", "init": "normal:0.25", "clip_norm": None, "optimizer": "sgd", "lr": 0.5},
)
_lm_window.healthy("elman-carry", {"cell": "rnn-tanh", "carry": True, "clip_norm": 0.3, "lr": 5e-3})
_lm_window.healthy("two-layers", {"cell": "lstm", "layers": 2, "steps": 260})

_echo = Family(
    "diabetes-linear",
    "mlp",
    0.25,
    {"data": "diabetes", "hidden": [], "optimizer": "sgd", "lr": 0.05, "steps": 500, "batch": 128},
)
_echo.exploding("edge", "learning_rate_too_high", {"lr": 0.62})
_echo.exploding("heavy-ball", "learning_rate_too_high", {"lr": 1.3, "momentum": 0.8})
_echo.exploding("double-inputs", "unscaled_inputs learning_rate_too_high", {"inputs": "5", "lr": 0.03})
_echo.exploding("creeping-rate", "learning_rate_too_high", {"schedule": "ramp:60", "lr": 0.03, "steps": 800})
_echo.exploding("sum", "learning_rate_too_high", {"loss": "mse_sum", "lr": 5e-3})
_echo.healthy("raw-targets", {"targets": "raw", "lr": 0.1})

_flow_of_rate = Family(
    "moons-growing-rate", "mlp", 0.6, {"data": "moons", "hidden": [32, 32], "steps": 500, "lr": 3e-3, "loss": "bce"}
)
_flow_of_rate.exploding("adam", "learning_rate_too_high", {"schedule": "ramp:1e25"})
_flow_of_rate.exploding(
    "sgd-tanh",
    "learning_rate_too_high",
    {"schedule": "late:100:1e14:300", "optimizer": "sgd", "lr": 0.1, "activation": "elu"},
)
_flow_of_rate.exploding(
    "momentum", "learning_rate_too_high", {"optimizer": "sgd", "momentum": 1.1, "lr": 0.01, "steps": 700}
)
_flow_of_rate.vanishing(
    "hard-sigmoid",
    "saturating_activation poor_initialization missing_normalization",
    {"activation": "hard_sigmoid", "hidden": [16] * 8, "optimizer": "sgd", "lr": 0.1},
)
_flow_of_rate.vanishing(
    "narrow-relu",
    "dead_units poor_initialization missing_normalization",
    {"hidden": [3] * 14, "optimizer": "adam", "lr": 1e-3},
)
_flow_of_rate.healthy("narrow-but-fine", {"hidden": [6, 6, 6], "activation": "leaky_relu"})

# Runs that do not learn although nothing is wrong with their gradients.

_heat.other("linear", {"hidden": []})
_sine.other("shuffled", {"targets_shuffled": True})
_stripes.other("random-labels", {"label_noise": 1.0, "steps": 120})
_vit.other("no-rate", {"lr": 1e-8, "steps": 150})
_adding.other("no-rate", {"optimizer": "sgd", "lr": 1e-7, "steps": 250})
_diffusion.other("no-rate", {"lr": 1e-9, "steps": 300})

FAMILIES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Family))
