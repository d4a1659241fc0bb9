"""The extension module: what python/trapgate is built on. Not a public interface.

Everything here is thin; `trapgate.vm` and its neighbours give it names, checks and documentation.
"""

from typing import Any, Final, Literal, TypeAlias, final

from typing_extensions import Buffer

__version__: Final[str]

#: Why a slice ended, with up to two numbers that say more; `trapgate.vm` lists them.
Outcome: TypeAlias = tuple[str, int, int]

def build_info() -> dict[str, str]:
    """Give the profile and the host back-ends that this module was built with."""

@final
class Core:
    """One machine."""

    def __new__(
        cls,
        *,
        memory: int,
        cpu: str,
        kernel: bytes,
        initrd: bytes | None,
        append: str,
        protocol: str,
        virtual_clock: bool,
        seed: int,
        debug_console: bool,
        debug_exit: bool,
    ) -> Core: ...
    def run(self, max_icount: int, deadline: int, milliseconds: int, watch_console: bool) -> Outcome:
        """Run without the interpreter lock until something happens, at most for a number of milliseconds."""

    def stop(self) -> None:
        """End the running slice, or the next one; from any thread."""

    @property
    def icount(self) -> int: ...
    @property
    def now(self) -> int:
        """Machine time in nanoseconds."""

    def stats(self) -> dict[str, int]: ...
    def digest(self) -> bytes:
        """Hash registers, RAM and devices."""

    def register(self, name: str) -> int: ...
    def set_register(self, name: str, value: int) -> None: ...
    def register_names(self) -> list[str]: ...
    def regions(self) -> list[tuple[int, int]]:
        """Give start and length of each range of RAM."""

    def read(self, address: int, size: int) -> bytes: ...
    def write(self, address: int, data: Buffer) -> None: ...
    def view(self, address: int, size: int, writable: bool) -> Ram: ...
    def written(self, address: int, size: int) -> None:
        """Forget decoded code and cached translations of a range that was written through a view."""

    def translate(self, linear: int) -> dict[str, Any]: ...
    def translate_many(self, linear: Buffer) -> bytes:
        """Translate an array of 64-bit addresses into one of physical addresses, all ones where unmapped."""

    def mappings(self) -> list[tuple[int, int, int, int]]:
        """Give linear address, physical address, size and flags of each range that is mapped."""

    def console_take(self) -> bytes:
        """Give what the guest has written to its console since the last call."""

    def console_send(self, data: Buffer) -> None:
        """Queue input for the guest's console; from any thread."""

    def debug_take(self) -> bytes:
        """Give what the guest has written to the debug console since the last call."""

    def add_hook(self, kind: HookKind, first: int, last: int, size: int) -> int: ...
    def remove_hook(self, hook: int) -> None: ...
    def take_events(self) -> list[tuple[int, int, int, int, int]]:
        """Give the hooks that were hit, in order: the hook and four numbers that say more."""

    def attach(self, space: Literal["ports", "mmio"], base: int, size: int, device: object) -> None: ...
    def set_irq(self, line: int, level: bool) -> None: ...

HookKind: TypeAlias = Literal[
    "exec", "mem_read", "mem_write", "port_read", "port_write", "interrupt", "cpuid"
]

@final
class Ram:
    """A range of guest RAM as a buffer; it keeps the memory alive."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
