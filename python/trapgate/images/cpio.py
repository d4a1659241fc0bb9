"""Writes cpio archives in the "newc" format that Linux unpacks as its initial RAM file system.

The same entries always give the same bytes: names are sorted, owners are root, times are zero and inode
numbers are counted. Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import PurePosixPath

__all__ = ["Archive"]

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
# GNU cpio pads an archive to this; the kernel does not mind.
_BLOCK = 512


@dataclass(frozen=True)
class _Entry:
    mode: int
    data: bytes = b""
    major: int = 0
    minor: int = 0


class Archive:
    """A file system tree in the making. Names are absolute; missing parent directories are added."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add an empty directory."""
        self._add(name, _Entry(stat.S_IFDIR | mode))

    def file(self, name: str, data: bytes | str, mode: int = 0o644) -> None:
        """Add a regular file."""
        contents = data.encode() if isinstance(data, str) else data
        self._add(name, _Entry(stat.S_IFREG | mode, contents))

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(name, _Entry(stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._add(name, _Entry(stat.S_IFCHR | mode, major=major, minor=minor))

    def to_bytes(self) -> bytes:
        """Give the archive."""
        out = bytearray()
        # A parent's name is a prefix of its children's, so sorting also puts it before them.
        for inode, (name, entry) in enumerate(sorted(self._entries.items()), start=1):
            _append(out, name, entry, inode)
        _append(out, _TRAILER, _Entry(0), 0)
        _pad(out, _BLOCK)
        return bytes(out)

    def _add(self, name: str, entry: _Entry) -> None:
        path = PurePosixPath(name)
        if not path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
            raise ValueError(f"{name!r} is not an absolute name below the root")
        for parent in list(path.parents)[:-1]:
            key = str(parent)[1:]
            above = self._entries.setdefault(key, _Entry(stat.S_IFDIR | 0o755))
            if not stat.S_ISDIR(above.mode):
                raise ValueError(f"{parent} is not a directory, {name} cannot be in it")
        key = str(path)[1:]
        if key in self._entries:
            raise ValueError(f"{name} is in the archive already")
        self._entries[key] = entry


def _append(out: bytearray, name: str, entry: _Entry, inode: int) -> None:
    encoded = name.encode() + b"\0"
    if len(entry.data) > 0xFFFF_FFFF:
        raise ValueError(f"{name} is larger than the 4 GiB a cpio header can say")
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    fields = (
        *(inode, entry.mode, 0, 0, links, 0, len(entry.data)),
        *(0, 0, entry.major, entry.minor, len(encoded), 0),
    )
    out += _MAGIC + b"".join(b"%08X" % field for field in fields)
    out += encoded
    _pad(out, 4)
    out += entry.data
    _pad(out, 4)


def _pad(out: bytearray, alignment: int) -> None:
    out += bytes(-len(out) % alignment)
