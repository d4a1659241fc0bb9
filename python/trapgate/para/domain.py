"""The domain of a para-virtual guest: its place in XenStore, its memory, and the service of what it rings for."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from trapgate.errors import ConfigError, StateError
from trapgate.xenstore import XenStore, layout

if TYPE_CHECKING:
    from trapgate._core import Core
    from trapgate._core import Domain as CoreDomain

__all__ = ["Domain"]

_PAGE = 4096
_KIB = 1024
#: Requests of XenStore that are carried out before the guest runs on.
_MOST_REQUESTS = 64


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

    def _release(self) -> None:
        if self.store.introduced(self.domid):
            self.store.release(self.domid)
            layout.remove_domain(self.store, self.domid)
        # It holds the guest's memory.
        self._native_or_none = None
