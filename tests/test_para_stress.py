"""A para-virtual Debian under load: memory that comes and goes, programs that start and end, and nothing lost by it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import packages
from conftest import PROMPT
from test_para_boot import COMPLAINTS
from trapgate import VM, Machine, exits

pytestmark = [pytest.mark.boot, pytest.mark.network]

MIB = 1 << 20


@pytest.fixture
def booted() -> Iterator[VM]:
    config = Machine.from_image("debian-12", mode="para", memory="192M", maximum_memory="256M")
    with VM(config) as vm:
        vm.console.expect(PROMPT, timeout=240)
        yield vm


def balloon(vm: VM, target: int) -> None:
    vm.balloon(target)
    reached = vm.run(until=lambda vm: vm.domain.memory == target, host_timeout=60)
    assert isinstance(reached, exits.Satisfied), f"{vm.domain.memory} bytes after a minute, not {target}"


def test_memory_comes_and_goes_a_hundred_times(booted: VM) -> None:
    console = booted.console
    console.command("dd if=/dev/urandom of=/tmp/r bs=64k count=256 2>/dev/null", PROMPT)
    once = console.command("sha256sum < /tmp/r", PROMPT)
    for _ in range(100):
        balloon(booted, 160 * MIB)
        balloon(booted, 224 * MIB)
    assert console.command("sha256sum < /tmp/r", PROMPT) == once
    # What has come back is of use: a file larger than what was left before.
    console.command("dd if=/dev/urandom of=/tmp/s bs=64k count=1280 2>/dev/null", PROMPT)
    twice = console.command("sha256sum < /tmp/s", PROMPT)
    assert console.command("cat /tmp/s | sha256sum", PROMPT) == twice
    assert COMPLAINTS.search(console.command("dmesg", PROMPT)) is None


def test_a_thousand_programs_start_and_end(booted: VM) -> None:
    console = booted.console
    before = free(booted)
    console.command("r() { for i in $(seq $1); do busybox true || echo lost; done; }", PROMPT)
    assert console.command("r 1000; echo $i", PROMPT, timeout=240) == "1000\n"
    # Every page table was taken apart again: memory does not leak by rounds.
    assert before - free(booted) < 8 * MIB
    assert COMPLAINTS.search(console.command("dmesg", PROMPT)) is None


def free(vm: VM) -> int:
    text = vm.console.command("grep MemFree /proc/meminfo", PROMPT)
    found = re.search(r"(\d+) kB", text)
    assert found is not None
    return int(found[1]) << 10


def test_the_kernel_for_clouds_boots(tmp_path: Path) -> None:
    """Its payload is LZ4, and its drivers are others."""
    debs = packages.Packages(tmp_path / "packages")
    depends = debs.fetch("linux-image-cloud-amd64")
    package = next(path for path in depends if re.match(r"linux-image-6.*cloud-amd64_", path.name))
    root = packages.contents(package, lambda name: name.startswith("/boot/vmlinuz"))
    (kernel,) = root.values()
    config = Machine.from_image("debian-12", mode="para", memory="192M").replace(kernel=kernel)
    with VM(config) as vm:
        vm.console.expect(PROMPT, timeout=240)
        assert "cloud" in vm.console.command("uname -r", PROMPT)
        assert [line for line in vm.console.transcript.splitlines() if COMPLAINTS.search(line)] == []
        vm.console.sendline("poweroff")
        assert isinstance(vm.run(host_timeout=120), exits.Shutdown)
