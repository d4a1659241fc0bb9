"""The guest of our own: both builds do the same work in both engines, and the command shows what they did."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trapgate import VM, Machine, build_info, demo, exits
from trapgate._core import own_guests
from trapgate.config import Clock, Engine
from trapgate.errors import ConfigError, GuestError, HostUnavailable

ENGINES: list[Engine] = (
    ["interpret", "translate"] if "translate" in build_info()["engines"] else ["interpret"]
)
CLOCKS: list[Clock] = ["virtual", "real"]
MODES: list[demo.Mode] = ["full", "para"]

# What a run of the user program does, as rust/guest/source/guest.h has it.
CALLS_PER_RUN = 24
FRESH_PAGES = 16


def work(rounds: int) -> demo.Work:
    """What so many rounds are: in each both spaces run twice, the first time waiting for a tick."""
    runs = 2 + 4 * rounds
    return demo.Work(
        system_calls=runs * (CALLS_PER_RUN + 1) + 2 + 2 * rounds,
        page_faults=rounds * 2 * (FRESH_PAGES + 1),
        space_switches=runs,
        ticks=3 * rounds,
    )


def test_both_builds_are_there() -> None:
    full, para, problem = own_guests()
    assert problem == ""
    assert full != para
    assert all(20_000 < len(file) < 65_536 for file in (full, para))
    # The same bytes wherever they were made: no folder of this host is named in them.
    assert not any(b"/" + part.encode() in full + para for part in ("tmp", "home", "source", "target"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("mode", MODES)
def test_the_work_is_done(mode: demo.Mode, clock: Clock, engine: Engine) -> None:
    run = demo.run_one(mode, 7, engine=engine, clock=clock)
    assert run.success, run.output
    assert run.work == work(7)
    greeting, *hellos = run.output.splitlines()[:3]
    assert greeting == f"trapgate guest, {'hardware' if mode == 'full' else 'Xen PV'} build"
    assert hellos == [f"hello from user mode in address space {name}" for name in "AB"]
    left = run.departures
    assert left.system_calls == run.work.system_calls
    # Those that a page was the answer to, and one in each space that the kernel's memory was not given to.
    assert left.page_faults == run.work.page_faults + 2
    assert left.interrupts == run.work.ticks
    # A privileged instruction in each space.
    assert left.exceptions == 2
    assert left.device_memory == 0


def test_what_only_one_of_the_builds_does() -> None:
    both = demo.run(5)
    full, para = both.full.departures, both.para.departures
    assert both.success
    assert (full.hypercalls, full.trapped_stores, both.full.hypercalls) == (0, 0, {})
    assert (para.privileged, para.ports, para.returns) == (0, 0, 0)
    # One address-space switch is one MOV to CR3, and one call with two operations.
    assert full.privileged >= both.full.work.space_switches
    assert full.ports > 2 * len(both.full.output)
    calls = both.para.hypercalls
    # Every return is a call: of each system call but the last of a run, each fault but those that end a run, each
    # tick, and the entry to each run.
    assert (
        calls["iret"] == both.para.work.system_calls + both.para.work.page_faults + both.para.work.ticks + 4
    )
    assert both.full.departures.returns == calls["iret"]
    assert para.trapped_stores == 5 * 2
    assert calls["multicall"] == 5 * 2
    assert sum(calls.values()) == para.hypercalls + 2 * calls["multicall"]


@pytest.mark.parametrize("mode", MODES)
def test_virtual_runs_are_identical_to_the_bit(mode: demo.Mode) -> None:
    digests = set()
    for engine in (*ENGINES, *ENGINES):
        with VM(demo.machine(mode, append="rounds=4", engine=engine)) as vm:
            assert isinstance(vm.run(host_timeout=60), exits.Shutdown)
            digests.add(
                (vm.digest(), vm.icount, dataclasses.astuple(vm.stats.departures), vm.console.transcript)
            )
    assert len(digests) == 1


def test_shadow_page_tables_are_what_the_textbook_compares_with() -> None:
    usual = demo.run(4)
    runs = [demo.run(4, engine=engine, paging="shadow") for engine in ENGINES]
    for both in runs:
        assert both.success
        full, para = both.full, both.para
        assert para.departures == usual.para.departures
        # The guest gives each page that it was asked for an entry, and takes it back.
        assert full.departures.trapped_stores >= 2 * full.work.page_faults
        assert full.departures.hidden_faults >= full.work.page_faults
        assert full.needed > para.needed
        assert full.instructions == usual.full.instructions
    # Both engines trap the same stores and fill the same entries.
    assert len({dataclasses.astuple(both.full.departures) for both in runs}) == 1


def test_a_build_in_the_other_mode_is_refused_in_one_sentence() -> None:
    full, para = demo.machine("full"), demo.machine("para")
    with pytest.raises(
        ConfigError, match=r"^this guest is modified for para-virtualization .* `para` mode runs it$"
    ):
        VM(para.replace(mode="full"))
    with pytest.raises(ConfigError, match=r"^this guest is not modified .* `full` mode runs it$"):
        VM(full.replace(mode="para"))


def test_a_guest_that_finds_something_wrong_says_so() -> None:
    """A store that the monitor does not carry out, and a word that the build knows nothing of."""
    with VM(demo.machine("para", append="rounds=1")) as vm:
        vm.hypercalls["mmu_update"].forbid()
        ended = vm.run(host_timeout=60)
        assert isinstance(ended, exits.Crashed)
        assert re.search(r"panic: .*\nresult: failure\n$", vm.console.transcript)
    with VM(demo.machine("full", append="abi")) as vm:
        assert isinstance(vm.run(host_timeout=60), exits.Shutdown)
        assert vm.console.transcript.endswith("result: failure\n")


def test_wrong_use() -> None:
    for rounds in (0, -1, demo.MOST_ROUNDS + 1):
        with pytest.raises(ConfigError, match="rounds is"):
            demo.run(rounds)
    with pytest.raises(ConfigError, match="there is a build for full and one for para"):
        demo.machine("hardware")  # type: ignore[arg-type]


def test_a_guest_without_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Machine(kernel=own_guests()[0], append="abi", memory="16M", clock="virtual")
    monkeypatch.setattr(demo, "machine", lambda *_args, **_kwargs: silent)
    with pytest.raises(GuestError, match="without a report; it said last: result: failure"):
        demo.run_one("full", 1)


def test_a_copy_without_guests_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trapgate._core.own_guests", lambda: (b"", b"", "no C compiler was found"))
    with pytest.raises(
        HostUnavailable, match=r"guests are not in this copy of trapgate: no C compiler was found$"
    ):
        demo.run(1)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trapgate", "demo", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


def figures(text: str) -> dict[str, tuple[str, str]]:
    """Read the table back: the two figures of each line."""
    rows = re.findall(r"^  (\S.*?) {2,}(\S+) +(\S+)(?: +[\d.]+)?$", text, re.MULTILINE)
    assert len(rows) == len({row[0] for row in rows})
    return {name: (full, para) for name, full, para in rows}


def test_the_command_prints_what_its_json_says(tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    result = command("--rounds", "3", "--json", file)
    assert (result.returncode, result.stderr) == (0, "")
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    report = json.loads(file.read_text())
    assert report["success"] is True
    assert report["rounds"] == 3
    shown = figures(result.stdout)

    def pair(*path: str) -> tuple[str, str]:
        values = []
        for mode in MODES:
            value = report[mode]
            for part in path:
                value = value[part]
            values.append(f"{value:,}" if value or path[0] == "work" else "-")
        return values[0], values[1]

    assert shown["system calls by user code"] == pair("work", "system_calls")
    assert shown["page faults answered with a page"] == pair("work", "page_faults")
    assert shown["switches of address space"] == pair("work", "space_switches")
    assert shown["timer interrupts"] == pair("work", "ticks")
    assert shown["page faults"] == pair("departures", "page_faults")
    assert shown["SYSRET and IRET"] == pair("departures", "returns")
    assert shown["port accesses"] == pair("departures", "ports")
    assert shown["hypercalls"] == pair("departures", "hypercalls")
    assert shown["instructions"] == pair("instructions")
    for name, calls in report["para"]["hypercalls"].items():
        assert shown[name] == ("-", f"{calls:,}")
    assert shown["all together"] == pair("needed")
    assert shown["of these done within translated code"] == pair("in_place")
    assert shown["guest code was left"] == pair("left")
    for mode in MODES:
        run = report[mode]
        assert run["left"] + run["in_place"] == run["needed"] == sum(run["departures"].values())


def test_the_command_gives_json_alone() -> None:
    result = command("--rounds", "1", "--json", "-", "--engine", "interpret")
    assert result.returncode == 0
    assert json.loads(result.stdout)["para"]["work"]["ticks"] == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--rounds", "0"), "rounds is 0; it must be from 1 to"),
        (("--engine", "steam"), "engine is 'steam'; it must be one of"),
        (("--clock", "sun"), "clock is 'sun'; it must be one of"),
    ],
)
def test_wrong_use_of_the_command(arguments: tuple[str, ...], sentence: str) -> None:
    result = command(*arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"trapgate: error: {sentence}")
    assert result.stderr.count("\n") == 1
