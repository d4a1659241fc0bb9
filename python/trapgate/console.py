"""The guest's serial console from the outside: what it printed, what to type, and waiting for an answer."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from trapgate import exits
from trapgate.errors import ExpectTimeout, GuestError, InputFull

if TYPE_CHECKING:
    from trapgate.vm import VM

__all__ = ["Console", "Pattern"]

#: A literal text or a regular expression.
Pattern = str | re.Pattern[str]

# What the console keeps of the guest's output, in characters: a guest that prints for ever must not fill the host.
_KEPT = 16 << 20
# How far before new output a match may begin.
_WINDOW = 8192
_TAIL = 2000


class Console:
    """The first serial port. Text is decoded as UTF-8, line by line as it comes; nothing is translated."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        # Other threads may read while output comes; a signal's handler may read in the middle of anything.
        self._lock = threading.RLock()
        self._text = ""
        # Characters that were there before those in `_text`.
        self._forgotten = 0
        # Where reading and the search for expected text go on from.
        self._read = 0
        self._searched = 0
        self._matched: re.Match[str] | None = None
        # Bytes of output that have come.
        self._taken = 0
        # The start of a character whose rest has not come yet.
        self._pending = b""
        #: Called with each piece of output, as bytes, on the thread that runs the machine.
        self.listeners: list[Callable[[bytes], object]] = []

    def send(self, data: str | bytes) -> None:
        """Type something; from any thread. It waits until the guest takes it.

        A mebibyte may wait; of what is more, `InputFull` is raised and tells how many bytes were taken.
        """
        contents = data.encode() if isinstance(data, str) else bytes(data)
        taken = self._vm._console_send(contents)
        if taken < len(contents):
            raise InputFull(
                f"the console took {taken} of {len(contents)} bytes; run the machine, so that the guest reads them",
                taken,
            )

    def sendline(self, text: str = "") -> None:
        """Type a line and the Enter key."""
        self.send(f"{text}\n")

    def read(self) -> str:
        """Give what was printed since the last read or match."""
        with self._lock:
            text = self._text[self._read :]
            self._read = self._searched = len(self._text)
        return text

    @property
    def transcript(self) -> str:
        """All that was printed so far (of endless output, the last 16 million characters)."""
        return self._text

    def expect(self, pattern: Pattern, timeout: float | None = 30) -> re.Match[str]:
        """Run the machine until `pattern` is printed; give the match and go on reading after it.

        A str is taken literally, a compiled pattern is searched for (matches of up to 8192 characters are sure to
        be found). `timeout` is in seconds of the machine's clock.
        """
        expression = compile_pattern(pattern)
        if (found := self.find(expression)) is None:
            result = self._vm.run(until=expression, timeout=timeout)
            found = self._matched if isinstance(result, exits.Expected) else None
            if found is None:
                raise self._unfound(pattern, result)
        self._read = self._searched = found.end()
        return found

    def read_until(self, pattern: Pattern, timeout: float | None = 30) -> str:
        """Run the machine until `pattern` is printed; give what was printed up to and with it."""
        start = self._forgotten + self._read
        found = self.expect(pattern, timeout)
        return self._since(start, found.end())

    def command(self, text: str, prompt: Pattern, timeout: float | None = 30) -> str:
        """Type a line to a guest that echoes it, and give what was printed before the next prompt."""
        start = self._forgotten + self._read
        self.sendline(text)
        found = self.expect(prompt, timeout)
        _echo, _, answer = self._since(start, found.start()).partition("\n")
        return answer.replace("\r\n", "\n")

    def _since(self, start: int, end: int) -> str:
        """Give the text from a place in all output on, or what is kept of it, to a place in what is kept."""
        return self._text[max(0, start - self._forgotten) : end]

    def find(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        """Search what has not been read yet."""
        return expression.search(self._text, self._read)

    def _feed(self, data: bytes) -> None:
        """Take output from the machine."""
        with self._lock:
            taken = self._taken + len(data)
            data = self._pending + data
            # A character that is cut off waits for its rest; one that never comes whole is shown as replaced.
            cut = _incomplete(data)
            pending = data[len(data) - cut :] if cut else b""
            whole = data[: len(data) - cut] if cut else data
            text = self._text + whole.decode("utf-8", "replace")
            # No signal is served between these: either all of the output has come, or it is asked for again.
            self._text, self._pending, self._taken = text, pending, taken
            if (excess := len(self._text) - _KEPT) > _KEPT // 4:
                self._text = self._text[excess:]
                self._forgotten += excess
                self._read = max(0, self._read - excess)
                self._searched = max(0, self._searched - excess)

    def _search_new(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        """Search what came since the last search, and a little before it."""
        start = max(self._read, self._searched - _WINDOW)
        self._searched = len(self._text)
        self._matched = expression.search(self._text, start)
        return self._matched

    def _unfound(self, pattern: Pattern, result: exits.Exit) -> Exception:
        wanted = pattern if isinstance(pattern, str) else pattern.pattern
        tail = self._text[-_TAIL:]
        if isinstance(result, exits.TimedOut):
            return ExpectTimeout(f"the console did not show {wanted!r} in time", tail)
        message = f"the machine ended with {result.kind} before the console showed {wanted!r}"
        error = GuestError(message)
        error.add_note(f"The console ends with:\n{tail}")
        return error


def compile_pattern(pattern: Pattern) -> re.Pattern[str]:
    """Give the regular expression that a pattern stands for."""
    return re.compile(re.escape(pattern)) if isinstance(pattern, str) else pattern


def _incomplete(data: bytes) -> int:
    """Give how many bytes at the end are the start of a UTF-8 character that is not all there."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        return back if length > back else 0
    return 0
