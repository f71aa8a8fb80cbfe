"""JSON: from Python values to bytes and back."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmedic.protocol.diagnosis import Diagnosis
from gradmedic.protocol.encoding import encode_json, from_json, to_json
from gradmedic_service.http.validation import json_errors

json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=10,
)


@given(json_like)
def test_any_hyperparameters_become_strict_json(value: Any) -> None:
    """Any config becomes JSON that the service takes: no NaN, Infinity, broken text or integer beyond 64 bits."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    config = json.loads(to_json({"config": value}), parse_constant=refuse)
    assert list(json_errors("", config)) == []


def test_odd_hyperparameters_become_text_or_numbers() -> None:
    """Numpy scalars become numbers, non-finite numbers their names, other objects their text. Nesting has an end."""
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
        "a\x00b": ["\ud800", Path("c\udfff"), "\x00"],
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
        "a?b": ["?", "c?", "?"],
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


plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(plain_json)
def test_plain_values_come_back_unchanged(value: Any) -> None:
    """`encode_json` writes JSON from which Python reads the same value, integers of any size included."""
    assert json.loads(encode_json(value)) == value


@given(st.lists(st.none() | st.text()))
def test_text_is_encoded_as_by_the_standard_library(value: list[str | None]) -> None:
    """Page tokens are made of text and null: their bytes are those of `json.dumps`, as in earlier releases."""
    assert encode_json(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def test_nonfinite_numbers_are_encoded_by_name() -> None:
    """NaN and the infinities become their names at any depth, in tuples and as numpy scalars too."""
    value = {"a": (math.nan, np.float64(math.inf)), "b": [{"c": -math.inf}, np.float64(0.5)]}
    assert encode_json(value) == b'{"a":["NaN","Infinity"],"b":[{"c":"-Infinity"},0.5]}'


def test_other_objects_are_not_encoded_silently() -> None:
    """`encode_json` raises for an object that JSON cannot hold, where `to_json` writes its text."""
    with pytest.raises(TypeError):
        encode_json({"path": Path("a/b")})
    assert to_json({"path": Path("a/b")}) == b'{"path":"a/b"}'
