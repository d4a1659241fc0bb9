"""Debian's own kernel as a para-virtual guest: the file that boots in full mode, from Python and the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import guests
from conftest import PROMPT
from trapgate import VM, Machine, exits
from trapgate.errors import ConfigError, MemoryAccessError, StateError

pytestmark = [pytest.mark.boot, pytest.mark.network]

#: What a boot log must not have.
COMPLAINTS = re.compile(
    r"call trace|WARNING:|BUG:|oops|unchecked MSR access|tsc.*unstable|multicall\(s\) failed|hung_task",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def para(debian: Machine) -> Machine:
    return Machine.from_image("debian-12", mode="para", memory="256M")


@pytest.fixture(scope="module")
def booted(para: Machine) -> Iterator[VM]:
    with VM(para) as vm:
        vm.console.expect(PROMPT, timeout=240)
        yield vm


def test_the_kernel_knows_what_it_runs_on(booted: VM) -> None:
    log = booted.console.transcript
    for line in (
        "Hypervisor detected: Xen PV",
        "Booting kernel on Xen",
        "Xen version: 4.17.0-trapgate (preserve-AD)",
        "xen:events: Using 2-level ABI",
        "Grant tables using version 1 layout",
        "Released 0 page(s)",
    ):
        assert line in log
    assert [line for line in log.splitlines() if COMPLAINTS.search(line)] == []


def test_it_is_the_file_that_full_mode_boots(para: Machine, debian: Machine) -> None:
    assert (para.kernel, para.initrd) == (debian.kernel, debian.initrd)


def test_commands_are_taken_and_answered(booted: VM) -> None:
    console = booted.console
    assert console.command("uname -sr", PROMPT).startswith("Linux 6.1.0-")
    assert console.command("cat /sys/hypervisor/type", PROMPT) == "xen\n"
    assert "hvc0" in console.command("tty", PROMPT)
    console.command("dd if=/dev/urandom of=/tmp/r bs=64k count=16 2>/dev/null", PROMPT)
    once = console.command("sha256sum < /tmp/r", PROMPT)
    assert console.command("gzip -c /tmp/r | gunzip | sha256sum", PROMPT) == once


def test_time_passes_and_sleep_ends(booted: VM) -> None:
    before = booted.now
    booted.console.command("sleep 0.3", PROMPT)
    assert booted.now - before >= 0.3


def test_the_guest_reads_and_writes_the_store(booted: VM) -> None:
    domain = booted.domain
    assert domain.store.read(f"{domain.path}/control/feature-poweroff") == b"1"
    assert int(domain.store.read(f"{domain.path}/memory/static-max")) == 256 << 10


def test_hypercalls_are_counted_by_who_serves_them(booted: VM) -> None:
    stats = booted.stats.hypercalls
    assert stats is not None
    assert stats["iret"].calls > 100
    assert stats["iret"].handler == "native"
    assert stats["mmu_update"].calls > 100
    assert stats["mmu_update"].nanoseconds > 0
    assert stats["sysctl"].handler == "error"
    assert booted.hypercalls.by_number(17).name == "xen_version"


def test_memory_is_the_guests_in_its_own_addresses(booted: VM) -> None:
    ram = max(booted.mem.regions, key=len)
    # PFNs are not MFNs: nothing of the domain lies where a PC's memory would.
    assert ram.start >= 0x10_0000 << 12
    assert booted.mem.view(ram.start).tobytes().find(b"Linux version 6.1.0-") > 0


def test_page_tables_in_use_are_not_written_from_outside(booted: VM) -> None:
    """Their entries are counted: a write around the checks would take the counts out of step with what is there."""
    root = booted.regs.cr3 & ~0xFFF
    with pytest.raises(MemoryAccessError, match="which only its hypercalls may change"):
        booted.mem.write(root + 8, bytes(8))
    assert booted.console.command("echo $((6 * 7))", PROMPT) == "42\n"


def test_it_powers_off(para: Machine) -> None:
    with VM(para.replace(append=f"{para.append} quiet")) as vm:
        vm.console.expect(PROMPT, timeout=240)
        vm.console.sendline("poweroff")
        assert isinstance(vm.run(host_timeout=120), exits.Shutdown)
        assert "reboot: System halted" in vm.console.transcript


@pytest.mark.parametrize(
    ("reason", "end"), [("poweroff", exits.Shutdown), ("reboot", exits.Reset)], ids=["poweroff", "reboot"]
)
def test_it_does_what_the_host_asks_for(para: Machine, reason: str, end: type[exits.Exit]) -> None:
    with VM(para.replace(append=f"{para.append} quiet")) as vm:
        vm.console.expect(PROMPT, timeout=240)
        vm.domain.shutdown(reason)
        assert isinstance(vm.run(host_timeout=120), end)


def test_virtual_time_is_the_same_in_both_engines_and_in_every_run(para: Machine) -> None:
    seen = set()
    for engine in ("auto", "auto", "interpret"):
        with VM(para.replace(engine=engine, clock="virtual")) as vm:
            reached = vm.run(until="Using 2-level ABI", host_timeout=300)
            assert isinstance(reached, exits.Expected)
            vm.run(max_instructions=50_000_000)
            seen.add((vm.icount, vm.digest()))
    assert len(seen) == 1


def test_a_kernel_without_the_interface_is_refused_in_one_sentence(debian: Machine) -> None:
    config = Machine(kernel=guests.assemble("hlt"), mode="para", memory="16M")
    with pytest.raises(ConfigError, match=r"not modified for para-virtualization.*`full` mode runs it"):
        VM(config)


def test_what_only_a_domain_has_is_refused_elsewhere(debian: Machine) -> None:
    with VM(debian) as vm:
        for ask in (lambda: vm.domain, lambda: vm.hypercalls, lambda: vm.balloon("64M")):
            with pytest.raises(StateError, match="only a para-virtual guest"):
                ask()


def test_the_command_boots_and_reports(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "trapgate",
        "boot",
        "debian-12",
        "--mode",
        "para",
        "--expect",
        "# ",
        "--json",
    ]
    done = subprocess.run([*command, str(report)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["exit"]["kind"] == "Expected"
    assert "Hypervisor detected: Xen PV" in found["transcript"]
