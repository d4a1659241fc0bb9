"""The entries by which a guest and its back-ends find each other: the smallest tree with which Linux boots.

Names, values and permissions are those of Xen's xl. A device begins in state 1 at both ends; everything that
its back-end offers, and all further states, are the back-end's to write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trapgate.errors import ConfigError
from trapgate.xenstore.editor import Editor, Value
from trapgate.xenstore.nodes import DOMAIN_MAX, home

__all__ = [
    "Console",
    "Disk",
    "Domain",
    "Nic",
    "add_disk",
    "add_domain",
    "add_nic",
    "backend_path",
    "frontend_path",
    "remove_device",
    "remove_domain",
    "virtual_device",
]

#: XenbusStateInitialising, in which every device begins.
INITIALISING = 1

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_DISK = re.compile(r"xvd([a-z]{1,3})")

# What the guest itself writes, so that it has to own it (the rest of its home it only reads).
_GUESTS_OWN = (
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "device/suspend/event-channel",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """Where the guest's first console is; for information, as a guest takes it from its start page."""

    ring_ref: int
    port: int
    limit: int = 1 << 20
    output: str = "pty"


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A guest as the store describes it; raises `ConfigError` for what cannot be."""

    #: 1 to 32751.
    domid: int
    name: str
    #: In lower case, with hyphens.
    uuid: str
    #: KiB that it has, and that it could have at most; 0 is for as much.
    memory: int
    memory_max: int = 0
    vcpus: int = 1
    console: Console | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.domid <= DOMAIN_MAX:
            raise ConfigError(f"the domain's number is {self.domid}; it must be 1 to {DOMAIN_MAX}")
        if not _UUID.fullmatch(self.uuid):
            raise ConfigError(
                f"the domain's uuid is {self.uuid!r}; it must be 32 lower-case digits with hyphens"
            )
        if self.memory < 1 or self.vcpus < 1:
            raise ConfigError("a domain needs memory and a vCPU")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A block device (vbd). `params` is what its back-end wants to know, such as a file's name."""

    #: As the guest names it: xvda and so on.
    name: str
    params: str = ""
    kind: str = "file"
    read_only: bool = False
    removable: bool = False
    cdrom: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A network interface (vif); raises `ConfigError` for what cannot be."""

    #: 0 for eth0 and so on.
    handle: int
    #: Six bytes in lower-case hexadecimal with colons.
    mac: str
    script: str = ""

    def __post_init__(self) -> None:
        if self.handle < 0:
            raise ConfigError(f"the interface's number is {self.handle}; it must be 0 or more")
        if not _MAC.fullmatch(self.mac) or int(self.mac[:2], 16) & 1:
            raise ConfigError(f"{self.mac!r} is not the address of one interface, such as 00:16:3e:00:00:01")


def virtual_device(name: str) -> int:
    """Give a disk's number: xvda is 51712, each has 16 minors; from xvdq on the extended form.

    Raises `ConfigError` for another name.
    """
    match = _DISK.fullmatch(name)
    if match is None:
        raise ConfigError(f"the disk's name is {name!r}; it must be xvda, xvdb and so on")
    index = 0
    for letter in match[1]:
        index = index * 26 + ord(letter) - ord("a") + 1
    index -= 1
    return 202 << 8 | index << 4 if index < 16 else 1 << 28 | index << 8


def frontend_path(domid: int, kind: str, number: int) -> str:
    """Give the guest's directory of a device; `kind` is vbd or vif."""
    return f"{home(domid)}/device/{kind}/{number}"


def backend_path(domid: int, kind: str, number: int) -> str:
    """Give the back-end's directory of a guest's device."""
    return f"{home(0)}/backend/{kind}/{domid}/{number}"


def add_domain(store: Editor, domain: Domain) -> None:
    """Write a guest's own entries; before it is introduced, best in a transaction. What is there is removed first."""
    remove_domain(store, domain.domid)
    top, readable = home(domain.domid), f"n0,r{domain.domid}"
    vm = f"/vm/{domain.uuid}"
    _directory(store, vm, readable, {"name": domain.name, "uuid": domain.uuid})
    _directory(store, top, readable, {"name": domain.name, "domid": domain.domid, "vm": vm})
    memory = {"target": domain.memory, "static-max": domain.memory_max or domain.memory}
    _directory(store, f"{top}/memory", readable, memory)
    _directory(store, f"{top}/device", readable, {})
    _directory(store, f"{top}/control", readable, {"platform-feature-multiprocessor-suspend": 1})
    for number in range(domain.vcpus):
        store.write(f"{top}/cpu/{number}/availability", "online")
    for name in _GUESTS_OWN:
        _directory(store, f"{top}/{name}", f"n{domain.domid}", {})
    if domain.console is not None:
        _add_console(store, domain.domid, domain.console)


def add_disk(store: Editor, domid: int, disk: Disk) -> int:
    """Write both directories of a disk and give its number; see `virtual_device` for what may be wrong."""
    number = virtual_device(disk.name)
    front: dict[str, Value] = {"virtual-device": number, "device-type": "cdrom" if disk.cdrom else "disk"}
    back: dict[str, Value] = {
        "removable": disk.removable,
        "dev": disk.name,
        "mode": "r" if disk.read_only else "w",
        "type": disk.kind,
        "params": disk.params,
    }
    _add_device(store, domid, "vbd", number, front, back)
    return number


def add_nic(store: Editor, domid: int, nic: Nic) -> int:
    """Write both directories of a network interface and give its number."""
    both: dict[str, Value] = {"handle": nic.handle, "mac": nic.mac}
    _add_device(store, domid, "vif", nic.handle, both, both | {"script": nic.script})
    return nic.handle


def remove_device(store: Editor, domid: int, kind: str, number: int) -> None:
    """Remove both directories of a device; one that is not there is fine."""
    for path in (frontend_path(domid, kind, number), backend_path(domid, kind, number)):
        if store.exists(path):
            store.rm(path)


def remove_domain(store: Editor, domid: int) -> None:
    """Remove all entries of a guest, its back-ends' and /vm's included; none there are fine.

    The guest's own word about its /vm is not taken: those are found by who may read them.
    """
    for path in (home(domid), *_of_domain(store, domid)):
        if store.exists(path):
            store.rm(path)


def _of_domain(store: Editor, domid: int) -> Iterable[str]:
    backends = f"{home(0)}/backend"
    kinds = store.list(backends) if store.exists(backends) else []
    yield from [f"{backends}/{kind}/{domid}" for kind in kinds]
    for uuid in store.list("/vm") if store.exists("/vm") else []:
        if any(entry.domid == domid for entry in store.permissions(f"/vm/{uuid}")[1:]):
            yield f"/vm/{uuid}"


def _add_console(store: Editor, domid: int, console: Console) -> None:
    entries: dict[str, Value] = {
        "backend": backend_path(domid, "console", 0),
        "backend-id": 0,
        "type": "xenconsoled",
        "ring-ref": console.ring_ref,
        "port": console.port,
        "limit": console.limit,
        "output": console.output,
    }
    _directory(store, f"{home(domid)}/console", f"n0,r{domid}", entries)


def _add_device(
    store: Editor, domid: int, kind: str, number: int, front: Mapping[str, Value], back: Mapping[str, Value]
) -> None:
    frontend, backend = frontend_path(domid, kind, number), backend_path(domid, kind, number)
    remove_device(store, domid, kind, number)
    common: dict[str, Value] = {
        "frontend": frontend,
        "frontend-id": domid,
        "online": 1,
        "state": INITIALISING,
    }
    _directory(store, backend, f"n0,r{domid}", common | dict(back))
    # The guest sees the device as soon as this is there, and then looks for the other.
    common = {"backend": backend, "backend-id": 0, "state": INITIALISING}
    _directory(store, frontend, f"n{domid},r0", common | dict(front))


def _directory(store: Editor, path: str, permissions: str, entries: Mapping[str, Value]) -> None:
    store.mkdir(path)
    store.set_permissions(path, permissions)
    # What is made below inherits the permissions.
    for name, value in entries.items():
        store.write(f"{path}/{name}", value)
