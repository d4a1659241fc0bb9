"""The processor's registers as attributes: `vm.regs.rax`, and smaller parts of them: `vm.regs.eax`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapgate._core import Core

__all__ = ["Registers"]

_PARTS: dict[str, tuple[str, int, int]] = {}
for _letter in "abcd":
    _PARTS[f"e{_letter}x"] = (f"r{_letter}x", 0, 32)
    _PARTS[f"{_letter}x"] = (f"r{_letter}x", 0, 16)
    _PARTS[f"{_letter}l"] = (f"r{_letter}x", 0, 8)
    _PARTS[f"{_letter}h"] = (f"r{_letter}x", 8, 8)
for _name in ("si", "di", "bp", "sp"):
    _PARTS[f"e{_name}"] = (f"r{_name}", 0, 32)
    _PARTS[_name] = (f"r{_name}", 0, 16)
    _PARTS[f"{_name}l"] = (f"r{_name}", 0, 8)
for _number in range(8, 16):
    _PARTS[f"r{_number}d"] = (f"r{_number}", 0, 32)
    _PARTS[f"r{_number}w"] = (f"r{_number}", 0, 16)
    _PARTS[f"r{_number}b"] = (f"r{_number}", 0, 8)
_PARTS["eip"] = ("rip", 0, 32)
_PARTS["ip"] = ("rip", 0, 16)
_PARTS["eflags"] = ("rflags", 0, 32)


class Registers:
    """A live view: reading gives the current value, assigning sets it.

    Assigning a 32-bit part clears the upper half of its register, as an instruction would; assigning an 8- or
    16-bit part leaves the rest as it is. Segment registers give their selector; `cs_base`, `cs_limit` and
    `cs_access` and the like give what the processor remembers of the descriptor.
    """

    _core: Core
    __slots__ = ("_core",)

    def __init__(self, core: Core) -> None:
        object.__setattr__(self, "_core", core)

    def __getattr__(self, name: str) -> int:
        if name.startswith("_"):
            raise AttributeError(name)
        whole, shift, width = _PARTS.get(name, (name, 0, 0))
        value = self._core.register(whole)
        return value >> shift & (1 << width) - 1 if width else value

    def __setattr__(self, name: str, value: int) -> None:
        whole, shift, width = _PARTS.get(name, (name, 0, 0))
        if not width:
            self._core.set_register(whole, value)
            return
        if not 0 <= value < 1 << width:
            raise OverflowError(f"{value:#x} does not fit into {name}, which has {width} bits")
        kept = 0 if width == 32 else self._core.register(whole) & ~((1 << width) - 1 << shift)
        self._core.set_register(whole, kept | value << shift)

    @property
    def code_bits(self) -> int:
        """What the processor decodes now: 16-, 32- or 64-bit code."""
        # L and D of the code segment's access word (Intel SDM vol. 3, 3.4.5).
        if self.efer & 1 << 10 and self.cs_access & 1 << 13:
            return 64
        return 32 if self.cs_access & 1 << 14 else 16

    def __dir__(self) -> list[str]:
        return sorted({*self._core.register_names(), *_PARTS})

    def snapshot(self) -> dict[str, int]:
        """Give all registers by name."""
        return {name: self._core.register(name) for name in self._core.register_names()}

    def __repr__(self) -> str:
        names = ("rip", "rsp", "rflags", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "cr0", "cr3", "cr4")
        return f"<Registers {' '.join(f'{name}={getattr(self, name):#x}' for name in names)}>"
