"""QEMU with its translator TCG as a peer: installed if need be, started with the same files, asked by its console."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from trapgate.errors import ExpectTimeout, GuestError, HostUnavailable
from trapgate.images import Progress

__all__ = ["CPU", "Qemu", "arguments", "install", "version"]

_PROGRAM = "qemu-system-x86_64"
_PACKAGE = "qemu-system-x86"

#: TCG's processor without what programs could use and trapgate's x86-64-v2 does not have: a guest that sees AVX
#: takes it, and TCG is slow at that. PCID and x2APIC, which trapgate has, TCG lacks. MPX, SVM, 3DNow! and SSE4a,
#: which nothing here uses, stay: with all four off, programs of a guest of QEMU 7.2 from a bzImage go wrong.
CPU = "max,-avx,-avx2,-fma,-f16c,-vaes,-bmi1,-bmi2,-adx,-abm,-movbe,-smap,-umip,-pku"

# Bytes of the console that are shown when something goes wrong.
_TAIL = 2000


def install(progress: Progress) -> None:
    """See to it that QEMU is there: by apt if this is root, and else by saying what to do."""
    if shutil.which(_PROGRAM) is not None:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise HostUnavailable(
            f"the peer tcg needs QEMU; run: sudo apt-get install {_PACKAGE}, or leave tcg out of --peers"
        )
    progress(f"Installing {_PACKAGE}", None)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", _PACKAGE]):
        result = subprocess.run(
            ["apt-get", "-q", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            named = [line[2:].strip() for line in result.stderr.splitlines() if line.startswith("E:")]
            raise HostUnavailable(
                f"{_PACKAGE} cannot be installed: {(named or ['apt-get gave no reason'])[0]}"
            )
    if shutil.which(_PROGRAM) is None:
        raise HostUnavailable(f"{_PACKAGE} is installed but brought no {_PROGRAM}")


def version() -> str:
    """Give what QEMU says of its version."""
    result = subprocess.run([_PROGRAM, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\S+)", result.stdout)
    return found[1] if found else "unknown"


def arguments(kernel: Path, initrd: Path, append: str, memory: str) -> list[str]:
    """Give QEMU's command line. An ELF kernel is started by its PVH entry, a bzImage by QEMU's boot ROM."""
    return [
        _PROGRAM,
        *("-accel", "tcg,thread=single"),
        *("-cpu", CPU),
        *("-m", memory),
        # Nothing that trapgate's board has not: no display, network, disks or CD.
        *("-nodefaults", "-nographic", "-no-reboot"),
        *("-serial", "stdio"),
        *("-kernel", str(kernel)),
        *("-initrd", str(initrd)),
        *("-append", append),
    ]


class Qemu:
    """A QEMU that runs, with its guest's console."""

    def __init__(self, command: Sequence[str]) -> None:
        # In a session of its own, so that Ctrl-C comes here only, and ends it from here.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
        )
        self._output = b""
        self._tail = b""
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def expect(self, text: str, timeout: float) -> str:
        """Wait for text on the console, at most for these seconds; give what was printed before it."""
        wanted, end = text.encode(), time.monotonic() + timeout
        while (at := self._output.find(wanted)) < 0:
            if not self._selector.select(max(0.0, end - time.monotonic())):
                raise ExpectTimeout(f"the console of QEMU did not show {text!r} in time", self._shown())
            assert self._process.stdout is not None
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise GuestError(f"QEMU ended before its console showed {text!r}: {self._shown()}")
            self._output += data
        before, self._output = self._output[:at], self._output[at + len(wanted) :]
        self._tail = before[-_TAIL:]
        return before.decode("utf-8", "replace")

    def command(self, line: str, prompt: str, timeout: float) -> str:
        """Type a line, and give what is printed before the next prompt, the echo included."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        return self.expect(prompt, timeout)

    def _shown(self) -> str:
        return (self._tail + self._output)[-_TAIL:].decode("utf-8", "replace").strip()
