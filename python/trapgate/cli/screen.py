"""A full screen of lines on a terminal, and its keys: plain escape sequences, and all restored at the end."""

from __future__ import annotations

import os
import select
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from trapgate.cli.terminal import raw_terminal

__all__ = ["Screen", "screen"]

_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _REST, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_KEYS = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x03": "interrupt",
    b"k": "up",
    b"j": "down",
}


class Screen:
    """What is shown, and what is typed. Made by `screen`."""

    def __init__(self) -> None:
        self._typed = b""
        self._ended = False

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        size = shutil.get_terminal_size()
        return max(size.columns, 20), max(size.lines, 4)

    def show(self, lines: Sequence[str]) -> None:
        """Show lines, which must not be wider than the screen; a terminal's own commands in them are allowed."""
        text = "\r\n".join(f"{line}{_REST}" for line in lines[: self.size[1]])
        sys.stdout.write(f"{_HOME}{text}{_BELOW}")
        sys.stdout.flush()

    def key(self, timeout: float) -> str | None:
        """Wait for a key for some seconds; give "up", "down", "interrupt", or the character."""
        if not self._typed and not self._read(timeout):
            return None
        for code, name in _KEYS.items():
            if self._typed.startswith(code):
                self._typed = self._typed[len(code) :]
                return name
        if self._typed.startswith(b"\x1b"):
            # A key that nobody asked for; its rest is no keys.
            self._typed = b""
            return None
        key, self._typed = self._typed[:1], self._typed[1:]
        return key.decode("latin-1")

    def _read(self, timeout: float) -> bool:
        descriptor = sys.stdin.fileno()
        if not select.select([descriptor], [], [], max(0.0, timeout))[0]:
            return False
        data = os.read(descriptor, 1024)
        if not data:
            raise EOFError("the terminal is gone")
        self._typed += data
        return True


@contextmanager
def screen() -> Iterator[Screen]:
    """Take the whole terminal for the length of the block; however that ends, the terminal is as it was."""
    with raw_terminal():
        sys.stdout.write(_ENTER)
        sys.stdout.flush()
        try:
            yield Screen()
        finally:
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()
