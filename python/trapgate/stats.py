"""Counts of what a machine has done, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapgate.para import HypercallStats

__all__ = ["Departures", "Stats", "TranslatorStats"]


@dataclass(frozen=True, kw_only=True)
class TranslatorStats:
    """Counts of what the binary translator has done so far."""

    #: Stretches of guest code that were translated.
    units: int
    #: Bytes of guest code in them.
    code_bytes: int
    #: Times that translated code was entered.
    entries: int
    #: Instructions that were left to the interpreter.
    interpreted: int
    #: Memory accesses that had to look for their page.
    misses: int
    #: Times that all translated code was dropped.
    flushes: int
    #: System calls and returns from them that translated code did without being left.
    in_place: int


@dataclass(frozen=True, kw_only=True)
class Departures:
    """How often a guest did what only its monitor can do for it, by reason.

    Both engines count alike. For most of it guest code is left; what the translator has done in place nevertheless is
    `TranslatorStats.in_place`. CLI, STI, SWAPGS and reads of control registers are not here.
    """

    #: System calls of user code.
    system_calls: int
    #: Returns from the kernel: SYSRET, SYSEXIT and IRET. A para-virtual kernel returns by a hypercall.
    returns: int
    #: Calls of a para-virtual kernel; `VM.hypercalls` has them by name.
    hypercalls: int
    #: Other instructions that only a kernel may execute.
    privileged: int
    #: Reads and writes of I/O ports, and of memory that is a device.
    ports: int
    device_memory: int
    #: Page faults that the guest was told of, and other exceptions, software interrupts included.
    page_faults: int
    exceptions: int
    #: Interrupts; of a para-virtual guest, event upcalls.
    interrupts: int
    #: Stores of the guest's to its own page tables that were carried out for it: by a para-virtual guest, which left
    #: them as they were, or by one with shadow page tables.
    trapped_stores: int
    #: Accesses for which an entry of a shadow page table was filled in. The guest learns nothing of them.
    hidden_faults: int


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Counts of what a machine has done so far."""

    #: What executes guest code: "translate" or "interpret".
    engine: str
    #: What the translator has done; None where the interpreter does all.
    translator: TranslatorStats | None
    #: How often the guest needed its monitor, by reason.
    departures: Departures
    #: What was seen of each hypercall, by name; None unless the guest is para-virtual.
    hypercalls: Mapping[str, HypercallStats] | None
    #: Completed instructions.
    instructions: int
    #: The machine's time.
    nanoseconds: int
    #: Stretches of code that were decoded; the same code again costs nothing.
    blocks_decoded: int
    #: Times that the processor asked its surroundings for anything: a chip, a timer.
    accesses: int
    #: Accesses that no chip and no RAM answered.
    unmapped_port_reads: int
    unmapped_port_writes: int
    unmapped_memory_reads: int
    unmapped_memory_writes: int
