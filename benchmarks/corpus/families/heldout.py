"""The held-out split, which is measured only when a diagnostician is finished."""

from __future__ import annotations

from typing import Final

from benchmarks.corpus.families.causes import DEAD, LARGE, MEMORY, RATE, SATURATION, SMALL, UNROLLED
from benchmarks.corpus.families.family import Family

UNSTABLE: Final = "numerical_instability learning_rate_too_high"

# --- tables -----------------------------------------------------------------------------------------------------------

_circuit = Family("impedance", "mlp", 0.6, {"data": "impedance", "hidden": [24, 24], "steps": 400, "lr": 5e-3})
_circuit.vanishing(
    "raw-sigmoid",
    "unscaled_inputs unscaled_targets saturating_activation",
    {"inputs": "raw", "targets": "raw", "activation": "sigmoid", "optimizer": "sgd", "lr": 1e-3, "hidden": [24] * 3},
)
_circuit.vanishing("hard-decay", "excessive_weight_decay", {"optimizer": "sgd", "lr": 0.05, "weight_decay": 1.0})
_circuit.exploding(
    "raw",
    "unscaled_inputs unscaled_targets learning_rate_too_high",
    {"inputs": "raw", "targets": "raw", "optimizer": "sgd", "lr": 1e-4},
)
_circuit.exploding(
    "linear-raw",
    "unscaled_inputs learning_rate_too_high",
    {"inputs": "raw", "hidden": [], "optimizer": "sgd", "lr": 1.6e-6, "batch": 256},
)
_circuit.exploding("just-above", RATE, {"hidden": [], "optimizer": "sgd", "lr": 1.15, "batch": 256, "steps": 600})
_circuit.exploding("slow-ramp", RATE, {"hidden": [], "optimizer": "sgd", "lr": 0.02, "schedule": "ramp:150"})
_circuit.exploding("adamax-doubling", RATE, {"optimizer": "adamax", "lr": 2e-3, "schedule": "doubling:6", "steps": 800})
_circuit.healthy("raw-targets", {"targets": "raw", "lr": 0.05, "steps": 700})
_circuit.healthy("small-units", {"loss_factor": 1e-6, "batch": 16})
_circuit.exploding(
    "heavy-ball", RATE, {"hidden": [], "optimizer": "sgd", "lr": 2.4, "momentum": 0.95, "batch": 256, "steps": 900}
)
_circuit.exploding(
    "decay-overshoots",
    "excessive_weight_decay learning_rate_too_high",
    {"hidden": [], "optimizer": "sgd", "lr": 0.1, "weight_decay": 19.0, "steps": 600},
)
_circuit.other("shuffled", {"targets_shuffled": True, "optimizer": "sgd", "lr": 0.02})

_chi = Family(
    "far-or-near", "mlp", 0.5, {"data": "chi_square", "hidden": [48, 48], "loss": "bce", "steps": 500, "lr": 5e-3}
)
_chi.vanishing(
    "sigmoid-7", SATURATION, {"activation": "sigmoid", "hidden": [32] * 7, "optimizer": "sgd", "lr": 0.1, "steps": 300}
)
_chi.vanishing(
    "gelu-tiny",
    SMALL,
    {"activation": "gelu", "init": "normal:0.01", "hidden": [32] * 5, "optimizer": "sgd", "lr": 0.05, "steps": 300},
)
_chi.vanishing("all-dead", DEAD, {"bias": -5.0, "optimizer": "sgd", "lr": 0.2, "steps": 500})
_chi.exploding("ascent", "", {"loss_factor": -1.0, "optimizer": "sgd", "lr": 0.1})
_chi.healthy("slow-start", {"optimizer": "sgd", "lr": 0.2, "momentum": 0.9, "steps": 900})
_chi.healthy("noisy-labels", {"label_noise": 0.2, "dropout": 0.1, "steps": 700})
_chi.other("linear", {"hidden": [], "steps": 250})

_roll = Family(
    "rolled-sheet",
    "pre_activation",
    0.6,
    {"data": "roll", "blocks": 6, "width": 24, "inner": 24, "steps": 300, "lr": 3e-3},
)
_roll.vanishing(
    "branches-alone-tanh",
    SATURATION,
    {"identity": False, "norm": "none", "activation": "tanh", "init": "normal:0.05", "optimizer": "sgd", "lr": 0.05},
)
_roll.exploding(
    "adam-doubling", RATE, {"norm": "none", "gain": 0.4, "schedule": "doubling:5", "lr": 1e-4, "steps": 600}
)
_roll.vanishing(
    "branches-alone-gelu",
    SMALL,
    {"identity": False, "norm": "none", "activation": "gelu", "gain": 0.1, "optimizer": "rmsprop", "lr": 3e-5},
)
_roll.healthy("no-norm-scaled", {"norm": "none", "layer_scale": 0.05, "blocks": 14})
_roll.healthy("post-warm", {"norm": "post", "schedule": "warmup:50", "activation": "gelu"})

_rank = Family("pairs-to-rank", "ranking", 0.5, {"hidden": [24, 24], "steps": 400, "lr": 5e-3})
_rank.vanishing(
    "softsign-8",
    SATURATION,
    {"activation": "softsign", "hidden": [24] * 8, "init": "normal:0.05", "optimizer": "sgd", "lr": 0.05},
)
_rank.exploding(
    "raw-relu",
    "unscaled_inputs learning_rate_too_high poor_initialization",
    {"inputs": "raw", "optimizer": "sgd", "lr": 0.5, "hidden": [24] * 4, "init": "he"},
)
_rank.healthy("margin", {"hinge": True, "optimizer": "sgd", "lr": 0.1, "steps": 500})

_clicks = Family("clicks", "click_rates", 0.3, {"steps": 600, "lr": 0.01, "batch": 64})
_clicks.vanishing("forgotten", "excessive_weight_decay", {"optimizer": "adamw", "weight_decay": 60.0})
_clicks.exploding("adamw-doubling", RATE, {"optimizer": "adamw", "schedule": "doubling:5", "lr": 1e-3, "steps": 800})
_clicks.exploding(
    "raw-amounts", "unscaled_inputs learning_rate_too_high", {"logarithms": False, "optimizer": "sgd", "lr": 0.5}
)
_clicks.healthy("one-at-a-time", {"batch": 4, "steps": 1500, "lr": 5e-3})
_clicks.healthy("adagrad", {"optimizer": "adagrad", "lr": 0.1, "categories": 400, "steps": 1200})
_clicks.other("no-rate", {"optimizer": "sgd", "lr": 1e-8, "steps": 200})

_survival = Family("survival", "survival", 0.5, {"steps": 400, "lr": 0.01, "batch": 64})
_survival.exploding(
    "days",
    "numerical_instability unscaled_targets learning_rate_too_high",
    {"days": 3650.0, "optimizer": "sgd", "lr": 0.05, "activation": "relu"},
)
_survival.vanishing(
    "sigmoid-6", SATURATION, {"activation": "sigmoid", "hidden": [24] * 6, "optimizer": "sgd", "lr": 0.05}
)
_survival.healthy("partial", {"partial": True})
_survival.healthy("partial-sgd-clipped", {"partial": True, "optimizer": "sgd", "lr": 0.2, "clip_norm": 0.2})

_noisy = Family(
    "noisy-circuit", "heteroscedastic", 0.6, {"data": "impedance", "steps": 400, "lr": 5e-3, "activation": "silu"}
)
_noisy.exploding("ramp", UNSTABLE, {"optimizer": "sgd", "lr": 1e-3, "schedule": "ramp:20000", "steps": 500})
_noisy.healthy("below-zero", {"floor": 0.02, "steps": 700, "schedule": "cosine"})

_gates = Family(
    "gates-far-or-near",
    "gated_stack",
    0.5,
    {"data": "chi_square", "layers": 3, "norm": "rms", "steps": 400, "lr": 5e-3},
)
_gates.vanishing(
    "shut",
    "saturating_activation poor_initialization missing_normalization",
    {"norm": None, "layers": 8, "gate_bias": -3.0, "optimizer": "adamw", "lr": 5e-4},
)

_fixed = Family("fixed-point", "fixed_point", 0.5, {"steps": 400, "lr": 5e-3})
_fixed.exploding(
    "expanding",
    "poor_initialization long_recurrence missing_normalization",
    {"activation": "relu", "gain": 2.5, "iterations": 25, "optimizer": "sgd", "lr": 0.01},
)
_fixed.exploding(
    "leaky-ramp",
    UNROLLED,
    {"data": "roll", "activation": "leaky_relu", "optimizer": "sgd", "lr": 1e-3, "schedule": "ramp:3000"},
    twin={"schedule": "const", "lr": 0.02, "steps": 600},
)
_fixed.vanishing(
    "all-the-way",
    "saturating_activation unscaled_inputs poor_initialization",
    {"inputs": "400", "gain": 4.0, "optimizer": "sgd", "lr": 1e-4},
)
_fixed.healthy("marginal", {"gain": 1.0, "iterations": 30, "clip_norm": 1.0})

# --- images and signals -----------------------------------------------------------------------------------------------

_dots = Family(
    "count-dots",
    "convolutional",
    0.5,
    {
        "data": "dots",
        "channels": [8, 8, 8, 8],
        "norm": "group",
        "activation": "leaky_relu",
        "steps": 250,
        "lr": 5e-3,
        "batch": 32,
    },
)
_dots.vanishing(
    "hard-sigmoid-7",
    SATURATION,
    {"norm": None, "activation": "hard_sigmoid", "channels": [8] * 7, "optimizer": "sgd", "lr": 0.1, "steps": 150},
)
_dots.vanishing(
    "elu-tiny",
    SMALL,
    {
        "norm": None,
        "activation": "elu",
        "init": "normal:0.02",
        "channels": [8] * 9,
        "optimizer": "rmsprop",
        "lr": 1e-5,
        "steps": 150,
    },
)
_dots.exploding(
    "wide-start", LARGE, {"norm": None, "init": "he", "gain": 4.0, "optimizer": "sgd", "lr": 0.05, "steps": 120}
)
_dots.healthy("batch-6", {"batch": 6, "norm": "batch", "steps": 400, "activation": "silu"})
_dots.other("random-labels", {"label_noise": 1.0, "steps": 120})
_dots.exploding(
    "rmsprop-doubling", RATE, {"norm": None, "optimizer": "rmsprop", "lr": 1e-3, "schedule": "doubling:3", "steps": 400}
)

_beats = Family(
    "odd-beat",
    "convolutional",
    0.6,
    {
        "data": "beats",
        "dims": 1,
        "channels": [8, 8, 16, 16],
        "norm": "batch",
        "pool_after": [0, 2],
        "steps": 200,
        "lr": 5e-3,
        "batch": 32,
    },
)
_beats.vanishing(
    "silu-tiny-12",
    SMALL,
    {
        "norm": None,
        "activation": "silu",
        "init": "lecun",
        "gain": 0.3,
        "channels": [8] * 12,
        "pool_after": [1],
        "optimizer": "sgd",
        "lr": 0.05,
        "steps": 150,
    },
)
_beats.vanishing("choked", "excessive_clipping", {"clip_norm": 1e-6, "optimizer": "sgd", "lr": 0.2})
_beats.exploding(
    "half-range",
    LARGE + " unscaled_inputs",
    {"norm": None, "init": "he", "inputs": "3000", "optimizer": "sgd", "lr": 0.01},
)
_beats.healthy("onecycle", {"optimizer": "nesterov", "momentum": 0.9, "lr": 0.3, "schedule": "onecycle"})
_beats.healthy("spike", {"bad_batch": (110, 200.0), "norm": "group", "optimizer": "adamw", "steps": 280})

_beat_transformer = Family(
    "odd-beat-transformer", "transformer", 0.5, {"task": "beats", "blocks": 2, "steps": 250, "lr": 3e-3, "batch": 32}
)
_beat_transformer.vanishing(
    "post-norm-rushed",
    "learning_rate_too_high missing_normalization poor_initialization",
    {"norm": "post", "blocks": 10, "lr": 0.03, "steps": 120},
)
_beat_transformer.healthy("bare-small", {"norm": "none", "gain": 0.8, "lr": 1e-3, "steps": 350})

_masks = Family("disc-masks", "segmentation", 0.5, {"steps": 150, "lr": 0.01, "batch": 16})
_masks.vanishing(
    "no-shortcut-sigmoid",
    SATURATION,
    {"norm": None, "shortcuts": False, "activation": "sigmoid", "depth": 2, "optimizer": "sgd", "lr": 0.1},
)
_masks.exploding(
    "bright",
    "unscaled_inputs learning_rate_too_high missing_normalization",
    {"norm": None, "brightness": 255.0, "optimizer": "sgd", "lr": 0.5, "init": "he"},
)
_masks.healthy("overlap", {"overlap": True, "steps": 200})
_masks.healthy("bright-batch-norm", {"brightness": 255.0, "optimizer": "sgd", "lr": 0.2, "momentum": 0.9})
_masks.exploding("adam-doubling", RATE, {"norm": None, "lr": 1e-3, "schedule": "doubling:2", "steps": 300})

_codes = Family("dots-quantized", "quantized_codes", 0.1, {"steps": 500, "lr": 5e-3, "batch": 48})
_codes.vanishing(
    "sigmoid", SATURATION, {"activation": "sigmoid", "init": "normal:0.005", "optimizer": "sgd", "lr": 0.1}
)

_fine = Family(
    "dots-transfer", "transfer", 0.5, {"data": "dots", "world": "mirror", "pretraining": 250, "steps": 300, "lr": 2e-3}
)
_fine.exploding("no-warmup", RATE, {"optimizer": "sgd", "lr": 8.0, "momentum": 0.9})
_fine.healthy("adapters", {"method": "adapter", "lr": 5e-3, "adapter_width": 16, "steps": 500})
_fine.healthy("almost-done", {"world": "", "pretraining": 500, "lr": 5e-5})
_fine.vanishing("unlearned", "excessive_weight_decay", {"optimizer": "sgd", "lr": 0.05, "weight_decay": 0.8})

_pulses = Family(
    "beats-autoencoder",
    "autoencoder",
    0.2,
    {"data": "beats", "hidden": [32, 16], "inputs": "std", "activation": "elu", "steps": 400, "lr": 5e-3},
)
_pulses.exploding(
    "linear-ramp",
    RATE,
    {"activation": "linear", "hidden": [12], "optimizer": "sgd", "lr": 0.05, "schedule": "ramp:3000"},
)
_pulses.exploding("adamax-doubling", RATE, {"optimizer": "adamax", "lr": 1e-3, "schedule": "doubling:4", "steps": 500})
_pulses.vanishing(
    "hard-sigmoid",
    SATURATION,
    {"activation": "hard_sigmoid", "hidden": [32, 24, 16, 12], "optimizer": "sgd", "lr": 0.2},
)
_pulses.healthy("gaps", {"blur": 1.0, "optimizer": "nadam"})

# --- sequences --------------------------------------------------------------------------------------------------------

_season = Family("season", "forecasting", 0.6, {"steps": 250, "lr": 5e-3, "batch": 16})
_season.vanishing(
    "sigmoid-plain",
    SATURATION,
    {"residual": False, "activation": "sigmoid", "layers": 7, "optimizer": "sgd", "lr": 0.05},
)
_season.vanishing(
    "tanh-plain-small",
    SMALL,
    {"residual": False, "activation": "tanh", "init": "normal:0.02", "layers": 8, "optimizer": "sgd", "lr": 0.05},
)
_season.exploding(
    "counted-from-zero",
    "unscaled_inputs unscaled_targets learning_rate_too_high",
    {"level": 500.0, "optimizer": "sgd", "lr": 1e-3},
)
_season.exploding(
    "ramp", RATE, {"activation": "leaky_relu", "layers": 2, "optimizer": "sgd", "lr": 5e-3, "schedule": "ramp:3000"}
)
_season.healthy("in-thousands", {"unit": 1000.0, "lr": 0.02, "steps": 400})
_season.healthy("deep-norm", {"layers": 10, "norm": "batch"})
_season.exploding(
    "nadam-doubling", RATE, {"optimizer": "nadam", "lr": 1e-3, "schedule": "doubling:4", "layers": 3, "steps": 500}
)
_season.other("no-rate", {"optimizer": "sgd", "lr": 1e-9, "steps": 120})

_marked = Family(
    "marked-number",
    "recurrent",
    0.6,
    {"task": "marked", "length": 10, "cell": "gru", "width": 24, "steps": 450, "lr": 0.01, "batch": 48},
)
_marked.vanishing(
    "contracting",
    MEMORY,
    {
        "cell": "rnn-tanh",
        "init": "normal:0.02",
        "length": 60,
        "optimizer": "sgd",
        "lr": 0.05,
        "batch": 256,
        "steps": 150,
    },
)
_marked.exploding("gated-doubling", RATE, {"schedule": "doubling:4", "lr": 1e-3, "steps": 500})
_marked.exploding(
    "elu-ramp", UNROLLED, {"cell": "rnn-elu", "optimizer": "sgd", "lr": 5e-3, "schedule": "ramp:5000", "steps": 400}
)
_marked.healthy("orthogonal-clipped", {"cell": "rnn-relu", "init": "eye", "clip_norm": 0.5, "lr": 3e-3, "steps": 700})

_largest = Family(
    "largest-so-far",
    "recurrent",
    0.5,
    {"task": "maximum", "length": 12, "cell": "lstm", "width": 24, "steps": 400, "lr": 0.01, "batch": 48},
)
_largest.vanishing(
    "sigmoid-long",
    MEMORY,
    {"cell": "rnn-sigmoid", "length": 50, "init": "normal:0.02", "optimizer": "sgd", "lr": 0.02, "steps": 200},
)
_largest.exploding(
    "softplus-doubling",
    UNROLLED,
    {
        "cell": "rnn-softplus",
        "init": "orthogonal",
        "gain": 0.5,
        "optimizer": "sgd",
        "lr": 1e-3,
        "schedule": "doubling:25",
    },
)
_largest.healthy("loud", {"input_scale": 30.0, "clip_value": 0.1, "steps": 600})
_largest.exploding(
    "rising-restarts",
    RATE,
    {"cell": "rnn-tanh", "optimizer": "sgd", "lr": 0.02, "schedule": "rising-restarts:40:6", "steps": 500},
)

_brackets = Family(
    "brackets",
    "recurrent",
    0.5,
    {"task": "brackets", "length": 12, "cell": "gru", "width": 24, "steps": 400, "lr": 0.01, "batch": 48},
)
_brackets.healthy("two-layer-lstm", {"cell": "lstm", "layers": 2, "clip_norm": 1.0})
_brackets.vanishing(
    "sigmoid-small",
    MEMORY,
    {"cell": "rnn-sigmoid", "init": "normal:0.02", "length": 50, "optimizer": "sgd", "lr": 0.05, "steps": 200},
)
_brackets.other("no-rate", {"optimizer": "sgd", "lr": 1e-8, "steps": 150})

_speech = Family("transcripts", "transcription", 0.4, {"steps": 300, "lr": 0.01, "batch": 24})
_speech.exploding("no-alignment", "numerical_instability", {"frames": 2, "said": 4, "steps": 60})
_speech.healthy("blank-plateau", {"cell": "lstm", "clip_norm": 5.0, "steps": 450})

_code = Family(
    "lm-archives",
    "recurrent_language_model",
    0.12,
    {
        "source": "tarfile",
        "cell": "lstm",
        "layers": 2,
        "width": 40,
        "steps": 250,
        "lr": 0.01,
        "batch": 12,
        "length": 24,
        "clip_norm": 1.0,
    },
)
_code.exploding(
    "relu",
    UNROLLED,
    {
        "cell": "rnn-relu",
        "layers": 1,
        "init": "orthogonal",
        "gain": 1.1,
        "clip_norm": None,
        "optimizer": "sgd",
        "lr": 0.5,
        "length": 30,
    },
)
_code.healthy("carried", {"carry": True, "cell": "gru", "layers": 1, "optimizer": "adamw"})

_types = Family(
    "lm-types-transformer",
    "transformer",
    0.12,
    {"task": "text", "source": "typing", "length": 24, "width": 32, "blocks": 3, "steps": 200, "lr": 4e-3, "batch": 12},
)
_types.vanishing(
    "no-skip",
    "missing_normalization poor_initialization saturating_activation",
    {
        "norm": "none",
        "residual": False,
        "blocks": 5,
        "init": "normal:0.02",
        "optimizer": "sgd",
        "lr": 0.3,
        "momentum": 0.9,
        "steps": 160,
    },
)
_types.healthy("zero-branches-lion", {"zero_branches": True, "optimizer": "lion", "lr": 2e-3})

# --- other losses -----------------------------------------------------------------------------------------------------

_hyper = Family("weight-writer", "hypernetwork", 0.5, {"steps": 500, "lr": 3e-3, "batch": 24})
_hyper.exploding("ramp", RATE, {"activation": "elu", "optimizer": "sgd", "lr": 5e-3, "schedule": "ramp:5000"})
_hyper.exploding("lion-doubling", RATE, {"optimizer": "lion", "lr": 1e-4, "schedule": "doubling:5", "steps": 700})

_prey = Family(
    "predators", "unrolled_simulation", 0.5, {"system": "prey", "steps": 250, "lr": 5e-3, "batch": 24, "horizon": 15}
)
_prey.exploding("ramp", UNROLLED, {"activation": "elu", "optimizer": "sgd", "lr": 2e-3, "schedule": "ramp:10000"})
_prey.healthy("clipped", {"horizon": 30, "clip_norm": 0.5})

_graph = Family(
    "deep-graph",
    "graph_network",
    0.5,
    {"layers": 8, "norm": "layer", "residual": True, "steps": 200, "lr": 5e-3, "batch": 160},
)
_graph.vanishing(
    "plain-tanh-small",
    SMALL + " saturating_activation",
    {"norm": None, "residual": False, "activation": "tanh", "init": "normal:0.03", "optimizer": "sgd", "lr": 0.1},
)
_graph.vanishing(
    "plain-sigmoid",
    SATURATION,
    {"norm": None, "residual": False, "activation": "sigmoid", "optimizer": "sgd", "lr": 0.1},
)

_flow = Family("circle-flow", "coupling_flow", 0.1, {"data": "circle", "couplings": 6, "steps": 400, "lr": 5e-3})
_flow.exploding(
    "unbounded-ramp",
    UNSTABLE,
    {"bounded": False, "couplings": 4, "optimizer": "sgd", "lr": 2e-3, "schedule": "ramp:1000"},
)

_half = Family(
    "half-impedance",
    "mlp",
    0.6,
    {
        "data": "impedance",
        "hidden": [32, 32],
        "activation": "gelu",
        "steps": 350,
        "lr": 5e-3,
        "loss_scale": 2.0**18,
        "dynamic_scale": True,
        "scale_growth_interval": 40,
    },
)
_half.exploding("fixed", "precision_overflow", {"dynamic_scale": False, "loss_scale": 2.0**21})
_half.vanishing(
    "too-small", "precision_underflow", {"dynamic_scale": False, "loss_scale": 1e-8, "optimizer": "sgd", "lr": 0.1}
)
_half.healthy("kept-skips-out", {"record_skipped": False, "loss_scale": 2.0**22})
_half.exploding(
    "fixed-later",
    "precision_overflow learning_rate_too_high",
    {
        "dynamic_scale": False,
        "loss_scale": 1024.0,
        "optimizer": "sgd",
        "lr": 0.02,
        "hidden": [],
        "schedule": "ramp:150",
    },
)

FAMILIES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Family))
