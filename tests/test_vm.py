"""A machine from Python: bare-metal guests that show one thing each."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import numpy as np
import pytest

from guests import ORIGIN, machine, needs_assembler
from trapgate import VM, Machine, errors, exits
from trapgate.memory import UNMAPPED

pytestmark = needs_assembler

LOOP = "spin: inc rax\n jmp spin"
HELLO = """
    lea rsi, [rip + text]
    mov dx, 0x3f8
next:
    lodsb
    test al, al
    jz done
    out dx, al
    jmp next
done:
    exit 3
text: .asciz "hello, world\\n"
"""


def test_a_guest_prints_and_exits() -> None:
    with VM(machine(HELLO)) as vm:
        result = vm.run()
        assert isinstance(result, exits.DebugExit)
        assert (result.value, result.status) == (3, 7)
        assert vm.console.transcript == "hello, world\n"
        assert result.icount == vm.icount == vm.stats.instructions > 13 * 5


def test_instructions_are_counted_exactly() -> None:
    with VM(machine(LOOP)) as vm:
        start = vm.run(max_instructions=1)
        assert start.icount == 1
        for _ in range(3):
            vm.step(2)
        assert vm.regs.rax == 3
        assert vm.run(max_instructions=1_000_000).icount == 1_000_007
        assert isinstance(vm.run(max_instructions=0), exits.BudgetExhausted)


def test_registers_are_read_and_set() -> None:
    with VM(machine("nop\n mov rbx, rax\n exit 1")) as vm:
        vm.step()
        assert vm.regs.rip == vm.regs.snapshot()["rip"]
        vm.regs.rax = 0x1234_5678_9ABC_DEF0
        vm.regs.xmm3 = (1 << 128) - 1
        vm.regs.ymm15h = 15 << 120
        vm.step(2)
        assert vm.regs.rbx == 0x1234_5678_9ABC_DEF0
        assert vm.regs.xmm3 == (1 << 128) - 1
        assert vm.regs.ymm15h == vm.regs.snapshot()["ymm15h"] == 15 << 120
        assert vm.regs.cs_base == 0
        with pytest.raises(OverflowError, match="cs holds 16 bits"):
            vm.regs.cs = 1 << 16
        with pytest.raises(OverflowError):
            vm.regs.rax = -1
        with pytest.raises(AttributeError, match="no register rzx"):
            _ = vm.regs.rzx
        with pytest.raises(AttributeError, match="no register ymm16h"):
            _ = vm.regs.ymm16h
        assert "rip=0x" in repr(vm.regs)


def test_memory_is_read_written_and_shown_without_a_copy() -> None:
    source = "mov rbx, 0x300000\n again: inc dword ptr [rbx]\n jmp again"
    with VM(machine(source)) as vm:
        view = vm.mem.view(0x30_0000, 4096)
        assert view.flags.writeable is False
        assert view.dtype == np.uint8
        vm.run(max_instructions=2 + 2 * 5)
        assert (vm.mem.u32(0x30_0000), view[0]) == (5, 5)
        vm.mem[0x30_0000:0x30_0004] = b"\xff\x00\x00\x00"
        vm.step(2)
        assert vm.mem[0x30_0000:0x30_0004] == b"\x00\x01\x00\x00"
        assert list(view[:2]) == [0, 1]
        with vm.mem.writable(0x30_0000, 4) as array:
            array[:] = 7
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        assert vm.mem.u32(0x30_0000) == 0x0707_0707
    # The view outlives the machine, and shows what was there last.
    gc.collect()
    assert view[0] == 7


def test_code_that_python_writes_is_what_runs() -> None:
    with VM(machine("again: nop\n nop\n jmp again")) as vm:
        vm.run(max_instructions=100)
        # inc eax in the place of the two no-operations
        at = next(i.address for i in vm.disassemble(ORIGIN, 5) if i.mnemonic == "nop")
        vm.mem.write(at, b"\xff\xc0")
        vm.regs.rax, vm.regs.rip = 0, at
        vm.run(max_instructions=10)
        assert vm.regs.rax == 5


def test_memory_outside_of_ram_is_an_error() -> None:
    with VM(machine(LOOP)) as vm:
        end = vm.mem.regions[-1].stop
        for call in (
            lambda: vm.mem.read(end - 4, 8),
            lambda: vm.mem.write(end, b"x"),
            lambda: vm.mem.view(end, 1),
            lambda: vm.mem.read(0, 1 << 40),
            lambda: vm.mem.read(-1, 1),
            lambda: vm.mem.read(1 << 64, 1),
            lambda: vm.mem.linear.read(0x7000_0000_0000, 1),
        ):
            with pytest.raises(errors.MemoryAccessError):
                call()
        with pytest.raises(ValueError, match="do not fit"):
            vm.mem[0:4] = b"12345"
        with pytest.raises(ValueError, match="needs a start and an end"):
            _ = vm.mem[:4]


def test_translations_show_the_walk() -> None:
    with VM(machine(LOOP)) as vm:
        vm.step()
        found = vm.translate(ORIGIN + 5)
        assert found.physical == ORIGIN + 5
        assert found.levels[0].name == "PML4"
        assert found.levels[0].address == vm.regs.cr3 & ~0xFFF
        assert all(level.present and not level.reserved for level in found.levels)
        missing = vm.translate(0xFFFF_8000_0000_0000)
        assert missing.physical is None
        assert not missing.levels[-1].present
        assert vm.translate(0x8000_0000_0000_0000).physical is None
        many = vm.translate(np.array([[ORIGIN, ORIGIN + 1], [0xFFFF_8000_0000_0000, 0]], dtype=np.uint64))
        assert many.tolist() == [[ORIGIN, ORIGIN + 1], [UNMAPPED, 0]]
        space = vm.mappings()
        assert any(m.linear <= ORIGIN < m.linear + m.size for m in space)
        assert all(m.physical == m.linear for m in space)
        assert vm.mem.linear.read(ORIGIN, 16) == vm.mem.read(ORIGIN, 16)


def test_virtual_time_makes_two_runs_identical() -> None:
    digests = []
    for _ in range(2):
        with VM(machine(HELLO + "\n" + LOOP, seed=5)) as vm:
            vm.run(max_instructions=12)
            first = vm.digest()
            vm.run()
            digests.append((first, vm.digest(), vm.icount, vm.now))
            assert first != vm.digest()
    assert digests[0] == digests[1]


def test_virtual_time_is_instructions() -> None:
    with VM(machine(LOOP)) as vm:
        result = vm.run(timeout=0.001)
        assert isinstance(result, exits.TimedOut)
        # 1000 instructions are a microsecond.
        assert result.icount == 1_000_000
        assert result.now == pytest.approx(0.001)


def test_a_halt_that_nothing_ends() -> None:
    with VM(machine("cli\n hlt")) as vm:
        assert isinstance(vm.run(), exits.Halted)
        assert isinstance(vm.run(until=exits.Shutdown, host_timeout=0.2), exits.Exit)


def test_a_triple_fault_is_an_exit() -> None:
    with VM(machine("lidt [rip + none]\n here: ud2\n none: .word 0\n .quad 0")) as vm:
        result = vm.run()
        assert isinstance(result, exits.TripleFault)
        assert result.vector == 6
        assert vm.mem.read(result.rip, 2) == b"\x0f\x0b"


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_stop_from_another_thread(clock: str) -> None:
    with VM(machine(LOOP, clock=clock)) as vm:
        timer = threading.Timer(0.1, vm.stop)
        timer.start()
        assert isinstance(vm.run(host_timeout=30), exits.Stopped)
        before = vm.icount
        assert vm.step(10).icount == before + 10


def test_a_stop_before_the_run_ends_it_at_once() -> None:
    with VM(machine(LOOP)) as vm:
        vm.stop()
        assert isinstance(vm.run(host_timeout=30), exits.Stopped)


@pytest.mark.parametrize("source", [LOOP, "sti\n sleep: hlt\n jmp sleep"])
def test_ctrl_c_ends_the_run_and_the_machine_goes_on(source: str) -> None:
    with VM(machine(source, clock="real")) as vm:
        timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            vm.run(host_timeout=30)
        assert vm.state.value == "paused"
        vm.run(host_timeout=0.05)


def test_the_interpreter_lock_is_free_while_guest_code_runs() -> None:
    with VM(machine(LOOP, clock="real")) as vm:
        thread = threading.Thread(target=lambda: vm.run(host_timeout=20))
        thread.start()
        turns = 0
        while thread.is_alive() and turns < 50:
            time.sleep(0.001)
            turns += 1
            assert vm.icount >= 0
        with pytest.raises(errors.StateError, match="running"):
            _ = vm.regs.rip
        vm.stop()
        thread.join(10)
        assert turns == 50


def test_ten_machines_in_one_process() -> None:
    machines = [VM(machine(f"mov rbx, {n}\n {LOOP}", clock="real")) for n in range(10)]
    results: list[exits.Exit] = []
    threads = [
        threading.Thread(target=lambda vm=vm: results.append(vm.run(max_instructions=2_000_000)))
        for vm in machines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [type(result) for result in results] == [exits.BudgetExhausted] * 10
    assert [vm.regs.rbx for vm in machines] == list(range(10))
    for vm in machines:
        vm.close()


def test_a_machine_that_is_closed_while_it_runs_stops() -> None:
    vm = VM(machine(LOOP, clock="real"))
    results: list[exits.Exit] = []
    thread = threading.Thread(target=lambda: results.append(vm.run(host_timeout=30)))
    thread.start()
    while vm.state.value != "running":
        time.sleep(0.001)
    vm.close()
    thread.join(10)
    assert isinstance(results[0], exits.Stopped)


def test_a_forked_child_is_told_that_it_has_no_machine() -> None:
    with VM(machine(LOOP)) as vm:
        vm.step()
        child = os.fork()
        if child == 0:
            refused = 0
            for call in (
                lambda: vm.mem.read(ORIGIN, 1),
                lambda: vm.regs.rip,
                vm.step,
                lambda: vm.mem.view(0, 1),
            ):
                try:
                    call()
                except errors.StateError:
                    refused += 1
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        vm.step()


BAD_KERNELS = {
    "empty": b"",
    "text": b"#!/bin/sh\n" * 100,
    "zeros": bytes(100_000),
    "cut ELF": b"\x7fELF\x02\x01\x01" + bytes(9),
    "ELF of another machine": b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(100),
}


@pytest.mark.parametrize("name", BAD_KERNELS)
def test_a_bad_kernel_is_one_sentence(name: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        VM(Machine(kernel=BAD_KERNELS[name], memory="16M"))
    assert len(str(caught.value).splitlines()) == 1


def test_an_initrd_larger_than_memory_is_one_sentence() -> None:
    with pytest.raises(errors.ConfigError) as caught:
        VM(machine(LOOP, initrd=bytes(17 << 20)))
    assert len(str(caught.value).splitlines()) == 1
    assert "initrd" in str(caught.value)


def test_the_power_button_sets_its_status_bit() -> None:
    # PM1 status, port 600h, bit 8 (ACPI 4.8.4.1.1), read until it is set and given as the exit's value.
    source = """
        mov dx, 0x600
    wait: in ax, dx
        test ah, 1
        jz wait
        exit 7
    """
    with VM(machine(source)) as vm:
        assert isinstance(vm.run(max_instructions=1000), exits.BudgetExhausted)
        vm.press_power_button()
        result = vm.run(max_instructions=1000)
        assert isinstance(result, exits.DebugExit)
        assert result.value == 7


def test_input_beyond_what_may_wait_is_refused_and_counted() -> None:
    with VM(machine(LOOP)) as vm:
        room = 1 << 20
        vm.console.send(b"a" * (room - 10))
        with pytest.raises(errors.InputFull, match="10 of 25 bytes") as caught:
            vm.console.send(b"b" * 25)
        assert caught.value.taken == 10
        with pytest.raises(errors.InputFull) as caught:
            vm.console.sendline("c")
        assert caught.value.taken == 0
