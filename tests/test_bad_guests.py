"""Guests that mean no good, or nothing at all: each ends in a typed exit, none in a crash, a hang or a traceback."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guests import ORIGIN, machine, needs_assembler
from trapgate import VM, Machine, errors, exits

BUDGET = 200_000


def raw(code: bytes) -> bytes:
    """Give an ELF64 file (System V ABI, chapter 4) whose one segment is `code`, loaded and entered at the origin."""
    header = 0x40 + 0x38
    elf = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf += struct.pack("<HHIQQQIHHHHHH", 2, 0x3E, 1, ORIGIN, 0x40, 0, 0, 0x40, 0x38, 1, 0, 0, 0)
    elf += struct.pack("<IIQQQQQQ", 1, 7, header, ORIGIN, ORIGIN, len(code), len(code), 1)
    return elf + code


def run(code: bytes, budget: int = BUDGET) -> exits.Exit:
    with VM(Machine(kernel=raw(code), memory="4M", clock="virtual", debug_exit=True)) as vm:
        return vm.run(max_instructions=budget, timeout=5, host_timeout=30)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(min_size=1, max_size=400))
def test_bytes_of_no_meaning(code: bytes) -> None:
    assert isinstance(run(code, 5_000), exits.Exit)


@pytest.mark.parametrize("seed", range(20))
def test_pages_of_noise(seed: int) -> None:
    assert isinstance(run(random.Random(seed).randbytes(64 << 10)), exits.Exit)


GUESTS = {
    "jump to garbage": "mov rax, 0x123456789000\n jmp rax",
    "jump behind memory": "mov eax, 0x80000000\n jmp rax",
    "jump to a non-canonical address": "mov rax, 0x8000000000000000\n jmp rax",
    "stack in the void": "mov rsp, 0x7fffffffffff\n push rax\n call _start",
    "IDT in the void": "lidt [rip + t]\n int3\n t: .word 0xffff\n .quad 0x7f0000000000",
    "flood of every port": "xor edx, edx\n f: out dx, eax\n in eax, dx\n inc dx\n jmp f",
    "flood of the timer": "mov al, 0x34\n out 0x43, al\n xor al, al\n out 0x40, al\n f: out 0x40, al\n jmp f",
    "flood of memory-mapped chips": (
        "mov ebx, 0xfec00000\n f: mov [rbx], rbx\n mov rax, [rbx]\n add rbx, 8\n"
        " cmp ebx, 0xfef00000\n jb f\n mov ebx, 0xfec00000\n jmp f"
    ),
    "page tables over a chip": "mov eax, 0xfee00000\n mov cr3, rax\n nop\n s: jmp s",
    "page tables over nothing": "mov eax, 0x70000000\n mov cr3, rax\n nop\n s: jmp s",
    "page tables that are the code": "lea rax, [rip + _start]\n and rax, -4096\n mov cr3, rax\n s: jmp s",
    "code that rewrites itself": (
        "lea rbx, [rip + at]\n f: inc byte ptr [rbx]\n at: mov al, 0\n add [rbx + 1], al\n jmp f"
    ),
    "code that erases itself": "lea rdi, [rip + _start]\n mov ecx, 0x100000\n xor eax, eax\n rep stosb\n s: jmp s",
    "paging off in long mode": "mov rax, cr0\n btr rax, 31\n mov cr0, rax\n s: jmp s",
    "reserved bits everywhere": "mov rax, -1\n mov cr4, rax\n mov cr0, rax\n mov cr3, rax",
    "unknown registers": "mov ecx, 0xdeadbeef\n rdmsr\n wrmsr",
    "far jump through nothing": "push 0x1234\n push 0\n retfq",
    "return from no interrupt": "push 0\n push 0\n push 0\n push 0\n push 0\n iretq",
    "task gate": "mov ax, 0x28\n ltr ax\n int 8",
    "endless repetition": "mov rdi, 0x300000\n mov rcx, -1\n rep stosq",
    "halt with the timer off": "sti\n h: hlt\n jmp h",
    "trap flag on": "pushfq\n or dword ptr [rsp], 0x100\n popfq\n nop\n nop",
}


@needs_assembler
@pytest.mark.parametrize("name", GUESTS)
@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_bad_guests(name: str, clock: str) -> None:
    with VM(machine(GUESTS[name], clock=clock)) as vm:
        result = vm.run(max_instructions=BUDGET, host_timeout=2)
        assert isinstance(result, exits.Exit)
        # Whatever it did, it can be looked at.
        assert vm.regs.snapshot()["rip"] == vm.regs.rip
        vm.translate(vm.regs.rip)
        assert len(vm.digest()) == 64


@pytest.mark.boot
@pytest.mark.network
@pytest.mark.parametrize("size", [0, 1, 0x1F1, 0x202, 0x268, 1024, 16 << 10, 1 << 20, 4 << 20])
def test_a_kernel_that_is_cut_off(debian: Machine, size: int) -> None:
    whole = kernel_of(debian)
    with pytest.raises(errors.ConfigError) as caught:
        VM(debian.replace(kernel=whole[:size]))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.boot
@pytest.mark.network
@pytest.mark.parametrize("seed", range(8))
def test_a_kernel_with_a_flipped_byte(debian: Machine, seed: int) -> None:
    """Where the damage is not seen by the loader, the guest may do what it likes; it ends all the same."""
    damaged = bytearray(kernel_of(debian))
    damaged[random.Random(seed).randrange(len(damaged) if seed % 2 else 0x400)] ^= 0xFF
    try:
        vm = VM(debian.replace(kernel=bytes(damaged), clock="virtual"))
    except errors.ConfigError:
        return
    with vm:
        assert isinstance(vm.run(max_instructions=20_000_000, host_timeout=20), exits.Exit)


def kernel_of(config: Machine) -> bytes:
    assert isinstance(config.kernel, Path)
    return config.kernel.read_bytes()
