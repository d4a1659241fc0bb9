"""The hypercall table as a Python object: rows replaced, wrapped, traced and forbidden while the guest runs."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator

import pytest

from conftest import PROMPT
from trapgate import VM, Machine, exits
from trapgate.errors import ConfigError
from trapgate.para import Call, Hypercalls
from trapgate.para.hypercalls import Handler

pytestmark = [pytest.mark.boot, pytest.mark.network]


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.from_image("debian-12", mode="para", memory="128M", append="quiet")


@pytest.fixture(scope="module")
def booted(machine: Machine) -> Iterator[VM]:
    with VM(machine) as vm:
        vm.console.expect(PROMPT, timeout=240)
        yield vm


@pytest.fixture
def table(booted: VM) -> Iterator[Hypercalls]:
    """Give the table, which is as it was at first afterwards."""
    yield booted.hypercalls
    for row in booted.hypercalls.values():
        row.restore()


def work(vm: VM) -> str:
    """Have the guest do something that makes many calls, and give what it says."""
    return vm.console.command("for i in 1 2 3; do busybox true; done; echo $i", PROMPT)


def test_every_number_has_a_name_and_somebody_who_serves_it(table: Hypercalls) -> None:
    assert len(table) == 43
    assert [row.number for row in table.values()] == [*range(11), *range(12, 43), 48]
    assert table.by_number(1) is table["mmu_update"]
    assert {row.handler for row in table.values()} == {"native", "error"}
    assert (table["sysctl"].errno, table["hvm_op"].errno) == (errno.EPERM, errno.ENOSYS)
    with pytest.raises(KeyError, match="there is no hypercall 'magic'"):
        table["magic"]


def test_a_wrapped_call_sees_typed_arguments_and_the_same_result(booted: VM, table: Hypercalls) -> None:
    seen: list[tuple[dict[str, int], int]] = []

    def watch(call: Call, before: Handler) -> int | None:
        result = before(call)
        seen.append((call.arguments, result or 0))
        assert call.va == call.args[0]
        return result

    table["update_va_mapping"].wrap(watch)
    assert table["update_va_mapping"].handler == "python"
    assert work(booted) == "3\n"
    assert seen
    for arguments, result in seen:
        assert list(arguments) == ["va", "entry", "flags"]
        # The kernel's direct map, a present entry, no error.
        assert arguments["va"] >= 0xFFFF_8880_0000_0000
        assert result == 0


def test_entries_of_a_multicall_go_through_the_table_too(booted: VM, table: Hypercalls) -> None:
    # Linux switches stacks in a multicall with other calls behind it.
    stacks: list[int] = []

    def note(call: Call, before: Handler) -> int | None:
        stacks.append(call.sp)
        return before(call)

    table["stack_switch"].wrap(note)
    single = table["multicall"].calls
    assert work(booted) == "3\n"
    assert len(stacks) > 3
    assert table["multicall"].calls > single


def test_iret_can_go_through_python(booted: VM, table: Hypercalls) -> None:
    frames: list[bytes] = []

    def iret(call: Call) -> int:
        frames.append(call.memory.linear.read(call.vm.regs.rsp, 72))
        return call.native()

    table["iret"].replace(iret)
    assert work(booted) == "3\n"
    assert len(frames) > 10


def test_a_handler_reads_and_writes_guest_memory(booted: VM, table: Hypercalls) -> None:
    """The kernel shows the extra version that a handler of ours has written."""

    def version(call: Call) -> int:
        if call.command != 1:
            return call.native()
        call.memory.linear.write(call.argument, b".7-python\0".ljust(16, b"\0"))
        return 0

    table["xen_version"].replace(version)
    assert booted.console.command("cat /sys/hypervisor/version/extra", PROMPT) == ".7-python\n"
    table["xen_version"].restore()
    assert booted.console.command("cat /sys/hypervisor/version/extra", PROMPT) == ".0-trapgate\n"


def test_a_forbidden_call_is_an_error_in_the_guest(booted: VM, table: Hypercalls) -> None:
    table["xen_version"].forbid(errno.EACCES)
    answer = booted.console.command("cat /sys/hypervisor/version/extra 2>&1", PROMPT)
    assert ".0-trapgate" not in answer
    with pytest.raises(ConfigError, match="0 is no error number"):
        table["xen_version"].forbid(0)


def test_calls_are_traced_until_that_ends(booted: VM, table: Hypercalls) -> None:
    seen: list[tuple[str, int]] = []
    end = table["mmuext_op"].trace(lambda call, result: seen.append((call.name, result)))
    work(booted)
    count = len(seen)
    assert count > 3
    assert set(seen) == {("mmuext_op", 0)}
    end()
    work(booted)
    assert len(seen) == count
    assert table["mmuext_op"].handler == "native"


def test_an_exception_comes_out_of_run_and_the_guest_can_go_on(booted: VM, table: Hypercalls) -> None:
    class Mine(Exception):
        pass

    def refuse(_call: Call) -> int:
        raise Mine

    table["set_segment_base"].replace(refuse)
    booted.console.sendline("busybox true; echo o''ver")
    with pytest.raises(Mine):
        booted.run(timeout=20)
    # The call still waits: it is served by whoever serves it now.
    table["set_segment_base"].restore()
    assert isinstance(booted.run(until="over", timeout=20), exits.Expected)
    booted.console.expect(PROMPT, timeout=20)


def test_rows_change_while_the_guest_runs(booted: VM, table: Hypercalls) -> None:
    calls: list[float] = []

    def note(call: Call, before: Handler) -> int | None:
        calls.append(time.monotonic())
        return before(call)

    def meddle() -> None:
        for _ in range(20):
            table["mmuext_op"].wrap(note)
            time.sleep(0.02)
            table["mmuext_op"].restore()
            time.sleep(0.01)

    meddler = threading.Thread(target=meddle)
    meddler.start()
    assert booted.console.command("for i in $(seq 150); do busybox true; done; echo $i", PROMPT) == "150\n"
    meddler.join()
    assert calls


def test_counts_and_times_are_kept(booted: VM, table: Hypercalls) -> None:
    before = table.stats()["iret"]
    work(booted)
    after = table.stats()["iret"]
    assert after.calls > before.calls
    assert after.nanoseconds > before.nanoseconds
    assert table.unknown >= 0


def test_user_code_may_read_the_clock_by_itself(machine: Machine) -> None:
    """The kernel registers a copy of the time record for its vDSO, only if the record is called stable."""
    areas: list[int] = []
    with VM(machine) as vm:

        def note(call: Call, result: int) -> None:
            if call.command == 13 and result == 0:
                areas.append(call.argument)

        vm.hypercalls["vcpu_op"].trace(note)
        vm.console.expect(PROMPT, timeout=240)
        clock = vm.console.command("cat /sys/devices/system/clocksource/*/current_clocksource", PROMPT)
    assert clock == "xen\n"
    # Once: a kernel that finds the copy not to be stable takes it back.
    assert len(areas) == 1
