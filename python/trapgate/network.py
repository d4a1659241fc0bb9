"""Virtual switches, which connect para-virtual guests with each other and with Python.

Frames are Ethernet frames without their check sequence, as bytes. Guests of one process may share a switch,
whatever threads they run on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from trapgate.errors import ConfigError, StateError

if TYPE_CHECKING:
    from trapgate._core import Plug

__all__ = ["Switch", "Tap"]

#: How long a call waits without looking for signals, in milliseconds.
_MOMENT = 100
_SHORTEST = 14
_LONGEST = 65535


class Switch:
    """A switch: it learns who is where, and passes what it does not know the place of to everybody.

    >>> switch = Switch()
    >>> nic = Nic(switch=switch)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        from trapgate import _core

        self._switch = _core.Switch()

    def tap(self, listener: Callable[[bytes], object] | None = None) -> Tap:
        """Plug Python in. With a listener, a thread calls it with each frame; else they wait for `Tap.receive`."""
        return Tap(self._plug(), listener)

    def _plug(self) -> Plug:
        return self._switch.plug()


class Tap:
    """A place at a switch from which Python sends and receives frames; a context manager, closed at the end."""

    def __init__(self, plug: Plug, listener: Callable[[bytes], object] | None) -> None:
        self._plug = plug
        self._closed = False
        self._listens = listener is not None
        plug.open()
        if listener is not None:
            threading.Thread(target=self._listen, args=(listener,), name="trapgate tap", daemon=True).start()

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        if self._closed:
            raise StateError("the tap is closed")
        if not self._plug.send(frame):
            raise ConfigError(f"a frame has {_SHORTEST} to {_LONGEST} bytes, this one has {len(frame)}")

    def receive(self, timeout: float | None = None) -> bytes | None:
        """Give the next frame; None if there is none within `timeout` seconds of the host's, or the tap is closed."""
        if self._listens:
            raise StateError("the tap has a listener, which gets the frames")
        left = None if timeout is None else timeout * 1000
        while not self._closed:
            wait = _MOMENT if left is None else max(0, min(_MOMENT, left))
            frame = self._plug.receive(int(wait))
            if frame is not None:
                return frame
            if left is not None:
                left -= _MOMENT
                if left <= 0:
                    break
        return None

    @property
    def dropped(self) -> int:
        """Frames that were lost because too many waited."""
        return self._plug.dropped

    def close(self) -> None:
        """Take the tap away; what waits is lost."""
        self._closed = True
        self._plug.close()

    def _listen(self, listener: Callable[[bytes], object]) -> None:
        while not self._closed:
            frame = self._plug.receive(_MOMENT)
            if frame is not None:
                listener(frame)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
