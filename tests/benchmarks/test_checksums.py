"""Checksums of recordings: they show whether a machine judges the runs of the published figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.corpus.checksums import checksum_of, compare, store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two recordings."""
    for name in ("a", "b"):
        np.savez_compressed(tmp_path / f"{name}.npz", loss=np.array([1.0, np.nan]), layer=np.array(["w"]))
    (tmp_path / "manifest.json").write_text(json.dumps([{"id": "a"}, {"id": "b"}]))
    return tmp_path


def test_the_last_bit_of_a_number_changes_the_checksum() -> None:
    """Numbers, types, shapes and names count; the bits of a NaN, which processors choose, do not."""
    array = np.array([1.0, np.nan], dtype=np.float32)
    checksum = checksum_of({"loss": array})
    other_nan = array.copy()
    other_nan.view(np.uint32)[1] |= 0x80000001
    assert np.isnan(other_nan[1])
    assert checksum_of({"loss": other_nan}) == checksum
    changed = {
        "bit": {"loss": np.nextafter(array, np.float32(2))},
        "type": {"loss": array.astype(np.float64)},
        "shape": {"loss": array[None]},
        "name": {"loss2": array},
    }
    assert checksum not in {checksum_of(arrays) for arrays in changed.values()}


def test_recordings_are_compared_with_the_stored_checksums(folder: Path) -> None:
    """The same recordings are the same; one that changed, is missing or is new differs, by name."""
    stored = folder / "checksums.json"
    assert "no checksums" in compare("fit", folder, stored).describe()
    assert store("fit", folder, stored) == 2
    assert compare("fit", folder, stored).differing == ()
    assert compare("tune", folder, stored).differing is None
    np.savez_compressed(folder / "a.npz", loss=np.array([np.nextafter(1.0, 2), np.nan]), layer=np.array(["w"]))
    comparison = compare("fit", folder, stored)
    assert comparison.differing == ("a",)
    assert "1 differ from the stored checksums (a)" in comparison.describe()
    (folder / "c.npz").write_bytes((folder / "b.npz").read_bytes())
    (folder / "manifest.json").write_text(json.dumps([{"id": "b"}, {"id": "c"}]))
    assert compare("fit", folder, stored).differing == ("a", "c")


def test_splits_are_stored_beside_one_another(folder: Path) -> None:
    """Storing a split keeps the checksums of the others."""
    stored = folder / "checksums.json"
    store("fit", folder, stored)
    store("tune", folder, stored)
    assert {compare(split, folder, stored).differing for split in ("fit", "tune")} == {()}
