"""With the default settings nothing architectural says that the machine is a virtual one (docs/detection.md).

Two programs of our own look for signs, one without a kernel in every ring, one as a process of Debian's; in the
same Debian virt-what, systemd-detect-virt and lscpu give their answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import PROMPT
from detection import build
from trapgate import VM, Machine, exits
from trapgate.hooks import CpuidEvent

pytestmark = build.needs_compiler

SUMMARY = re.compile(r"^detection: (\d+) checks, (\d+) found$", re.MULTILINE)


def findings(report: str) -> list[str]:
    """Give the lines of a report that say how the machine gave itself away; the report must be whole."""
    lines = report.replace("\r\n", "\n").splitlines()
    found = [line for line in lines if ": FOUND" in line]
    match = SUMMARY.search("\n".join(lines))
    assert match is not None, report[-2000:]
    assert int(match[1]) == len(found) + sum(line.endswith(": ok") for line in lines)
    assert int(match[2]) == len(found)
    return found


def bare_machine(**changes: object) -> Machine:
    return Machine(kernel=build.bare(), memory="32M", clock="virtual").replace(**changes)


def report_of(vm: VM) -> str:
    assert isinstance(vm.run(max_instructions=10**9), exits.Halted)
    return vm.console.transcript


def test_a_program_without_a_kernel_finds_nothing() -> None:
    with VM(bare_machine()) as vm:
        report = report_of(vm)
    assert findings(report) == []
    # It did look: at single instructions in every ring and width, at MSRs, page faults, ports and tables.
    for name in (
        "vmcall (ring 0, 64-bit)",
        "vmcall (ring 3, 32-bit)",
        "single step over cpuid (ring 3, 64-bit)",
        "no MSRs of Hyper-V, KVM and Xen (40000000 to 400011ff)",
        "page beyond the physical addresses, fetch (ring 3, 64-bit)",
        "every other port reads ones",
        "PCI 0:0.0",
        "names in ACPI table FACP",
        "names in SMBIOS",
    ):
        assert f"{name}: ok" in report
    assert report.count(": ok") > 1400


class Answering:
    """Ports that answer with a number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def read(self, _offset: int, size: int, /) -> int:
        return self.number & ((1 << 8 * size) - 1)

    def write(self, _offset: int, _size: int, _value: int, /) -> None:
        pass


def test_a_program_without_a_kernel_finds_what_is_there() -> None:
    with VM(bare_machine(debug_console=True)) as vm:
        vm.attach(Answering(0x564D5868), ports=0x5658, size=4)
        vm.attach(Answering(ord("Q")), ports=0x510, size=2)
        vm.mem.write(0xF_8000, b"Some Virtual BIOS")

        @vm.on.cpuid()
        def hook(event: CpuidEvent) -> None:
            if event.leaf == 1:
                vm.regs.ecx |= 1 << 31
            if event.leaf == 0x4000_0000:
                vm.regs.ebx = 0x4D56_4B54

        found = findings(report_of(vm))
    assert sorted(line.split(": FOUND")[0] for line in found) == [
        "QEMU's configuration port 511h",
        "VMware's port 5658h",
        "cpuid hypervisor bit",
        "cpuid hypervisor leaves",
        "every other port reads ones",
        "names in the BIOS's memory",
        "the debug console of Bochs at E9h",
        "wider reads of ports that float",
    ]


@pytest.fixture(scope="module")
def witnesses(debian: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VM]:
    """Give a Debian at its prompt with the programs in it: an archive that follows another adds to it."""
    more = build.others(tmp_path_factory.mktemp("witnesses"))
    more.file("/usr/bin/detect", build.linux(), mode=0o755)
    assert isinstance(debian.initrd, Path)
    initrd = debian.initrd.read_bytes() + more.to_bytes()
    with VM(debian.replace(initrd=initrd, append=f"{debian.append} quiet")) as vm:
        vm.console.expect(PROMPT, timeout=300)
        yield vm


@pytest.mark.boot
@pytest.mark.network
def test_a_program_in_debian_finds_nothing(witnesses: VM) -> None:
    report = witnesses.console.command("detect", PROMPT, timeout=120)
    assert findings(report) == []
    for name in (
        "vmcall (ring 3, 64-bit)",
        "sidt",
        "str",
        "kernel log: bare hardware",
        "/sys/firmware/acpi/tables/DSDT",
        "SMBIOS says virtual machine",
        "memory at f0000",
        "PCI device 0000:00:00.0",
        "VMware's port 5658h",
    ):
        assert f"{name}: ok" in report.replace("\r\n", "\n")
    assert report.count(": ok") > 600


@pytest.mark.boot
@pytest.mark.network
def test_virt_what_says_nothing(witnesses: VM) -> None:
    assert witnesses.console.command("virt-what; echo status $?", PROMPT, timeout=120) == "status 0\n"
    # What it asks did answer.
    assert "BIOS Information" in witnesses.console.command("dmidecode -t bios", PROMPT)
    helper = "/usr/libexec/virt-what-cpuid-helper; echo status $?"
    assert witnesses.console.command(helper, PROMPT) == "status 0\n"


@pytest.mark.boot
@pytest.mark.network
def test_systemd_says_none(witnesses: VM) -> None:
    answer = witnesses.console.command("systemd-detect-virt; echo status $?", PROMPT, timeout=120)
    assert answer == "none\nstatus 1\n"


@pytest.mark.boot
@pytest.mark.network
def test_lscpu_names_no_hypervisor(witnesses: VM) -> None:
    answer = witnesses.console.command("lscpu", PROMPT, timeout=120)
    assert re.search(r"^Vendor ID:\s+GenuineIntel$", answer, re.MULTILINE)
    assert "Hypervisor" not in answer
    assert "Virtualization" not in answer
