"""Several small guests in one hypervisor: they share, end, crash, pause and come again without harm to the others."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import guests
from guests import needs_assembler
from trapgate import VM, Hypervisor, Machine, exits
from trapgate.errors import CapacityError, ConfigError, StateError, TrapgateError
from trapgate.hypervisor import Event, GuestState, Happening, Outcome, Turn, VCpu

pytestmark = needs_assembler

SPIN = "s: jmp s"
#: Waits for an interrupt that does not come.
WAIT = "sti\n s: hlt\n jmp s"
RESET = "mov al, 0xfe\n out 0x64, al\n s: jmp s"
CRASH = "lidt [rip + z]\n ud2\n z: .zero 10"


def machine(source: str, **changes: object) -> Machine:
    return guests.machine(source, **{"clock": "real", **changes})


def until(condition: Callable[[], bool]) -> Callable[[Hypervisor], bool]:
    return lambda _hypervisor: condition()


# One slice.


def test_a_slice_of_a_machine_says_why_it_ended() -> None:
    with VM(machine(SPIN)) as vm:
        result = vm.slice(5)
        assert (result.exit, result.blocked, result.wants_at) == (None, False, None)
        before = vm.now
        time.sleep(0.02)
        assert vm.now >= before + 0.015, "the clock goes on between slices"
        vm.stop_clock()
        before = vm.now
        time.sleep(0.02)
        assert vm.now == before
    with VM(machine(WAIT)) as vm:
        assert vm.slice(1000).blocked
    with VM(machine("cli\n hlt")) as vm:
        assert isinstance(vm.slice(1000).exit, exits.Halted)
    with VM(machine("exit 3")) as vm:
        assert isinstance(vm.slice(1000).exit, exits.DebugExit)
        with pytest.raises(StateError, match="cannot run on after DebugExit"):
            vm.slice()
        with pytest.raises(ConfigError, match="milliseconds"):
            vm.slice(0)


def test_a_blocked_guest_says_when_it_wants_to_go_on() -> None:
    # The local APIC's timer, one shot, in 50 ms: unmasked, so that it wakes the halt.
    source = """
        mov ebx, 0xfee00000
        mov dword ptr [rbx + 0xf0], 0x1ff
        mov dword ptr [rbx + 0x320], 0x40
        mov dword ptr [rbx + 0x3e0], 0xb
        mov dword ptr [rbx + 0x380], 50000000
        sti
        hlt
        s: jmp s
    """
    with VM(machine(source)) as vm:
        start = time.monotonic()
        result = vm.slice(1000)
        assert result.blocked
        assert result.wants_at is not None
        assert 0 < result.wants_at - start < 5


# Shares.


def test_weights_hold_on_one_cpu() -> None:
    with Hypervisor(cpus=1) as hypervisor:
        light = hypervisor.create(machine(SPIN), weight=256)
        heavy = hypervisor.create(machine(SPIN), weight=512)
        waiting = hypervisor.create(machine(WAIT), weight=65535)
        assert hypervisor.run(timeout=2.5) is Outcome.TIMED_OUT
        assert heavy.cpu_time / light.cpu_time == pytest.approx(2, rel=0.12)
        assert waiting.cpu_time < 0.05
        assert waiting.state is GuestState.BLOCKED


def test_caps_hold_and_change() -> None:
    with Hypervisor(cpus=2) as hypervisor:
        guest = hypervisor.create(machine(SPIN), cap=25)
        start = time.monotonic()
        hypervisor.run(timeout=1.5)
        wall = time.monotonic() - start
        assert 0.1 * wall < guest.cpu_time < 0.25 * wall + 0.03
        guest.cap = 5
        before, start = guest.cpu_time, time.monotonic()
        hypervisor.run(timeout=1)
        assert guest.cpu_time - before < 0.05 * (time.monotonic() - start) + 0.03
        with pytest.raises(ConfigError, match="cap is 101"):
            guest.cap = 101
        with pytest.raises(ConfigError, match="weight is 0"):
            guest.weight = 0


def test_many_guests_share_few_threads() -> None:
    with Hypervisor(cpus=2) as hypervisor:
        made = [hypervisor.create(machine(SPIN, memory="4M")) for _ in range(20)]
        made += [hypervisor.create(machine(WAIT, memory="4M")) for _ in range(20)]
        ending = [hypervisor.create(machine(f"exit {n}", memory="4M")) for n in range(10)]
        assert hypervisor.run(until=until(lambda: not any(g.alive for g in ending)), timeout=60)
        assert [g.exit.value for g in ending if isinstance(g.exit, exits.DebugExit)] == list(range(10))
        hypervisor.run(until=until(lambda: all(g.cpu_time for g in made)), timeout=60)
        assert all(guest.alive for guest in made)
        assert threading.active_count() < 10


class RoundRobin:
    """The smallest policy: who waits longest runs for a millisecond."""

    def __init__(self) -> None:
        self.queue: list[VCpu] = []
        self.calls: list[str] = []
        self.raises = False

    def start(self, cpus: int, now: int) -> None:
        self.calls.append(f"start {cpus}")

    def add(self, vcpu: VCpu, now: int) -> None:
        self.calls.append(f"add {vcpu.name}")

    def remove(self, vcpu: VCpu, now: int) -> None:
        self.calls.append(f"remove {vcpu.name}")

    def wake(self, vcpu: VCpu, now: int) -> VCpu | None:
        self.queue.append(vcpu)
        return None

    def block(self, vcpu: VCpu, now: int) -> None:
        self.queue.remove(vcpu)

    def next(self, cpu: int, now: int) -> Turn | None:
        if self.raises:
            raise ZeroDivisionError("a policy's mistake")
        return Turn(self.queue.pop(0), 1_000_000) if self.queue else None

    def used(self, vcpu: VCpu, nanoseconds: int, now: int) -> None:
        self.queue.append(vcpu)

    def due(self, now: int) -> int | None:
        return None


def test_the_scheduler_can_be_replaced() -> None:
    policy = RoundRobin()
    with Hypervisor(cpus=1, scheduler=policy) as hypervisor:
        light = hypervisor.create(machine(SPIN), name="light", weight=1)
        heavy = hypervisor.create(machine(SPIN), name="heavy", weight=65535)
        ends = hypervisor.create(machine("exit 1"), name="ends")
        hypervisor.run(timeout=1)
        assert light.slices == pytest.approx(heavy.slices, rel=0.1)
        assert not ends.alive
    assert policy.calls == [
        *("add light", "add heavy", "add ends"),
        *("start 1", "remove light", "remove heavy", "remove ends"),
    ]
    assert policy.queue == []


def test_an_error_of_the_scheduler_comes_out_of_run() -> None:
    policy = RoundRobin()
    with Hypervisor(scheduler=policy) as hypervisor:
        guest = hypervisor.create(machine(SPIN))
        hypervisor.run(timeout=0.05)
        policy.raises = True
        with pytest.raises(ZeroDivisionError, match="a policy's mistake"):
            hypervisor.run(timeout=30)
        policy.raises = False
        assert hypervisor.run(timeout=0.05) is Outcome.TIMED_OUT
        assert guest.alive


# Ends.


def test_one_guests_end_does_not_disturb_the_others() -> None:
    events: list[Event] = []
    with Hypervisor(cpus=2) as hypervisor:
        hypervisor.listeners.append(events.append)
        stays = hypervisor.create(machine(SPIN), name="stays")
        names = {"exits": "exit 7", "crashes": CRASH, "resets": RESET, "halts": "cli\n hlt"}
        ends = {name: hypervisor.create(machine(source), name=name) for name, source in names.items()}
        assert hypervisor.run(until=until(lambda: all(g.exit for g in ends.values())), timeout=30)
        before = stays.cpu_time
        hypervisor.run(timeout=0.2)
        assert stays.alive
        assert stays.cpu_time > before
        assert {name: guest.state for name, guest in ends.items()} == {
            "exits": GuestState.SHUTDOWN,
            "crashes": GuestState.CRASHED,
            "resets": GuestState.SHUTDOWN,
            "halts": GuestState.BLOCKED,
        }
        with pytest.raises(StateError, match="'exits' is shutdown"):
            hypervisor.pause(ends["exits"])
        stays.destroy()
        assert hypervisor.run(timeout=30) is Outcome.ENDED
    seen = {(e.kind, e.guest.name, type(e.exit)) for e in events if e.exit}
    assert seen == {
        (Happening.SHUTDOWN, "exits", exits.DebugExit),
        (Happening.CRASHED, "crashes", exits.TripleFault),
        (Happening.SHUTDOWN, "resets", exits.Reset),
        (Happening.HALTED, "halts", exits.Halted),
    }
    assert sum(event.kind is Happening.DESTROYED for event in events) == 5


def test_a_guest_that_resets_can_start_over() -> None:
    with Hypervisor(memory="64M") as hypervisor:
        events: list[Happening] = []
        hypervisor.listeners.append(lambda event: events.append(event.kind))
        guest = hypervisor.create(machine(f"putc 'x'\n{RESET}"), restart=True, weight=99)
        seen: list[bytes] = []
        guest.console.listeners.append(seen.append)
        first = guest.vm
        hypervisor.run(until=until(lambda: events.count(Happening.RESTARTED) >= 3), timeout=30)
        assert guest.alive
        assert guest.vm is not first
        assert guest.weight == 99
        assert b"".join(seen).startswith(b"xxx")
        guest.restart = False
        assert hypervisor.run(timeout=30) is Outcome.ENDED
        assert isinstance(guest.exit, exits.Reset)


def test_an_error_in_a_hook_ends_its_guest_alone(caplog: pytest.LogCaptureFixture) -> None:
    with Hypervisor() as hypervisor:
        guest = hypervisor.create(machine("s: out 0x80, al\n jmp s"))
        other = hypervisor.create(machine(SPIN))
        guest.vm.on.port(0x80)(lambda event: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            guest.vm.run(host_timeout=30)
        assert guest.state is GuestState.CRASHED
        assert isinstance(guest.error, ZeroDivisionError)
        assert other.alive
        assert not caplog.records
        silent = hypervisor.create(machine("s: out 0x80, al\n jmp s"), name="silent")
        silent.vm.on.port(0x80)(lambda event: 1 // 0)
        hypervisor.run(until=until(lambda: not silent.alive), timeout=30)
        assert "'silent' ended by an error" in caplog.text


def test_a_listener_that_raises_is_told_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with Hypervisor() as hypervisor:
        hypervisor.listeners.append(lambda event: 1 // 0)
        guest = hypervisor.create(machine("exit 1"))
        assert hypervisor.run(timeout=30) is Outcome.ENDED
        assert not guest.alive
    assert "a listener of the hypervisor raised" in caplog.text


def test_a_listener_may_destroy_the_guest_that_ended() -> None:
    with Hypervisor() as hypervisor:

        def destroy(event: Event) -> None:
            if event.kind is Happening.SHUTDOWN:
                event.guest.destroy()

        hypervisor.listeners.append(destroy)
        for _ in range(5):
            hypervisor.create(machine("exit 1"))
        hypervisor.run(until=lambda h: not h.list(), timeout=30)
        assert hypervisor.list() == []


# Pausing, destroying.


def test_pause_stops_a_guest_and_its_clock() -> None:
    with Hypervisor() as hypervisor:
        guest = hypervisor.create(machine(SPIN))
        idle = hypervisor.create(machine(WAIT))
        hypervisor.start()
        hypervisor.run(until=until(lambda: guest.cpu_time > 0.05 and idle.slices > 0), timeout=30)
        for one in (guest, idle):
            one.pause()
            one.pause()
            assert one.state is GuestState.PAUSED
        before = (guest.vm.icount, guest.vm.now, idle.vm.now)
        guest.vm.regs.rbx = 17
        time.sleep(0.1)
        assert (guest.vm.icount, guest.vm.now, idle.vm.now) == before
        guest.resume()
        idle.resume()
        hypervisor.run(
            until=until(lambda: guest.vm.icount > before[0] and idle.vm.now > before[2]), timeout=30
        )
        assert guest.vm.now < before[1] + 30


def test_a_guest_can_wait_for_its_first_resume() -> None:
    with Hypervisor() as hypervisor:
        guest = hypervisor.create(machine("exit 1"), paused=True)
        assert hypervisor.run(timeout=0.2) is Outcome.TIMED_OUT
        assert (guest.state, guest.vm.icount) == (GuestState.PAUSED, 0)
        with pytest.raises(StateError, match="is paused; resume it"):
            guest.vm.run()
        guest.resume()
        assert hypervisor.run(timeout=30) is Outcome.ENDED


def test_nothing_runs_while_the_hypervisor_is_stopped() -> None:
    with Hypervisor() as hypervisor:
        guest = hypervisor.create(machine(SPIN))
        hypervisor.run(timeout=0.1)
        before = (guest.vm.icount, guest.vm.now)
        time.sleep(0.05)
        assert (guest.vm.icount, guest.vm.now) == before
        hypervisor.start()
        with pytest.raises(StateError, match="runs already"):
            hypervisor.start()
        hypervisor.run(until=until(lambda: guest.vm.icount > before[0]), timeout=30)
        hypervisor.stop()
        hypervisor.stop()
        assert not hypervisor.running


def test_destroying_gives_back_name_number_and_memory() -> None:
    with Hypervisor(memory="40M") as hypervisor:
        hypervisor.start()
        first = hypervisor.create(machine(SPIN), name="one")
        second = hypervisor.create(machine(SPIN))
        assert [guest.domid for guest in hypervisor.list()] == [1, 2]
        assert (hypervisor.memory.reserved, hypervisor.memory.free) == (32 << 20, 8 << 20)
        with pytest.raises(CapacityError, match="'guest-3' needs 16M and 8M of 40M are free"):
            hypervisor.create(machine(SPIN))
        hypervisor.destroy(first)
        hypervisor.destroy(first)
        assert first.state is GuestState.DESTROYED
        assert hypervisor.memory.free == 24 << 20
        for call in (first.pause, first.resume, first.shutdown):
            with pytest.raises(StateError):
                call()
        third = hypervisor.create(machine(SPIN), name="one")
        assert third.domid == 3, "a number is not used again at once"
        assert hypervisor.get("one") is hypervisor.get(3) is third
        with pytest.raises(KeyError, match="no guest 'first'"):
            hypervisor.get("first")
        second.destroy()
        again = hypervisor.create(machine(SPIN), domid=1)
        assert again.domid == 1
        with pytest.raises(ConfigError, match="there is a domain of number 1"):
            hypervisor.create(machine(SPIN), domid=1)
        hypervisor.store.mkdir("/local/domain/2/left")
        with pytest.raises(ConfigError, match="there is a domain of number 2"):
            hypervisor.create(machine(SPIN), domid=2)


def test_a_guest_that_cannot_be_made_leaves_nothing() -> None:
    with Hypervisor(memory="20M") as hypervisor:
        with pytest.raises(ConfigError):
            hypervisor.create(Machine(kernel=b"nonsense", memory="16M"), name="a")
        assert hypervisor.memory.reserved == 0
        hypervisor.create(machine(SPIN), name="a")
        with pytest.raises(ConfigError, match="there is a guest 'a'"):
            hypervisor.create(machine(SPIN, memory="4M"), name="a")
        with pytest.raises(ConfigError, match="name is"):
            hypervisor.create(machine(SPIN, memory="4M"), name="a\nb")
    with pytest.raises(StateError, match="closed"):
        hypervisor.create(machine(SPIN))


def test_a_hook_cannot_destroy_its_own_guest_or_wait_for_others() -> None:
    raised: list[BaseException] = []
    with Hypervisor() as hypervisor:
        guest = hypervisor.create(machine("out 0x80, al\n s: jmp s"))

        def attempt(_event: object) -> None:
            for call in (guest.destroy, hypervisor.stop, lambda: hypervisor.run(timeout=1)):
                try:
                    call()
                except StateError as error:
                    raised.append(error)
            guest.pause()

        guest.vm.on.port(0x80)(attempt)
        hypervisor.run(until=until(lambda: guest.paused), timeout=30)
        assert [str(error).partition(" ")[0] for error in raised] == ["a", "the", "a"]
        assert guest.state is GuestState.PAUSED


# Machines of a hypervisor.


def test_the_console_is_expected_while_all_run() -> None:
    source = "mov ecx, 20000000\n l: dec ecx\n jnz l\n putc 'o'\n putc 'k'\n s: jmp s"
    with Hypervisor(cpus=1) as hypervisor:
        guest, other = hypervisor.create(machine(source)), hypervisor.create(machine(SPIN))
        assert guest.console.expect("ok", timeout=60)
        assert not hypervisor.running, "it ran for as long as it was needed"
        assert other.cpu_time > 0
        assert isinstance(guest.vm.run(timeout=0.1), exits.TimedOut)
        assert isinstance(guest.vm.run(host_timeout=0.1), exits.TimedOut)
        result = guest.vm.run(until=lambda vm: vm.icount > 30_000_000, host_timeout=60)
        assert isinstance(result, exits.Satisfied)


def test_what_a_machine_of_a_hypervisor_cannot_do_is_refused() -> None:
    with Hypervisor() as hypervisor:
        guest = hypervisor.create(machine(SPIN))
        for call in (
            lambda: guest.vm.run(max_instructions=1),
            lambda: guest.vm.run(until=0x1000),
            lambda: guest.vm.slice(),
            lambda: guest.vm.step(),
        ):
            with pytest.raises(StateError, match="belongs to a hypervisor"):
                call()


def test_stop_ends_a_wait_but_no_guest() -> None:
    with Hypervisor() as hypervisor:
        guest = hypervisor.create(machine(SPIN))
        threading.Timer(0.1, guest.vm.stop).start()
        assert isinstance(guest.vm.run(host_timeout=30), exits.Stopped)
        assert guest.alive


def test_a_virtual_clock_ticks_the_same_in_company() -> None:
    source = "mov ecx, 30000000\n l: dec ecx\n jnz l\n rdtsc\n mov ebx, eax\n exit 1"
    with VM(machine(source, clock="virtual")) as vm:
        vm.run()
        alone = (vm.icount, vm.now, vm.regs.rbx, vm.digest())
    with Hypervisor(cpus=1) as hypervisor:
        guest = hypervisor.create(machine(source, clock="virtual"))
        spin = hypervisor.create(machine(SPIN))
        hypervisor.run(until=until(lambda: not guest.alive), timeout=60)
        assert guest.slices > 1
        assert spin.alive
        vm = guest.vm
        assert (vm.icount, vm.now, vm.regs.rbx, vm.digest()) == alone


INTERRUPTED = """
import sys
sys.path.insert(0, {tests!r})
import guests
from trapgate import Hypervisor
with Hypervisor() as hypervisor:
    for source in ("s: jmp s", "sti\\n s: hlt\\n jmp s"):
        hypervisor.create(guests.machine(source, clock="real"))
    print("ready", flush=True)
    try:
        hypervisor.run()
    except KeyboardInterrupt:
        print("interrupted", hypervisor.running, [guest.alive for guest in hypervisor.list()])
"""


def test_control_c_ends_the_run() -> None:
    code = INTERRUPTED.format(tests=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert process.communicate(timeout=30)[0] == "interrupted False [True, True]\n"
        assert time.monotonic() - start < 10


def test_any_order_of_calls_by_any_threads_is_fine() -> None:
    """Four threads make, pause, wait for, resume and destroy guests at random; all is consistent at the end."""
    machines = [machine(source, memory="4M") for source in (SPIN, WAIT, RESET, "exit 1", "cli\n hlt")]
    stop = time.monotonic() + 3
    failures: list[BaseException] = []

    def work(hypervisor: Hypervisor, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < stop:
            try:
                step(hypervisor, chance)
            except TrapgateError:
                pass
            except BaseException as error:
                failures.append(error)
                raise

    def step(hypervisor: Hypervisor, chance: random.Random) -> None:
        there = hypervisor.list()
        what = chance.choice("cccprdds")
        if what == "c" or not there:
            hypervisor.create(
                chance.choice(machines), restart=chance.random() < 0.5, cap=chance.choice((0, 10))
            )
            return
        guest = chance.choice(there)
        if what == "p":
            guest.pause()
        elif what == "r":
            guest.resume()
        elif what == "d":
            guest.destroy()
        else:
            hypervisor.snapshot()

    with Hypervisor(cpus=2, memory="100M") as hypervisor:
        hypervisor.start()
        threads = [threading.Thread(target=work, args=(hypervisor, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not failures
        assert hypervisor.memory.reserved == sum(guest.memory for guest in hypervisor.list())
        assert len({guest.domid for guest in hypervisor.list()}) == len(hypervisor.list())
    assert hypervisor.list() == []
