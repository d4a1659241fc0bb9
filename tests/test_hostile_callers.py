"""What callers do to a machine at odd moments: from other threads, from inside of its own run, with signals, with
buffers that are too large, and with references that they keep."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from guests import ORIGIN, machine, needs_assembler
from trapgate import VM, decode_columns, errors, exits
from trapgate.devices import Line
from trapgate.hooks import ExecEvent
from trapgate.memory import Mapping

pytestmark = needs_assembler

LOOP = "spin: inc rax\n jmp spin"
#: A guest that asks a device at port 50h again and again.
ASK = "again: in al, 0x50\n jmp again"


@contextmanager
def deadline(seconds: int = 60) -> Iterator[None]:
    """Bound a hang of this thread; the limit says nothing about how fast anything is."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError("hung")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Runner:
    """Runs a machine on a thread of its own."""

    def __init__(self, vm: VM, until: object = None) -> None:
        self.result: exits.Exit | BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(vm,), daemon=True)
        self._thread.start()
        while vm.state.value != "running" and self._thread.is_alive():
            pass

    def _run(self, vm: VM) -> None:
        try:
            self.result = vm.run()
        except BaseException as error:
            self.result = error

    def join(self) -> exits.Exit | BaseException | None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.result


# Looking on.


def test_a_run_does_not_fail_because_others_look() -> None:
    with VM(machine(LOOP)) as vm:
        over = threading.Event()
        wrong: list[object] = []

        def look() -> None:
            last = 0
            while not over.is_set():
                try:
                    count, now = vm.icount, vm.now
                    stats = vm.stats
                    repr(vm)
                    vm.state  # noqa: B018
                    if not last <= count <= stats.instructions or now * 1e9 > stats.nanoseconds + 1:
                        wrong.append((last, count, now, stats))
                    last = count
                except errors.TrapgateError as error:
                    wrong.append(error)
                    return

        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for n in range(1, 3001):
                result = vm.run(max_instructions=10)
                assert type(result) is exits.BudgetExhausted
                assert result.icount == vm.icount == vm.stats.instructions == 10 * n
        finally:
            over.set()
            for thread in threads:
                thread.join(60)
        assert wrong == []


def test_a_hook_is_not_disturbed_by_others_who_look() -> None:
    with VM(machine(LOOP)) as vm:
        over = threading.Event()

        def look() -> None:
            while not over.is_set():
                try:
                    vm.digest()
                    vm.regs.rip  # noqa: B018
                except errors.StateError:
                    pass

        thread = threading.Thread(target=look)
        thread.start()
        try:
            at = vm.regs.rip
            vm.step()
            at = vm.regs.rip
            seen = []
            vm.on.exec(at)(lambda _event: seen.append((vm.regs.rip, vm.icount, vm.stats.instructions)))
            vm.run(max_instructions=400)
        finally:
            over.set()
            thread.join(60)
        assert [rip for rip, *_ in seen] == [at] * 200
        assert [count for _, count, _ in seen] == [count for *_, count in seen] == list(range(1, 401, 2))


def test_registers_are_not_to_be_had_while_another_thread_runs_the_machine() -> None:
    with VM(machine(LOOP, clock="real")) as vm:
        inside, go_on = threading.Event(), threading.Event()

        def stay(_event: ExecEvent) -> None:
            inside.set()
            assert go_on.wait(60)

        vm.step()
        vm.on.exec(vm.regs.rip)(stay)
        runner = Runner(vm)
        assert inside.wait(60)
        # Between two slices as well: what can be had must not depend on luck.
        for look in (
            lambda: vm.regs.rip,
            vm.digest,
            vm.mappings,
            lambda: vm.translate(0),
            lambda: vm.regs.__setattr__("rax", 1),
            lambda: vm.on.cpuid()(print),
            lambda: vm.mem.writable(0, 1).__enter__(),
        ):
            with pytest.raises(errors.StateError, match="is running"):
                look()
        assert vm.icount == vm.stats.instructions == 1
        vm.stop()
        go_on.set()
        assert type(runner.join()) is exits.Stopped


def test_a_hook_that_another_thread_could_not_remove_can_be_removed_later() -> None:
    with VM(machine(LOOP, clock="real")) as vm:
        vm.step()
        hook = vm.on.exec(vm.regs.rip)(lambda _event: None)
        other = vm.on.port(0x80)
        runner = Runner(vm)
        with pytest.raises(errors.StateError, match="is running"):
            hook.remove()
        with pytest.raises(errors.StateError, match="is running"):
            other(print)
        vm.stop()
        runner.join()
        other(print)
        hits = hook.hits
        hook.remove()
        vm.run(max_instructions=10)
        assert hook.hits == hits


# Ending and running from within.


def from_hook(vm: VM, call: Callable[[], object]) -> None:
    vm.step()
    vm.on.exec(vm.regs.rip)(lambda _event: call())


def from_device(vm: VM, call: Callable[[], object]) -> None:
    class Device:
        def read(self, _offset: int, _size: int, /) -> int:
            call()
            return 0

        def write(self, _offset: int, _size: int, _value: int, /) -> None:
            pass

    vm.attach(Device(), ports=0x50)


WITHIN = pytest.mark.parametrize("place", [from_hook, from_device])


@WITHIN
def test_a_machine_is_not_closed_from_within_its_run(place: Callable[..., None]) -> None:
    with VM(machine(ASK)) as vm, deadline():
        place(vm, vm.close)
        with pytest.raises(errors.StateError, match=re.escape("from within its own run; stop() it")):
            vm.run(max_instructions=1000)
        assert vm.state.value == "paused"
        assert vm.mem.read(ORIGIN, 1)
    assert vm.state.value == "closed"


@WITHIN
def test_a_machine_is_not_run_from_within_its_run(place: Callable[..., None]) -> None:
    with VM(machine(ASK)) as vm, deadline():
        place(vm, lambda: vm.run(max_instructions=1))
        with pytest.raises(errors.StateError, match="running already"):
            vm.run(max_instructions=1000)
        assert vm.state.value == "paused"


def test_an_exception_of_a_device_does_not_stop_the_run_after_it() -> None:
    class Device:
        def read(self, _offset: int, _size: int, /) -> int:
            raise LookupError("no answer")

        def write(self, _offset: int, _size: int, _value: int, /) -> None:
            pass

    with VM(machine("in al, 0x50\n" + LOOP)) as vm:
        vm.attach(Device(), ports=0x50)
        # The hook ends the slice before the stop that the exception asks for.
        with vm.on.port(0x50), pytest.raises(LookupError):
            vm.run()
        assert type(vm.run(max_instructions=10)) is exits.BudgetExhausted
        # A stop that was asked for still counts.
        vm.stop()
        assert type(vm.run(max_instructions=10)) is exits.Stopped


def test_every_hook_of_an_instruction_is_called_though_one_raises() -> None:
    with VM(machine(LOOP)) as vm:
        vm.step()
        at, seen = vm.regs.rip, []

        def fail(_event: ExecEvent) -> None:
            seen.append("first")
            raise LookupError("first")

        vm.on.exec(at)(fail)
        vm.on.exec(at)(lambda _event: seen.append("second"))
        with pytest.raises(LookupError):
            vm.run(max_instructions=1)
        vm.run(max_instructions=1)
        assert seen == ["first", "second"]


def test_the_end_of_a_machine_is_not_lost_to_an_exception() -> None:
    with VM(machine("putc 'x'\n exit 3")) as vm:

        def listener(_data: bytes) -> None:
            vm.console.listeners.clear()
            raise LookupError("from the listener")

        vm.console.listeners.append(listener)
        with pytest.raises(LookupError):
            vm.run()
        count = vm.icount
        assert vm.run() == exits.DebugExit(value=3, icount=count, now=vm.now)
        assert vm.state.value == "stopped"


def test_every_listener_gets_what_was_printed() -> None:
    with VM(machine("putc 'x'\n exit 3")) as vm:
        got: list[bytes] = []

        def listener(_data: bytes) -> None:
            vm.console.listeners.remove(listener)
            raise LookupError("from the listener")

        vm.console.listeners += [listener, got.append]
        with pytest.raises(LookupError):
            vm.run()
        assert got == [b"x"]


def test_output_is_not_lost_to_an_interrupt_on_its_way() -> None:
    with VM(machine("putc 'x'\n putc 'y'\n cli\n hlt")) as vm:
        struck: list[object] = []

        def strike(_frame: FrameType, event: str, argument: object) -> None:
            if event == "c_return" and getattr(argument, "__name__", "") == "console_take" and not struck:
                struck.append(argument)
                raise KeyboardInterrupt

        sys.setprofile(strike)
        try:
            with pytest.raises(KeyboardInterrupt):
                vm.run()
        finally:
            sys.setprofile(None)
        vm.run()
        assert struck
        assert vm.console.transcript == "xy"


def test_closing_a_machine_that_another_thread_runs_stops_it_first() -> None:
    vm = VM(machine(LOOP, clock="real"))
    runner = Runner(vm)
    with deadline():
        vm.close()
    assert vm.state.value == "closed"
    assert type(runner.join()) is exits.Stopped
    with pytest.raises(errors.StateError, match="closed"):
        vm.run()


def test_closing_waits_for_a_hook_and_can_be_interrupted() -> None:
    vm = VM(machine(LOOP, clock="real"))
    vm.step()
    inside, go_on = threading.Event(), threading.Event()

    def stay(_event: ExecEvent) -> None:
        inside.set()
        assert go_on.wait(60)

    vm.on.exec(vm.regs.rip)(stay)
    runner = Runner(vm)
    assert inside.wait(60)
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    with deadline():
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            vm.close()
        assert vm.state.value == "running"
        go_on.set()
        vm.close()
    assert type(runner.join()) is exits.Stopped
    assert vm.state.value == "closed"


def test_many_threads_close_and_run_one_machine() -> None:
    for _ in range(20):
        vm = VM(machine(LOOP, clock="real"))
        start = threading.Barrier(6)
        wrong: list[BaseException] = []

        def run(vm: VM = vm, start: threading.Barrier = start, wrong: list[BaseException] = wrong) -> None:
            start.wait()
            try:
                while True:
                    vm.run(max_instructions=100_000)
            except errors.StateError:
                pass
            except BaseException as error:
                wrong.append(error)

        def close(vm: VM = vm, start: threading.Barrier = start) -> None:
            start.wait()
            vm.close()

        threads = [threading.Thread(target=each, daemon=True) for each in (run, run, run, run, close, close)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert wrong == []
        assert vm.state.value == "closed"


def test_a_forked_child_closes_a_machine_that_ran_in_its_parent() -> None:
    with VM(machine(LOOP, clock="real")) as vm:
        runner = Runner(vm)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            vm.close()
            os._exit(vm.state.value == "closed")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        vm.stop()
        assert type(runner.join()) is exits.Stopped


# What stays behind.


def guest_ram() -> int:
    """Count the mappings of guest RAM in this process."""
    return Path("/proc/self/maps").read_text().count("guest-ram")


class Keeper:
    """A device that keeps all it can get."""

    def __init__(self, vm: VM) -> None:
        self.vm = vm
        self.line: Line | None = None

    def connect(self, line: Line) -> None:
        self.line = line

    def read(self, _offset: int, _size: int, /) -> int:
        return 0

    def write(self, _offset: int, _size: int, _value: int, /) -> None:
        pass


def keeper(vm: VM) -> Keeper:
    device = Keeper(vm)
    vm.attach(device, ports=0x500, irq=5)
    vm.attach(device, mmio=0xD000_0000)
    vm.on.exec(0x1000)(lambda _event: vm.stop())
    return device


def test_closing_gives_the_memory_back_at_once_whatever_is_kept() -> None:
    gc.collect()
    before = guest_ram()

    def life() -> weakref.ref[Keeper]:
        vm = VM(machine(LOOP))
        device, regs, mem, hook = keeper(vm), vm.regs, vm.mem, vm.on.cpuid()(print)
        view = mem.view(ORIGIN, 16)
        vm.step()
        assert guest_ram() == before + 1
        vm.close()
        assert guest_ram() == before + 1, "a view is left"
        del view
        assert guest_ram() == before
        line = device.line
        assert line is not None
        for use in (
            line.pulse,
            lambda: regs.rip,
            lambda: mem.read(ORIGIN, 1),
            lambda: mem.regions,
            lambda: vm.icount,
            vm.press_power_button,
            lambda: vm.attach(device, ports=0x600),
            lambda: vm.on.cpuid()(print),
        ):
            with pytest.raises(errors.StateError, match="closed"):
                use()
        hook.remove()
        return weakref.ref(device)

    gone = life()
    gc.collect()
    assert gone() is None


def test_a_machine_that_is_left_alone_goes_with_all_that_holds_it() -> None:
    gc.collect()
    before = guest_ram()
    vm = VM(machine(LOOP))
    vm.step()
    gone = weakref.ref(keeper(vm)), weakref.ref(vm)
    gc.collect()
    assert gone[0]() is not None
    del vm
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert guest_ram() == before


EXIT = """
import threading
from trapgate import VM
from guests import machine

vm = VM(machine({source!r}, clock="real"))

class Device:
    def read(self, offset, size):
        return 0

    def write(self, offset, size, value):
        pass

vm.attach(Device(), ports=0x50)
threading.Thread(target=vm.run, daemon=True).start()
while vm.icount < 1000:
    pass
print("over")
"""


@pytest.mark.parametrize("source", [LOOP, ASK])
def test_the_interpreter_ends_while_a_daemon_thread_runs_a_machine(source: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", EXIT.format(source=source)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert (result.returncode, result.stdout) == (0, "over\n"), result.stderr


# Writable memory.


def test_nothing_writes_into_memory_after_its_block() -> None:
    with VM(machine(LOOP)) as vm:
        with vm.mem.writable(0x30_0000, 4096) as array:
            part, words, shown = array[16:32], array.view("<u4").reshape(2, -1), memoryview(array.data)
            array[:] = 1
            part[:] = 2
            words[1, 0] = 0x33333333
        assert vm.mem.read(0x30_0000 + 2048, 5) == b"3333\x01"
        held = vm.mem.read(0x30_0000, 4096)
        assert held[15:33] == b"\x01" + b"\x02" * 16 + b"\x01"
        writes: list[Callable[[], object]] = [
            lambda: array.fill(9),
            lambda: part.fill(9),
            lambda: words.fill(9),
            lambda: shown.__setitem__(0, 9),
            lambda: setattr(array.flags, "writeable", True),
            lambda: array.fill(9),
        ]
        for write in writes:
            with contextlib.suppress(ValueError, TypeError):
                write()
            assert vm.mem.read(0x30_0000, 4096) == held


def test_the_machine_must_not_run_inside_of_a_writable_block() -> None:
    with VM(machine(LOOP)) as vm:
        block = vm.mem.writable(0x30_0000, 4)
        block.__enter__()[:] = 7
        vm.step()
        with pytest.raises(errors.StateError, match="ran meanwhile"):
            block.__exit__(None, None, None)
        assert vm.mem.u32(0x30_0000) == 0


def test_a_writable_block_that_fails_writes_nothing() -> None:
    with VM(machine(LOOP)) as vm:
        with contextlib.suppress(LookupError), vm.mem.writable(0x30_0000, 4) as array:
            array[:] = 7
            raise LookupError
        assert vm.mem.u32(0x30_0000) == 0


def test_code_in_a_writable_block_is_what_runs() -> None:
    with VM(machine("again: nop\n nop\n jmp again")) as vm:
        vm.run(max_instructions=100)
        at = next(i.address for i in vm.disassemble(ORIGIN, 5) if i.mnemonic == "nop")
        with vm.mem.writable(at, 2) as array:
            array[:] = [0xFF, 0xC0]
        vm.regs.rax, vm.regs.rip = 0, at
        vm.run(max_instructions=10)
        assert vm.regs.rax == 5


# Long work and signals.


def paging(vm: VM, entries: dict[int, int], cr3: int = 0x40_0000) -> None:
    for at, entry in entries.items():
        vm.mem.write(at, struct.pack("<Q", entry))
    vm.regs.cr3 = cr3


def test_mappings_join_neighbours_and_keep_rights() -> None:
    with VM(machine(LOOP)) as vm:
        vm.step()
        nx = 1 << 63
        vm.regs.efer |= 1 << 11
        tables = {
            0x40_0000: 0x40_1007,
            0x40_0FF8: 0x40_1003,
            0x40_1000: 0x40_2007,
            0x40_2000: 0x40_3007,
            0x40_2008: 0x20_0087,
            0x40_3000: 0x5007,
            0x40_3008: 0x6007,
            0x40_3010: 0x9007 | nx,
            0x40_3FF8: 0x1F_F007,
        }
        paging(vm, tables)
        high = 0xFFFF_FF80_0000_0000

        def rows(base: int, user: bool) -> list[Mapping]:
            return [
                Mapping(linear=base + a, physical=p, size=s, writable=True, user=user, executable=x)
                for a, p, s, x in (
                    (0, 0x5000, 0x2000, True),
                    (0x2000, 0x9000, 0x1000, False),
                    # A small page and the large one after it.
                    (0x1F_F000, 0x1F_F000, 0x20_1000, True),
                )
            ]

        assert vm.mappings() == [*rows(0, True), *rows(high, False)]


def test_mappings_without_paging_and_with_none() -> None:
    with VM(machine(LOOP)) as vm:
        paging(vm, {})
        assert vm.mappings() == []
        vm.regs.efer = 0
        vm.regs.cr0 = 1
        whole = Mapping(linear=0, physical=0, size=1 << 32, writable=True, user=True, executable=True)
        assert vm.mappings() == [whole]
        # 32-bit tables: one large page, and one table with its last page.
        vm.mem.write(0x40_0000, struct.pack("<I", 0x80_0083) + struct.pack("<I", 0x40_1007))
        vm.mem.write(0x40_1FFC, struct.pack("<I", 0x7005))
        vm.mem.write(0x40_0FFC, struct.pack("<I", 0x40_1007))
        vm.regs.cr4 = 1 << 4
        vm.regs.cr0 = 1 << 31 | 1
        assert [(m.linear, m.physical, m.size, m.writable, m.user) for m in vm.mappings()] == [
            (0, 0x80_0000, 0x40_0000, True, False),
            (0x7F_F000, 0x7000, 0x1000, False, True),
            (0xFFFF_F000, 0x7000, 0x1000, False, True),
        ]


def endless(vm: VM) -> None:
    """Make tables that map themselves over and over."""
    table = 0x40_0000
    paging(vm, {table + 8 * i: table | 7 for i in range(512)})


def test_an_endless_address_space_is_an_error() -> None:
    with VM(machine(LOOP)) as vm:
        endless(vm)
        with pytest.raises(errors.MemoryAccessError, match="no end"):
            vm.mappings()


class Rung(Exception):
    """Raised by a signal."""


def is_interrupted(call: Callable[[], object]) -> bool:
    """Say whether a signal that is raised while `call` works comes out of it."""
    inside = False

    def ring(_number: int, _frame: FrameType | None) -> None:
        nonlocal inside
        if inside:
            inside = False
            raise Rung

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            inside = True
            call()
            inside = False
        except Rung:
            return True
        return False
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_signals_are_served_while_mappings_are_listed() -> None:
    with VM(machine(LOOP)) as vm:
        endless(vm)
        # Served late, the signal would find an error that has been raised already.
        assert is_interrupted(vm._core.mappings)


def sparse(size: int) -> mmap.mmap:
    """Give zeros that take no memory."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)


def test_signals_are_served_during_bulk_work() -> None:
    zeros = sparse(64 << 20)
    with VM(machine(LOOP)) as vm:
        assert is_interrupted(lambda: decode_columns(zeros, cpu="any"))
        assert is_interrupted(lambda: vm._core.translate_many(zeros))


TOO_MUCH = """
import mmap, resource, sys
import numpy as np
import trapgate
from trapgate import VM
from guests import machine

size = 3 << 30
zeros = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
words = np.frombuffer(zeros, dtype=np.uint64)
vm = VM(machine("s: jmp s"))
list(trapgate.decode(b"\\x90"))
trapgate.decode_columns(b"\\x90")
in_use = int(open("/proc/self/statm").read().split()[0]) * mmap.PAGESIZE
resource.setrlimit(resource.RLIMIT_AS, (in_use + (128 << 20),) * 2)
try:
    {call}
except (MemoryError, trapgate.errors.MemoryAccessError) as error:
    print(type(error).__name__)
else:
    print("done")
"""


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("trapgate.decode(zeros)", "MemoryError"),
        ("trapgate.decode_columns(zeros)", "MemoryError"),
        ("vm.translate(words)", "MemoryError"),
        ("vm.mem.write(0, zeros)", "MemoryAccessError"),
        ("vm.mem.linear.write(0, zeros)", "MemoryAccessError"),
    ],
)
def test_more_than_there_is_memory_for_is_refused(call: str, error: str) -> None:
    """The process must live on, whatever it is given."""
    result = subprocess.run(
        [sys.executable, "-c", TOO_MUCH.replace("{call}", call)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert (result.returncode, result.stdout) == (0, f"{error}\n"), result.stderr
