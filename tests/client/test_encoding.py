"""Values to bytes and back."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradmedic.protocol.diagnosis import Diagnosis
from gradmedic.protocol.encoding import from_json, to_float32, to_json


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)))
def test_float32_keeps_finite_finite_and_nonzero_nonzero(numbers: list[float]) -> None:
    """Rounding to float32 never turns a finite number infinite or a nonzero one into zero, and keeps NaN and signs."""
    values = np.array(numbers, dtype=np.float64)
    narrow = to_float32(values)
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(np.isfinite(narrow), np.isfinite(values))
    np.testing.assert_array_equal(np.isnan(narrow), np.isnan(values))
    np.testing.assert_array_equal(np.sign(narrow), np.sign(values).astype(np.float32))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(json_like)
def test_any_hyperparameters_become_strict_json(value: Any) -> None:
    """Whatever a config holds, the bytes are JSON without NaN, Infinity or broken text."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads(to_json({"config": value}), parse_constant=refuse)


def test_odd_hyperparameters_become_text_or_numbers() -> None:
    """Numpy scalars become numbers, non-finite ones their names, everything unknown its text; nesting has an end."""
    loop: list[Any] = []
    loop.append(loop)
    config = {
        "lr": np.float32(0.5),
        "n": np.int64(3),
        "path": Path("a/b"),
        "nan": math.nan,
        "low": -math.inf,
        "set": {1},
        "big": 2**70,
        3: argparse.Namespace(x=1),
    }
    assert json.loads(to_json(config)) == {
        "lr": 0.5,
        "n": 3,
        "path": "a/b",
        "nan": "NaN",
        "low": "-Infinity",
        "set": [1],
        "big": str(2**70),
        "3": "Namespace(x=1)",
    }
    assert to_json(loop).startswith(b"[[[")


def test_a_diagnosis_is_read_with_nonfinite_numbers_and_unknown_fields() -> None:
    """The string "NaN" becomes a number, and fields of a newer service are ignored."""
    body = {
        "run_id": "01a20088-6da0-7e80-b639-b6f5d5d30828", "step": 3, "verdict": "exploding", "score": 1,
        "since_step": 2, "summary": "s", "causes": [], "advice": [], "new": True,
        "findings": [{
            "detector": "nonfinite", "verdict": "exploding", "class": "exploding", "severity": "critical",
            "layers": ["w"], "first_step": 2, "last_step": 3, "resolved_step": None,
            "evidence": {"norm": "NaN", "top": "Infinity"}, "explanation": "e",
        }],
    }  # fmt: skip
    diagnosis = from_json(json.dumps(body).encode(), Diagnosis)
    assert diagnosis.findings[0].verdict == "exploding"
    assert math.isnan(diagnosis.findings[0].evidence["norm"])
    assert diagnosis.findings[0].evidence["top"] == math.inf
    written = json.loads(to_json(diagnosis))["findings"][0]
    assert (written["verdict"], written["class"]) == ("exploding", "exploding")


def test_a_finding_of_an_older_service_is_read() -> None:
    """A service of version 0.1 answers a finding's verdict as `class` only."""
    body = {
        "run_id": "01a20088-6da0-7e80-b639-b6f5d5d30828", "step": 3, "verdict": "healthy", "score": 0.9,
        "since_step": 2, "summary": "s", "causes": [], "advice": [],
        "findings": [{
            "detector": "depth_gap", "class": "vanishing", "severity": "note", "layers": [], "first_step": 2,
            "last_step": 3, "resolved_step": None, "evidence": {}, "explanation": "e",
        }],
    }  # fmt: skip
    assert from_json(json.dumps(body).encode(), Diagnosis).findings[0].verdict == "vanishing"
