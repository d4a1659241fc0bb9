"""Watches: who wants to hear of changes at a path and below, and which of them a change concerns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from trapgate.xenstore.nodes import Access, access_of, is_special
from trapgate.xenstore.quota import Actor
from trapgate.xenstore.tree import Change

__all__ = ["Listener", "Watch", "Watches"]


class Listener(Protocol):
    """Who set a watch."""

    @property
    def actor(self) -> Actor:
        """For whom it listens: events that this domain may not know of are kept from it."""
        ...

    def deliver(self, watch: Watch, path: str) -> None:
        """Take an event of a whole path; it must not call back into the store."""
        ...


@dataclass(eq=False, slots=True)
class Watch:
    """A watch of a whole path, or of a special name; two with the same contents are still two."""

    listener: Listener
    path: str
    token: bytes
    #: Characters to cut from the front of paths, for a watch that was set with a relative one.
    cut: int = 0

    def payload(self, path: str) -> bytes:
        """Give the payload of the event for a whole path at or below the watch's."""
        return path[self.cut :].encode("ascii") + b"\0" + self.token + b"\0"


class Watches:
    """All watches of the store, found by path."""

    def __init__(self) -> None:
        self._by_path: dict[str, dict[Watch, None]] = {}
        # How many watched paths have this many characters: only beginnings of these lengths need a look.
        self._lengths: Counter[int] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._by_path.values()))

    def add(self, watch: Watch) -> None:
        """Set a watch."""
        if watch.path not in self._by_path:
            self._by_path[watch.path] = {}
            self._lengths[len(watch.path)] += 1
        self._by_path[watch.path][watch] = None

    def remove(self, watch: Watch) -> None:
        """Take a watch away."""
        at = self._by_path[watch.path]
        del at[watch]
        if not at:
            del self._by_path[watch.path]
            self._lengths[len(watch.path)] -= 1
            if not self._lengths[len(watch.path)]:
                del self._lengths[len(watch.path)]

    def fire(self, changes: Iterable[Change]) -> None:
        """Tell every watch that a change concerns, if its listener may read the node or the one above."""
        for change in changes:
            # Asked once for each domain: a guest may watch each part of a deep path, and change them all.
            may_know: dict[int, bool] = {}
            for watch in self._concerned(change):
                actor = watch.listener.actor
                if actor.domid not in may_know:
                    may_know[actor.domid] = _may_know(actor, change)
                if may_know[actor.domid]:
                    watch.listener.deliver(watch, change.path)

    def _concerned(self, change: Change) -> Iterator[Watch]:
        path = change.path
        if not change.exact and not is_special(path):
            if path != "/":
                yield from self._by_path.get("/", ())
            for length in sorted(self._lengths):
                if 1 < length < len(path) and path[length] == "/":
                    yield from self._by_path.get(path[:length], ())
        yield from self._by_path.get(path, ())


def _may_know(actor: Actor, change: Change) -> bool:
    return any(
        Access.READ in access_of(permissions, actor)
        for permissions in (change.before, change.after, change.above)
    )
