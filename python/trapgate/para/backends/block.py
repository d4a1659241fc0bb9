"""Disks: the control plane of the block back-end (xen/include/public/io/blkif.h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trapgate.config import Disk
from trapgate.errors import StateError
from trapgate.para.backends.xenbus import Backend, Offer
from trapgate.xenstore import XenStore, layout
from trapgate.xenstore.editor import Editor

if TYPE_CHECKING:
    from trapgate._core import Disk as Image
    from trapgate._core import Domain as CoreDomain

__all__ = ["BlockBackend"]

_SECTOR = 512
#: Bit of `info`.
_READ_ONLY = 4


class BlockBackend(Backend):
    """The back-end of one disk; `image` is its file, open."""

    kind = "vbd"

    def __init__(
        self,
        store: XenStore,
        native: CoreDomain,
        disk: Disk,
        image: Image,
        ended: Callable[[Backend], object] = lambda _backend: None,
    ) -> None:
        super().__init__(store, native, layout.virtual_device(disk.name), ended)
        self.disk = disk
        self._image: Image | None = image

    def _add(self, store: Editor) -> None:
        disk = layout.Disk(
            name=self.disk.name, params=str(self.disk.path)[:_LONGEST_PATH], read_only=self.disk.read_only
        )
        layout.add_disk(store, self._native.domid, disk)

    def _offer(self) -> Offer:
        offer = {"feature-flush-cache": 1, "feature-barrier": 0}
        if not self.disk.read_only:
            offer |= {"feature-discard": 1, "discard-granularity": 4096, "discard-alignment": 0}
        return offer

    def _connect(self, port: int) -> tuple[int, Offer]:
        if self._image is None:
            raise StateError("the disk has been taken away")
        connection = self._native.connect_block(port, self._front_number("ring-ref"), self._image)
        return connection, {
            "sectors": self._image.size // _SECTOR,
            "sector-size": _SECTOR,
            "physical-sector-size": _SECTOR,
            "info": _READ_ONLY if self.disk.read_only else 0,
        }

    def _release(self) -> None:
        # The file is closed, and others may have it.
        self._image = None


#: What of a file's name the store shows; it is for people.
_LONGEST_PATH = 1000
