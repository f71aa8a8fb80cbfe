"""Gradients that grow from step to step."""

from __future__ import annotations

import numpy as np
from tests.diagnosis.synthetic_run import falling, run
from tests.diagnosis.whole_run import diagnose, list_alarms, without_weights

from gradmedic_diagnosis import Block


def test_geometric_growth_is_exploding_early() -> None:
    """Gradients and updates that double every step are exploding long before the loss overflows float32."""
    steps = 200
    growth = np.maximum(0, np.arange(steps) - 100)
    loss = falling(steps) * 1.5**growth
    scale = (2.0**growth)[:, None]
    diagnosis = diagnose(
        run(np.minimum(loss, 1e30), gradient=np.minimum(scale, 1e30), update=np.minimum(0.01 * scale, 1e30))
    )
    assert diagnosis.verdict == "exploding"
    assert list_alarms(diagnosis)[0][0] < 116


def test_gradients_alone_can_explode() -> None:
    """Gradients that double every step are exploding, also where neither loss nor weights are sent."""
    scale = 2.0 ** np.maximum(0, np.arange(120) - 60)
    block = without_weights(run(falling(120), gradient=scale[:, None]))
    without_loss = Block(**{**{n: getattr(block, n) for n in Block.__dataclass_fields__}, "series": {}})
    assert diagnose(without_loss).verdict == "exploding"
