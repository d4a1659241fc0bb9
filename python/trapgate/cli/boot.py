"""`trapgate boot`: a guest in this terminal, or in a script."""

from __future__ import annotations

import re
import string
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import click

from trapgate import config, exits, images
from trapgate.cli import CRASHED, HALTED, INTERRUPTED, OK, RESET, TIMED_OUT
from trapgate.cli.output import progress, show_log, write_json
from trapgate.cli.terminal import ESCAPE_NAME, connected
from trapgate.vm import VM

__all__ = ["boot"]

DEFAULT_IMAGE = "debian-12"


@click.command()
@click.argument("image", required=False)
@click.option("--mode", default="full", show_default=True, help=f"One of {', '.join(get_args(config.Mode))}.")
@click.option(
    "--kernel", type=click.Path(path_type=Path), help="Boot this bzImage, ELF file or multiboot image."
)
@click.option("--initrd", type=click.Path(path_type=Path), help="Give it this initial RAM disk.")
@click.option("--append", default="", metavar="TEXT", help="Add this to the kernel's command line.")
@click.option("--memory", default="512M", show_default=True, help="RAM of the guest.")
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="FILE[,ro]",
    help="Give a para-virtual guest this raw image as its next disk: xvda, xvdb, ...; ro: read-only.",
)
@click.option(
    "--cpu", default="x86-64-v2", show_default=True, metavar="MODEL", help="What the guest's CPU offers."
)
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="What executes guest code: translate, interpret, or auto: translate where the host can.",
)
@click.option(
    "--paging",
    default="walk",
    show_default=True,
    metavar="NAME",
    help="How memory is virtualised in mode full: walk, or shadow: shadow page tables, to measure what they cost.",
)
@click.option("--clock", default="real", show_default=True, help="real, or virtual: counted in instructions.")
@click.option("--seed", type=int, help="Where the guest's randomness starts from.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after this time.")
@click.option("--expect", metavar="REGEX", help="End with success when the console shows this.")
@click.option("--json", "json_file", metavar="FILE", help="Write how it ended and what it cost to FILE.")
@click.option("--debug-console", is_flag=True, help="Copy what is written to port E9h to standard error.")
@click.option("--debug-exit", is_flag=True, help="End with status (value << 1) | 1 on a write to port F4h.")
def boot(image: str | None, kernel: Path | None, json_file: str | None, **options: Any) -> int:
    """Boot IMAGE (debian-12 if nothing is said), or a kernel of your own, with its console in this terminal.

    The exit status is 0 when the guest powered off or the expected text came, 1 for an error, 2 for wrong usage,
    3 when the guest crashed, 4 when it reset, 5 when it halted for ever, 124 after the timeout and 130 when you
    ended it; with --debug-exit, what the guest gave.
    """
    if image is not None and kernel is not None:
        raise click.UsageError("give an image or --kernel, not both")
    expect = _pattern(options.pop("expect"))
    timeout = options.pop("timeout")
    if timeout is not None and not 0 <= timeout < 1e9:
        raise click.UsageError(f"--timeout is {timeout}; it must be a number of seconds")
    machine = _machine(image, kernel, options)
    show_log()
    started = time.monotonic()
    with VM(machine) as vm:
        if machine.debug_console:
            vm.debug_listener = _write_debug
        result, status = _drive(vm, expect, timeout)
        if json_file is not None:
            write_json(_report(vm, result, status, time.monotonic() - started), json_file)
    return status


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise click.UsageError(f"--expect {text!r} is not a regular expression: {error}") from error


def _machine(image: str | None, kernel: Path | None, options: dict[str, Any]) -> config.Machine:
    """Make the config, and only then fetch what it needs: a wrong option must not cost a download."""
    initrd, append = options.pop("initrd"), options.pop("append")
    disks = _disks(options.pop("disks"))
    machine = config.Machine(kernel=kernel or b"", initrd=initrd, append=append, disks=disks, **options)
    if kernel is not None:
        return machine
    with progress() as report:
        found = images.pull(image or DEFAULT_IMAGE, progress=report)
    return replace(
        machine,
        kernel=found.kernel,
        initrd=initrd or found.initrd,
        append=" ".join(part for part in (found.command_line(machine.mode), append) if part),
    )


def _disks(texts: Sequence[str]) -> tuple[config.Disk, ...]:
    if len(texts) > len(string.ascii_lowercase):
        raise click.UsageError(f"--disk can be given {len(string.ascii_lowercase)} times")
    return tuple(
        config.Disk(text.removesuffix(",ro"), f"xvd{letter}", text.endswith(",ro"))
        for text, letter in zip(texts, string.ascii_lowercase, strict=False)
    )


def _drive(vm: VM, expect: re.Pattern[str] | None, timeout: float | None) -> tuple[exits.Exit, int]:
    """Run the machine with its console connected; give its end and the status for it."""
    escaped = threading.Event()
    if sys.stdin.isatty():
        print(f"trapgate: {ESCAPE_NAME} ends the machine", file=sys.stderr)
    try:
        with connected(vm, escaped=escaped):
            result = vm.run(until=expect, host_timeout=timeout)
    finally:
        print(file=sys.stderr)
    if escaped.is_set():
        return result, INTERRUPTED
    status = _status(result)
    if (sentence := _SENTENCES.get(type(result))) is not None:
        print(f"trapgate: {sentence.format(**vars(result))}", file=sys.stderr)
    return result, status


def _write_debug(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()


_SENTENCES: dict[type[exits.Exit], str] = {
    exits.Reset: "the guest asked for a reset",
    exits.Halted: "the guest halted with nothing to wake it",
    exits.TripleFault: "the guest crashed: triple fault at {rip:#x}, vector {vector}",
    exits.Crashed: "the guest crashed: {message}",
    exits.Suspended: "the guest asked to be saved",
    exits.Unsupported: "the guest went where trapgate cannot follow: {what} at {rip:#x}",
    exits.TimedOut: "the time is over",
}


def _status(result: exits.Exit) -> int:
    match result:
        case exits.Shutdown() | exits.Expected():
            return OK
        case exits.DebugExit():
            return result.status
        case exits.Reset():
            return RESET
        case exits.Halted():
            return HALTED
        case exits.TimedOut():
            return TIMED_OUT
        case exits.Stopped():
            return INTERRUPTED
    return CRASHED


def _report(vm: VM, result: exits.Exit, status: int, seconds: float) -> dict[str, Any]:
    return {
        "exit": result.as_dict(),
        "status": status,
        "seconds": round(seconds, 3),
        "stats": asdict(vm.stats),
        "transcript": vm.console.transcript,
    }
