"""The extension module: what python/trapgate is built on. Not a public interface.

Everything here is thin; `trapgate.vm` and its neighbours give it names, checks and documentation.
"""

from typing import Any, Final, TypeAlias, final

from typing_extensions import Buffer as AnyBuffer

__all__ = [
    "Buffer",
    "Core",
    "__version__",
    "build_info",
    "decode",
    "decode_columns",
    "mnemonics",
    "translate_unit",
]

__version__: Final[str]

#: Why a slice ended, with up to two numbers that say more; `trapgate.vm` lists them.
_Outcome: TypeAlias = tuple[str, int, int]

#: Offset, length, mnemonic, text, class, flags (read, written, undefined), registers (read, written), treatments.
_Decoded: TypeAlias = tuple[
    int, int, str, str, Any, tuple[int, int, int], tuple[list[str], list[str]], list[tuple[str, str]]
]

#: An instruction, what became of it, why, and which parts of the unit are its code.
_Explained: TypeAlias = tuple[_Decoded, Any, str, tuple[int, int]]

#: Name, instruction that it belongs to, and host code by address, bytes and text.
_Part: TypeAlias = tuple[str, int | None, list[tuple[int, bytes, str]]]

def decode(code: AnyBuffer, bits: int, address: int, cpu: str, start: int) -> list[_Decoded]:
    """Decode instructions one after the other from an offset on, with what is known about each; some at a time."""

def decode_columns(code: AnyBuffer, bits: int, cpu: str) -> Buffer:
    """Decode code in bulk, without the interpreter lock, into rows of 24 bytes."""

def mnemonics() -> list[str]:
    """The mnemonics that rows number."""

def translate_unit(
    code: AnyBuffer, address: int, cpl: int, cpu: str, start: int
) -> tuple[list[_Explained], list[_Part]]:
    """Translate the unit of 64-bit code at an offset, to be looked at."""

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
        engine: str,
        kernel: bytes,
        initrd: bytes | None,
        append: str,
        protocol: str,
        virtual_clock: bool,
        seed: int,
        debug_console: bool,
        debug_exit: bool,
    ) -> Core: ...
    def __enter__(self) -> None:
        """Claim the machine for this thread, to run it."""

    def __exit__(self, *_exception: object) -> None:
        """Give up the claim."""

    @property
    def running(self) -> bool:
        """Whether a thread has claimed the machine."""

    def close(self) -> None:
        """Stop the machine, wait until whoever has claimed it is done, and give up all that it holds."""

    def run(self, max_icount: int, deadline: int, milliseconds: int, watch_console: bool) -> _Outcome:
        """Run without the interpreter lock until something happens, at most for a number of milliseconds."""

    def stop(self) -> None:
        """End the running slice, or the next one; from any thread."""

    @property
    def icount(self) -> int: ...
    @property
    def now(self) -> int:
        """Machine time in nanoseconds."""

    def stats(self) -> dict[str, int]:
        """Counts of what the machine has done so far; while it runs, as of a moment ago."""

    def translator_stats(self) -> dict[str, int] | None:
        """Counts of what the translator has done so far, if it is what runs guest code."""

    def digest(self) -> bytes:
        """Hash registers, RAM and devices."""

    def register(self, name: str) -> int: ...
    def set_register(self, name: str, value: int) -> None: ...
    @staticmethod
    def register_names() -> list[str]: ...
    def regions(self) -> list[tuple[int, int]]:
        """Give start and length of each range of RAM."""

    def read(self, address: int, size: int) -> bytes: ...
    def write(self, address: int, data: AnyBuffer) -> None: ...
    def view(self, address: int, size: int) -> Buffer: ...
    def check_idle(self) -> None:
        """Fail while the machine runs."""

    def translate(self, linear: int) -> dict[str, Any]: ...
    def translate_many(self, linear: AnyBuffer) -> Buffer:
        """Translate the bytes of 64-bit addresses into those of physical addresses, all ones where unmapped."""

    def mappings(self) -> list[tuple[int, int, int, int]]:
        """Give linear address, physical address, size and rights of each range that is mapped."""

    def console_take(self, from_: int, /) -> bytes:
        """Give what the guest has written to its console from the byte of that number on; forget what was before it."""

    def console_send(self, data: bytes) -> int:
        """Queue input for the guest's console, as much as there is room for; from any thread."""

    def debug_take(self) -> bytes:
        """Give what the guest has written to the debug console since the last call."""

    def add_hook(self, kind: str, first: int, last: int) -> int: ...
    def remove_hook(self, hook: int) -> None: ...
    def take_events(self) -> list[tuple[int, int, int, int, int]]:
        """Give the hooks that were hit, in order: the hook, address, size, value and the instruction that did it."""

    def attach(self, space: str, base: int, size: int, device: object) -> None:
        """Put a device written in Python on "ports" or, as "mmio", into the address space."""

    def press_power_button(self) -> None:
        """Press the power button; from any thread."""

    def set_irq(self, line: int, level: bool) -> None:
        """Raise or lower an interrupt line of the ISA bus; from any thread."""

@final
class Buffer:
    """A range of bytes as a buffer; it keeps what it shows alive."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
