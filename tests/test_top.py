"""`trapgate top`: what it shows, as a screen with keys, as lines and as JSON; and the terminal afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guests import assemble, needs_assembler
from trapgate.cli.top import render
from trapgate.hypervisor import GuestSnapshot, Snapshot
from trapgate.hypervisor.snapshot import last_line

GUESTS = {"spins": "putc 'h'\n putc 'i'\n s: jmp s", "waits": "sti\n s: hlt\n jmp s"}
TOP = [sys.executable, "-m", "trapgate", "top"]


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """Give a file with a guest that always runs and one that never does."""
    text = "cpus = 1\n"
    for name, source in GUESTS.items():
        (tmp_path / name).write_bytes(assemble(source))
        text += f'[[guest]]\nname = "{name}"\nkernel = "{name}"\nmemory = "16M"\ndebug_exit = true\n'
    file = tmp_path / "lab.toml"
    file.write_text(text)
    return file


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TOP, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


# As lines and as JSON.


@needs_assembler
def test_without_a_terminal_it_prints_lines(lab: Path) -> None:
    done = run(lab, "--interval", "0.3", "--count", "2")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["NAME", "spins", "waits"] * 2
    assert rows[1][1:4] == ["1", "full", "running"] or rows[1][3] == "runnable"
    assert rows[5][3] == "blocked"
    assert rows[4][-1] == "hi"
    assert float(rows[4][6]) > 5 > float(rows[5][6])


@needs_assembler
def test_each_look_is_a_line_of_json(lab: Path, tmp_path: Path) -> None:
    done = run(lab, "--interval", "0.2", "--count", "3", "--json", "-")
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(looks) == 3
    assert [guest["name"] for guest in looks[2]["guests"]] == list(GUESTS)
    assert looks[2]["guests"][0]["instructions_per_second"] > 1e6
    report = tmp_path / "report.json"
    done = run(lab, "--interval", "0.2", "--once", "--json", report)
    assert done.stdout.startswith("NAME\t")
    assert json.loads(report.read_text())["cpus"] == 1


@needs_assembler
def test_it_ends_with_its_guests(tmp_path: Path) -> None:
    (tmp_path / "guest").write_bytes(assemble("exit 4"))
    file = tmp_path / "lab.toml"
    file.write_text('[[guest]]\nkernel = "guest"\nmemory = "16M"\ndebug_exit = true\n')
    done = run(file, "--interval", "0.2")
    assert done.returncode == 0
    assert "shutdown (DebugExit)"[:20] in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ((), 2, "Missing argument"),
        (("nothing.toml",), 1, "cannot read nothing.toml"),
        (("debian-12:hardwar",), 1, "mode is 'hardwar'"),
        ((":para",), 1, "write IMAGE or IMAGE:MODE"),
        (("a.toml", "b.toml"), 2, "one TOML file"),
        (("debian-12", "--interval", "0"), 2, "--interval is 0"),
        (("debian-12", "--count", "0"), 2, "--count is 0"),
    ],
    ids=str,
)
def test_wrong_usage_is_told_in_a_sentence(arguments: tuple[str, ...], status: int, sentence: str) -> None:
    done = run(*arguments)
    assert done.returncode == status
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@needs_assembler
def test_control_c_ends_lines_too(lab: Path) -> None:
    command = [*TOP, str(lab), "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("NAME")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == ""


# On a terminal.


class Terminal:
    """The command on a pseudo-terminal of 100 columns and 12 rows."""

    def __init__(self, *arguments: str) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 100, 0, 0))
        self.before: list[Any] = termios.tcgetattr(self.slave)
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*TOP, *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            env=environment,
        )
        self.output = b""

    def expect(self, pattern: bytes) -> None:
        """Wait until the output since the last match has the pattern."""
        end = time.monotonic() + 60
        while (found := re.search(pattern, self.output)) is None:
            assert time.monotonic() < end, self.output
            if select.select([self.master], [], [], 0.1)[0]:
                self.output += os.read(self.master, 65536)
            elif self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.output!r}")
        self.output = self.output[found.end() :]

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """Wait for the end, and check that the terminal is what it was."""
        end = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < end
            if select.select([self.master], [], [], 0.05)[0]:
                self.output += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0)[0]:
            self.output += os.read(self.master, 65536)
        assert termios.tcgetattr(self.slave) == self.before
        assert self.output.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")
        assert b"Traceback" not in self.output
        return self.process.returncode


@contextlib.contextmanager
def terminal(lab: Path, *options: str) -> Iterator[Terminal]:
    session = Terminal(str(lab), "--interval", "0.2", *options)
    try:
        session.expect(rb"\x1b\[\?1049h\x1b\[\?25l")
        session.expect(b"q quit")
        yield session
    finally:
        session.process.kill()
        session.process.wait()
        os.close(session.master)
        os.close(session.slave)


@needs_assembler
def test_keys_select_pause_and_quit(lab: Path) -> None:
    with terminal(lab) as session:
        session.expect(rb"\x1b\[7mspins +1 +full +run")
        session.expect(rb"hi *\x1b\[0m")
        session.type(b"p")
        session.expect(rb"\x1b\[7mspins +1 +full +paused")
        session.expect(rb"spins: paused")
        session.type(b"\x1b[B")
        session.expect(rb"\x1b\[7mwaits +2 +full +blocked")
        session.type(b"\x1b[Ap")
        session.expect(rb"\x1b\[7mspins +1 +full +run")
        session.type(b"q")
        assert session.end() == 0


@needs_assembler
def test_control_c_restores_the_terminal(lab: Path) -> None:
    with terminal(lab) as session:
        session.type(b"\x03")
        assert session.end() == 130


@needs_assembler
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_restores_the_terminal(lab: Path, number: signal.Signals) -> None:
    with terminal(lab) as session:
        session.process.send_signal(number)
        assert session.end() == 128 + number


# What is drawn.


def guest(name: str, **values: Any) -> GuestSnapshot:
    fixed: dict[str, Any] = {
        "domid": 1,
        "mode": "para",
        "state": "blocked",
        "weight": 256,
        "cap": 0,
        "cpu_time": 1.0,
        "cpu_percent": 12.34,
        "instructions": 10,
        "instructions_per_second": 5e6,
        "calls": 3,
        "calls_per_second": 7.0,
        "memory": 128 << 20,
        "memory_target": 256 << 20,
        "memory_maximum": 256 << 20,
        "uptime": 2.0,
        "last_line": "login: ",
        "ended": None,
    }
    return GuestSnapshot(name=name, **{**fixed, **values})


def snapshot(*guests: GuestSnapshot) -> Snapshot:
    return Snapshot(
        time=1.0, running=True, cpus=2, memory_total=1 << 30, memory_reserved=256 << 20, guests=guests
    )


def test_a_screen_has_a_row_for_each_guest() -> None:
    lines = render(snapshot(guest("a", state="running"), guest("b", cap=25)), 120, 10, 1, ("b: paused",))
    assert lines[0].startswith("trapgate top   guests 2, running 1   cpus 2, used 25%   memory 256M of 1G")
    assert re.match(r"NAME +ID +MODE +STATE +WEIGHT +CAP +CPU% +MIPS +CALLS/S +MEMORY +CONSOLE", lines[2])
    assert re.match(r"a +1 +para +running +256 +- +12.3 +5.0 +7 +128M > 256M +login:", lines[3])
    assert re.match(r"\x1b\[7mb +1 +para +blocked +256 +25 ", lines[4])
    assert lines[-2:] == ["b: paused", "q quit   up/down select   p pause or resume"]


@pytest.mark.parametrize(("columns", "rows"), [(20, 4), (40, 8), (80, 24), (200, 50)])
def test_no_line_is_wider_than_the_screen_nor_are_there_too_many(columns: int, rows: int) -> None:
    many = snapshot(*(guest(f"guest number {n}", last_line="x" * 500) for n in range(60)))
    for selected in (0, 30, 59):
        lines = render(many, columns, rows, selected, ("news " * 100,))
        assert len(lines) == rows
        assert all(len(re.sub(r"\x1b\[\d*m", "", line)) <= columns for line in lines)
        if rows > 5:
            assert sum(line.startswith("\x1b[7m") for line in lines) == 1


def test_a_guest_cannot_draw_on_the_terminal() -> None:
    assert last_line("one\r\n\x1b[31mred\x1b[0m \x1b]0;title\x07two\x08\x9b\r\n\n") == "red two"
    assert last_line("half\x1b[2") == "half[2"
    assert last_line("") == ""
    line = render(snapshot(guest("a", last_line="\u202egnp\u200b")), 200, 8, 5)[3]
    assert line.endswith("?gnp?")
