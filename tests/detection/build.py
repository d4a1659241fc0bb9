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
from pathlib import Path

import pytest

from trapgate.images.apt import PrivateApt
from trapgate.images.cpio import Archive

__all__ = ["bare", "linux", "needs_compiler", "others"]

HERE = Path(__file__).parent

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs the host's C compiler")


@functools.cache
def _compiled(folder: str) -> bytes:
    options = HERE / folder / "options"
    sources = [*sorted((HERE / "common").glob("*.c")), *sorted((HERE / folder).glob("*.[cS]"))]
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / folder
        command = ["cc", "-O1", "-g0", "-Wall", "-Wextra", "-o", str(program), f"@{options}"]
        subprocess.run([*command, *map(str, sources)], check=True)
        return program.read_bytes()


def bare() -> bytes:
    """Give the program that needs no kernel: an ELF file that starts in 64-bit mode, prints on COM1 and halts."""
    return _compiled("bare")


def linux() -> bytes:
    """Give the program for Linux, without shared libraries."""
    return _compiled("linux")


# The programs of others; packages.txt names what brings them and their libraries in Debian 12.
_PROGRAMS = (
    "/usr/sbin/virt-what",
    "/usr/libexec/virt-what-cpuid-helper",
    "/usr/sbin/dmidecode",
    "/usr/bin/systemd-detect-virt",
    "/usr/bin/lscpu",
)
_LOADER = "/lib64/ld-linux-x86-64.so.2"
_NEEDED = re.compile(r"\(NEEDED\).*\[(.*)\]")


def others(scratch: Path) -> Archive:
    """Give a file system tree with the programs of others and exactly the libraries that they need."""
    apt = PrivateApt(scratch / "apt", release="bookworm", architecture="amd64")
    apt.update(lambda _part: None)
    packages = (HERE / "packages.txt").read_text().split()
    tree = _Tree()
    for package in apt.download(packages, lambda _part: None):
        tree.read(package)
    for name in (_LOADER, *_PROGRAMS):
        tree.take(name)
    return tree.root


class _Tree:
    """What packages hold, and of it the part that is taken."""

    def __init__(self) -> None:
        self.root = Archive()
        self._files: dict[str, tuple[bytes, int]] = {}
        self._links: dict[str, str] = {}
        self._taken: set[str] = set()

    def read(self, package: Path) -> None:
        """Read the programs that are wanted and all libraries of a package."""
        command = ["dpkg-deb", "--fsys-tarfile", str(package)]
        contents = subprocess.run(command, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(contents)) as tar:
            for member in tar:
                name = member.name.removeprefix(".")
                if name not in _PROGRAMS and ".so" not in posixpath.basename(name):
                    continue
                if member.issym():
                    self._links[name] = posixpath.normpath(posixpath.join(name, "..", member.linkname))
                elif member.isreg() and (data := tar.extractfile(member)) is not None:
                    self._files[name] = data.read(), member.mode

    def take(self, name: str) -> None:
        """Take a program or library, by its name or a link's, with the libraries that it needs."""
        if name in self._taken:
            return
        self._taken.add(name)
        if name in self._links:
            self.root.symlink(name, self._links[name])
            self.take(self._links[name])
            return
        data, mode = self._files[name]
        self.root.file(name, data, mode=mode)
        for library in _needed(data):
            self.take(self._place(library))

    def _place(self, library: str) -> str:
        """Give where a shared library is."""
        for name in (*self._files, *self._links):
            if posixpath.basename(name) == library and name.startswith(("/lib/", "/lib64/", "/usr/lib/")):
                return name
        raise LookupError(f"none of the packages in packages.txt has {library}")


def _needed(data: bytes) -> list[str]:
    """Give the names of the libraries that an ELF file asks for."""
    if not data.startswith(b"\x7fELF"):
        return []
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        command = ["readelf", "--dynamic", "--wide", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _NEEDED.findall(text)
