"""With the default settings nothing architectural says that the machine is a virtual one.

Three witnesses inside the guest: a program of our own, and what virt-what and systemd-detect-virt of the same
Debian say; and one below any kernel, which reads what only ring 0 may.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import PROMPT
from guests import machine, needs_assembler
from trapgate import VM, Machine, exits
from trapgate.images.apt import PrivateApt
from trapgate.images.cpio import Archive

PROGRAM = Path(__file__).parent / "programs/detect.c"

# What the two programs are and need, by package.
PACKAGES = (
    *(
        "virt-what",
        "dmidecode",
        "systemd",
        "libsystemd-shared",
        "libc6",
        "libacl1",
        "libapparmor1",
        "libaudit1",
    ),
    *(
        "libblkid1",
        "libcap2",
        "libcap-ng0",
        "libcrypt1",
        "libgcrypt20",
        "libgpg-error0",
        "libip4tc2",
        "libkmod2",
    ),
    *(
        "liblz4-1",
        "liblzma5",
        "libmount1",
        "libpam0g",
        "libpcre2-8-0",
        "libseccomp2",
        "libselinux1",
        "libssl3",
    ),
    *("libuuid1", "libzstd1"),
)
PROGRAMS = (
    *("/usr/sbin/virt-what", "/usr/libexec/virt-what-cpuid-helper", "/usr/sbin/dmidecode"),
    "/usr/bin/systemd-detect-virt",
)


def add_package(root: Archive, package: Path) -> None:
    """Add a package's shared libraries, and those of its programs that are wanted."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    contents = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(contents)) as tar:
        for member in tar:
            name = member.name.removeprefix(".")
            if name not in PROGRAMS and not (name.startswith(("/lib", "/usr/lib")) and ".so" in name):
                continue
            if member.issym():
                root.symlink(name, member.linkname)
            elif member.isreg() and (data := tar.extractfile(member)) is not None:
                root.file(name, data.read(), mode=member.mode)


@pytest.fixture(scope="module")
def witnesses(debian: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VM]:
    """Give a Debian at its prompt with the programs in it: an archive that follows another adds to it."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("witnesses")
    detect = folder / "detect"
    subprocess.run(["cc", "-static", "-O1", "-mno-red-zone", "-o", detect, PROGRAM], check=True)
    apt = PrivateApt(folder / "apt", release="bookworm", architecture="amd64")
    apt.update(lambda _part: None)
    more = Archive()
    more.file("/usr/bin/detect", detect.read_bytes(), mode=0o755)
    for package in apt.download(PACKAGES, lambda _part: None):
        add_package(more, package)
    assert isinstance(debian.initrd, Path)
    initrd = debian.initrd.read_bytes() + more.to_bytes()
    with VM(debian.replace(initrd=initrd, append=f"{debian.append} quiet")) as vm:
        vm.console.expect(PROMPT, timeout=300)
        yield vm


@pytest.mark.boot
@pytest.mark.network
def test_a_program_of_our_own_finds_nothing(witnesses: VM) -> None:
    report = witnesses.console.command("detect", PROMPT, timeout=120)
    assert [line for line in report.splitlines() if line.startswith("SIGN")] == []
    assert "signs found: 0" in report
    # It did look: at faults, tables, ports, PCI and the firmware's tables.
    assert report.count("\nok ") > 50
    assert "ok file: /sys/firmware/acpi/tables/DSDT" in report
    assert "ok PCI device" in report


@pytest.mark.boot
@pytest.mark.network
def test_virt_what_says_nothing(witnesses: VM) -> None:
    assert witnesses.console.command("virt-what; echo status $?", PROMPT, timeout=120) == "status 0\n"
    # What it asks did answer.
    assert "BIOS Information" in witnesses.console.command("dmidecode -t bios", PROMPT)


@pytest.mark.boot
@pytest.mark.network
def test_systemd_says_none(witnesses: VM) -> None:
    assert (
        witnesses.console.command("systemd-detect-virt; echo status $?", PROMPT, timeout=120)
        == "none\nstatus 1\n"
    )


MSRS = (
    0x4000_0000,
    0x4000_0001,
    0x4000_0020,
    0x4B56_4D00,
    0x4B56_4D01,
    0x0000_0011,
    0x0000_0012,
    0x4000_0070,
)

RING_0 = f"""
    lea rax, [rip + handler]
    lea rbx, [rip + idt + 13 * 16]
    mov [rbx], ax
    shr rax, 16
    mov [rbx + 6], ax
    mov ax, cs
    mov [rbx + 2], ax
    lidt [rip + idtr]
    xor r8d, r8d
    lea rsi, [rip + msrs]
next:
    mov ecx, [rsi]
    test ecx, ecx
    jz done
    rdmsr
    exit 1
handler:
    add rsp, 8
    mov rax, [rsp]
    add rax, 2
    inc r8d
    add rsi, 4
    lea rax, [rip + next]
    mov [rsp], rax
    iretq
done:
    exit 0
.balign 16
msrs: .long {", ".join(map(str, MSRS))}, 0
idtr: .word 0xfff
    .quad idt
.balign 16
idt:
    .zero 13 * 16
    .word 0, 0, 0x8e00, 0
    .quad 0
    .zero 242 * 16
"""


@needs_assembler
def test_the_registers_of_hypervisors_are_not_there() -> None:
    with VM(machine(RING_0, debug_exit=True)) as vm:
        result = vm.run()
        assert isinstance(result, exits.DebugExit)
        assert (result.value, vm.regs.r8) == (0, len(MSRS)), hex(vm.regs.rcx)
