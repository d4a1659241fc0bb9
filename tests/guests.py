"""Bare-metal guests of a few instructions, put together by the host's assembler.

Source is GNU assembly with Intel operands. It starts in 64-bit mode as a kernel of the Linux 64-bit protocol does:
flat segments, identity-mapped memory, no interrupts, a stack below its code.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from trapgate import Machine

__all__ = ["ORIGIN", "assemble", "machine", "needs_assembler"]

#: Where guests are loaded and entered.
ORIGIN = 0x20_0000

needs_assembler = pytest.mark.skipif(
    shutil.which("as") is None or shutil.which("ld") is None, reason="needs the host's assembler"
)

_PROLOGUE = f"""
.intel_syntax noprefix
.code64
.text
.globl _start
_start:
    mov rsp, {ORIGIN:#x}
"""

# Ways to end: power off is a matter of ACPI, so guests end by the debug exit port or by halting.
_EPILOGUE = """
.macro exit value
    mov al, \\value
    out 0xf4, al
    hlt
.endm
.macro putc char
    mov dx, 0x3f8
    mov al, \\char
    out dx, al
.endm
"""


@functools.cache
def assemble(source: str) -> bytes:
    """Give an ELF64 file."""
    with tempfile.TemporaryDirectory() as folder:
        text, obj, out = (Path(folder) / name for name in ("guest.s", "guest.o", "guest"))
        text.write_text(f"{_EPILOGUE}{_PROLOGUE}{source}\n")
        subprocess.run(["as", "--64", "-o", obj, text], check=True)
        subprocess.run(
            [
                "ld",
                "-m",
                "elf_x86_64",
                "-N",
                "-static",
                "--no-warn-rwx-segments",
                f"-Ttext={ORIGIN:#x}",
                "-o",
                out,
                obj,
            ],
            check=True,
        )
        return out.read_bytes()


def machine(source: str, **changes: object) -> Machine:
    """Give a small machine that runs the source."""
    config = Machine(kernel=assemble(source), memory="16M", debug_exit=True, clock="virtual")
    return config.replace(**changes)
