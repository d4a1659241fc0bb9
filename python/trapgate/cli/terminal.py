"""Connects a guest's console to where the command runs: a terminal, made raw and always restored, or plain pipes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from trapgate.errors import InputFull
from trapgate.vm import VM

__all__ = ["ESCAPE", "ESCAPE_NAME", "connected", "raw_terminal"]

#: What ends the machine from the keyboard; all else, Ctrl-C included, goes to the guest.
ESCAPE = b"\x1d"
ESCAPE_NAME = "Ctrl-]"

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
#: How long to wait for a guest that does not read, in seconds.
_PATIENCE = 0.01


@contextmanager
def connected(vm: VM, *, escaped: threading.Event) -> Iterator[None]:
    """Connect `vm`'s console to standard input and output for the length of the block.

    On a terminal, `escaped` is set and the machine stopped when the escape key is pressed.
    """
    raw = sys.stdin.isatty()
    with raw_terminal() if raw else nullcontext():
        vm.console.listeners.append(_write)
        try:
            reader = threading.Thread(target=_read, args=(vm, escaped if raw else None), daemon=True)
            reader.start()
            yield
        finally:
            vm.console.listeners.remove(_write)


def _write(data: bytes) -> None:
    """Write all of `data` to standard output."""
    out = sys.stdout.buffer
    out.write(data)
    out.flush()


def _read(vm: VM, escaped: threading.Event | None) -> None:
    """Pass standard input on to the guest until it ends; on a terminal, look for the escape key."""
    descriptor = sys.stdin.fileno()
    while True:
        try:
            data = os.read(descriptor, 4096)
        except OSError:
            return
        if not data:
            return
        before, key, _ = data.partition(ESCAPE) if escaped else (data, b"", b"")
        try:
            if before:
                _send(vm, before)
            if key and escaped:
                escaped.set()
                vm.stop()
        except Exception:  # the machine has been closed meanwhile
            return


def _send(vm: VM, data: bytes) -> None:
    """Type all of `data`, however long the guest takes to read what waits already."""
    while data:
        try:
            vm.console.send(data)
            return
        except InputFull as error:
            data = data[error.taken :]
            time.sleep(_PATIENCE)


class _Ending:
    """Turns signals that would end the process on the spot into an orderly exit, once: those that come while the
    terminal is restored must not keep it from being restored."""

    def __init__(self) -> None:
        self.leaving = False
        self._before: dict[signal.Signals, Any] = {}

    def take(self) -> None:
        for number in _ENDING:
            handler = signal.getsignal(number)
            # What the process was started to ignore (nohup) it goes on ignoring.
            if handler is not signal.SIG_IGN:
                self._before[number] = signal.SIG_DFL if handler is None else handler
                signal.signal(number, self._leave)

    def give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _leave(self, number: int, _frame: FrameType | None) -> None:
        if self.leaving:
            return
        self.leaving = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)


@contextmanager
def raw_terminal() -> Iterator[None]:
    """Make the terminal raw, and restore it however the block is left, signals that end the process included."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    ending = _Ending()
    try:
        ending.take()
        tty.setraw(descriptor, termios.TCSANOW)
        yield
    finally:
        ending.leaving = True
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        ending.give_back()
