"""What the translator makes of a machine's code: `vm.trace`.

>>> print(vm.trace.unit())  # doctest: +SKIP
>>> for step in vm.trace(100):  # doctest: +SKIP
...     print(step)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trapgate import exits
from trapgate.errors import ConfigError, StateError
from trapgate.instructions import decode
from trapgate.translation import Translated, Unit, _unit

if TYPE_CHECKING:
    from trapgate.hooks import ExecEvent
    from trapgate.vm import VM

__all__ = ["Trace"]

_LAST = (1 << 64) - 1
_PAGE = 4096


class Trace:
    """Shows units without making them: the machine runs as it would have."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm

    def unit(self, address: int | None = None) -> Unit:
        """Give the unit that would be made now of the code at a linear address, by default where the processor is.

        It is that of the current address space and privilege level. Only 64-bit code is translated; StateError tells
        that the processor runs other code.
        """
        regs = self._vm.regs
        if (bits := regs.code_bits) != 64:
            raise StateError(f"the processor runs {bits}-bit code, which is not translated")
        if address is None:
            address = regs.rip
        # The instruction that begins at the end of a page goes on in the next one.
        size = _PAGE - address % _PAGE + 14
        code = self._vm.mem.linear.read_mapped(address, size)
        return _unit(memoryview(code), address, 3 if regs.cpl == 3 else 0, self._vm.config.cpu)

    def __call__(self, count: int) -> Iterator[Translated]:
        """Run `count` instructions and give each, before it is run, with what the translator makes of it.

        Each is translated as the first of its unit. Instructions are run one by one, by the interpreter; what they do
        and what they are counted as is no different. It ends early if the machine comes to an end or has to wait.
        """
        if count < 0:
            raise ConfigError(f"a trace of {count} instructions; it must be 0 or more")
        return self._steps(count)

    def _steps(self, count: int) -> Iterator[Translated]:
        vm = self._vm
        known: dict[tuple[int, int, int, bytes], Translated] = {}
        met: list[Translated] = []

        def meet(_event: ExecEvent) -> None:
            regs = vm.regs
            bits, cpl = regs.code_bits, regs.cpl
            linear = regs.cs_base + regs.rip & (_LAST if bits == 64 else 0xFFFF_FFFF)
            code = vm.mem.linear.read_mapped(linear, 15)
            key = (linear, bits, cpl, code)
            if (one := known.get(key)) is None:
                if bits == 64:
                    one = _unit(memoryview(code), linear, 3 if cpl == 3 else 0, vm.config.cpu).instructions[0]
                else:
                    instruction = decode(code, bits, linear, cpu=vm.config.cpu)[0]
                    one = Translated(instruction, "interpreted", f"{bits}-bit code is not translated", ())
                known[key] = one
            met.append(one)

        for _ in range(count):
            met.clear()
            with vm.on.exec(0, _LAST) as hook:
                hook.callback = meet
                result = vm.run(max_instructions=1)
            yield from met
            if not isinstance(result, exits.BudgetExhausted):
                return
