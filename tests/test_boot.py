"""Debian 12, unmodified: from its first line to a power-off, from Python and from the command."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PROMPT
from trapgate import VM, Machine, exits
from trapgate.config import CpuModel

pytestmark = [pytest.mark.boot, pytest.mark.network]

#: What a boot log must not have.
COMPLAINTS = re.compile(
    r"firmware bug|unchecked MSR access|page tables isolation: enabled|tsc.*unstable|call trace|WARNING:|BUG:|"
    r"hypervisor detected|oops|not responding|spurious",
    re.IGNORECASE,
)


def test_the_boot_log_has_no_complaints(booted: VM) -> None:
    log = booted.console.transcript
    assert "Linux version 6.1" in log
    assert [line for line in log.splitlines() if COMPLAINTS.search(line)] == []


def test_commands_are_taken_and_answered(booted: VM) -> None:
    console = booted.console
    assert console.command("uname -sr", PROMPT).startswith("Linux 6.1.0-")
    assert console.command("echo $((6 * 7))", PROMPT) == "42\n"
    assert console.command("cat /proc/sys/kernel/hostname; id -u", PROMPT) == "debian\n0\n"
    assert "ttyS0" in console.command("tty", PROMPT)
    # Sums of a megabyte by two programs, and one through a pipe.
    console.command("dd if=/dev/urandom of=/tmp/r bs=64k count=16 2>/dev/null", PROMPT)
    once = console.command("sha256sum < /tmp/r", PROMPT)
    assert console.command("gzip -c /tmp/r | gunzip | sha256sum", PROMPT) == once


def test_the_shell_has_job_control(booted: VM) -> None:
    console = booted.console
    for key, answer in (("\x03", PROMPT), ("\x1a", "Stopped")):
        console.sendline("echo go; sleep 1000")
        console.expect("go\r\n")
        booted.run(timeout=0.5)
        console.send(key)
        console.expect(answer)
    console.expect(PROMPT)
    console.command("kill %1", PROMPT)


def test_memory_and_translations_of_a_running_kernel(booted: VM) -> None:
    banner = booted.mem.view().tobytes().find(b"Linux version 6.1.0-")
    assert banner > 0
    space = booted.mappings()
    assert all(one.linear + one.size <= two.linear for one, two in itertools.pairwise(space))
    kernel = next(m for m in space if m.linear >= 0xFFFF_FFFF_8000_0000 and m.executable)
    assert not kernel.writable
    assert not kernel.user
    assert booted.translate(kernel.linear).physical == kernel.physical


def test_the_guests_clock_is_the_machines(booted: VM) -> None:
    console = booted.console
    times = [booted.now]
    uptimes = []
    for _ in range(2):
        uptimes.append(float(console.command("cut -d' ' -f1 /proc/uptime", PROMPT)))
        times.append(booted.now)
        booted.run(timeout=1)
        times.append(booted.now)
    # What the guest measured lies between the shortest and the longest time that it can have been; uptime is told in
    # hundredths.
    shortest, longest = times[2] - times[1], times[3] - times[0]
    assert shortest >= 1
    assert shortest - 0.02 <= uptimes[1] - uptimes[0] <= longest + 0.02


def test_power_off(debian: Machine) -> None:
    with VM(debian.replace(append=f"{debian.append} quiet")) as vm:
        vm.console.expect(PROMPT, timeout=240)
        vm.console.sendline("poweroff")
        assert isinstance(vm.run(timeout=60), exits.Shutdown)
        assert "Power down" in vm.console.transcript


@pytest.mark.parametrize("cpu", ["x86-64-v3", "host"])
def test_the_kernel_takes_the_processor_as_its_cpuid_says(debian: Machine, cpu: CpuModel) -> None:
    with VM(debian.replace(cpu=cpu)) as vm:
        vm.console.expect(PROMPT, timeout=240)
        log = vm.console.transcript
        assert [line for line in log.splitlines() if COMPLAINTS.search(line)] == []
        flags = set(vm.console.command("grep -m 1 ^flags /proc/cpuinfo", PROMPT).split())
        if cpu == "x86-64-v3":
            assert flags >= {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsavec"}
            # x87, SSE and AVX: what leaf 0Dh says of the area.
            assert "Enabled xstate features 0x7, context size is 832 bytes, using 'compacted' format" in log


# Runs a command and prints its status and the most memory it ever held, in KiB. A process of its own, because the
# kernel counts what the parent held at the moment of the fork as well.
MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=open(sys.argv[1], "wb"), stderr=2)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def test_the_command_in_a_script(tmp_path: Path) -> None:
    report, log = tmp_path / "report.json", tmp_path / "log"
    command = [
        "boot",
        "--memory",
        "256M",
        "--timeout",
        "300",
        "--expect",
        "root@debian:~# ",
        "--json",
        str(report),
    ]
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, log, sys.executable, "-m", "trapgate", *command],
        capture_output=True,
        text=True,
        check=True,
    )
    status, peak = map(int, result.stdout.split())
    assert status == 0, result.stderr
    assert peak <= (256 + 150) << 10
    assert "Run /init as init process" in log.read_text()
    written = json.loads(report.read_text())
    assert written["exit"]["kind"] == "Expected"
    assert written["status"] == 0
    assert written["stats"]["instructions"] == written["exit"]["icount"] > 10**8
    assert written["stats"]["engine"] in {"translate", "interpret"}
    assert "Linux version" in written["transcript"]


@pytest.mark.long
def test_virtual_time_makes_two_boots_identical(debian: Machine) -> None:
    digests = []
    for _ in range(2):
        with VM(debian.replace(clock="virtual")) as vm:
            vm.console.expect(PROMPT, timeout=600)
            vm.console.command("cat /proc/uptime; dmesg | sha256sum", PROMPT)
            digests.append((vm.digest(), vm.icount, vm.console.transcript))
    assert digests[0] == digests[1]
