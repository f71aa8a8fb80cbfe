"""Whether a remedy has a place in a run at all, as far as its structure, its loss and its script are known.

What a rerun would find not to be applicable is no advice.
"""

from __future__ import annotations

import math
import re

from gradmedic.protocol.layer_roles import is_matrix
from gradmedic_diagnosis import remedy_fit
from gradmedic_diagnosis.detectors.loss_mismatch import find_missing_logarithm
from gradmedic_diagnosis.precision import is_half_precision
from gradmedic_diagnosis.run_evidence import RECTIFIERS, SATURATING, RunEvidence

MIN_RESIDUAL_DEPTH = 4
"""Weight matrices from which residual connections are worth their change of the architecture."""
INITIALIZATION_WITH_NORMALIZATION = 0.3
"""Share of its effect that an initialization has in a network with normalization. A judgement: behind a normalization
the scale of weights does not reach the output (Ioffe and Szegedy 2015, section 3.3)."""
DEEP_PLAIN_DEPTH = 10
"""Weight matrices from which a plain network hardly trains by its initial weights alone: He et al. 2016, Deep residual
learning, section 1, start from networks with normalized initialization *and* normalization layers."""
INITIALIZATION_OF_DEEP_PLAIN = 0.7
"""Share of its effect that an initialization has in such a network. In races, networks with 13 and 17 matrices did not
learn by He's weights, and learned by batch normalization."""
EPSILON_UNSEEN = 0.1
"""Share of its effect that another epsilon has where nothing shows that it matters. A judgement."""
ODD_NORM = 3.0
"""Factor by which the norm of an embedding's vectors is far from 1. Torch's have the root of their width."""
WARM_START = 0.5
"""A first learning rate below this share of the largest one is a warm-up of the script."""
CLIPPING_WITHOUT_SCALE = 0.3
"""Share of its effect that clipping has where a gradient's size hardly changes the update. A judgement: under Adam only
a gradient that is far above its running average changes the step (Kingma and Ba 2015, section 2.1)."""
STATE_BREAKS = 2.0
"""Factor per time step of a recurrent matrix from which the state itself saturates: the tanh of twice its size has half
the slope or less. A bound of the gradient leaves the state as it is."""
CLIPPING_OF_BROKEN_STATE = 0.7
"""Share of its effect that clipping has there. No bound repaired such networks in the trials of docs/remedies.md."""
STABLE_LOSSES = frozenset({"LogSoftmax", "BinaryCrossEntropyWithLogits", "MseLoss", "SmoothL1Loss", "HuberLoss"})
"""Operations of losses that overflow or take the logarithm of zero only where their inputs are non-finite."""
STABLE_LOSS_DEPTH = 4
"""Operations of the loss, from the loss backwards, among which such an operation is looked for."""
SECOND_MOMENT = ("adam", "adamw", "nadam", "radam", "lamb")
"""Beginnings and endings of the names of optimizers that keep a second moment as Adam does."""
_ATTENTION = re.compile(r"attention|attn|q_proj|qkv|in_proj_weight")
"""In names and kinds of layers of attention."""


def is_exploding(run: RunEvidence) -> bool:
    """Whether the verdict is exploding."""
    return run.verdict == "exploding"


def ignores_all_labels(run: RunEvidence) -> bool:
    """Whether the loss is not finite because it ignores all labels of a batch."""
    finding = run.find("nonfinite_loss")
    return finding is not None and finding.evidence.get("ignored_label_share") == 1.0


def has_rate_to_scale(run: RunEvidence) -> bool:
    """Whether another factor of the learning rate can help: not of 0, and not where a schedule has ended."""
    return not run.has_ended_schedule and run.history.last_learning_rate != 0


def may_switch_to_adam(run: RunEvidence) -> bool:
    """Whether Adam is another optimizer than the run's, with a learning rate that no schedule takes to nothing."""
    return uses_no_adam(run) and not run.has_ended_schedule


def lacks_clipping(run: RunEvidence) -> bool:
    """Whether gradients may be too large, and the script does not clip them already."""
    return run.verdict != "vanishing" and not run.training.clips_gradients and not run.history.clipped_steps


def estimate_fit_of_clipping(run: RunEvidence) -> float:
    """Return how much clipping can do: less where the optimizer divides by the gradient's size, or the state breaks."""
    if run.is_optimizer_scale_free:
        return CLIPPING_WITHOUT_SCALE
    return CLIPPING_OF_BROKEN_STATE if run.recurrent_factor >= STATE_BREAKS else 1.0


def estimate_fit_of_epsilon(run: RunEvidence) -> float:
    """Return how much another epsilon can do: little unless it is known to matter, or float16 rounds it to zero."""
    return 1.0 if "optimizer_epsilon" in run.conditions or has_dtype(run, "float16") else EPSILON_UNSEEN


def estimate_fit_of_initialization(run: RunEvidence) -> float:
    """Return how much other initial weights can do: less where normalization sets the size of signals, or is needed."""
    if run.is_normalized:
        is_rescaled = not run.zero_initialized and not run.recurrent
        return INITIALIZATION_WITH_NORMALIZATION if is_rescaled else 1.0
    depth = sum(not run.layers[i].branch for i in run.path)
    is_deep_and_plain = depth >= DEEP_PLAIN_DEPTH and not run.has_recurrence
    return INITIALIZATION_OF_DEEP_PLAIN if is_deep_and_plain else 1.0


def has_no_zero_matrix(run: RunEvidence) -> bool:
    """Whether no weight matrix starts at exactly zero: its direction is not defined."""
    return not run.zero_initialized


def has_scaled_targets(run: RunEvidence) -> bool:
    """Whether the targets may have a scale; those of a classification have none."""
    return not run.is_classification


def may_compute_loss_unsafely(run: RunEvidence) -> bool:
    """Whether the loss may be computed from probabilities, and not by a stable function of the logits."""
    loss = run.training.loss
    return loss is None or not set(loss.operations[:STABLE_LOSS_DEPTH]) & STABLE_LOSSES


def uses_adam(run: RunEvidence) -> bool:
    """Whether an optimizer is Adam or a variant of it."""
    return any(optimizer.name.lower().startswith("adam") for optimizer in run.training.optimizers)


def has_second_moment(run: RunEvidence) -> bool:
    """Whether every optimizer keeps a second moment as Adam does."""
    names = [optimizer.name.lower() for optimizer in run.training.optimizers]
    return bool(names) and all(name.startswith(SECOND_MOMENT) or name.endswith(SECOND_MOMENT) for name in names)


def can_forget_sooner(run: RunEvidence) -> bool:
    """Whether a shorter second beta than the script's is advised at all."""
    known = [optimizer.beta2 for optimizer in run.training.optimizers if optimizer.beta2 is not None]
    return has_second_moment(run) and not any(beta <= remedy_fit.SHORTER_BETAS[-1] for beta in known)


def can_change_epsilon(run: RunEvidence) -> bool:
    """Whether the optimizer has an epsilon that is not the advised one already."""
    epsilon = remedy_fit.choose_epsilon(run)["epsilon"]
    return has_second_moment(run) and any(optimizer.epsilon != epsilon for optimizer in run.training.optimizers)


def has_dtype(run: RunEvidence, *names: str) -> bool:
    """Whether the parameters have one of these dtypes."""
    return (run.training.parameter_dtype or "").lower() in names


def has_low_precision_weights(run: RunEvidence) -> bool:
    """Whether the parameters themselves have 16 bits, not only what autocast computes with them."""
    return has_dtype(run, "float16", "bfloat16")


def uses_no_adam(run: RunEvidence) -> bool:
    """Whether no optimizer is known to be Adam or a variant of it."""
    return not uses_adam(run)


def may_saturate(run: RunEvidence) -> bool:
    """Whether there may be activations outside of a recurrent cell that saturate or grow without bound."""
    if run.is_all_recurrent:
        return False  # a cell computes its own activations
    if not run.activations or any(activation in SATURATING for activation in run.activations):
        return True
    return has_unusual_activation(run)


def has_unusual_activation(run: RunEvidence) -> bool:
    """Whether a known activation neither saturates nor is a rectifier."""
    return bool(run.activations) and not all(activation in SATURATING + RECTIFIERS for activation in run.activations)


def can_be_normalized(run: RunEvidence) -> bool:
    """Whether there is no normalization yet, and a hidden layer outside of a recurrent cell."""
    return not run.is_normalized and not run.is_all_recurrent and not has_embeddings_alone(run)


def has_dead_units(run: RunEvidence) -> bool:
    """Whether gradients are exactly zero, with hidden layers outside of a recurrent cell."""
    return run.find("zero_gradient") is not None and not run.is_all_recurrent


def is_feedforward(run: RunEvidence) -> bool:
    """Whether there are several weight matrices and no recurrent cell."""
    return not run.has_recurrence and len(run.path) >= 2


def has_plain_recurrence(run: RunEvidence) -> bool:
    """Whether there is a recurrent matrix without gates."""
    return bool(run.recurrent)


def lacks_warm_up(run: RunEvidence) -> bool:
    """Whether the learning rate does not rise from a low start already."""
    return not run.history.first_learning_rate < WARM_START * run.history.largest_learning_rate


def has_rate_jump(run: RunEvidence) -> bool:
    """Whether the learning rate has jumped, and the rate from before it is known."""
    jump = run.find("learning_rate_jump")
    return jump is not None and jump.evidence["learning_rate_before"] > 0


def takes_numbers(run: RunEvidence) -> bool:
    """Whether the inputs may be numbers; tokens, which embeddings read, have no scale."""
    return run.training.input_rms is not None or not run.architecture.is_embedding.any()


def can_be_initialized(run: RunEvidence) -> bool:
    """Whether the weights may be drawn anew: where some matrices are frozen, the others fit to pretrained ones."""
    matrices = [layer for layer in run.layers if is_matrix(layer)]
    frozen = sum(layer.requires_grad is False or (layer.requires_grad is None and layer.frozen) for layer in matrices)
    return not 0 < frozen < len(matrices)


def has_residual_branches(run: RunEvidence) -> bool:
    """Whether layers are known to lie beside an identity path."""
    return any(layer.block is not None or layer.branch for layer in run.layers)


def may_get_residual(run: RunEvidence) -> bool:
    """Whether the network is deep enough for residual connections and has none that are known."""
    has_branches = has_residual_branches(run) or has_attention(run)  # blocks of attention are residual
    return is_feedforward(run) and len(run.path) >= MIN_RESIDUAL_DEPTH and not has_branches


def has_attention(run: RunEvidence) -> bool:
    """Whether a layer belongs to attention, by its kind or its name."""
    return any(_ATTENTION.search(f"{layer.kind or ''} {layer.name}".lower()) for layer in run.layers)


def has_lstm(run: RunEvidence) -> bool:
    """Whether there is an LSTM."""
    return any((layer.kind or "").lower().startswith("lstm") for layer in run.layers)


def has_embedding(run: RunEvidence) -> bool:
    """Whether there is an embedding that trains."""
    return bool(run.architecture.is_embedding.any())


def has_embeddings_alone(run: RunEvidence) -> bool:
    """Whether embeddings are the only weights of more than one dimension."""
    return bool(run.architecture.is_embedding.any()) and not run.architecture.is_path.any()


def can_draw_matrices(run: RunEvidence) -> bool:
    """Whether there are matrices of weights that may be drawn anew."""
    return can_be_initialized(run) and not has_embeddings_alone(run)


def has_embeddings_of_odd_size(run: RunEvidence) -> bool:
    """Whether the vectors of an embedding start with a norm far from 1."""
    for i in run.embeddings:
        rms = float(run.averages.first_weight_norm[i]) / float(run.architecture.sqrt_numel[i])
        norm = rms * math.sqrt(run.embedding_width(i))
        if norm > 0 and not 1 / ODD_NORM <= norm <= ODD_NORM:
            return True
    return False


def has_cross_entropy(run: RunEvidence) -> bool:
    """Whether the loss is a cross-entropy of classes, as far as is known."""
    return run.training.loss is None or run.training.loss.kind in (None, "cross_entropy")


def may_scale_loss(run: RunEvidence) -> bool:
    """Whether a loss scaler may help: float16 under autocast, and none in use.

    Torch's `GradScaler` refuses gradients of float16 parameters, and does nothing for other dtypes.
    """
    is_float16 = run.training.precision is None or is_half_precision(run.training)
    return is_float16 and not has_dtype(run, "float16") and math.isnan(run.history.last_loss_scale)


def may_use_bfloat16(run: RunEvidence) -> bool:
    """Whether the training does not compute in bfloat16 already."""
    return (run.training.precision or "").lower() != "bfloat16"


def applies_softmax_twice(run: RunEvidence) -> bool:
    """Whether the loss may be computed from probabilities in place of logits."""
    loss = run.training.loss
    return loss is not None and not loss.broadcasts and not misses_logarithm(run)


def has_impossible_alignments(run: RunEvidence) -> bool:
    """Whether a CTC loss became infinite, as it does where no alignment is possible."""
    finding = run.find("nonfinite")
    is_ctc = run.training.loss is not None and run.training.loss.kind == "ctc"
    return is_ctc and finding is not None and finding.evidence.get("loss") == math.inf


def misses_logarithm(run: RunEvidence) -> bool:
    """Whether the loss takes log-probabilities, and may get probabilities."""
    return find_missing_logarithm(run.training.loss) is not None


def has_broadcast_targets(run: RunEvidence) -> bool:
    """Whether output and target of the loss have shapes that broadcast."""
    return run.training.loss is not None and run.training.loss.broadcasts is True


def may_ignore_labels(run: RunEvidence) -> bool:
    """Whether the loss may compare with labels that it ignores. Those of a loss that is not finite were counted."""
    has_labels = run.training.loss is None or run.is_classification
    return has_labels and (run.find("nonfinite_loss") is None or ignores_all_labels(run))
