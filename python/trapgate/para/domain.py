"""The domain of a para-virtual guest: its place in XenStore, its memory, and the service of what it rings for."""

from __future__ import annotations

import hashlib
import threading
import uuid
from typing import TYPE_CHECKING

from trapgate.config import Disk, Nic
from trapgate.errors import ConfigError, StateError
from trapgate.para.backends import Backend, BlockBackend, NetBackend
from trapgate.xenstore import XenStore, layout

if TYPE_CHECKING:
    from trapgate._core import Core
    from trapgate._core import Disk as Image
    from trapgate._core import Domain as CoreDomain

__all__ = ["Domain"]

_PAGE = 4096
_KIB = 1024
#: Requests of XenStore that are carried out before the guest runs on.
_MOST_REQUESTS = 64


def open_image(disk: Disk) -> Image:
    """Open a disk's file; raises `ConfigError` if it cannot be used."""
    from trapgate._core import Disk as Image

    return Image(disk.path, disk.read_only)


class _SharedPage:
    """A page of the guest's by its machine address."""

    def __init__(self, core: Core, address: int) -> None:
        self._core = core
        self._address = address

    def read(self, offset: int, n: int, /) -> bytes:
        return self._core.read(self._address + offset, n)

    def write(self, offset: int, data: bytes, /) -> None:
        self._core.write(self._address + offset, data)


class Domain:
    """The domain of a `VM` of mode `para`.

    Its node in the store is `path`; the store is the machine's own unless it was made with another.
    """

    def __init__(self, core: Core, native: CoreDomain, store: XenStore, name: str) -> None:
        self._core = core
        self._native_or_none: CoreDomain | None = native
        #: The store that the guest and its back-ends talk by.
        self.store = store
        self.name = name
        #: The domain's number; its back-ends are in domain 0.
        self.domid: int = native.domid
        address, self._store_port = native.store
        console, console_port = native.console
        owned, maximum = native.frames()
        layout.add_domain(
            store,
            layout.Domain(
                domid=self.domid,
                name=name,
                uuid=str(self.uuid),
                memory=owned * _PAGE // _KIB,
                memory_max=maximum * _PAGE // _KIB,
                console=layout.Console(ring_ref=console // _PAGE, port=console_port),
            ),
        )
        store.introduce(self.domid, _SharedPage(core, address), self._notify_store)
        self._more = False
        #: The back-ends of the guest's devices, by kind and number.
        self._devices: dict[tuple[str, int], Backend] = {}
        self._devices_lock = threading.Lock()

    @property
    def _native(self) -> CoreDomain:
        if self._native_or_none is None:
            raise StateError("the machine is closed")
        return self._native_or_none

    @property
    def uuid(self) -> uuid.UUID:
        """The domain's handle."""
        return uuid.UUID(bytes=bytes(self._native.handle))

    @property
    def path(self) -> str:
        """The domain's node in the store."""
        return f"/local/domain/{self.domid}"

    # Memory.

    @property
    def memory(self) -> int:
        """Bytes of memory that the domain has."""
        return self._native.frames()[0] * _PAGE

    @property
    def maximum_memory(self) -> int:
        """Bytes of memory that the domain may have."""
        return self._native.frames()[1] * _PAGE

    def balloon(self, target: int) -> None:
        """Ask the guest to give memory back, or to take more, until it has `target` bytes.

        The guest's balloon driver moves the frames while it runs; `memory` tells how far it has come.
        """
        if target < _PAGE or target % _PAGE or target > self.maximum_memory:
            raise ConfigError(
                f"the target is {target} bytes; it must be whole pages and at most {self.maximum_memory} bytes"
            )
        self.store.write(f"{self.path}/memory/target", str(target // _KIB))

    # Devices.

    @property
    def disks(self) -> tuple[Disk, ...]:
        """The disks that the guest has, those included that it was asked to give up and has not yet."""
        return tuple(backend.disk for backend in self._backends() if isinstance(backend, BlockBackend))

    def attach_disk(self, disk: Disk) -> None:
        """Give the guest a disk, also while it runs."""
        self._attach_disk(disk, open_image(disk))

    def detach_disk(self, name: str) -> None:
        """Ask the guest to give a disk up; `disks` has it until the guest, running on, has done so."""
        backend = self._device("vbd", layout.virtual_device(name))
        if backend is None:
            raise ConfigError(f"the guest has no disk {name}")
        backend.detach()

    @property
    def nics(self) -> tuple[Nic, ...]:
        """The network interfaces that the guest has, with their addresses."""
        backends = [backend for backend in self._backends() if isinstance(backend, NetBackend)]
        return tuple(Nic(mac=backend.mac, switch=backend.nic.switch) for backend in backends)

    def attach_nic(self, nic: Nic) -> int:
        """Give the guest a network interface, also while it runs; give its number."""
        used = {backend.number for backend in self._backends() if backend.kind == "vif"}
        handle = min(set(range(len(used) + 1)) - used)
        mac = self._address(handle) if nic.mac is None else nic.mac
        self._start(NetBackend(self.store, self._native, handle, nic, mac, self._forget))
        return handle

    def detach_nic(self, handle: int) -> None:
        """Ask the guest to give an interface up; `nics` has it until the guest, running on, has done so."""
        backend = self._device("vif", handle)
        if backend is None:
            raise ConfigError(f"the guest has no network interface {handle}")
        backend.detach()

    def _address(self, handle: int) -> str:
        """Give an address that follows from the domain's UUID, among those that Xen guests have."""
        digest = hashlib.sha256(self.uuid.bytes + bytes([handle % 256])).digest()
        return ":".join(["00:16:3e", *(f"{byte:02x}" for byte in digest[:3])])

    def _attach_disk(self, disk: Disk, image: Image) -> None:
        self._start(BlockBackend(self.store, self._native, disk, image, self._forget))

    def _start(self, backend: Backend) -> None:
        with self._devices_lock:
            if (backend.kind, backend.number) in self._devices:
                raise ConfigError(f"the guest has the {backend.kind} {backend.number} already")
            self._devices[backend.kind, backend.number] = backend
        try:
            backend.start()
        except BaseException:
            self._forget(backend)
            raise

    def _backends(self) -> list[Backend]:
        with self._devices_lock:
            return list(self._devices.values())

    def _device(self, kind: str, number: int) -> Backend | None:
        with self._devices_lock:
            return self._devices.get((kind, number))

    def _forget(self, backend: Backend) -> None:
        with self._devices_lock:
            self._devices.pop((backend.kind, backend.number), None)

    # Requests to the guest.

    def shutdown(self, reason: str = "poweroff") -> None:
        """Ask the guest to shut itself down: "poweroff", "reboot" or "halt"."""
        if reason not in ("poweroff", "reboot", "halt"):
            raise ConfigError(f"a guest cannot be asked for {reason!r}; it can for poweroff, reboot and halt")
        self.store.write(f"{self.path}/control/shutdown", reason)

    # Service.

    def _notify_store(self) -> None:
        self._native.notify(self._store_port)

    def _serve(self) -> None:
        """Serve what the guest has rung for."""
        rung = self._native.take_doorbells()
        if self._more or self._store_port in rung:
            self._more = self.store.serve(self.domid, _MOST_REQUESTS)
            if self._more:
                self._native.poke()
        if any(port != self._store_port for port in rung):
            for backend in self._backends():
                backend.look()

    def _release(self) -> None:
        for backend in self._backends():
            backend.stop()
            self._forget(backend)
        if self.store.introduced(self.domid):
            self.store.release(self.domid)
            layout.remove_domain(self.store, self.domid)
        # It holds the guest's memory.
        self._native_or_none = None
