"""What the binary translator makes of guest code, to be looked at: guest beside host code, and why.

Units are made as for a machine that runs, but nothing of them runs: they seem to lie at 0x10000, and leave to
`leave`, which ends translated code, and to `miss`, which looks for a page. Operands of what translated code works on
are shown by name: `[budget]`, `[guest_r8]`, `[tlb_read+r11*8]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from trapgate.instructions import Instruction, _instruction

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Action", "HostInstruction", "Part", "Row", "Translated", "Unit", "format_rows", "translate"]

#: What became of an instruction: the host runs the same one, or the same on other registers, or other code; nothing
#: is left of it but its count; or the interpreter runs it.
Action: TypeAlias = Literal["copied", "renamed", "rewritten", "dropped", "interpreted"]
#: Guest address, instruction, class and action, host address and instruction, reason.
Row: TypeAlias = tuple[str, str, str, str, str, str, str]


@dataclass(frozen=True, slots=True)
class HostInstruction:
    """One instruction of translated code."""

    address: int
    bytes: bytes
    #: Intel syntax, with names for what the translator knows.
    text: str

    def __str__(self) -> str:
        return f"{self.address:x}: {self.bytes.hex(' '):<30} {self.text}"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a unit's host code.

    Names are "arrival" (where the unit is entered), "instruction", "charge" (instructions are taken off the budget),
    "exit to the interpreter", "end of the unit", "side exit" (a branch that is taken), "exit stub", "miss stub" (asks
    for a page), and of loops "loop head", "loop without checks", "side exit of the loop without checks" and "round the
    loop".
    """

    name: str
    #: Which of the unit's instructions it belongs to.
    guest: int | None
    code: tuple[HostInstruction, ...]


@dataclass(frozen=True, slots=True)
class Translated:
    """A guest instruction and what became of it."""

    instruction: Instruction
    action: Action
    reason: str
    #: Its host code without what is rarely run; empty if nothing was made of it.
    host: tuple[HostInstruction, ...]

    def as_dict(self) -> dict[str, Any]:
        """Give what JSON can hold; bytes are hexadecimal digits."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def __str__(self) -> str:
        return f"{self.instruction} ; {self.instruction.kind}, {self.action}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Unit:
    """A stretch of guest code that is translated as one, and all of its host code in order.

    What no unit can be made of is one with a single instruction and no parts.
    """

    address: int
    #: The privilege level that it is made for: 0 or 3.
    cpl: int
    instructions: tuple[Translated, ...]
    parts: tuple[Part, ...]

    @property
    def length(self) -> int:
        """Bytes of guest code."""
        return sum(translated.instruction.length for translated in self.instructions)

    @property
    def code(self) -> bytes:
        """All of the host code."""
        return b"".join(line.bytes for part in self.parts for line in part.code)

    def as_dict(self) -> dict[str, Any]:
        """Give what JSON can hold; bytes are hexadecimal digits."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def rows(self) -> list[Row]:
        """Give a table: guest address, instruction, class, action, host address, instruction, reason.

        Where the unit is entered comes first, then the instructions, then what is rarely run. What belongs to no
        instruction has the part's name in parentheses in place of one.
        """
        own = {line.address for translated in self.instructions for line in translated.host}
        rows: list[Row] = []
        rest: list[Row] = []
        for part in self.parts:
            if part.code[0].address not in own:
                (rows if part.name == "arrival" else rest).extend(_part_rows(part))
        for translated in self.instructions:
            rows += _instruction_rows(translated)
        return rows + rest

    def __str__(self) -> str:
        return "\n".join(format_rows(self.rows()))


def translate(code: Buffer, address: int = 0, *, cpl: int = 0, cpu: str = "x86-64-v2") -> list[Unit]:
    """Give the units that 64-bit code at `address` would be translated to, one after the other.

    `cpl` is the privilege level that the code runs at, 0 or 3. Targets inside of the code are not followed, so that
    each address is shown once: in a machine a unit goes on at the target of a direct jump or call in its page, and a
    branch into the middle of a unit has one of its own.
    """
    raw = memoryview(code).cast("B")
    units = []
    start = 0
    while start < len(raw):
        unit = _unit(raw, address, cpl, cpu, start)
        units.append(unit)
        start += unit.length
    return units


def _unit(raw: memoryview, address: int, cpl: int, cpu: str, start: int = 0) -> Unit:
    """Give the unit at an offset of code of which the first byte is at `address`."""
    from trapgate import _core

    explained, made = _core.translate_unit(raw, address, cpl, cpu, start)
    parts = tuple(
        Part(name, guest, tuple(HostInstruction(*line) for line in lines)) for name, guest, lines in made
    )
    instructions = tuple(
        Translated(
            _instruction(raw, address, decoded),
            action,
            reason,
            tuple(line for part in parts[first:last] for line in part.code),
        )
        for decoded, action, reason, (first, last) in explained
    )
    return Unit(address + start, cpl, instructions, parts)


def _instruction_rows(translated: Translated) -> Iterator[Row]:
    insn = translated.instruction
    guest: tuple[str, str, str, str] = (f"{insn.address:x}", insn.text, insn.kind, translated.action)
    reason = translated.reason
    if not translated.host:
        yield (*guest, "", "", reason)
    for line in translated.host:
        yield (*guest, f"{line.address:x}", line.text, reason)
        guest, reason = ("", "", "", ""), ""


def _part_rows(part: Part) -> Iterator[Row]:
    name = f"({part.name})"
    for line in part.code:
        yield ("", name, "", "", f"{line.address:x}", line.text, "")
        name = ""


def format_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Give lines of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _plain(value: object) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value
