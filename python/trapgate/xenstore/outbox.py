"""What XenStore has to tell a guest and could not yet: replies and watch events, in order.

A guest that does not read must not fill the host's memory, and must not miss an event either. So an event
that waits already is not queued again, and when too many wait, those of one watch become a single event of the
watch's own path: something at or below it has changed.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from trapgate.xenstore.watches import Watch
from trapgate.xenstore.wire import PAYLOAD_MAX, MessageType, pack

__all__ = ["Outbox"]


@dataclass(slots=True)
class _Waiting:
    data: bytes
    event: tuple[Watch, str] | None = None


class Outbox:
    """A queue of messages that is emptied by bytes. `events_max` is how many events may wait one by one."""

    def __init__(self, events_max: int) -> None:
        self._events_max = events_max
        self._queue: deque[_Waiting] = deque()
        # Bytes of the first message that are on their way already.
        self._sent = 0
        self._events: set[tuple[Watch, str]] = set()
        # Watches whose one waiting event stands for all.
        self._merged: set[Watch] = set()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return sum(len(waiting.data) for waiting in self._queue) - self._sent

    def reply(self, data: bytes) -> None:
        """Queue a whole message."""
        self._queue.append(_Waiting(data))

    def event(self, watch: Watch, path: str) -> None:
        """Queue an event, unless one waits that tells as much."""
        if watch in self._merged:
            return
        waiting = _event(watch, path)
        if waiting.event in self._events:
            return
        self._add(waiting)
        if len(self._events) > self._events_max:
            self._merge()

    def take(self, n: int) -> bytes:
        """Take the next bytes, `n` or as many as there are."""
        pieces = []
        while n and self._queue:
            first = self._queue[0]
            if not self._sent:
                self._leaves(first)
            piece = first.data[self._sent : self._sent + n]
            pieces.append(piece)
            n -= len(piece)
            self._sent += len(piece)
            if self._sent == len(first.data):
                self._queue.popleft()
                self._sent = 0
        return b"".join(pieces)

    def clear(self) -> None:
        """Forget everything."""
        self._queue.clear()
        self._events.clear()
        self._merged.clear()
        self._sent = 0

    def _add(self, waiting: _Waiting) -> None:
        self._queue.append(waiting)
        assert waiting.event is not None
        self._events.add(waiting.event)

    def _leaves(self, waiting: _Waiting) -> None:
        # What changes from now on is news to the guest.
        if waiting.event is not None:
            self._events.discard(waiting.event)
            self._merged.discard(waiting.event[0])

    def _merge(self) -> None:
        of_watch = Counter(watch for watch, _ in self._events)
        waiting = list(self._queue)
        self._queue.clear()
        self._events.clear()
        for place, message in enumerate(waiting):
            if message.event is None or (place == 0 and self._sent):
                self._queue.append(message)
                continue
            watch = message.event[0]
            if watch in self._merged:
                continue
            if of_watch[watch] > 1:
                self._merged.add(watch)
                message = _event(watch, watch.path)
            self._add(message)


def _event(watch: Watch, path: str) -> _Waiting:
    payload = watch.payload(path)
    if len(payload) > PAYLOAD_MAX:
        # The token is too long for this path; for the watch's own there was room in the request.
        path = watch.path
        payload = watch.payload(path)
    return _Waiting(pack(MessageType.WATCH_EVENT, 0, 0, payload), (watch, path))
