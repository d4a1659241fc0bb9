"""Guest memory: `vm.mem` by physical address, `vm.mem.linear` by linear address, and how the two are related."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trapgate.errors import MemoryAccessError, StateError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer

    from trapgate._core import Core

__all__ = ["UNMAPPED", "Level", "LinearMemory", "Mapping", "Memory", "Translation"]

#: What a translation of many addresses gives for those that are not mapped.
UNMAPPED = (1 << 64) - 1

_PAGE = 4096


class _Bytes:
    """Reads and writes of bytes and numbers, on whichever addresses `read` and `write` understand."""

    def read(self, address: int, size: int) -> bytes:
        """Give `size` bytes."""
        raise NotImplementedError

    def write(self, address: int, data: Buffer) -> None:
        """Put bytes."""
        raise NotImplementedError

    def u8(self, address: int) -> int:
        """Give a byte."""
        return int.from_bytes(self.read(address, 1), "little")

    def u16(self, address: int) -> int:
        """Give two bytes as a little-endian number."""
        return int.from_bytes(self.read(address, 2), "little")

    def u32(self, address: int) -> int:
        """Give four bytes as a little-endian number."""
        return int.from_bytes(self.read(address, 4), "little")

    def u64(self, address: int) -> int:
        """Give eight bytes as a little-endian number."""
        return int.from_bytes(self.read(address, 8), "little")

    def write_int(self, address: int, value: int, size: int) -> None:
        """Put a little-endian number of `size` bytes."""
        self.write(address, value.to_bytes(size, "little"))

    def cstring(self, address: int, limit: int = _PAGE) -> bytes:
        """Give the bytes before the first NUL, at most `limit`."""
        found = bytearray()
        while len(found) < limit:
            here = address + len(found)
            piece = self.read(here, min(_PAGE - here % _PAGE, limit - len(found)))
            end = piece.find(0)
            found += piece if end < 0 else piece[:end]
            if end >= 0:
                break
        return bytes(found)

    def __getitem__(self, where: slice | int) -> bytes:
        start, stop = _span(where)
        return self.read(start, stop - start)

    def __setitem__(self, where: slice | int, data: bytes | bytearray | memoryview | int) -> None:
        start, stop = _span(where)
        contents = bytes([data]) if isinstance(data, int) else bytes(data)
        if len(contents) != stop - start:
            raise ValueError(f"{len(contents)} bytes do not fit a range of {stop - start}")
        self.write(start, contents)


def _span(where: slice | int) -> tuple[int, int]:
    if isinstance(where, int):
        return where, where + 1
    if where.start is None or where.stop is None or where.step not in {None, 1}:
        raise ValueError("a range of guest memory needs a start and an end, and no step")
    if not 0 <= where.start <= where.stop:
        raise ValueError(f"{where.start:#x}:{where.stop:#x} is not a range of addresses")
    return where.start, where.stop


class Memory(_Bytes):
    """Guest-physical memory.

    >>> vm.mem[0x7c00:0x7e00]  # doctest: +SKIP
    >>> vm.mem.u32(0x46c)  # doctest: +SKIP
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        #: The same by linear address, through the guest's page tables as they are now.
        self.linear = LinearMemory(core)

    def read(self, address: int, size: int) -> bytes:
        """Give `size` bytes of RAM."""
        return self._core.read(_address(address), _size(size))

    def write(self, address: int, data: Buffer) -> None:
        """Put bytes into RAM; decoded code of those pages is forgotten."""
        self._core.write(_address(address), data)

    @property
    def regions(self) -> list[range]:
        """The ranges of guest-physical addresses that are RAM."""
        return [range(start, start + size) for start, size in self._core.regions()]

    def view(self, address: int = 0, size: int | None = None) -> npt.NDArray[np.uint8]:
        """Give RAM as a read-only numpy array without copying it; by default to the end of its region.

        The array shows what the guest writes, also while the machine runs, and keeps the memory alive.
        """
        import numpy as np

        if size is None:
            around = [region for region in self.regions if _address(address) in region]
            if not around:
                raise MemoryAccessError(f"there is no RAM at guest-physical {address:#x}")
            size = around[0].stop - address
        buffer = self._core.view(_address(address), _size(size))
        return np.frombuffer(memoryview(buffer), dtype=np.uint8)

    @contextmanager
    def writable(self, address: int, size: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Give a copy of RAM as a writable numpy array for a `with` block, and put it back at the block's end.

        The machine must not run meanwhile, and nothing is put back if the block raises. What is kept of the array
        afterwards is a copy like any other: nothing but the block's end reaches the guest.
        """
        self._core.check_idle()
        count = self._core.icount
        array = self.view(address, size).copy()
        yield array
        array.flags.writeable = False
        self._core.check_idle()
        if self._core.icount != count:
            raise StateError("the machine ran meanwhile: nothing has been written")
        self._core.write(address, array.data)


class LinearMemory(_Bytes):
    """Memory by linear address, as the current page tables translate it, without regard to permissions."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def read(self, address: int, size: int) -> bytes:
        """Give `size` bytes, which may lie on any number of pages."""
        pieces = self._pieces(_address(address), _size(size))
        return b"".join([self._core.read(physical, length) for physical, length in pieces])

    def read_mapped(self, address: int, size: int) -> bytes:
        """Give as many of `size` bytes as are mapped to RAM without a gap; at least one."""
        found = bytearray()
        try:
            for physical, length in self._pieces(_address(address), _size(size)):
                found += self._core.read(physical, length)
        except MemoryAccessError:
            if not found:
                raise
        return bytes(found)

    def write(self, address: int, data: Buffer) -> None:
        """Put bytes; nothing is written unless all of the range is mapped."""
        contents = memoryview(data).cast("B")
        done = 0
        for physical, length in list(self._pieces(_address(address), len(contents))):
            self._core.write(physical, contents[done : done + length])
            done += length

    def _pieces(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        end = address + size
        while address < end:
            length = min(_PAGE - address % _PAGE, end - address)
            physical = self._core.translate(address)["physical"]
            if physical is None:
                raise MemoryAccessError(f"linear address {address:#x} is not mapped")
            yield physical, length
            address += length


def _address(value: int) -> int:
    if not 0 <= value < 1 << 64:
        raise MemoryAccessError(f"{value:#x} is not an address of 64 bits")
    return value


def _size(value: int) -> int:
    if value < 0:
        raise ValueError(f"a size cannot be negative, this is {value}")
    return value


@dataclass(frozen=True, kw_only=True)
class Level:
    """One step of a page walk."""

    #: What the table is called: "PML4", "PDPT", "PD", "PT".
    name: str
    #: Physical address of the entry, and what it holds.
    address: int
    entry: int
    #: The entry is present.
    present: bool
    #: The entry has bits set that must be zero.
    reserved: bool


@dataclass(frozen=True, kw_only=True)
class Translation:
    """What the page tables say of a linear address."""

    linear: int
    #: Where it leads, or None where nothing is mapped.
    physical: int | None
    #: Size of the page in bytes.
    page_size: int
    writable: bool
    user: bool
    executable: bool
    levels: tuple[Level, ...]

    @classmethod
    def from_core(cls, values: dict[str, Any]) -> Translation:
        """Make it of what the core gives."""
        levels = tuple(Level(**level) for level in values.pop("levels"))
        return cls(levels=levels, **values)

    def __str__(self) -> str:
        end = "not mapped" if self.physical is None else f"{self.physical:#x}"
        steps = [f"  {level.name:<5}{level.address:#x}: {level.entry:#018x}" for level in self.levels]
        return "\n".join([f"{self.linear:#x} -> {end}", *steps])


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """A range of linear addresses that is mapped to consecutive physical ones with the same rights."""

    linear: int
    physical: int
    size: int
    writable: bool
    user: bool
    executable: bool

    def __str__(self) -> str:
        rights = (
            f"{'u' if self.user else '-'}{'w' if self.writable else '-'}{'x' if self.executable else '-'}"
        )
        return f"{self.linear:#018x}-{self.linear + self.size:#018x} {rights} {self.physical:#x}"
