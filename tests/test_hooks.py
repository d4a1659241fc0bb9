"""Hooks and devices written in Python, on guests that do one thing each."""

from __future__ import annotations

import pytest

from guests import ORIGIN, machine, needs_assembler
from trapgate import VM, errors, exits
from trapgate.devices import Line
from trapgate.hooks import CpuidEvent, ExecEvent, InterruptEvent, MemoryEvent, PortEvent

pytestmark = needs_assembler


def symbol(vm: VM, mnemonic: str) -> int:
    """Give the address of the first instruction of that name."""
    return next(insn.address for insn in vm.disassemble(ORIGIN, 40) if insn.mnemonic == mnemonic)


COUNT = """
    mov ecx, 5
again:
    inc eax
    dec ecx
    jnz again
    exit 0
"""


def test_execution_hooks_stop_before_their_instruction_and_count_nothing() -> None:
    with VM(machine(COUNT)) as plain:
        expected = plain.run().icount
    with VM(machine(COUNT)) as vm:
        at, seen = symbol(vm, "inc"), []

        @vm.on.exec(at)
        def hook(event: ExecEvent) -> None:
            assert vm.regs.rip == event.rip == at
            seen.append(vm.regs.eax)

        first = vm.regs.eax
        assert vm.run().icount == expected
        assert seen == [first + n for n in range(5)]
        assert hook.hits == 5


def test_a_hook_added_after_the_code_ran_is_hit() -> None:
    with VM(machine("again: inc eax\n jmp again")) as vm:
        vm.run(max_instructions=10_000)
        at = symbol(vm, "inc")
        result = vm.run(until=at, max_instructions=100)
        assert isinstance(result, exits.Breakpoint)
        assert vm.regs.rip == at
        # Running on from a breakpoint does not stop at it again at once.
        before = vm.regs.eax
        assert isinstance(vm.run(until=at, max_instructions=100), exits.Breakpoint)
        assert vm.regs.eax == before + 1


def test_a_hook_may_change_the_course() -> None:
    with VM(machine("again: jmp again\n ud2\n exit 9")) as vm:
        away = symbol(vm, "ud2") + 2

        @vm.on.exec(symbol(vm, "jmp"))
        def hook(_event: ExecEvent) -> None:
            vm.regs.rip = away

        result = vm.run(max_instructions=1000)
        assert isinstance(result, exits.DebugExit)
        assert result.value == 9


def test_a_hook_may_remove_itself_and_stop() -> None:
    with VM(machine(COUNT)) as vm:
        seen = []

        @vm.on.exec(symbol(vm, "inc"))
        def hook(event: ExecEvent) -> None:
            seen.append(event)
            hook.remove()
            vm.stop()

        assert isinstance(vm.run(), exits.Stopped)
        assert isinstance(vm.run(), exits.DebugExit)
        assert len(seen) == 1


def test_an_exception_in_a_hook_comes_out_of_run() -> None:
    with VM(machine(COUNT)) as vm:

        @vm.on.exec(symbol(vm, "dec"))
        def hook(_event: ExecEvent) -> None:
            raise LookupError("not there")

        with pytest.raises(LookupError, match="not there"):
            vm.run()
        hook.remove()
        assert isinstance(vm.run(), exits.DebugExit)


TOUCH = """
    mov rbx, 0x300ffc
    mov rax, 0x1122334455667788
    mov [rbx], rax
    mov cl, [rbx + 4]
    add dword ptr [rbx + 8], 5
    push rax
    exit 0
"""


def test_memory_hooks_see_every_access_to_their_range() -> None:
    with VM(machine(TOUCH)) as vm:
        seen: list[MemoryEvent] = []
        vm.on.mem_write(0x30_0FFF, 0x30_1000)(seen.append)
        vm.on.mem_read(0x30_1000)(seen.append)
        vm.run()
        rows = [(event.address, event.size, event.value, event.write) for event in seen]
        assert rows == [
            (0x30_0FFC, 8, 0x1122_3344_5566_7788, True),
            (0x30_1000, 1, 0x44, False),
        ]


def test_read_modify_write_is_a_read_and_a_write() -> None:
    with VM(machine(TOUCH)) as vm:
        seen: list[MemoryEvent] = []
        vm.on.mem_read(0x30_1004)(seen.append)
        vm.on.mem_write(0x30_1004)(seen.append)
        vm.run()
        assert [(event.write, event.value) for event in seen] == [(False, 0), (True, 5)]
        assert {event.rip for event in seen} == {symbol(vm, "add")}


def test_port_hooks() -> None:
    source = "mov al, 0x42\n out 0x80, al\n mov eax, 7\n mov dx, 0x1234\n out dx, eax\n in al, dx\n exit 0"
    with VM(machine(source)) as vm:
        seen: list[PortEvent] = []
        only: list[PortEvent] = []
        vm.on.port(0x80, 0x1300)(seen.append)
        with vm.on.port(0x1234, size=4) as hook:
            hook.callback = only.append
            vm.run()
        rows = [(event.port, event.size, event.value, event.write) for event in seen]
        assert rows == [(0x80, 1, 0x42, True), (0x1234, 4, 7, True), (0x1234, 1, 0xFF, False)]
        assert [event.size for event in only] == [4]


def test_cpuid_hooks_change_the_answer() -> None:
    with VM(
        machine("xor eax, eax\n cpuid\n mov r8d, ebx\n mov eax, 1\n xor ecx, ecx\n cpuid\n exit 0")
    ) as vm:
        seen: list[int] = []

        @vm.on.cpuid(0)
        def hook(event: CpuidEvent) -> None:
            seen.append(event.leaf)
            vm.regs.ebx = 0x4D41_5247

        vm.run()
        assert vm.regs.r8 == 0x4D41_5247
        assert seen == [0]


IDT = """
    lea rax, [rip + handler]
    lea rbx, [rip + idt]
    mov [rbx + 6 * 16], ax
    mov [rbx + 14 * 16], ax
    shr rax, 16
    mov [rbx + 6 * 16 + 6], ax
    mov [rbx + 14 * 16 + 6], ax
    mov ax, cs
    mov [rbx + 6 * 16 + 2], ax
    mov [rbx + 14 * 16 + 2], ax
    lidt [rip + idtr]
    ud2
    mov rax, 0x700000000000
    mov rax, [rax]
handler:
    mov byte ptr [rip + idt + 6 * 16 + 5], 0x8e
    exit 0
.balign 16
idtr: .word 0xfff
    .quad idt
.balign 16
idt:
    .zero 6 * 16
    .word 0, 0, 0x8e00, 0
    .quad 0
    .zero 7 * 16
    .word 0, 0, 0x8e00, 0
    .quad 0
    .zero 241 * 16
"""


def test_interrupt_hooks() -> None:
    with VM(machine(IDT)) as vm:
        seen: list[InterruptEvent] = []
        at = symbol(vm, "ud2")

        @vm.on.interrupt()
        def hook(event: InterruptEvent) -> None:
            seen.append(event)
            if event.vector == 6:
                # Skip the undefined instruction by hand, and go on.
                vm.regs.rip = event.rip + 2

        vm.run()
        assert [(event.vector, event.error_code) for event in seen] == [(6, None), (14, 0)]
        assert seen[0].rip == at


class Scratch:
    """A register that gives what was last written, plus one."""

    def __init__(self) -> None:
        self.accesses: list[tuple[str, int, int, int]] = []
        self.value = 0
        self.line: Line | None = None

    def connect(self, line: Line) -> None:
        self.line = line

    def read(self, offset: int, size: int, /) -> int:
        self.accesses.append(("read", offset, size, 0))
        return self.value + 1

    def write(self, offset: int, size: int, value: int, /) -> None:
        self.accesses.append(("write", offset, size, value))
        self.value = value


def test_a_device_on_ports() -> None:
    with VM(machine("mov dx, 0x501\n mov ax, 0x1234\n out dx, ax\n in al, dx\n exit 0")) as vm:
        device = Scratch()
        assert vm.attach(device, ports=0x500, size=4) is None
        vm.run()
        assert device.accesses == [("write", 1, 2, 0x1234), ("read", 1, 1, 0)]


def test_a_device_in_the_address_space() -> None:
    with VM(
        machine("mov rbx, 0xd0000008\n mov dword ptr [rbx], 41\n mov eax, [rbx]\n mov r8, rax\n exit 0")
    ) as vm:
        device = Scratch()
        vm.attach(device, mmio=0xD000_0000)
        vm.run()
        assert device.accesses == [("write", 8, 4, 41), ("read", 8, 4, 0)]
        assert vm.regs.r8 == 42


def test_an_exception_in_a_device_comes_out_of_run() -> None:
    class Broken(Scratch):
        def read(self, offset: int, size: int, /) -> int:
            raise ZeroDivisionError("from the device")

    with VM(machine("in al, 0x50\n exit 0")) as vm:
        vm.attach(Broken(), ports=0x50)
        with pytest.raises(ZeroDivisionError, match="from the device"):
            vm.run()
        assert isinstance(vm.run(), exits.DebugExit)


def test_a_device_that_gives_no_number() -> None:
    class Odd(Scratch):
        def read(self, offset: int, size: int, /) -> int:
            return "seven"  # type: ignore[return-value]

    with VM(machine("in al, 0x50\n exit 0")) as vm:
        vm.attach(Odd(), ports=0x50)
        with pytest.raises(TypeError):
            vm.run()


def test_a_device_must_not_look_at_the_machine_that_waits_for_it() -> None:
    class Nosy(Scratch):
        def read(self, offset: int, size: int, /) -> int:
            return vm.regs.rip

    with VM(machine("in al, 0x50\n exit 0")) as vm:
        vm.attach(Nosy(), ports=0x50)
        with pytest.raises(errors.StateError, match="running"):
            vm.run()


def test_devices_that_cannot_be() -> None:
    with VM(machine("exit 0")) as vm:
        for arguments in (
            {},
            {"ports": 1, "mmio": 2},
            {"ports": 0xFFFF, "size": 2},
            {"mmio": -1},
            {"ports": 5, "size": 0},
        ):
            with pytest.raises(errors.ConfigError):
                vm.attach(Scratch(), **arguments)
        with pytest.raises(errors.ConfigError, match="0x3f8"):
            vm.attach(Scratch(), ports=0x3F8)
        with pytest.raises(errors.ConfigError, match="no interrupt line 16"):
            vm.attach(Scratch(), ports=0x500, irq=16)
        with pytest.raises(errors.ConfigError, match="needs the methods read and write"):
            vm.attach(object(), ports=0x500)  # type: ignore[arg-type]
