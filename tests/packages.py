"""Debian packages as files in a guest: fetched by name, with what they depend on, as images are."""

from __future__ import annotations

import io
import stat
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from trapgate import Machine
from trapgate.images.apt import PrivateApt
from trapgate.images.cpio import Archive

__all__ = ["Packages", "add", "contents", "with_files"]


class Packages:
    """The packages of Debian 12; lists are fetched once, packages when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._apt = PrivateApt(folder, release="bookworm", architecture="amd64")
        self._apt.update(lambda _part: None)

    def fetch(self, *names: str, dependencies: bool = True) -> list[Path]:
        """Give the package files of `names` and, unless told otherwise, of all that they depend on."""
        wanted: Sequence[str] = self._apt.needed(names) if dependencies else names
        return self._apt.download(wanted, lambda _part: None)


def add(root: Archive, package: Path, wanted: Callable[[str], bool]) -> None:
    """Add to an archive those files and links of a package whose names (as /usr/bin/cc) are `wanted`."""
    contents = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, check=True)
    with tarfile.open(fileobj=io.BytesIO(contents.stdout)) as tar:
        for member in tar:
            name = member.name.removeprefix(".").rstrip("/")
            if not name or not wanted(name):
                continue
            if member.issym():
                root.symlink(name, member.linkname)
            elif member.isreg() or member.islnk():
                data = tar.extractfile(member)
                assert data is not None
                root.file(name, data.read(), stat.S_IMODE(member.mode))


def contents(package: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Give those files of a package whose names are `wanted`, by name."""
    listing = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, check=True)
    found = {}
    with tarfile.open(fileobj=io.BytesIO(listing.stdout)) as tar:
        for member in tar:
            name = member.name.removeprefix(".")
            if member.isreg() and wanted(name) and (data := tar.extractfile(member)) is not None:
                found[name] = data.read()
    return found


def with_files(machine: Machine, root: Archive) -> Machine:
    """Give the machine with more files in its initial RAM file system: the kernel unpacks one after the other."""
    assert isinstance(machine.initrd, Path)
    return machine.replace(initrd=machine.initrd.read_bytes() + root.to_bytes())
