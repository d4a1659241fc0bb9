"""Kernel modules for a small initial RAM file system: some of a kernel's own, and the tables that modprobe reads.

What a module needs and is called by is in the module itself; the tables are those of depmod, for these modules alone.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping

from trapgate.errors import ImageError
from trapgate.images.cpio import Archive

__all__ = ["WANTED", "add", "wanted"]

#: Disks and networks of para-virtual guests, and what a file system on a disk takes.
WANTED = frozenset({
    "xen-blkfront",
    "xen-netfront",
    "ext4",
    "jbd2",
    "mbcache",
    "crc16",
    "crc32c_generic",
    "crc32c-intel",
})  # fmt: skip

_FIELD = re.compile(rb"(?:^|\0)(depends|alias|softdep)=([^\0]*)(?=\0)")


def wanted(name: str) -> bool:
    """Say whether a file of the kernel's package, as /lib/modules/..., is one of those modules."""
    folder, base = posixpath.split(name)
    return "/modules/" in folder and base.endswith(".ko") and base.removesuffix(".ko") in WANTED


def add(root: Archive, files: Mapping[str, bytes]) -> None:
    """Add modules, by their names in the kernel's package, to an archive."""
    folders = {_top(name) for name in files}
    if len(folders) != 1:
        raise ImageError(f"the kernel's modules are in {len(folders)} folders, not in one")
    (folder,) = folders
    places = {_canonical(name): name.removeprefix(f"{folder}/") for name in files}
    needs: dict[str, list[str]] = {}
    aliases: list[str] = []
    before: list[str] = []
    for name, data in files.items():
        module = _canonical(name)
        needs[module] = []
        for key, value in _fields(data):
            if key == "depends":
                needs[module] = [_underscored(need) for need in value.split(",") if need]
            elif key == "alias":
                aliases.append(f"alias {value} {module}\n")
            else:
                before.append(f"softdep {module} {value}\n")
    if missing := sorted({need for all_needs in needs.values() for need in all_needs} - places.keys()):
        raise ImageError(f"the kernel's modules need {missing[0]}, which is not among those to be carried")
    lines = []
    for module, place in places.items():
        chain = _chain(module, needs)
        lines.append(f"{place}:{''.join(f' {places[need]}' for need in chain)}\n")
        root.file(f"{folder}/{place}", files[f"{folder}/{place}"])
    root.file(f"{folder}/modules.dep", "".join(lines))
    root.file(f"{folder}/modules.alias", "".join(aliases))
    root.file(f"{folder}/modules.softdep", "".join(before))


def _top(name: str) -> str:
    """Give the folder of the kernel's release, such as /lib/modules/6.1.0-9-amd64."""
    head, found, _ = name.partition("/kernel/")
    if not found:
        raise ImageError(f"{name} is not where a kernel's modules are")
    return head


def _canonical(name: str) -> str:
    return _underscored(posixpath.basename(name).removesuffix(".ko"))


def _underscored(name: str) -> str:
    return name.replace("-", "_")


def _fields(data: bytes) -> Iterator[tuple[str, str]]:
    # modinfo is a section of NUL-terminated texts; nothing else in a module looks like its fields.
    start = data.find(b"\0depends=")
    if start < 0:
        raise ImageError("a kernel module does not say what it depends on")
    for match in _FIELD.finditer(data):
        yield match[1].decode("ascii", "replace"), match[2].decode("ascii", "replace")


def _chain(module: str, needs: Mapping[str, list[str]]) -> list[str]:
    """Give all that a module needs, each after those that need it: modprobe loads from the end."""
    chain: list[str] = []
    waiting = list(needs[module])
    while waiting:
        need = waiting.pop(0)
        if need in chain:
            chain.remove(need)
        chain.append(need)
        waiting += needs[need]
    return chain
