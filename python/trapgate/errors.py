"""Everything trapgate raises on purpose, as one tree under `TrapgateError`.

A message is one sentence that says what was wrong and, where it can be known, what to do. What a guest does
to itself is an exit (see `trapgate.exits`), not an exception.
"""

from __future__ import annotations

import errno

__all__ = [
    "CapacityError",
    "ConfigError",
    "ExpectTimeout",
    "GuestError",
    "HostUnavailable",
    "ImageError",
    "InputFull",
    "InternalError",
    "MemoryAccessError",
    "NotPermitted",
    "StateError",
    "StoreError",
    "TrapgateError",
]


class TrapgateError(Exception):
    """Base of all errors of this package."""


class ConfigError(TrapgateError, ValueError):
    """A machine cannot be built from what was given: a wrong value, a missing or damaged file."""


class StateError(TrapgateError, RuntimeError):
    """The call does not fit the machine's state, such as running one that is closed."""


class CapacityError(TrapgateError):
    """A hypervisor has less left of something than was asked for, such as memory for another guest."""


class NotPermitted(TrapgateError, PermissionError):
    """A hypervisor's policy does not allow what was asked for."""


class StoreError(TrapgateError, OSError):
    """XenStore refuses a request; `code` is Xen's name for the reason, such as "ENOENT", and `errno` its number."""

    def __init__(self, message: str, code: str = "EINVAL") -> None:
        super().__init__(message)
        #: The name that a guest gets in an ERROR reply.
        self.code = code
        self.errno = getattr(errno, code)


class MemoryAccessError(TrapgateError, LookupError):
    """A guest address that is asked for is not there."""


class ImageError(TrapgateError, OSError):
    """A guest image could not be fetched or built."""


class HostUnavailable(TrapgateError, OSError):
    """The host lacks something that was asked for, such as memory or KVM."""


class InternalError(TrapgateError, RuntimeError):
    """The monitor found itself in a state that it must never be in; please report it."""


class GuestError(TrapgateError):
    """The guest ended in a way that the caller said it must not."""


class InputFull(TrapgateError, BlockingIOError):
    """The guest's console cannot take all of the input: the guest has to read what waits already."""

    def __init__(self, message: str, taken: int = 0) -> None:
        super().__init__(message)
        #: How many bytes were taken, from the start.
        self.taken = taken


class ExpectTimeout(TrapgateError, TimeoutError):
    """The console did not show the expected text in time."""

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        #: The end of what the console did show.
        self.tail = tail

    def __str__(self) -> str:
        if not self.tail:
            return str(self.args[0])
        return f"{self.args[0]}; the console ends with:\n{self.tail}"
