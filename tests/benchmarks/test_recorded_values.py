"""The blocks that the benchmarks send."""

from __future__ import annotations

import numpy as np
from benchmarks.recorded_values import BLOCK_STEPS, LAYERS, NAMES, RECORDED_STEPS, VALUES_PER_BLOCK, Blocks

from gradmedic.protocol.service import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry.decoding import decode_block


def test_both_forms_carry_the_same_recorded_values() -> None:
    """A block has 50 steps x 100 layers x 8 statistics, finite and the same in JSON and msgpack; steps go on."""
    blocks, limits = Blocks(), Settings().limits()
    for index in (0, RECORDED_STEPS // BLOCK_STEPS + 1):
        forms = [
            decode_block(blocks.body(index, media_type), media_type, limits).fit(NAMES, [LAYERS])
            for media_type in (JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE)
        ]
        assert forms[0].values.size == VALUES_PER_BLOCK == 40_000
        assert np.isfinite(forms[0].values).all()
        assert (forms[0].values == forms[1].values).all()
        assert forms[1].steps.tolist() == list(range(index * BLOCK_STEPS, (index + 1) * BLOCK_STEPS))


def test_no_layer_is_twice_in_a_block() -> None:
    """Layers that are used again are moved on by more than a block, so that compression finds no copy."""
    norms = Blocks().values[:BLOCK_STEPS, :, NAMES.index("update_norm")]
    varying = [column.tobytes() for column in norms.T if len(set(column.tolist())) > BLOCK_STEPS // 2]
    assert len(varying) > LAYERS // 2
    assert len(set(varying)) == len(varying)
