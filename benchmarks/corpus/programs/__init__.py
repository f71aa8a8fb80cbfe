"""Programs by name: each builds a model and its data into a ledger and a `Program`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from benchmarks.corpus.program import Program
from benchmarks.corpus.programs import applied, feedback, feedforward, gates, likelihoods, others, sequences, transfer

PROGRAMS: Final[dict[str, Callable[..., Program]]] = {
    function.__name__: function
    for function in (
        applied.click_rates,
        applied.fixed_point,
        applied.forecasting,
        applied.hypernetwork,
        applied.quantized_codes,
        applied.ranking,
        applied.segmentation,
        applied.survival,
        applied.transcription,
        feedforward.mlp,
        feedforward.linear_chain,
        feedforward.convolutional,
        feedforward.autoencoder,
        sequences.recurrent,
        sequences.recurrent_language_model,
        sequences.sequence_to_sequence,
        sequences.transformer,
        feedback.actor_critic,
        feedback.bilinear_game,
        feedback.drifting_values,
        feedback.meta_learning,
        feedback.principal_component,
        gates.gated_stack,
        gates.pre_activation,
        gates.sign_network,
        likelihoods.heteroscedastic,
        likelihoods.mean_teacher,
        likelihoods.pooled_set,
        likelihoods.word_vectors,
        transfer.transfer,
        others.adversarial,
        others.bag_of_words,
        others.contrastive,
        others.coordinate_network,
        others.count_words,
        others.coupling_flow,
        others.denoising_diffusion,
        others.distillation,
        others.fine_tune,
        others.graph_network,
        others.highway,
        others.matrix_factorization,
        others.mixture_density,
        others.mixture_of_experts,
        others.multi_task,
        others.physics_informed,
        others.policy_gradient,
        others.skip_gram,
        others.temporal_difference,
        others.tied_network,
        others.unrolled_simulation,
        others.variational_regression,
    )
}
