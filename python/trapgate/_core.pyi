"""The extension module: what python/trapgate is built on. Not a public interface.

Everything here is thin; `trapgate.vm` and its neighbours give it names, checks and documentation.
"""

import os
from typing import Any, Final, TypeAlias, final

from typing_extensions import Buffer as AnyBuffer

__all__ = [
    "Bell",
    "Buffer",
    "Core",
    "Disk",
    "Domain",
    "Neighbours",
    "Plug",
    "Switch",
    "__version__",
    "build_info",
    "decode",
    "decode_columns",
    "mnemonics",
    "own_guests",
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

def own_guests() -> tuple[bytes, bytes, str]:
    """Give both builds of the guest of our own, `full` and `para`, and why there are none if there are none."""

def build_info() -> dict[str, str]:
    """Give the profile and the host back-ends that this module was built with."""

@final
class Core:
    """One machine."""

    def __new__(
        cls,
        *,
        mode: str,
        domid: int,
        maximum_memory: int,
        memory: int,
        cpu: str,
        engine: str,
        shadow_paging: bool,
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

    def slice_run(self, microseconds: int, watch_console: bool) -> _Outcome:
        """Run as `run` does, but give the thread back when the guest waits, and let its clock go on afterwards.

        The outcome is then "blocked", with the nanoseconds after which it goes on by itself or all ones.
        """

    def stop_clock(self) -> None:
        """Let real time stand still for the guest, until it runs again."""

    def set_bell(self, bell: Bell | None, number: int = 0) -> None:
        """Have a bell rung when the guest has something to do after it gave its thread back."""

    def stop(self) -> None:
        """End the running slice, or the next one; from any thread."""

    @property
    def icount(self) -> int: ...
    @property
    def now(self) -> int:
        """Machine time in nanoseconds."""

    def stats(self) -> dict[str, int]:
        """Counts of what the machine has done so far; while it runs, as of a moment ago."""

    def departures(self) -> dict[str, int]:
        """How often guest code was left, by reason; while it runs, as of a moment ago."""
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

    def domain(self) -> Domain | None:
        """Give the domain, if the guest is para-virtual."""

    def take_hypercall(self) -> tuple[int, tuple[int, ...], int | None] | None:
        """Give the hypercall that waits for a handler: number, arguments, and where the result goes."""

    def finish_hypercall(self, result_at: int | None, value: int) -> None:
        """Give a hypercall its result."""

    def native_hypercall(self, number: int, args: list[int]) -> int | None:
        """Make a hypercall by its native handler; None: it has taken the result's place itself."""

    def press_power_button(self) -> None:
        """Press the power button; from any thread."""

    def set_irq(self, line: int, level: bool) -> None:
        """Raise or lower an interrupt line of the ISA bus; from any thread."""

@final
class Disk:
    """A disk image that is open, by one guest alone if it is written to."""

    def __new__(cls, path: str | os.PathLike[str], read_only: bool) -> Disk: ...
    @property
    def size(self) -> int:
        """Bytes that the disk holds."""

@final
class Switch:
    """A virtual switch."""

    def __new__(cls) -> Switch: ...
    def plug(self) -> Plug:
        """Give a new plug, which takes frames once it is opened or connected to a guest."""

@final
class Plug:
    """A place at a switch."""

    def open(self) -> None:
        """Queue what comes, for `receive`."""

    def close(self) -> None:
        """Drop what waits and what comes."""

    def send(self, frame: bytes) -> bool:
        """Send a frame; false if it is too short or too long for one."""

    def receive(self, milliseconds: int) -> bytes | None:
        """Give the next frame, waited for at most for a number of milliseconds."""

    @property
    def dropped(self) -> int:
        """Frames that were lost because too many waited."""

@final
class Domain:
    """A para-virtual domain; everything may be called by any thread."""

    @property
    def domid(self) -> int: ...
    @property
    def handle(self) -> bytes | list[int]:
        """UUID."""

    @property
    def store(self) -> tuple[int, int]:
        """Machine address and event channel of XenStore's ring."""

    @property
    def console(self) -> tuple[int, int]:
        """Machine address and event channel of the console's ring."""

    def take_doorbells(self) -> list[int]:
        """Give the ports that the guest has rung and whose back-ends are served from here."""

    def notify(self, port: int) -> None:
        """Send the guest an event."""

    def poke(self) -> None:
        """Bring the vCPU back to where doorbells are served."""

    def connect_block(self, port: int, ring: int, disk: Disk) -> int:
        """Connect a disk to the guest's ring and port, and give the connection's number."""

    def connect_net(self, port: int, tx: int, rx: int, scatter: bool, plug: Plug) -> int:
        """Connect a plug of a switch to the guest's rings and port, and give the connection's number."""

    def disconnect(self, number: int) -> None:
        """End a connection: nothing of the guest's is in use by it any more; one that has ended is fine."""

    def fault(self, number: int) -> str | None:
        """Say why a connection failed, if it has."""

    def hypercalls(self) -> list[tuple[int, str, str, int, int, int]]:
        """List number, name, what becomes of it, error number, calls and nanoseconds of each call."""

    def set_hypercall(self, number: int, kind: str, errno: int) -> None: ...
    def counters(self) -> tuple[int, int]:
        """Calls with numbers that nothing has, and stores to live page tables that were carried out."""

    def frames(self) -> tuple[int, int]:
        """Frames that the domain owns, and the most that it may."""

    def set_maximum(self, frames: int) -> None: ...
    def join(self, neighbours: Neighbours) -> None:
        """Let the guest have event channels to the domains that have joined the same; only the first time counts."""

    def set_remotes(self, domids: list[int] | None) -> None:
        """Set which domains the guest may have event channels to, beside itself and domain 0; None is for all."""

    def ended(self) -> tuple[str, str | None] | None:
        """How the domain ended, and what the monitor has to say of a crash."""

@final
class Neighbours:
    """The domains that may have event channels to each other."""

    def __new__(cls) -> Neighbours: ...

@final
class Bell:
    """What blocked machines call the threads of a scheduler by."""

    def __new__(cls) -> Bell: ...
    def ring(self, number: int) -> None:
        """Call one of the threads that wait."""

    def wait(self, microseconds: int, *, watcher: bool = False) -> list[int]:
        """Wait until somebody rings, and give who has since the last time.

        A `watcher` is left alone while another thread waits that is none.
        """

@final
class Buffer:
    """A range of bytes as a buffer; it keeps what it shows alive."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
