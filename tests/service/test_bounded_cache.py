"""A cache is never larger than its limit, and keeps what was used last."""

from __future__ import annotations

from gradmedic_service.bounded_cache import BoundedCache


def test_what_was_used_longest_ago_leaves_a_full_cache() -> None:
    """Reading an entry keeps it; the size of all entries never exceeds the limit."""
    cache: BoundedCache[str, int] = BoundedCache(max_size=10)
    cache.add("a", 1, 4)
    cache.add("b", 2, 4)
    assert cache.get("a") == 1
    cache.add("c", 3, 4)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.size) == (1, None, 3, 8)


def test_an_entry_is_replaced() -> None:
    """A second value of a key takes the place of the first one, with its own size."""
    cache: BoundedCache[str, int] = BoundedCache(max_size=10)
    cache.add("a", 1, 4)
    cache.add("a", 2, 3)
    assert (cache.get("a"), cache.size) == (2, 3)


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    """It takes no place, removes nothing else, and its older value is gone."""
    cache: BoundedCache[str, int] = BoundedCache(max_size=10)
    cache.add("a", 1, 4)
    cache.add("b", 2, 4)
    cache.add("b", 3, 11)
    assert (cache.get("a"), cache.get("b"), cache.size) == (1, None, 4)


def test_an_entry_is_taken_once() -> None:
    """An entry that was taken is gone, and so is its size."""
    cache: BoundedCache[str, int] = BoundedCache(max_size=10)
    cache.add("a", 1, 4)
    assert (cache.pop("a"), cache.pop("a"), cache.size) == (1, None, 0)


def test_several_entries_are_read_together_or_not_at_all() -> None:
    """If one of them is missing, none is returned, and none counts as used."""
    cache: BoundedCache[str, int] = BoundedCache(max_size=2)
    cache.add("a", 1)
    cache.add("b", 2)
    assert cache.get_all(["a", "b"]) == [1, 2]
    assert cache.get_all(["b", "x"]) is None
    cache.add("c", 3)
    assert cache.get_all(["a"]) is None
    assert cache.get_all(["b", "c"]) == [2, 3]
