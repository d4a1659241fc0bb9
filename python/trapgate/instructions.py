"""Machine code as instructions: one by one with text and facts, or in bulk as columns of a numpy array.

Which bytes are an instruction depends on the processor: an encoding whose feature is not offered is undefined or
means what it meant before. `cpu` names a model, or is "any" for everything that is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer

    from trapgate import _core

__all__ = [
    "CLASSES",
    "INVALID",
    "TRUNCATED",
    "Class",
    "Instruction",
    "Treatment",
    "column_type",
    "decode",
    "decode_columns",
    "flag_names",
    "mnemonics",
]

Class: TypeAlias = Literal["ordinary", "memory", "control", "sensitive", "privileged", "invalid"]

#: The classes by their number in the column `class`; where more than one fits, the last counts.
CLASSES: Final[tuple[Class, ...]] = ("ordinary", "memory", "control", "sensitive", "privileged")
#: Stands in the column `mnemonic` for a byte that is no instruction, and in `class` as 255.
INVALID: Final = 0xFFFF
#: Stands there for a byte of an instruction that the end of the code cuts off.
TRUNCATED: Final = 0xFFFE

# RFLAGS by bit (Intel SDM vol. 1, 3.4.3).
_FLAGS = {
    0: "CF",
    2: "PF",
    4: "AF",
    6: "ZF",
    7: "SF",
    8: "TF",
    9: "IF",
    10: "DF",
    11: "OF",
    12: "IOPL",
    13: "IOPL",
    14: "NT",
    16: "RF",
    17: "VM",
    18: "AC",
    19: "VIF",
    20: "VIP",
    21: "ID",
}


@dataclass(frozen=True, slots=True)
class Treatment:
    """What becomes of an instruction in one mode."""

    #: "copied", "rewritten", "faults", "native" or "exits".
    action: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction, or one byte that is none (`kind` is "invalid", and `text` says why)."""

    address: int
    bytes: bytes
    mnemonic: str
    #: Intel syntax.
    text: str
    #: What a monitor must do about it.
    kind: Class
    #: Bits of RFLAGS: see `flag_names`.
    flags_read: int
    flags_written: int
    #: Those of the flags written that the manual leaves undefined.
    flags_undefined: int
    #: Names of registers, implicit ones included.
    registers_read: tuple[str, ...]
    registers_written: tuple[str, ...]
    #: How each mode treats it.
    full: Treatment
    para: Treatment
    hardware: Treatment

    @property
    def length(self) -> int:
        """The number of its bytes."""
        return len(self.bytes)

    def __str__(self) -> str:
        return f"{self.address:x}: {self.bytes.hex(' '):<30} {self.text}"


def decode(code: Buffer, bits: int = 64, address: int = 0, *, cpu: str = "x86-64-v2") -> list[Instruction]:
    """Decode 16-, 32- or 64-bit code from any object that shows its bytes; the first is at `address`.

    An instruction takes about 2000 bytes; for more code than there is memory for, see `decode_columns`.
    """

    raw = memoryview(code).cast("B")
    return [_instruction(raw, address, decoded) for decoded in _pieces(raw, bits, address, cpu)]


def _instruction(raw: memoryview, address: int, decoded: _core._Decoded) -> Instruction:
    """Give the object for what the core says of an instruction of code at `address`."""
    offset, length, mnemonic, text, kind, flags, (read, written), how = decoded
    full, para, hardware = (Treatment(*each) for each in how)
    return Instruction(
        address=address + offset,
        bytes=bytes(raw[offset : offset + length]),
        mnemonic=mnemonic,
        text=text,
        kind=kind,
        flags_read=flags[0],
        flags_written=flags[1],
        flags_undefined=flags[2],
        registers_read=tuple(read),
        registers_written=tuple(written),
        full=full,
        para=para,
        hardware=hardware,
    )


def _pieces(raw: memoryview, bits: int, address: int, cpu: str) -> Iterator[_core._Decoded]:
    """Decode some instructions at a time, so that signals are served and memory is asked for in between."""
    from trapgate import _core

    start = 0
    while True:
        piece = _core.decode(raw, bits, address, cpu, start)
        yield from piece
        if not piece:
            return
        start = piece[-1][0] + piece[-1][1]


def decode_columns(code: Buffer, bits: int = 64, *, cpu: str = "x86-64-v2") -> npt.NDArray[np.void]:
    """Decode in bulk: a structured array with a row for each instruction, which cover the code without gaps.

    Its columns are `offset`, `mnemonic` (a number, see `mnemonics`), `length`, `class` (see `CLASSES`),
    `flags_read` and `flags_written` (bits of RFLAGS). The code is read where it lies, without the interpreter lock.
    A row takes 24 bytes, and there are at most as many as the code has bytes: for a buffer of unknown contents, 24
    times its size must be at hand. Too little is a MemoryError.
    """
    import numpy as np

    from trapgate import _core

    rows = _core.decode_columns(memoryview(code).cast("B"), bits, cpu)
    return np.frombuffer(memoryview(rows), dtype=column_type())


@cache
def column_type() -> np.dtype[Any]:
    """Give the type of the array's rows."""
    import numpy as np

    return np.dtype(
        {
            "names": ["offset", "mnemonic", "length", "class", "flags_read", "flags_written"],
            "formats": ["u8", "u2", "u1", "u1", "u4", "u4"],
            "offsets": [0, 8, 10, 11, 12, 16],
            "itemsize": 24,
        }
    )


@cache
def mnemonics() -> tuple[str, ...]:
    """Give the mnemonics by their number in the column `mnemonic`."""
    from trapgate import _core

    return tuple(_core.mnemonics())


def flag_names(flags: int) -> tuple[str, ...]:
    """Give the names of the bits of RFLAGS that are set in `flags`."""
    return tuple(dict.fromkeys(name for bit, name in _FLAGS.items() if flags >> bit & 1))
