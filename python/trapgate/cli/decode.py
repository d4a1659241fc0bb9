"""`trapgate decode`: machine code as instructions."""

from __future__ import annotations

import binascii
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from trapgate import instructions, translation
from trapgate.cli.output import table, write_json

__all__ = ["decode"]


@click.command()
@click.argument("code", nargs=-1)
@click.option(
    "--file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Read raw bytes from a file, or - for standard input.",
)
@click.option(
    "--bits",
    type=click.Choice(["16", "32", "64"]),
    default="64",
    show_default=True,
    help="Size of the code segment.",
)
@click.option("--address", default="0", metavar="NUMBER", help="Where the code lies: 4096 or 0x1000.")
@click.option("--offset", default="0", metavar="NUMBER", help="Skip this many bytes.")
@click.option("--length", metavar="NUMBER", help="Decode this many bytes.")
@click.option(
    "--cpu", default="x86-64-v2", show_default=True, metavar="MODEL", help="What the CPU offers, or any."
)
@click.option(
    "--mode",
    type=click.Choice(["full", "para", "hardware"]),
    help="Show what this mode does and why; full shows guest beside host code.",
)
@click.option(
    "--cpl",
    type=click.Choice(["0", "3"]),
    default="0",
    show_default=True,
    help="Privilege level that code is translated for, with --mode full.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def decode(
    code: tuple[str, ...],
    file: Path | None,
    bits: str,
    address: str,
    offset: str,
    length: str | None,
    cpu: str,
    mode: Literal["full", "para", "hardware"] | None,
    cpl: str,
    as_json: bool,
) -> None:
    """Show CODE, written as hexadecimal digits, or a file's bytes, as instructions.

    The columns are address, bytes, instruction, class, and what each mode does with it. With --mode full they are
    address, instruction, class, what became of it, the host's address and code, and the reason.
    """
    data = _bytes(code, file)
    start = _number(offset, "--offset")
    end = None if length is None else start + _number(length, "--length")
    first = _number(address, "--address") + start
    if mode == "full":
        if bits != "64":
            raise click.UsageError("--mode full shows translated code, and only 64-bit code is translated")
        units = translation.translate(data[start:end], first, cpl=int(cpl), cpu=cpu)
        if as_json:
            write_json([unit.as_dict() for unit in units])
        else:
            _show([_UNIT_HEADINGS, *(row for unit in units for row in unit.rows())])
        return
    found = instructions.decode(data[start:end], int(bits), first, cpu=cpu)
    if as_json:
        write_json(
            [{**dataclasses.asdict(insn), "bytes": insn.bytes.hex(), "length": insn.length} for insn in found]
        )
        return
    if mode is not None:
        how = [(insn, insn.para if mode == "para" else insn.hardware) for insn in found]
        _show(
            [
                ("Address", "Bytes", "Instruction", "Class", "Action", "Reason"),
                *(
                    (
                        f"{insn.address:x}",
                        insn.bytes.hex(" "),
                        insn.text,
                        insn.kind,
                        treatment.action,
                        treatment.reason,
                    )
                    for insn, treatment in how
                ),
            ]
        )
        return
    headings = ("Address", "Bytes", "Instruction", "Class", "Full", "Para", "Hardware")
    rows = [
        (
            f"{insn.address:x}",
            insn.bytes.hex(" "),
            insn.text,
            insn.kind,
            insn.full.action,
            insn.para.action,
            insn.hardware.action,
        )
        for insn in found
    ]
    table(headings, rows)


_UNIT_HEADINGS = ("Guest", "Instruction", "Class", "Action", "Host", "Code", "Reason")


def _show(rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, the first row of them headings, on a terminal and into a pipe alike."""
    for line in translation.format_rows(rows):
        click.echo(line)


def _bytes(code: tuple[str, ...], file: Path | None) -> bytes:
    if (file is None) == (not code):
        raise click.UsageError("give the code as hexadecimal digits, or --file")
    if file is None:
        digits = re.sub(r"0x|\\x|[\s,]", "", " ".join(code), flags=re.IGNORECASE)
        try:
            return binascii.unhexlify(digits)
        except ValueError:
            raise click.UsageError("the code must be an even number of hexadecimal digits") from None
    return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()


def _number(text: str, what: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise click.UsageError(f"{what} is {text!r}; it must be a number such as 4096 or 0x1000")
    return value
