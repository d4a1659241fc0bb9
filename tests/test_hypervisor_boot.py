"""Debians side by side in one hypervisor, two para-virtual and one full: they boot, pause, share, balloon and go."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import PROMPT
from trapgate import Hypervisor, Machine
from trapgate.errors import CapacityError, ConfigError, StateError
from trapgate.hypervisor import Guest, GuestState, Outcome, Permissions
from trapgate.para import Call

pytestmark = [pytest.mark.boot, pytest.mark.network]

MIB = 1 << 20
#: `DOMID_SELF`.
SELF = 0x7FF0


@pytest.fixture(scope="module")
def para(debian: Machine) -> Machine:
    return Machine.from_image("debian-12", mode="para", memory="256M")


@dataclass
class Lab:
    hypervisor: Hypervisor
    first: Guest
    second: Guest
    full: Guest


@pytest.fixture(scope="module")
def lab(debian: Machine, para: Machine) -> Iterator[Lab]:
    """Give three guests at their prompts, which run on; memory is left for none but a small one."""
    with Hypervisor(memory="800M", cpus=2) as hypervisor:
        first = hypervisor.create(para, name="first")
        second = hypervisor.create(para, name="second")
        full = hypervisor.create(debian, name="full")
        hypervisor.start()
        for guest in (first, second, full):
            guest.console.expect(PROMPT, timeout=240)
        yield Lab(hypervisor, first, second, full)


def ask(guest: Guest, command: str) -> str:
    return guest.console.command(command, PROMPT, timeout=120)


def uptime(guest: Guest) -> float:
    return float(ask(guest, "cat /proc/uptime").split()[0])


def test_all_boot_at_the_same_time(lab: Lab) -> None:
    assert "Xen PV" in lab.first.console.transcript
    assert "Xen PV" in lab.second.console.transcript
    assert "Xen PV" not in lab.full.console.transcript
    assert [guest.domid for guest in lab.hypervisor.list()] == [1, 2, 3]
    assert lab.hypervisor.store.list("/local/domain") == ["1", "2"]


def test_idle_guests_cost_next_to_nothing(lab: Lab) -> None:
    time.sleep(0.5)
    before = lab.hypervisor.snapshot()
    time.sleep(2)
    after = lab.hypervisor.snapshot(before)
    assert all(guest.cpu_percent < 20 for guest in after.guests)
    assert all(guest.state in ("blocked", "running", "runnable") for guest in after.guests)
    assert all(guest.last_line.rstrip() == PROMPT.rstrip() for guest in after.guests)


def test_sleepers_wake_by_their_timers(lab: Lab) -> None:
    for guest in (lab.first, lab.full):
        before = time.monotonic()
        assert ask(guest, "sleep 1; echo awake") == "awake\n"
        assert 0.9 < time.monotonic() - before < 30


def test_who_is_typed_at_answers_though_all_cpus_are_busy(lab: Lab, para: Machine) -> None:
    def typical() -> float:
        times = []
        for _ in range(9):
            start = time.monotonic()
            ask(lab.first, "true")
            times.append(time.monotonic() - start)
        return sorted(times)[4]

    alone = typical()
    for guest in (lab.second, lab.full):
        guest.console.sendline("while :; do :; done")
    try:
        assert typical() < 3 * alone + 0.05
    finally:
        for guest in (lab.second, lab.full):
            guest.console.send("\x03")
            guest.console.expect(PROMPT, timeout=120)


def test_pause_stops_ones_clock_and_not_the_others(lab: Lab) -> None:
    for guest in (lab.first, lab.full):
        before, other_before = uptime(guest), uptime(lab.second)
        guest.pause()
        machine = guest.vm.now
        time.sleep(3)
        assert guest.vm.now == machine
        assert uptime(lab.second) - other_before >= 3
        guest.resume()
        assert uptime(guest) - before < 2.9


def test_a_cap_holds_for_a_real_kernel(lab: Lab) -> None:
    guests = (lab.first, lab.full)
    for guest in guests:
        guest.console.sendline("while :; do :; done")
        guest.cap = 25
    try:
        time.sleep(1)
        times = [guest.cpu_time for guest in guests]
        start = time.monotonic()
        time.sleep(3)
        used = [guest.cpu_time - before for guest, before in zip(guests, times, strict=True)]
        wall = time.monotonic() - start
        assert all(0.02 * wall < time < 0.25 * wall + 0.1 for time in used)
    finally:
        for guest in guests:
            guest.cap = 0
            guest.console.send("\x03")
            guest.console.expect(PROMPT, timeout=120)


def test_weights_hold_between_two_kernels_on_one_cpu(para: Machine) -> None:
    with Hypervisor(cpus=1) as hypervisor:
        guests = [hypervisor.create(para, weight=weight) for weight in (256, 512)]
        for guest in guests:
            guest.console.expect(PROMPT, timeout=240)
        hypervisor.start()
        for guest in guests:
            guest.console.sendline("while :; do :; done")
        time.sleep(1)
        before = [guest.cpu_time for guest in guests]
        time.sleep(4)
        light, heavy = (guest.cpu_time - was for guest, was in zip(guests, before, strict=True))
        assert heavy / light == pytest.approx(2, rel=0.12)


def test_a_forbidden_hypercall_gives_eperm_in_the_guest(lab: Lab) -> None:
    version = "cat /sys/hypervisor/version/extra"
    assert ask(lab.first, version) == ".0-trapgate\n"
    lab.first.permissions = Permissions(forbidden=frozenset({"xen_version"}))
    assert "Operation not permitted" in ask(lab.first, version)
    assert ask(lab.second, version) == ".0-trapgate\n"
    lab.first.permissions = Permissions()
    assert ask(lab.first, version) == ".0-trapgate\n"
    with pytest.raises(ConfigError, match="no hypercall 'xen_versoin'"):
        lab.first.permissions = Permissions(forbidden=frozenset({"xen_versoin"}))


def test_what_served_a_forbidden_call_serves_it_again(lab: Lab) -> None:
    seen: list[str] = []

    def version(call: Call) -> int:
        seen.append(call.name)
        return call.native()

    row = lab.first.vm.hypercalls["xen_version"]
    row.replace(version)
    lab.first.permissions = Permissions(forbidden=frozenset({"xen_version"}))
    lab.first.permissions = Permissions(events=frozenset())
    assert ask(lab.first, "cat /sys/hypervisor/version/extra") == ".0-trapgate\n"
    assert seen
    row.restore()
    lab.first.permissions = Permissions()


def event_channel(guest: Guest, command: int, argument: bytes) -> tuple[int, bytes]:
    """Make a call of event_channel_op for the guest, within one whose buffer it borrows; give result and structure."""
    answers: list[tuple[int, bytes]] = []

    def make(call: Call) -> int:
        # xen_version's capabilities: the buffer is of 1024 bytes.
        if call.command == 3 and not answers:
            memory, at = call.memory.linear, call.argument
            memory[at : at + len(argument)] = argument
            result = guest.vm._core.native_hypercall(32, [command, at, 0, 0, 0])
            assert result is not None
            answers.append(
                (result if result < 1 << 63 else result - (1 << 64), memory[at : at + len(argument)])
            )
        return call.native()

    row = guest.vm.hypercalls["xen_version"]
    row.replace(make)
    assert "x86_64" in ask(guest, "cat /sys/hypervisor/properties/capabilities")
    row.restore()
    ((result, structure),) = answers
    return result, structure


def test_a_guest_binds_a_port_that_another_has_left_for_it(lab: Lab) -> None:
    """EVTCHNOP_alloc_unbound in one, EVTCHNOP_bind_interdomain in the other, then status, send, close and status."""
    first, second = lab.first, lab.second
    result, made = event_channel(first, 6, struct.pack("<HHI", SELF, second.domid, 0))
    assert result == 0
    port: int = struct.unpack("<HHI", made)[2]
    lab.second.permissions = Permissions(events=frozenset({first.domid + 100}))
    wanted = struct.pack("<HHII", first.domid, 0, port, 0)
    assert event_channel(second, 0, wanted)[0] == -errno.EPERM
    lab.second.permissions = Permissions()
    assert event_channel(second, 0, struct.pack("<HHII", 999, 0, port, 0))[0] == -errno.ESRCH
    assert event_channel(second, 0, struct.pack("<HHII", first.domid, 0, port + 1, 0))[0] == -errno.EINVAL
    result, bound = event_channel(second, 0, wanted)
    assert result == 0
    other: int = struct.unpack("<HHII", bound)[3]
    assert status(first, port) == (2, second.domid, other)
    assert status(second, other) == (2, first.domid, port)
    assert event_channel(second, 4, struct.pack("<I", other))[0] == 0
    assert event_channel(second, 3, struct.pack("<I", other))[0] == 0
    assert status(first, port) == (1, second.domid, 0)
    assert event_channel(first, 3, struct.pack("<I", port))[0] == 0
    assert [ask(guest, "echo still here") for guest in (first, second)] == ["still here\n"] * 2


def status(guest: Guest, port: int) -> tuple[int, int, int]:
    """EVTCHNOP_status: what a port is, the domain at its other end, and the port there."""
    result, answer = event_channel(guest, 5, struct.pack("<HHIIIII", SELF, 0, port, 0, 0, 0, 0))
    assert result == 0
    _, _, _, kind, _, domain, remote_port = struct.unpack("<HHIIIII", answer)
    return kind, domain, remote_port


def test_event_channels_are_only_to_domains_that_are_allowed(lab: Lab) -> None:
    """EVTCHNOP_alloc_unbound for another domain, made for the guest within a hypercall whose buffer it borrows."""
    results: dict[int, int] = {}

    def allocate(call: Call) -> int:
        if call.command == 1 and (asked := set(range(4)) - results.keys()):
            remote = min(asked)
            memory = call.memory.linear
            memory[call.argument : call.argument + 8] = b"\xf0\x7f" + remote.to_bytes(2, "little") + bytes(4)
            result = lab.first.vm._core.native_hypercall(32, [6, call.argument, 0, 0, 0])
            assert result is not None
            results[remote] = result if result < 1 << 63 else result - (1 << 64)
        return call.native()

    row = lab.first.vm.hypercalls["xen_version"]
    row.replace(allocate)
    lab.first.permissions = Permissions(events=frozenset({2}))
    for _ in range(4):
        ask(lab.first, "cat /sys/hypervisor/version/extra")
    assert results == {0: 0, 1: 0, 2: 0, 3: -1}
    row.restore()
    lab.first.permissions = Permissions()
    assert ask(lab.first, "echo still here") == "still here\n"


def test_ballooning_one_lets_another_be_created(lab: Lab, para: Machine) -> None:
    hypervisor = lab.hypervisor
    assert hypervisor.memory.free == 32 * MIB
    with pytest.raises(CapacityError, match="needs 128M and 32M of 800M are free"):
        hypervisor.create(para.replace(memory="128M"), name="late")
    with pytest.raises(StateError, match="virtio"):
        lab.full.memory_target = "128M"
    lab.first.memory_target = "144M"
    assert lab.first.memory > 144 * MIB or hypervisor.memory.free == 144 * MIB
    hypervisor.run(until=lambda h: lab.first.memory <= 144 * MIB, timeout=60)
    assert lab.first.memory == 144 * MIB
    assert hypervisor.memory.reserved == sum(guest.memory for guest in hypervisor.list())
    late = hypervisor.create(para.replace(memory="128M"), name="late")
    late.console.expect(PROMPT, timeout=240)
    with pytest.raises(CapacityError):
        lab.first.memory_target = "256M"
    late.destroy()
    lab.first.memory_target = "256M"
    hypervisor.run(until=lambda h: lab.first.memory == 256 * MIB, timeout=60)
    assert lab.first.memory == 256 * MIB
    with pytest.raises(ConfigError, match="maximum_memory is 256M"):
        lab.first.memory_target = "300M"
    assert ask(lab.first, "echo fine") == "fine\n"


def resident() -> int:
    """Bytes of shared memory that this process has in RAM: its guests' memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssShmem:")[1].split()[0]) * 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_destroying_frees_memory_number_and_entries(lab: Lab, para: Machine) -> None:
    hypervisor = lab.hypervisor
    free, before = hypervisor.memory.free, resident()
    lab.second.destroy()
    assert lab.second.state is GuestState.DESTROYED
    assert hypervisor.memory.free == (free or 0) + 256 * MIB
    assert before - resident() > 30 * MIB, "the host has its pages back though the handle is still there"
    assert not hypervisor.store.exists("/local/domain/2")
    assert not hypervisor.store.introduced(2)
    again = hypervisor.create(para, name="second", domid=2)
    again.console.expect(PROMPT, timeout=240)
    assert ask(lab.first, "echo undisturbed") == "undisturbed\n"
    again.destroy()


def test_a_guest_that_reboots_starts_over_in_its_place(para: Machine) -> None:
    with Hypervisor(memory="256M") as hypervisor:
        guest = hypervisor.create(para, restart=True)
        hypervisor.start()
        guest.console.expect(PROMPT, timeout=240)
        first = guest.vm
        guest.console.sendline("reboot")
        hypervisor.run(until=lambda h: guest.vm is not first and guest.alive, timeout=120)
        guest.console.expect(PROMPT, timeout=240)
        assert hypervisor.memory.reserved == 256 * MIB
        guest.restart = False
        guest.shutdown()
        assert hypervisor.run(timeout=120) is Outcome.ENDED
        assert guest.state is GuestState.SHUTDOWN
