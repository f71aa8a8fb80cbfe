"""Both forms of a block decode to the same, and an invalid block is refused with the name of the field."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gradmedic.protocol.encoding import without_nonfinite
from gradmedic.protocol.numbers import LARGEST_FLOAT32, SMALLEST_FLOAT32
from gradmedic.protocol.service import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE, Limits
from gradmedic.protocol.statistics import SERIES, STATISTICS_TABLE
from gradmedic_service.http.errors import InvalidRequest, MalformedBody, UnsupportedMediaType
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry.decoding import MAX_JSON_NAMES, MAX_JSON_VALUES, ReceivedBlock, decode_block

LIMITS = Settings(max_steps_per_block=5, max_values_per_block=40, max_metrics=2, max_name_length=8).limits()


def from_json(content: Any) -> ReceivedBlock:
    """Decode a block from JSON."""
    return decode_block(json.dumps(content).encode(), JSON_MEDIA_TYPE, LIMITS)


def from_msgpack(content: Any) -> ReceivedBlock:
    """Decode a block from msgpack."""
    return decode_block(msgspec.msgpack.encode(content), MSGPACK_MEDIA_TYPE, LIMITS)


def packed(rows: list[list[float]]) -> bytes:
    """Return rows as little-endian float32 bytes."""
    return np.array(rows, dtype="<f4").tobytes()


def refused(decode: Any, content: Any) -> dict[str, str]:
    """Return the messages of a refused block by their paths."""
    with pytest.raises(InvalidRequest) as caught:
        decode(content)
    return {error.path: error.message for error in caught.value.errors}


def test_json_is_decoded() -> None:
    """Numbers, null and the names of non-finite numbers are read column by column."""
    block = from_json(
        {
            "steps": [3, 4, 9],
            "loss": [1.5, None, "NaN"],
            "sampled": [True, False, True],
            "skipped": [False, True, False],
            "metrics": {"acc": [0.1, 0.2, 0.3]},
            "statistics": {"grad_norm": [[1, None], ["Infinity", "NaN"]], "grad_mean": [[2, None], ["-Infinity", 4]]},
        }
    )
    assert block.steps.tolist() == [3, 4, 9]
    assert block.sampled.tolist() == [True, False, True]
    assert block.skipped.tolist() == [False, True, False]
    assert block.series["loss"].present.tolist() == [True, False, True]
    assert math.isnan(block.series["loss"].values[2])
    assert block.present.tolist() == [[True, False], [True, True]]
    np.testing.assert_array_equal(block.statistics["grad_norm"], np.array([[1, 0], [np.inf, np.nan]], np.float32))
    np.testing.assert_array_equal(block.statistics["grad_mean"], np.array([[2, 0], [-np.inf, 4]], np.float32))


def test_msgpack_decodes_to_the_same() -> None:
    """The same block in msgpack, with bytes for arrays and a mask for what is absent, decodes to the same arrays."""
    rows = [[1.0, 7.0], [math.inf, math.nan]]
    as_json = from_json(
        {"steps": [1, 2], "loss": [0.5, "NaN"], "statistics": {"grad_norm": [[1, None], ["Infinity", "NaN"]]}}
    )
    as_msgpack = from_msgpack(
        {
            "steps": [1, 2],
            "loss": [0.5, math.nan],
            "statistics": {"grad_norm": packed(rows)},
            "present": np.packbits([[1, 0], [1, 1]], bitorder="little").tobytes(),
        }
    )
    for name in ("steps", "sampled", "skipped", "present"):
        np.testing.assert_array_equal(getattr(as_json, name), getattr(as_msgpack, name))
    np.testing.assert_array_equal(as_json.statistics["grad_norm"], as_msgpack.statistics["grad_norm"])
    np.testing.assert_array_equal(as_json.series["loss"].values, as_msgpack.series["loss"].values)


def test_bare_nan_in_json_is_accepted() -> None:
    """Non-finite numbers as Python writes them in JSON are accepted."""
    body = b'{"steps": [0], "loss": [NaN], "statistics": {"grad_mean": [[Infinity, -Infinity]]}}'
    block = decode_block(body, JSON_MEDIA_TYPE, LIMITS)
    assert math.isnan(block.series["loss"].values[0])
    assert block.statistics["grad_mean"].tolist() == [[math.inf, -math.inf]]


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (1e39, LARGEST_FLOAT32),
        (-1e300, -LARGEST_FLOAT32),
        (1e-50, SMALLEST_FLOAT32),
        (0.0, 0.0),
        (LARGEST_FLOAT32, LARGEST_FLOAT32),
    ],
)
def test_finite_stays_finite_and_nonzero_stays_nonzero(sent: float, stored: float) -> None:
    """A number beyond float32 is stored as the largest float32, one below as the smallest, never as infinity or 0."""
    block = from_json({"steps": [0], "statistics": {"grad_mean": [[sent]]}})
    assert block.statistics["grad_mean"].tolist() == [[stored]]


@pytest.mark.parametrize(
    ("name", "value", "bounds"),
    [
        *(
            (name, -1.0, "0 or more")
            for name, row in STATISTICS_TABLE.items()
            if not (row.is_signed or row.is_fraction)
        ),
        *(
            (name, value, "from 0 to 1")
            for name, row in STATISTICS_TABLE.items()
            if row.is_fraction
            for value in (-0.5, 1.5, math.inf)
        ),
        ("grad_norm", -math.inf, "0 or more"),
    ],
)
def test_impossible_statistics_are_refused(name: str, value: float, bounds: str) -> None:
    """A negative norm or count and a fraction outside 0 to 1 are refused with the number, in both forms."""
    rows = [[0.5, math.nan], [0.5, value]]
    for decode, statistics in ((from_json, without_nonfinite(rows)), (from_msgpack, packed(rows))):
        assert refused(decode, {"steps": [0, 1], "statistics": {name: statistics}}) == {
            f"statistics.{name}[1][1]": f"must be {bounds}; got {value}"
        }


def test_possible_statistics_are_accepted() -> None:
    """NaN, negative means, infinite norms, and the fractions 0 and 1 are accepted."""
    statistics = {
        "grad_norm": [["NaN", "Infinity"]],
        "grad_mean": [[-1, "-Infinity"]],
        "grad_zero_fraction": [[0, 1]],
        "nonfinite_count": [["NaN", 0]],
    }
    assert from_json({"steps": [0], "statistics": statistics}).present.all()


@pytest.mark.parametrize(
    "field",
    [{"steps": ["2"]}, {"steps": [True]}, {"steps": [2.0]}, {"generation": "0"}, {"sampled": [1]}, {"skipped": ["no"]}],
    ids=str,
)
def test_other_types_are_not_converted_to_integers_or_flags(field: dict[str, Any]) -> None:
    """A string, a boolean or a float is refused as a step, and a number as a flag, in both forms."""
    content = {"steps": [2], **field}
    for decode in (from_json, from_msgpack):
        (path,) = refused(decode, content)
        assert path.startswith(next(iter(field)))


@pytest.mark.parametrize("value", ["1.5", True, False, "nan", "inf", "", [1.0], {"value": 1.0}], ids=repr)
def test_other_types_are_not_converted_to_numbers(value: Any) -> None:
    """A string or a boolean is refused as a number, except the names of the non-finite numbers."""
    words = "must be a number or one of NaN, Infinity, -Infinity"
    for decode in (from_json, from_msgpack):
        for content, path in (
            ({"loss": [1.0, value]}, "loss[1]"),
            ({"time": [value, 2.0]}, "time[0]"),
            ({"metrics": {"accuracy": [None, value]}}, "metrics.accuracy[1]"),
        ):
            assert refused(decode, {"steps": [0, 1], **content}) == {path: words}
    statistics = {"statistics": {"grad_norm": [[1.0, 2], [None, value]]}}
    assert refused(from_json, {"steps": [0, 1], **statistics}) == {"statistics.grad_norm[1][1]": words}
    block = from_json({"steps": [0, 1], "loss": ["NaN", 2], "statistics": {"grad_mean": [["-Infinity"], ["Infinity"]]}})
    assert np.isnan(block.series["loss"].values[0])
    assert block.statistics["grad_mean"].tolist() == [[-math.inf], [math.inf]]


def test_nan_is_not_absent() -> None:
    """A NaN is a present value; only null is absent."""
    block = from_json({"steps": [0], "statistics": {"grad_norm": [["NaN", None]]}})
    assert block.present.tolist() == [[True, False]]


def test_steps_without_statistics_are_not_sampled() -> None:
    """A block of losses alone needs neither `sampled` nor statistics."""
    block = from_json({"steps": [0, 1], "loss": [1, 2]})
    assert not block.sampled.any()
    fitted = block.fit(["grad_norm"], [3])
    assert fitted.values.shape == (0, 3, 1)


@pytest.mark.parametrize(
    ("content", "path", "words"),
    [
        ({"steps": []}, "steps", "at least one"),
        ({"steps": [0, 1, 2, 3, 4, 5]}, "steps", "at most 5"),
        ({"steps": [-1]}, "steps[0]", "from 0"),
        ({"steps": [0, 2**60]}, "steps[1]", "from 0"),
        ({"steps": [4, 7, 5]}, "steps[2]", "5 comes after 7"),
        ({"steps": [4, 4]}, "steps[1]", "repeats 4"),
        ({"steps": [1.5]}, "steps[0]", "integer"),
        ({"steps": ["x"]}, "steps[0]", "integer"),
        ({}, "steps", "required"),
        ({"steps": [0], "los": [1]}, "los", "no such field"),
        ({"steps": [0], "loss": ["abc"]}, "loss[0]", "number"),
        ({"steps": [0, 1], "loss": [1]}, "loss", "2 values, one for each step; got 1"),
        ({"steps": [0], "sampled": [True, True]}, "sampled", "got 2"),
        ({"steps": [0, 1], "time": [1, "Infinity"]}, "time[1]", "finite"),
        ({"steps": [0], "generation": -1}, "generation", "from 0"),
        ({"steps": [0], "metrics": {"loss": [1]}}, "metrics.loss", "choose another"),
        ({"steps": [0], "metrics": {"": [1]}}, "metrics.", "empty"),
        ({"steps": [0], "metrics": {"a\x00b": [1]}}, "metrics.a\x00b", "NUL"),
        ({"steps": [0], "metrics": {"overlong name": [1]}}, "metrics.overlong name", "at most 8"),
        ({"steps": [0], "metrics": {"a": [1], "b": [1], "c": [1]}}, "metrics", "at most 2"),
        ({"steps": [0], "metrics": {"a": [1, 2]}}, "metrics.a", "got 2"),
    ],
)
@pytest.mark.parametrize("decode", [from_json, from_msgpack])
def test_both_forms_refuse_the_same(decode: Any, content: Any, path: str, words: str) -> None:
    """Both forms refuse an invalid field outside the statistics with the same path and reason."""
    messages = refused(decode, content)
    assert words in messages[path]


@pytest.mark.parametrize(
    ("statistics", "path", "words"),
    [
        ({"grad_nrm": [[1]]}, "statistics.grad_nrm", "is not a statistic"),
        ({"grad_norm": [[1], [2]]}, "statistics.grad_norm", "sampled steps, must be 1; got 2"),
        ({"grad_norm": []}, "statistics.grad_norm", "sampled steps, must be 1; got 0"),
        ({"grad_norm": [[1, 2]], "weight_norm": [[1]]}, "statistics.weight_norm", "layers, is 1, but 2 in grad_norm"),
        (
            {"grad_norm": [[1, 2]], "weight_norm": [[1, None]]},
            "statistics.weight_norm[0][1]",
            "grad_norm[0][1] is a num",
        ),
        (
            {"grad_norm": [[None, 2]], "weight_norm": [[1, 2]]},
            "statistics.grad_norm[0][0]",
            "weight_norm[0][0] is a num",
        ),
        ({"grad_norm": [["x"]]}, "statistics.grad_norm[0][0]", "number"),
        ({"grad_norm": [[0] * 41]}, "statistics", "41 values; at most 40"),
    ],
)
def test_json_statistics_are_refused_by_position(statistics: Any, path: str, words: str) -> None:
    """The message of a wrong shape names the dimension and both sizes; that of a wrong value its position."""
    assert words in refused(from_json, {"steps": [0], "statistics": statistics})[path]


def test_ragged_rows_are_refused() -> None:
    """A row of another length than the first is refused with its position."""
    messages = refused(from_json, {"steps": [0, 1], "statistics": {"grad_norm": [[1, 2], [1]]}})
    assert messages == {"statistics.grad_norm[1]": "must have 2 layers as in statistics.grad_norm[0]; got 1"}


@pytest.mark.parametrize(
    ("content", "path", "words"),
    [
        ({"statistics": {"grad_norm": [[1.0]]}}, "statistics.grad_norm", "little-endian float32"),
        ({"statistics": {"grad_norm": b"12345"}}, "statistics.grad_norm", "5 bytes are no whole number"),
        ({"statistics": {"grad_nrm": b"1234"}}, "statistics.grad_nrm", "is not a statistic"),
        ({"statistics": [b""]}, "statistics", "map"),
        ({"statistics": {"grad_norm": b"1234", "weight_norm": b"12345678"}}, "statistics.weight_norm", "is 2, but 1"),
        ({"statistics": {"grad_norm": bytes(164)}}, "statistics", "41 values; at most 40"),
        ({"statistics": {"grad_norm": b"1234"}, "present": b""}, "present", "must be 1 bytes"),
        ({"statistics": {"grad_norm": b"1234"}, "present": [True]}, "present", "must be bytes"),
        ({"sampled": [False], "statistics": {"grad_norm": b"1234"}}, "statistics.grad_norm", "must be empty"),
        ({"loss": bytes(8)}, "loss", "must be a list"),
        ({"metrics": {"acc": bytes(8)}}, "metrics.acc", "must be a list"),
        ({"time": [math.nan]}, "time[0]", "finite"),
        ({"metrics": {1: [1.0]}}, "metrics[1]", "string"),
    ],
)
def test_msgpack_arrays_are_refused(content: Any, path: str, words: str) -> None:
    """Bytes of a wrong length or type are refused with the path of the array."""
    messages = refused(from_msgpack, {"steps": [0], **content})
    assert any(key.startswith(path) and words in message for key, message in messages.items()), messages


def test_fit_orders_statistics_and_widens_layers() -> None:
    """The block has the run's order of statistics; layers that were added later are absent in it."""
    received = from_json({"steps": [0], "statistics": {"weight_norm": [[5, 6]], "grad_norm": [[1, 2]]}})
    block = received.fit(["grad_norm", "weight_norm"], [2, 3])
    assert block.values.tolist() == [[[1, 5], [2, 6], [0, 0]]]
    assert block.present.tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("statistics", "layer_counts", "path", "words"),
    [
        (["grad_norm"], [3], "statistics.grad_norm", "layers, must be 3; got 2"),
        (["grad_norm", "weight_norm"], [2], "statistics.weight_norm", "missing"),
        (["weight_norm"], [2], "statistics.grad_norm", "does not record it"),
    ],
)
def test_fit_refuses_other_statistics_and_layers(
    statistics: list[str], layer_counts: list[int], path: str, words: str
) -> None:
    """A block with other layers or statistics than its run is refused."""
    received = from_json({"steps": [0], "statistics": {"grad_norm": [[1, 2]]}})
    with pytest.raises(InvalidRequest) as caught:
        received.fit(statistics, layer_counts)
    assert words in {error.path: error.message for error in caught.value.errors}[path]


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b'{"steps": [0]', b"\xff", b"[" * 10_000])
def test_invalid_json_is_malformed(body: bytes) -> None:
    """A body that is not JSON raises MalformedBody."""
    with pytest.raises(MalformedBody):
        decode_block(body, JSON_MEDIA_TYPE, LIMITS)


@pytest.mark.parametrize(
    "body", [b"", b"\x93", b"\xc1", b"\x91" * 10_000, b"\x01", b"\x81\x01\x02", b"\x81\xa1\xff\x00"]
)
def test_invalid_msgpack_is_malformed(body: bytes) -> None:
    """A body that is not a msgpack map raises MalformedBody."""
    with pytest.raises(MalformedBody):
        decode_block(body, MSGPACK_MEDIA_TYPE, LIMITS)


def test_other_media_types_are_unsupported() -> None:
    """A body of another Content-Type raises UnsupportedMediaType."""
    with pytest.raises(UnsupportedMediaType, match=r"text/csv; send application/json or application/vnd\.msgpack"):
        decode_block(b"1,2", "text/csv", LIMITS)


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
fields = st.sampled_from(
    ["steps", *SERIES, "sampled", "skipped", "generation", "metrics", "statistics", "present", "x"]
)
contents = st.dictionaries(
    fields,
    st.recursive(
        scalars | st.binary(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["grad_norm", "acc", "loss", ""]), inner, max_size=3)
        ),
        max_leaves=12,
    )
    | st.lists(st.integers(0, 9), max_size=3, unique=True).map(sorted),
    max_size=5,
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(contents)
@example({"steps": [0], "statistics": {}, "present": b"\x01"})
def test_any_msgpack_decodes_or_is_refused(content: Any) -> None:
    """Any msgpack becomes a consistent block or one of the service's errors."""
    decodes_or_is_refused(msgspec.msgpack.encode(content), MSGPACK_MEDIA_TYPE)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(contents)
def test_any_json_decodes_or_is_refused(content: Any) -> None:
    """Any JSON becomes a consistent block or one of the service's errors."""
    decodes_or_is_refused(json.dumps(content, default=repr).encode(), JSON_MEDIA_TYPE)


@given(st.binary(max_size=200), st.sampled_from([JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE]))
def test_any_bytes_decode_or_are_refused(body: bytes, media_type: str) -> None:
    """Any bytes become a consistent block or one of the service's errors."""
    decodes_or_is_refused(body, media_type)


LONG = Settings(max_steps_per_block=10_000).limits()
HOSTILE = 2 * 2**20


def array(unit: bytes) -> bytes:
    """Return a msgpack array of one unit again and again."""
    count = HOSTILE // len(unit)
    return b"\xdd" + count.to_bytes(4, "big") + unit * count


@pytest.mark.parametrize(
    "unit", [b"\x90", b"\x80", b"\xc0", b"\x01", b"\xa2ab"], ids=["list", "map", "nil", "int", "text"]
)
@pytest.mark.parametrize(
    "start",
    [
        b"\x82\xa5steps\x91\x00\xa4loss",
        b"\x82\xa5steps\x91\x00\xa7metrics\x81\xa1a",
        b"\x81\xa5steps",
        b"\x81\xa7present",
    ],
    ids=["series", "metric", "steps", "present"],
)
def test_a_field_of_msgpack_is_bounded_before_it_is_decoded(start: bytes, unit: bytes) -> None:
    """A field with more bytes than its steps need is refused: each byte of it could take 80 bytes of memory."""
    assert memory_of(start + array(unit), LONG) < MAX_DECODING_BYTES


@pytest.mark.parametrize("name", ["metrics", "statistics"])
def test_the_entries_of_a_map_are_counted_before_they_are_decoded(name: str) -> None:
    """A map of 400,000 names is refused by the number that it announces."""
    content = msgspec.msgpack.encode({"steps": [0], name: {str(number): b"" for number in range(400_000)}})
    assert "400000" in refused_bytes(content, MSGPACK_MEDIA_TYPE)[name]
    assert memory_of(content, LONG) < MAX_DECODING_BYTES


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"steps": [' + b"0," * MAX_JSON_VALUES + b"1]}", "values"),
        (b'{"steps": [0], "statistics": {"grad_norm": [' + b"[]," * MAX_JSON_VALUES + b"[]]}}", "values"),
        (json.dumps({"steps": [0], **{str(name): 0 for name in range(MAX_JSON_NAMES)}}).encode(), "names"),
    ],
    ids=["values", "lists", "names"],
)
def test_json_is_counted_before_it_is_decoded(body: bytes, words: str) -> None:
    """A block of JSON with too many values or names is refused before one of them is built."""
    assert words in refused_bytes(body, JSON_MEDIA_TYPE)["body"]


@pytest.mark.parametrize("decode", [from_json, from_msgpack])
def test_each_list_is_validated_until_its_first_error(decode: Any) -> None:
    """Of a list of wrong values the first is reported, so that a million of them cost no minute."""
    content = {"steps": ["x"] * 5, "loss": ["y"] * 5, "metrics": {}}
    assert list(refused(decode, content)) == ["steps[0]", "loss[0]"]


def refused_bytes(body: bytes, media_type: str) -> dict[str, str]:
    """Return the messages of a refused body by their paths."""
    with pytest.raises(InvalidRequest) as caught:
        decode_block(body, media_type, LONG)
    return {error.path: error.message for error in caught.value.errors}


VALID = msgspec.msgpack.encode(
    {
        "steps": [0, 1, 2],
        "loss": [1.0, 2.0, 3.0],
        "metrics": {"acc": [0.1, None, 0.3]},
        "statistics": {"grad_norm": packed([[1, 2, 3]] * 3), "weight_norm": packed([[4, 5, 6]] * 3)},
        "present": b"\xff\x01",
    }
)
MAX_DECODING_BYTES = 2 * 2**20
"""Largest memory for decoding a few hundred bytes."""


@settings(max_examples=300)
@given(st.data())
def test_damaged_blocks_decode_or_are_refused_in_bounded_memory(data: st.DataObject) -> None:
    """A damaged block is decoded or refused within a bound of memory."""
    body = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(body) - 1)))
        damage = data.draw(st.binary(max_size=6))
        body[at : at + data.draw(st.integers(0, 6))] = damage
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body))) :]
    assert memory_of(bytes(body)) < MAX_DECODING_BYTES


@pytest.mark.parametrize("marker", [b"\xdd", b"\xdf", b"\xc6", b"\xdb"], ids=["array", "map", "bytes", "text"])
@pytest.mark.parametrize("field", ["steps", "loss", "metrics", "statistics", "present"])
def test_false_lengths_take_no_memory(marker: bytes, field: str) -> None:
    """A body that announces four billion items is refused within a bound of memory."""
    name = field.encode()
    assert memory_of(b"\x81" + bytes([0xA0 + len(name)]) + name + marker + b"\xff\xff\xff\xff") < MAX_DECODING_BYTES


def memory_of(body: bytes, limits: Limits = LIMITS) -> int:
    """Return the largest memory that decoding takes."""
    tracemalloc.start()
    try:
        decodes_or_is_refused(body, MSGPACK_MEDIA_TYPE, limits)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def decodes_or_is_refused(body: bytes, media_type: str, limits: Limits = LIMITS) -> None:
    """Decode a body; check the block unless the body is refused."""
    try:
        block = decode_block(body, media_type, limits)
    except (InvalidRequest, MalformedBody):
        return
    rows = int(np.count_nonzero(block.sampled))
    assert len(block.sampled) == len(block.skipped) == len(block.steps) > 0
    assert block.present.shape[0] == rows
    assert all(matrix.shape == block.present.shape for matrix in block.statistics.values())
    assert all(len(series.values) == len(block.steps) for series in (*block.series.values(), *block.metrics.values()))
