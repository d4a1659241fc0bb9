"""The command on a terminal: keys reach the guest, the escape key does not, and the terminal comes back as it was."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guests import assemble, needs_assembler

pytestmark = needs_assembler

# Prints each key as its code between brackets, and exits at "q".
ECHO = """
    mov dx, 0x3fc
    mov al, 3
    out dx, al
    putc '>'
wait:
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz wait
    mov dx, 0x3f8
    in al, dx
    mov bl, al
    putc '['
    mov al, bl
    shr al, 4
    call digit
    mov al, bl
    and al, 15
    call digit
    putc ']'
    cmp bl, 'q'
    jne wait
    exit 5
digit:
    add al, '0'
    cmp al, '9'
    jbe 1f
    add al, 39
1:  mov dx, 0x3f8
    out dx, al
    ret
"""


class Terminal:
    """The command with a pseudo-terminal of its own."""

    def __init__(self, kernel: Path, *options: str) -> None:
        self.master, self.slave = pty.openpty()
        self.before: list[Any] = termios.tcgetattr(self.slave)
        command: list[str] = [
            sys.executable,
            "-m",
            "trapgate",
            "boot",
            "--kernel",
            str(kernel),
            "--memory",
            "16M",
            "--debug-exit",
        ]
        self.process = subprocess.Popen(
            [*command, *options],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )
        self.output = b""

    def expect(self, text: bytes) -> None:
        end = time.monotonic() + 60
        while text not in self.output:
            assert time.monotonic() < end, self.output
            if select.select([self.master], [], [], 0.1)[0]:
                self.output += os.read(self.master, 4096)
            elif self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.output!r}")

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """Wait for the command to end, and check that the terminal is what it was."""
        status = self.process.wait(60)
        assert termios.tcgetattr(self.slave) == self.before
        return status


@contextlib.contextmanager
def terminal(tmp_path: Path, *options: str) -> Iterator[Terminal]:
    kernel = tmp_path / "echo"
    kernel.write_bytes(assemble(ECHO))
    session = Terminal(kernel, *options)
    try:
        session.expect(b">")
        yield session
    finally:
        session.process.kill()
        session.process.wait()
        os.close(session.master)
        os.close(session.slave)


def test_every_key_but_the_escape_key_goes_to_the_guest(tmp_path: Path) -> None:
    with terminal(tmp_path) as session:
        assert b"Ctrl-] ends the machine" in session.output
        session.type(b"a\x03\x1a\x04\r\x7f")
        session.expect(b"[61][03][1a][04][0d][7f]")
        session.type(b"q")
        assert session.end() == 5 << 1 | 1


def test_the_escape_key_ends_the_machine(tmp_path: Path) -> None:
    with terminal(tmp_path) as session:
        session.type(b"ab\x1d")
        assert session.end() == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_restores_the_terminal(tmp_path: Path, number: signal.Signals) -> None:
    with terminal(tmp_path) as session:
        session.process.send_signal(number)
        assert session.end() == 128 + number


RESTORE = """
import os, pty, signal, sys, termios
master, slave = pty.openpty()
os.dup2(slave, 0)
before = termios.tcgetattr(slave)
from trapgate.cli import terminal
restore = termios.tcsetattr

def slow(*arguments):
    # What comes in the middle of the restoring.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.raise_signal(number)
    restore(*arguments)

signal.signal(signal.SIGHUP, signal.SIG_IGN)
try:
    with terminal.raw_terminal():
        termios.tcsetattr = slow
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        {end}
except BaseException as error:
    print(type(error).__name__)
assert termios.tcgetattr(slave) == before
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


@pytest.mark.parametrize(
    ("end", "raised"),
    [("pass", ""), ("signal.raise_signal(signal.SIGTERM)", "SystemExit\n"), ("1 / 0", "ZeroDivisionError\n")],
)
def test_signals_while_the_terminal_is_restored_do_not_keep_it_raw(end: str, raised: str) -> None:
    code = RESTORE.replace("{end}", end)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (0, raised), result.stderr


def test_a_timeout_restores_the_terminal(tmp_path: Path) -> None:
    with terminal(tmp_path, "--timeout", "1") as session:
        assert session.end() == 124


def boot(tmp_path: Path, source: str, *options: str, keys: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    kernel = tmp_path / "guest"
    kernel.write_bytes(assemble(source))
    command = [sys.executable, "-m", "trapgate", "boot", "--kernel", str(kernel), "--memory", "16M", *options]
    return subprocess.run(command, input=keys, capture_output=True, timeout=60, check=False)


def test_plain_pipes(tmp_path: Path) -> None:
    result = boot(tmp_path, ECHO, "--debug-exit", keys=b"a\x03\x1dq")
    assert result.returncode == 5 << 1 | 1
    assert result.stdout == b">[61][03][1d][71]"
    assert b"Ctrl-]" not in result.stderr


def test_piped_input_of_any_length_reaches_the_guest(tmp_path: Path) -> None:
    # Reads and adds up all bytes until one of them is a newline, and exits with whether the sum is right.
    count = 3 << 20
    source = f"""
        xor ebx, ebx
    wait:
        mov dx, 0x3fd
        in al, dx
        test al, 1
        jz wait
        mov dx, 0x3f8
        in al, dx
        cmp al, 10
        je done
        movzx eax, al
        add ebx, eax
        jmp wait
    done:
        cmp ebx, {count * 2}
        jne bad
        exit 21
    bad: exit 1
    """
    result = boot(tmp_path, source, "--debug-exit", keys=b"\x02" * count + b"\n")
    assert result.returncode == 21 << 1 | 1, result.stderr


STATUSES = [
    ("exit 0", ("--debug-exit",), 1, b""),
    ("lidt [rip + z]\n ud2\n z: .zero 10", (), 3, b"the guest crashed: triple fault at 0x20"),
    ("mov al, 0xfe\n out 0x64, al\n s: jmp s", (), 4, b"the guest asked for a reset"),
    ("cli\n hlt", (), 5, b"the guest halted with nothing to wake it"),
    ("s: jmp s", ("--timeout", "0.3"), 124, b"the time is over"),
    ("putc 'o'\n putc 'k'\n s: jmp s", ("--expect", "o."), 0, b""),
]


@pytest.mark.parametrize(
    ("source", "options", "status", "sentence"), STATUSES, ids=[s[0][:20] for s in STATUSES]
)
def test_exit_statuses(
    tmp_path: Path, source: str, options: tuple[str, ...], status: int, sentence: bytes
) -> None:
    result = boot(tmp_path, source, *options)
    assert result.returncode == status, result.stderr
    assert sentence in result.stderr
    assert b"Traceback" not in result.stderr


def test_the_debug_console_comes_out_on_standard_error(tmp_path: Path) -> None:
    source = "mov al, 'x'\n out 0xe9, al\n mov al, 'y'\n out 0xe9, al\n cli\n hlt"
    assert b"xy" in boot(tmp_path, source, "--debug-console").stderr


def test_a_reader_that_leaves_ends_the_machine(tmp_path: Path) -> None:
    kernel = tmp_path / "guest"
    kernel.write_bytes(assemble("s: putc 'x'\n jmp s"))
    command = f"{sys.executable} -m trapgate boot --kernel {kernel} --memory 16M --timeout 50 | head -c 10"
    result = subprocess.run(command, shell=True, capture_output=True, timeout=60, check=False)
    assert result.stdout == b"x" * 10
    assert b"Traceback" not in result.stderr
