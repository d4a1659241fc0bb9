"""`VM.run` and the console against a core that does as it is told: goals, limits, states, hooks, text in pieces."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

import trapgate._core
from trapgate import VM, Machine, errors, exits
from trapgate.console import _incomplete

Step = tuple[str, int, int] | Callable[["ScriptedCore"], tuple[str, int, int]]


class ScriptedCore:
    """Stands for `trapgate._core.Core`: each run takes the next step of a script, then reports a power-off."""

    def __init__(self, **config: Any) -> None:
        self.config = config
        self.steps: list[Step] = []
        self.asked: list[tuple[int, int, int, bool]] = []
        self.output = b""
        self.debug = b""
        self.input = b""
        self.hooks: dict[int, tuple[str, int, int]] = {}
        self.events: list[tuple[int, int, int, int, int]] = []
        self.values = {"rip": 0x1000, "rax": 0xFFFF_FFFF_FFFF_FFFF, "rbx": 0x1122_3344_5566_7788}
        self.icount = 0
        self.now = 0
        self.stops = 0
        self.running = False

    def __enter__(self) -> None:
        if self.running:
            raise errors.StateError("the machine is running already")
        self.running = True

    def __exit__(self, *_: object) -> None:
        self.running = False

    def close(self) -> None:
        pass

    def run(
        self, max_icount: int, deadline: int, milliseconds: int, watch_console: bool
    ) -> tuple[str, int, int]:
        self.asked.append((max_icount, deadline, milliseconds, watch_console))
        self.icount += 10
        self.now += 1_000_000
        step = self.steps.pop(0) if self.steps else ("shutdown", 0, 0)
        return step(self) if callable(step) else step

    def stop(self) -> None:
        self.stops += 1

    def domain(self) -> None:
        pass

    def translator_stats(self) -> dict[str, int]:
        return {}

    def console_take(self, _from: int) -> bytes:
        data, self.output = self.output, b""
        return data

    def debug_take(self) -> bytes:
        data, self.debug = self.debug, b""
        return data

    def console_send(self, data: bytes) -> int:
        self.input += data
        return len(data)

    def register(self, name: str) -> int:
        if name not in self.values:
            raise AttributeError(name)
        return self.values[name]

    def set_register(self, name: str, value: int) -> None:
        self.values[name] = value

    def add_hook(self, kind: str, first: int, last: int) -> int:
        number = len(self.hooks) + 100
        self.hooks[number] = (kind, first, last)
        return number

    def remove_hook(self, number: int) -> None:
        del self.hooks[number]

    def take_events(self) -> list[tuple[int, int, int, int, int]]:
        events, self.events = self.events, []
        return events


@pytest.fixture
def vm(monkeypatch: pytest.MonkeyPatch) -> VM:
    monkeypatch.setattr(trapgate._core, "Core", ScriptedCore, raising=False)
    return VM(Machine(kernel=b"kernel", seed=7))


def core_of(vm: VM) -> ScriptedCore:
    core: Any = vm._core
    assert isinstance(core, ScriptedCore)
    return core


def state_of(vm: VM) -> str:
    return vm.state.value


def prints(text: str | bytes) -> Callable[[ScriptedCore], tuple[str, int, int]]:
    def step(core: ScriptedCore) -> tuple[str, int, int]:
        core.output += text.encode() if isinstance(text, str) else text
        return "console", 0, 0

    return step


def test_a_final_exit_ends_the_machine(vm: VM) -> None:
    assert state_of(vm) == "created"
    core_of(vm).steps = [("slice", 0, 0), ("slice", 0, 0), ("triple_fault", 0x1234, 13)]
    result = vm.run()
    assert result == exits.TripleFault(rip=0x1234, vector=13, icount=30, now=0.003)
    assert state_of(vm) == "stopped"
    with pytest.raises(errors.StateError, match="cannot run on after TripleFault"):
        vm.run()
    vm.close()
    vm.close()
    assert state_of(vm) == "closed"
    with pytest.raises(errors.StateError, match="closed"):
        _ = vm.icount


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (("budget", 0, 0), exits.BudgetExhausted),
        (("deadline", 0, 0), exits.TimedOut),
        (("stopped", 0, 0), exits.Stopped),
        (("halted", 0, 0), exits.Halted),
        (("reset", 0, 0), exits.Reset),
        (("unsupported: real mode", 5, 0), exits.Unsupported),
    ],
)
def test_outcomes_become_exits(vm: VM, outcome: Step, expected: type[exits.Exit]) -> None:
    core_of(vm).steps = [outcome]
    result = vm.run()
    assert type(result) is expected
    assert (state_of(vm) == "stopped") == isinstance(result, exits.FINAL)


def test_limits_are_counted_from_now(vm: VM) -> None:
    core = core_of(vm)
    core.icount, core.now = 1000, 5_000_000_000
    core.steps = [("budget", 0, 0), ("deadline", 0, 0)]
    vm.run(max_instructions=50)
    assert core.asked[-1][:2] == (1050, (1 << 64) - 1)
    vm.run(timeout=1.5)
    assert core.asked[-1][1] == 5_001_000_000 + 1_500_000_000
    with pytest.raises(errors.ConfigError, match="max_instructions is -1"):
        vm.run(max_instructions=-1)


def test_a_limit_may_be_infinite_but_must_be_a_number(vm: VM) -> None:
    endless = float("inf")
    core_of(vm).steps = [("halted", 0, 0)]
    assert isinstance(vm.run(timeout=endless, host_timeout=endless), exits.Halted)
    assert core_of(vm).asked[-1][1] == (1 << 64) - 1
    for name in ("timeout", "host_timeout"):
        with pytest.raises(errors.ConfigError, match=f"^{name} is nan"):
            vm.run(**{name: float("nan")})  # type: ignore[arg-type]


def test_the_hosts_time_limits_a_guest_whose_own_time_stands_still(vm: VM) -> None:
    core_of(vm).steps = [("slice", 0, 0)] * 10
    assert isinstance(vm.run(host_timeout=0), exits.TimedOut)
    assert core_of(vm).asked == []


def test_until_an_exit_passes_over_others(vm: VM) -> None:
    core_of(vm).steps = [("halted", 0, 0), ("halted", 0, 0), ("reset", 0, 0)]
    assert isinstance(vm.run(until=exits.Shutdown), exits.Reset)


def test_until_an_exit_still_ends_at_a_limit(vm: VM) -> None:
    core_of(vm).steps = [("halted", 0, 0), ("deadline", 0, 0)]
    assert isinstance(vm.run(until=(exits.Shutdown, exits.Reset), timeout=1), exits.TimedOut)


def test_until_an_address_hooks_it_for_the_time_being(vm: VM) -> None:
    core = core_of(vm)

    def hit(core: ScriptedCore) -> tuple[str, int, int]:
        ((number, hook),) = core.hooks.items()
        assert hook == ("exec", 0x1000, 0x1000)
        core.events = [(number, 0x1000, 0, 0, 0)]
        return "hook", 0, 0

    core.steps = [("slice", 0, 0), hit]
    assert vm.run(until=0x1000) == exits.Breakpoint(rip=0x1000, icount=20, now=0.002)
    assert core.hooks == {}


def test_until_a_condition(vm: VM) -> None:
    core_of(vm).steps = [("slice", 0, 0)] * 10
    result = vm.run(until=lambda vm: vm.icount >= 50)
    assert isinstance(result, exits.Satisfied)
    assert result.icount == 50


@pytest.mark.parametrize("until", [3.5, (int,), str, (1, 2)])
def test_until_nonsense_is_refused(vm: VM, until: Any) -> None:
    with pytest.raises(errors.ConfigError, match="cannot run until"):
        vm.run(until=until)


def test_until_text_that_is_there_already_runs_nothing(vm: VM) -> None:
    core = core_of(vm)
    core.steps = [prints("login: "), ("budget", 0, 0)]
    vm.run()
    assert isinstance(vm.run(until="login"), exits.Expected)
    assert len(core.asked) == 2


def test_expect_finds_text_that_comes_in_pieces_and_reads_on_after_it(vm: VM) -> None:
    core = core_of(vm)
    core.steps = [prints("boot\r\nlo"), ("slice", 0, 0), prints("gin: pass"), prints("word: "), prints("x")]
    assert vm.console.expect("login: ")[0] == "login: "
    assert all(asked[3] for asked in core.asked)
    assert vm.console.read_until(re.compile("w.rd")) == "password"
    assert vm.console.read() == ": "
    assert vm.console.transcript == "boot\r\nlogin: password: "


def test_literal_text_is_not_a_regular_expression(vm: VM) -> None:
    core_of(vm).steps = [prints("a+b"), prints("(c)")]
    assert vm.console.expect("(c)").start() == 3


def test_expect_that_times_out_shows_the_end_of_the_console(vm: VM) -> None:
    core_of(vm).steps = [prints("panic: no init"), ("deadline", 0, 0)]
    with pytest.raises(
        errors.ExpectTimeout, match=r"did not show '\$ ' in time(.|\n)*panic: no init"
    ) as caught:
        vm.console.expect("$ ")
    assert caught.value.tail == "panic: no init"
    assert isinstance(caught.value, TimeoutError)


def test_expect_tells_when_the_machine_ended_first(vm: VM) -> None:
    core_of(vm).steps = [prints("bye"), ("shutdown", 0, 0)]
    with pytest.raises(errors.GuestError, match="ended with Shutdown before") as caught:
        vm.console.expect("hello")
    assert "bye" in caught.value.__notes__[0]


def test_a_command_gives_what_it_printed(vm: VM) -> None:
    core = core_of(vm)
    core.steps = [prints("# "), prints("uname -s\r\nLinux\r\nmore\r\n# ")]
    vm.console.expect("# ")
    assert vm.console.command("uname -s", "# ") == "Linux\nmore\n"
    assert core.input == b"uname -s\n"


def test_characters_split_between_slices_are_put_together(vm: VM) -> None:
    encoded = "grün €5 \N{SNOWMAN} 😀\xff".encode()
    core_of(vm).steps = [prints(encoded[i : i + 1]) for i in range(len(encoded))]
    vm.run()
    assert vm.console.transcript == "grün €5 \N{SNOWMAN} 😀\xff"


def test_bytes_that_are_no_text_are_replaced(vm: VM) -> None:
    core_of(vm).steps = [prints(b"a\xffb\x80"), prints(b"\xe2\x82"), prints(b"c")]
    vm.run()
    assert vm.console.transcript == "a\ufffdb\ufffd\ufffdc"


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 0),
        (b"a", 0),
        (b"\xc3", 1),
        (b"a\xe2\x82", 2),
        (b"\xf0\x9f\x98", 3),
        (b"\xc3\xbc", 0),
        (b"\x80" * 5, 0),
    ],
)
def test_incomplete_characters(data: bytes, count: int) -> None:
    assert _incomplete(data) == count


def test_endless_output_keeps_its_end(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trapgate.console._KEPT", 1000)
    core_of(vm).steps = [prints(f"line {number}\n") for number in range(1000)]
    vm.run()
    assert len(vm.console.transcript) <= 1250
    assert vm.console.transcript.endswith("line 998\nline 999\n")
    assert vm.console.read() == vm.console.transcript


def test_an_answer_that_is_partly_forgotten_begins_with_what_is_kept(
    vm: VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trapgate.console._KEPT", 1000)
    core_of(vm).steps = [prints("old # "), *[prints(f"{n:9}\n") for n in range(200)], prints("# ")]
    vm.console.expect("# ")
    answer = vm.console.read_until("# ")
    assert len(answer) >= 1000
    assert "old" not in answer
    assert answer.endswith("      198\n      199\n# ")


def test_listeners_get_every_byte(vm: VM) -> None:
    got: list[bytes] = []
    vm.console.listeners.append(got.append)
    core_of(vm).steps = [prints(b"\xc3"), prints(b"\xbc")]
    vm.run()
    assert b"".join(got) == b"\xc3\xbc"


def test_the_debug_console_is_kept_or_listened_to(vm: VM) -> None:
    core = core_of(vm)
    got: list[bytes] = []
    core.debug = b"early"
    assert vm.debug_output() == b"early"

    def write(core: ScriptedCore) -> tuple[str, int, int]:
        core.debug += b"late"
        return "slice", 0, 0

    vm.debug_listener = got.append
    core.steps = [write, ("slice", 0, 0), write]
    vm.run()
    assert got == [b"late", b"late"]


def test_hooks_are_called_with_their_events_and_removed(vm: VM) -> None:
    core = core_of(vm)
    seen: list[Any] = []
    hook = vm.on.port(0x80, size=1)(seen.append)
    assert sorted(core.hooks.values()) == [("port_read", 0x80, 0x80), ("port_write", 0x80, 0x80)]
    written = next(number for number, (kind, *_) in core.hooks.items() if kind == "port_write")

    def hit(core: ScriptedCore) -> tuple[str, int, int]:
        # Of another size, and of a hook that has been removed: neither is called.
        core.events = [(written, 0x80, 1, 0x55, 0x1000), (written, 0x80, 4, 0, 0), (999, 0, 0, 0, 0)]
        return "hook", 0, 0

    core.steps = [hit]
    vm.run()
    assert (seen[0].port, seen[0].size, seen[0].value, seen[0].write) == (0x80, 1, 0x55, True)
    assert hook.hits == len(seen) == 1
    hook.remove()
    hook.remove()
    assert core.hooks == {}


def test_a_hook_that_raises_ends_the_run_and_the_machine_can_go_on(vm: VM) -> None:
    core = core_of(vm)
    with vm.on.exec(0x1000) as hook:

        def hit(core: ScriptedCore) -> tuple[str, int, int]:
            core.events = [(next(iter(core.hooks)), 0x1000, 0, 0, 0)]
            return "hook", 0, 0

        def fail(_event: object) -> None:
            raise RuntimeError("from the hook")

        hook.callback = fail
        core.steps = [hit]
        with pytest.raises(RuntimeError, match="from the hook"):
            vm.run()
        assert state_of(vm) == "paused"
        hook.callback = None
        assert isinstance(vm.run(), exits.Shutdown)


def test_a_hook_is_installed_once(vm: VM) -> None:
    hook = vm.on.cpuid()(print)
    with pytest.raises(errors.StateError, match="installed already"):
        hook(print)


@pytest.mark.parametrize(
    "make",
    [
        lambda on: on.port(0x1_0000),
        lambda on: on.port(5, 4),
        lambda on: on.port(5, size=3),
        lambda on: on.interrupt(256),
        lambda on: on.exec(-1),
        lambda on: on.mem_write(2, 1),
    ],
)
def test_impossible_hooks_are_refused(vm: VM, make: Callable[[Any], object]) -> None:
    with pytest.raises(errors.ConfigError):
        make(vm.on)


def test_one_run_at_a_time_and_stop_from_another_thread(vm: VM) -> None:
    core = core_of(vm)
    inside, go_on = threading.Event(), threading.Event()

    def wait(_core: ScriptedCore) -> tuple[str, int, int]:
        inside.set()
        assert go_on.wait(10)
        return "stopped", 0, 0

    core.steps = [wait]
    results: list[exits.Exit] = []
    thread = threading.Thread(target=lambda: results.append(vm.run()))
    thread.start()
    assert inside.wait(10)
    assert state_of(vm) == "running"
    with pytest.raises(errors.StateError, match="running already"):
        vm.run()
    vm.stop()
    assert core.stops == 1
    go_on.set()
    thread.join(10)
    assert isinstance(results[0], exits.Stopped)
    assert state_of(vm) == "paused"


def test_output_before_an_interrupt_is_not_lost(vm: VM) -> None:
    def interrupted(core: ScriptedCore) -> tuple[str, int, int]:
        core.output += b"before"
        raise KeyboardInterrupt

    core_of(vm).steps = [interrupted]
    with pytest.raises(KeyboardInterrupt):
        vm.run()
    assert vm.console.transcript == "before"
    assert state_of(vm) == "paused"


def test_parts_of_registers(vm: VM) -> None:
    values = core_of(vm).values
    assert (vm.regs.ebx, vm.regs.bx, vm.regs.bl, vm.regs.bh) == (0x5566_7788, 0x7788, 0x88, 0x77)
    vm.regs.bh = 0xAA
    assert values["rbx"] == 0x1122_3344_5566_AA88
    vm.regs.bx = 1
    assert values["rbx"] == 0x1122_3344_5566_0001
    vm.regs.eax = 5
    assert values["rax"] == 5
    with pytest.raises(OverflowError, match="does not fit into al"):
        vm.regs.al = 256
    with pytest.raises(AttributeError):
        _ = vm.regs.nothing
