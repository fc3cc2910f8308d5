"""What sampling leaves in the objects that it uses, such as a counter or the last prediction in an attribute.

The key of the store reads those objects before a search. What the search itself put in the place of something counts,
while it stays, as what was there before: the next search with these objects, and one after a restart, then has the same
key. Only that very value of that very object counts so. Any other is read as it is, so a change by the user is one.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Digests = Mapping[str, bytes]  # of what is set on an object, by name


@dataclass(frozen=True)
class Left:
    """now: the digest of what a search left; then: of what was there before. None: nothing."""

    now: bytes | None
    then: bytes | None


class Leftovers:
    """The leftovers of all objects of this process. scope: which of the things set on an object are read together."""

    def __init__(self) -> None:
        self._owners: dict[int, weakref.ref] = {}
        self._left: dict[int, dict[str, dict[str, Left]]] = {}

    def of(self, owner: Any, scope: str) -> dict[str, Left]:
        """The leftovers of one object, by name."""
        known = self._owners.get(id(owner))
        return self._left[id(owner)].get(scope, {}) if known is not None and known() is owner else {}

    def learn(self, owner: Any, scope: str, now: Digests, then: Digests) -> None:
        """Records that a search left `now` where `then` was, which may be what it counted as."""
        left = {
            name: Left(now.get(name), then.get(name))
            for name in now.keys() | then.keys()
            if now.get(name) != then.get(name)
        }
        if not left and not self.of(owner, scope):
            return
        number = id(owner)
        known = self._owners.get(number)
        if known is None or known() is not owner:
            self._left[number] = {}
            self._owners[number] = weakref.ref(owner, lambda ref: self._forget(number, ref))
        self._left[number][scope] = left

    def _forget(self, number: int, ref: weakref.ref) -> None:
        if self._owners.get(number) is ref:  # the number may be another object's by now
            del self._owners[number], self._left[number]


def undone(now: Digests, left: Mapping[str, Left]) -> dict[str, bytes]:
    """What is set on an object, with what was there before a search in the place of what it left."""
    shown = dict(now)
    for name, one in left.items():
        if now.get(name) == one.now:
            if one.then is None:
                shown.pop(name, None)
            else:
                shown[name] = one.then
    return shown


def changed_since(now: Digests, left: Mapping[str, Left]) -> list[str]:
    """The names of what a search left and somebody changed since, to something that it was not before either."""
    return [name for name, one in left.items() if now.get(name) not in (one.now, one.then)]


def can_own(value: Any) -> bool:
    """Whether leftovers of an object can be known: by reference, so that they end with it."""
    try:
        weakref.ref(value)
    except TypeError:
        return False
    return True
