"""Python functions that are called when the guest does something: `vm.on`.

Which events are wanted is decided in Rust; only hits reach Python. A hook is served between two instructions: the
registers, memory and counts it sees are exact, and it may change them, add and remove hooks, stop the machine
or raise, which ends `VM.run` with that exception.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, Self, TypeAlias, TypeVar

from trapgate.errors import ConfigError, StateError

if TYPE_CHECKING:
    from trapgate._core import Core

__all__ = ["CpuidEvent", "ExecEvent", "Hook", "Hooks", "InterruptEvent", "MemoryEvent", "PortEvent"]


@dataclass(frozen=True, kw_only=True)
class ExecEvent:
    """The instruction at `rip` is next."""

    rip: int


@dataclass(frozen=True, kw_only=True)
class MemoryEvent:
    """An instruction read or wrote memory; it has been completed."""

    #: Linear address.
    address: int
    size: int
    #: What was read or written, little-endian; of more than 8 bytes, the first 8.
    value: int
    write: bool
    #: The instruction that did it.
    rip: int


@dataclass(frozen=True, kw_only=True)
class PortEvent:
    """An instruction read or wrote an I/O port; it has been completed."""

    port: int
    size: int
    value: int
    write: bool
    #: The instruction that did it.
    rip: int


@dataclass(frozen=True, kw_only=True)
class InterruptEvent:
    """An interrupt or exception has been delivered; the first instruction of its handler is next."""

    vector: int
    #: The error code that was pushed, if the vector has one.
    error_code: int | None
    #: Where it struck.
    rip: int


@dataclass(frozen=True, kw_only=True)
class CpuidEvent:
    """A CPUID instruction has been completed; change what it gave through `vm.regs`."""

    leaf: int
    subleaf: int
    rip: int


E = TypeVar("E")

#: What the core can watch.
HookKind: TypeAlias = Literal[
    "exec", "mem_read", "mem_write", "port_read", "port_write", "interrupt", "cpuid"
]


@dataclass(frozen=True)
class _Hit:
    """What the core says of any event."""

    kind: HookKind
    #: Linear address, port, vector or leaf.
    at: int
    size: int
    #: What was read or written, the error code, or the subleaf.
    value: int
    rip: int


class Hook(Generic[E]):
    """A hook that is or can be installed.

    Called with a function, as a decorator does, it is installed with it. In a `with` statement it is removed at
    the end; `callback` may then be set inside of the block.
    """

    def __init__(
        self,
        hooks: Hooks,
        kinds: tuple[HookKind, ...],
        first: int,
        last: int,
        make: Callable[[_Hit], E | None],
    ) -> None:
        self._hooks = hooks
        self._place = (kinds, first, last)
        self._make = make
        self._ids: list[int] = []
        #: What is called with each event.
        self.callback: Callable[[E], object] | None = None
        #: How often it was hit.
        self.hits = 0

    def __call__(self, callback: Callable[[E], object]) -> Self:
        """Install the hook with this callback."""
        self.callback = callback
        self._install()
        return self

    def __enter__(self) -> Self:
        self._install()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the hook away; once is enough."""
        while self._ids:
            self._hooks._remove(self._ids[-1])
            self._ids.pop()

    def _install(self) -> None:
        if self._ids:
            raise StateError("this hook is installed already")
        kinds, first, last = self._place
        for kind in kinds:
            self._ids.append(self._hooks._add(self, kind, first, last))

    def _hit(self, hit: _Hit) -> None:
        event = self._make(hit)
        if event is None:
            return
        self.hits += 1
        if self.callback is not None:
            self.callback(event)


class Hooks:
    """Where hooks are made: `@vm.on.exec(address)` and its like."""

    def __init__(self, core: Core) -> None:
        self._core = core
        # Hits that are still to be served.
        self._events: deque[tuple[int, int, int, int, int]] = deque()
        self._installed: dict[int, tuple[HookKind, Hook[object]]] = {}

    def exec(self, first: int, last: int | None = None) -> Hook[ExecEvent]:
        """Before the instruction at linear address `first`, or before each one from `first` to `last`."""
        return self._make(("exec",), first, last, lambda hit: ExecEvent(rip=hit.at))

    def mem_read(self, first: int, last: int | None = None) -> Hook[MemoryEvent]:
        """After an instruction read any byte of the linear addresses `first` to `last`."""
        return self._make(("mem_read",), first, last, _memory)

    def mem_write(self, first: int, last: int | None = None) -> Hook[MemoryEvent]:
        """After an instruction wrote any byte of the linear addresses `first` to `last`."""
        return self._make(("mem_write",), first, last, _memory)

    def port(self, first: int, last: int | None = None, *, size: int = 0) -> Hook[PortEvent]:
        """After an access to the I/O ports `first` to `last`, of any size or of `size` bytes."""
        if last is None:
            last = first
        if not 0 <= first <= last <= 0xFFFF:
            raise ConfigError(f"{first:#x} to {last:#x} are not I/O ports; they go up to 0xffff")
        if size not in {0, 1, 2, 4}:
            raise ConfigError(f"an I/O access has 1, 2 or 4 bytes, not {size}")

        def make(hit: _Hit) -> PortEvent | None:
            if size not in {0, hit.size}:
                return None
            return PortEvent(
                port=hit.at, size=hit.size, value=hit.value, write=hit.kind == "port_write", rip=hit.rip
            )

        return self._make(("port_read", "port_write"), first, last, make)

    def interrupt(self, vector: int | None = None) -> Hook[InterruptEvent]:
        """After an interrupt or exception was delivered: one vector, or all."""
        if vector is not None and not 0 <= vector <= 255:
            raise ConfigError(f"{vector} is not an interrupt vector; they go up to 255")
        first, last = (0, 255) if vector is None else (vector, vector)
        return self._make(("interrupt",), first, last, _interrupt)

    def cpuid(self, leaf: int | None = None) -> Hook[CpuidEvent]:
        """After a CPUID instruction: one leaf, or all."""
        first, last = (0, 0xFFFF_FFFF) if leaf is None else (leaf, leaf)
        return self._make(
            ("cpuid",), first, last, lambda hit: CpuidEvent(leaf=hit.at, subleaf=hit.value, rip=hit.rip)
        )

    def _make(
        self,
        kinds: tuple[HookKind, ...],
        first: int,
        last: int | None,
        make: Callable[[_Hit], E | None],
    ) -> Hook[E]:
        last = first if last is None else last
        if not 0 <= first <= last < 1 << 64:
            raise ConfigError(f"{first:#x} to {last:#x} is not a range of addresses")
        return Hook(self, kinds, first, last, make)

    def _add(self, hook: Hook[E], kind: HookKind, first: int, last: int) -> int:
        number = self._core.add_hook(kind, first, last)
        self._installed[number] = (kind, hook)  # type: ignore[assignment]
        return number

    def _remove(self, number: int) -> None:
        # First where it may be refused: a hook that is left must be known, or nobody could remove it later.
        self._core.remove_hook(number)
        self._installed.pop(number, None)

    def _dispatch(self) -> None:
        """Call what the last slice hit. An event whose hook was removed meanwhile is dropped.

        If one raises, the others wait for the next run.
        """
        self._events.extend(self._core.take_events())
        while self._events:
            number, at, size, value, rip = self._events.popleft()
            if number in self._installed:
                kind, hook = self._installed[number]
                hook._hit(_Hit(kind, at, size, value, rip))


def _memory(hit: _Hit) -> MemoryEvent:
    return MemoryEvent(
        address=hit.at, size=hit.size, value=hit.value, write=hit.kind == "mem_write", rip=hit.rip
    )


# Exceptions that push an error code (Intel SDM vol. 3, table 6-1).
_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21})


def _interrupt(hit: _Hit) -> InterruptEvent:
    error_code = hit.value if hit.at in _WITH_ERROR_CODE else None
    return InterruptEvent(vector=hit.at, error_code=error_code, rip=hit.rip)
