"""Connects a guest's console to where the command runs: a terminal, made raw and always restored, or plain pipes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from trapgate.vm import VM

__all__ = ["ESCAPE", "ESCAPE_NAME", "connected"]

#: What ends the machine from the keyboard; all else, Ctrl-C included, goes to the guest.
ESCAPE = b"\x1d"
ESCAPE_NAME = "Ctrl-]"


@contextmanager
def connected(vm: VM, *, escaped: threading.Event) -> Iterator[None]:
    """Connect `vm`'s console to standard input and output for the length of the block.

    On a terminal, `escaped` is set and the machine stopped when the escape key is pressed.
    """
    vm.console.listeners.append(_write)
    raw = sys.stdin.isatty()
    with _raw_terminal() if raw else _nothing():
        reader = threading.Thread(target=_read, args=(vm, escaped if raw else None), daemon=True)
        reader.start()
        yield
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
                vm.console.send(before)
            if key and escaped:
                escaped.set()
                vm.stop()
        except Exception:  # the machine has been closed meanwhile
            return


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Make the terminal raw, and restore it however the block is left, signals that end the process included."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    ending = (signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in ending}
    try:
        for number in ending:
            signal.signal(number, _leave)
        tty.setraw(descriptor, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """Turn a signal that would end the process on the spot into an orderly exit."""
    sys.exit(128 + number)
