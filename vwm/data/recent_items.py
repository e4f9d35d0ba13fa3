"""A cache of what was read lately, bounded by its bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class RecentItems(Generic[Item]):
    """Items by key; those that were not used for longest are dropped. The latest stays, whatever its size.

    Args:
        max_bytes: of all items together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._items: OrderedDict[Hashable, tuple[Item, int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], tuple[Item, int]]) -> Item:
        """Return an item; where it is not kept, ``make`` returns it and its size in bytes."""
        found = self._items.pop(key, None)
        if found is None:
            found = make()
            self._bytes += found[1]
        self._items[key] = found
        while self._bytes > self.max_bytes and len(self._items) > 1:
            _, (_, size) = self._items.popitem(last=False)
            self._bytes -= size
        return found[0]
