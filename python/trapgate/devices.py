"""Devices written in Python: any object with `read` and `write`, put on I/O ports or into the address space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from trapgate.errors import ConfigError

if TYPE_CHECKING:
    from trapgate._core import Core

__all__ = ["Device", "Line", "attach"]


@runtime_checkable
class Device(Protocol):
    """What a device must be able to do. It knows offsets within itself, never its address.

    Its methods are called in the middle of an instruction: they must not use the machine's registers, but may
    set their interrupt line. An exception ends `VM.run`.
    """

    def read(self, offset: int, size: int, /) -> int:
        """Give the `size` bytes at `offset` as a number."""
        ...

    def write(self, offset: int, size: int, value: int, /) -> None:
        """Take a number of `size` bytes at `offset`."""
        ...


class Line:
    """An interrupt line of the machine, as a device drives it."""

    def __init__(self, core: Core, number: int) -> None:
        self._core = core
        #: The number of the line on the ISA bus.
        self.number = number

    def set(self, level: bool) -> None:
        """Raise or lower the line; from any thread."""
        self._core.set_irq(self.number, bool(level))

    def pulse(self) -> None:
        """Raise the line and lower it again."""
        self.set(True)
        self.set(False)


def attach(core: Core, device: Device, ports: int | None, mmio: int | None, size: int | None) -> None:
    """Put `device` on `size` ports or bytes."""
    if not isinstance(device, Device):
        raise ConfigError(f"{device!r} is no device; it needs the methods read and write")
    if (ports is None) == (mmio is None):
        raise ConfigError("a device is attached either at ports= or at mmio=")
    if ports is not None:
        size = 1 if size is None else size
        if ports < 0 or size < 1 or ports + size > 0x1_0000:
            raise ConfigError(f"{size} ports from {ports:#x} are not all below 0x10000")
        core.attach("ports", ports, size, device)
    elif mmio is not None:
        size = 0x1000 if size is None else size
        if mmio < 0 or size < 1 or mmio + size > 1 << 52:
            raise ConfigError(f"{size:#x} bytes from {mmio:#x} are not all below 2 to the 52nd")
        core.attach("mmio", mmio, size, device)
