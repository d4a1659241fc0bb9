"""Builds what looks at a machine from inside: two programs of our own, and a Debian with programs of others.

The programs share their checks: `bare` runs them without a kernel in every ring, `linux` as a process. Both are
put together by the host's C compiler.
"""

from __future__ import annotations

import functools
import io
import posixpath
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from trapgate.images.apt import PrivateApt
from trapgate.images.cpio import Archive

__all__ = ["bare", "linux", "needs_compiler", "others"]

HERE = Path(__file__).parent

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs the host's C compiler")

# Ring 0 without a kernel: no host library, no vector registers, nothing that an interrupt could overwrite below the stack.
_FREESTANDING = (
    "-ffreestanding -nostdlib -fno-pic -no-pie -mno-red-zone -mgeneral-regs-only -fno-stack-protector"
    " -fcf-protection=none -fno-asynchronous-unwind-tables"
    " -Wl,-Ttext=0x200000,-N,--no-warn-rwx-segments,--build-id=none"
).split()


@functools.cache
def _compiled(folder: str, *options: str) -> bytes:
    sources = [*sorted((HERE / "common").glob("*.c")), *sorted((HERE / folder).glob("*.[cS]"))]
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / folder
        common = ["cc", "-static", "-O1", "-g0", "-Wall", "-Wextra"]
        subprocess.run([*common, *options, "-o", program, *sources], check=True)
        return program.read_bytes()


def bare() -> bytes:
    """Give the program that needs no kernel: an ELF file that starts in 64-bit mode, prints on COM1 and halts."""
    return _compiled("bare", *_FREESTANDING)


def linux() -> bytes:
    """Give the program for Linux, without shared libraries."""
    return _compiled("linux")


# The programs of others, and what brings them and their libraries in Debian 12.
_PROGRAMS = (
    "/usr/sbin/virt-what",
    "/usr/libexec/virt-what-cpuid-helper",
    "/usr/sbin/dmidecode",
    "/usr/bin/systemd-detect-virt",
    "/usr/bin/lscpu",
)
_PACKAGES = tuple(
    """
    virt-what dmidecode systemd util-linux
    libacl1 libapparmor1 libaudit1 libblkid1 libc6 libcap-ng0 libcap2 libcrypt1 libgcrypt20 libgpg-error0 libip4tc2
    libkmod2 liblz4-1 liblzma5 libmount1 libpam0g libpcre2-8-0 libseccomp2 libselinux1 libsmartcols1 libssl3
    libsystemd-shared libtinfo6 libuuid1 libzstd1
    """.split()
)
_NEEDED = re.compile(r"\((?:NEEDED|RUNPATH)\).*\[(.*)\]")
_LOADER = "/lib64/ld-linux-x86-64.so.2"


def others(scratch: Path) -> Archive:
    """Give a file system tree with the programs of others and exactly the libraries that they need."""
    apt = PrivateApt(scratch / "apt", release="bookworm", architecture="amd64")
    apt.update(lambda _part: None)
    files: dict[str, tuple[bytes, int]] = {}
    links: dict[str, str] = {}
    for package in apt.download(_PACKAGES, lambda _part: None):
        _read(package, files, links)
    root = Archive()
    taken: set[str] = set()
    _add(root, _LOADER, files, links, taken)
    for name in _PROGRAMS:
        _add_program(root, name, files, links, taken)
    return root


def _read(package: Path, files: dict[str, tuple[bytes, int]], links: dict[str, str]) -> None:
    """Read the programs that are wanted and all libraries of a package."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    contents = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(contents)) as tar:
        for member in tar:
            name = member.name.removeprefix(".")
            if name not in _PROGRAMS and ".so" not in posixpath.basename(name):
                continue
            if member.issym():
                links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            elif member.isreg() and (data := tar.extractfile(member)) is not None:
                files[name] = data.read(), member.mode


def _add(
    root: Archive, name: str, files: dict[str, tuple[bytes, int]], links: dict[str, str], taken: set[str]
) -> bytes:
    """Add a file by its name or by that of a link to it, once; give its contents."""
    end = name
    while end in links:
        end = links[end]
    data, mode = files[end]
    if end not in taken:
        taken.add(end)
        root.file(end, data, mode=mode)
    if end != name and name not in taken:
        taken.add(name)
        root.symlink(name, end)
    return data


def _add_program(
    root: Archive, name: str, files: dict[str, tuple[bytes, int]], links: dict[str, str], taken: set[str]
) -> None:
    """Add a program or library with the libraries that it needs, and those that they need."""
    data = _add(root, name, files, links, taken)
    for library in _needed(data):
        if library.startswith("ld-linux"):
            continue
        found = _find(library, [*files, *links])
        if found not in taken:
            _add_program(root, found, files, links, taken)


def _find(library: str, names: Iterable[str]) -> str:
    """Give the place of a shared library."""
    for name in names:
        if posixpath.basename(name) == library and name.startswith(("/lib/", "/usr/lib/")):
            return name
    raise LookupError(f"no package of {', '.join(_PACKAGES)} has {library}")


def _needed(data: bytes) -> list[str]:
    """Give the names of the libraries that an ELF file asks for."""
    if not data.startswith(b"\x7fELF"):
        return []
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        command = ["readelf", "--dynamic", "--wide", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [match[1] for match in _NEEDED.finditer(text) if ".so" in match[1]]
