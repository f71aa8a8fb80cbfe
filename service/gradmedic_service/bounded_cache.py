"""A cache whose entries have a size; where it is full, the entries that were used longest ago go first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class BoundedCache(Generic[Key, Value]):
    """Entries by their keys. Threads may share it.

    Args:
        max_size: the largest size of all entries together, in the unit of `add`.
    """

    def __init__(self, max_size: int) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._max_size = max_size
        self._size = 0

    @property
    def size(self) -> int:
        """Size of all entries together."""
        return self._size

    def get(self, key: Key) -> Value | None:
        """Return an entry, None if it is not here."""
        found = self.get_all([key])
        return None if found is None else found[0]

    def get_all(self, keys: Sequence[Key]) -> list[Value] | None:
        """Return several entries, None if one of them is not here."""
        with self._lock:
            found = [entry for key in keys if (entry := self._entries.get(key)) is not None]
            if len(found) < len(keys):
                return None
            for key in keys:
                self._entries.move_to_end(key)
        return [value for value, _ in found]

    def pop(self, key: Key) -> Value | None:
        """Remove an entry and return it, so that no other thread gets it; None if it is not here."""
        with self._lock:
            entry = self._remove(key)
        return None if entry is None else entry[0]

    def add(self, key: Key, value: Value, size: int = 1) -> None:
        """Add an entry in place of one with the same key, unless it is larger than the whole cache."""
        with self._lock:
            self._remove(key)
            if size > self._max_size:
                return
            self._entries[key] = value, size
            self._size += size
            while self._size > self._max_size:
                _, (_, removed) = self._entries.popitem(last=False)
                self._size -= removed

    def _remove(self, key: Key) -> tuple[Value, int] | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= entry[1]
        return entry
