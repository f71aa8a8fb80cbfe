"""A block that is read fast is what pydantic would read; every other block is left to pydantic."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_core import ValidationError

from gradmedic.protocol.steps import StepsAppend
from gradmedic_service.telemetry.decoding import STEPS_VALIDATOR
from gradmedic_service.telemetry.plain_json import read_plain

NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(["null", "-0", "-0.0", "1E5", "5e-324", "1e-400", "0.1", "1.00000000000000011102230246251565"]),
)
ODD_NUMBERS = st.sampled_from(
    ["1e400", "1" + "0" * 400, "NaN", "-Infinity", '"NaN"', '"nan"', '"1"', "true", "01", "1.", "[1]", "{}", "",
     '"\\ud800"']
)  # fmt: skip
NAMES = st.sampled_from(["grad_norm", "grad_mean", "loss", "x", "", "\\u0000", "\\ud800", "\\u0067rad_norm"])
SPACES = st.sampled_from(["", " ", "\n\t"])


def lists(items: st.SearchStrategy[str], most: int = 3) -> st.SearchStrategy[str]:
    """Return the texts of lists."""
    return st.lists(items, max_size=most).map(lambda parts: f"[{','.join(parts)}]")


def objects(names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return the texts of objects, in which a name may come twice."""
    entries = st.tuples(names, SPACES, values).map(lambda entry: f'"{entry[0]}":{entry[1]}{entry[2]}')
    return st.lists(entries, max_size=4).map(lambda parts: f"{{{','.join(parts)}}}")


ITEMS = st.one_of(NUMBERS, NUMBERS, NUMBERS, ODD_NUMBERS)
FIELDS = st.one_of(
    st.just('"steps":[0,1]'),
    lists(st.sampled_from(["0", "1", "1.0", "-1", "true"])).map('"steps":{}'.format),
    lists(ITEMS).map('"loss":{}'.format),
    lists(st.sampled_from(["true", "false", "0", "null"])).map('"sampled":{}'.format),
    objects(NAMES, lists(ITEMS)).map('"metrics":{}'.format),
    objects(NAMES, lists(lists(ITEMS))).map('"statistics":{}'.format),
    st.sampled_from(['"generation":0', '"generation":null', '"statistics":null', '"x":1', '"\\u0073teps":[5]', '""']),
)
BODIES = st.tuples(SPACES, st.lists(FIELDS, max_size=5), SPACES).map(
    lambda parts: f"{parts[0]}{{{','.join(parts[1])}}}{parts[2]}".encode()
)

GUARD_ACTION = {"step": 0, "action": "skip", "reason": "spike", "numbers": {"norm": 9.0}, "explanation": "A spike."}


def validated(body: bytes) -> StepsAppend | None:
    """Return what pydantic reads in a body; None if it refuses it."""
    try:
        append: StepsAppend = STEPS_VALIDATOR.validate_json(body)
    except ValidationError:
        return None
    return append


@given(body=BODIES)
@example(body=b'{"steps":[0],"statistics":{"grad_norm":[[-0,-0.0,1e-400,123456789012345678901]]}}')
@example(body=b'{"steps":[0],"steps":[1],"statistics":{"grad_norm":[[1]]},"statistics":{"grad_mean":[[2]]}}')
@example(body=b'{"steps":[0],"statistics":{"grad_norm":[[1]],"grad_norm":[[2]]}}')
@example(body=b'{"steps":[0],"metrics":{"\xff":[1]}}')
@example(body=b'\xef\xbb\xbf{"steps":[0]}')
@example(body=b'{"steps":[0]}x')
@example(body=b'{"steps":[0],"metrics":{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}}")
def test_a_body_is_read_as_pydantic_reads_it(body: bytes) -> None:
    """What is read has the same fields and the same numbers, down to the sign of zero; mistakes are not read."""
    found = read_plain(body, STEPS_VALIDATOR)
    if found is not None:
        append, statistics = found
        assert repr(replace(append, statistics=statistics)) == repr(validated(body))


@pytest.mark.parametrize(
    "content",
    [
        {"steps": [0, 1], "loss": [1.5, None], "statistics": {"grad_norm": [[1, None], [2.5, 3e-7]]}},
        {"steps": [0], "loss": ["NaN"], "metrics": {"acc": [0.5]}, "sampled": [True], "generation": 1},
        {"steps": [0], "guard_actions": [GUARD_ACTION]},
    ],
)
def test_usual_blocks_are_read_fast(content: object) -> None:
    """Plain numbers, absent layers, and whatever the fields other than the statistics hold, are no reason to wait."""
    body = json.dumps(content).encode()
    found = read_plain(body, STEPS_VALIDATOR)
    assert found is not None
    assert repr(replace(found[0], statistics=found[1])) == repr(validated(body))


@pytest.mark.parametrize(
    "statistics", ['{"grad_norm":[["NaN"]]}', '{"grad_norm":[[NaN]]}', '{"x":[[1]]}', '{"grad_norm":1}', "null"]
)
def test_other_blocks_are_left_to_pydantic(statistics: str) -> None:
    """A non-finite number, an unknown statistic and a mistake are not read fast."""
    assert read_plain(f'{{"steps":[0],"statistics":{statistics}}}'.encode(), STEPS_VALIDATOR) is None
