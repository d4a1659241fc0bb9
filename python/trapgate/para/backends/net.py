"""Network interfaces: the control plane of the network back-end (xen/include/public/io/netif.h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trapgate.config import Nic
from trapgate.network import Switch
from trapgate.para.backends.xenbus import Backend, Offer, RefusedError
from trapgate.xenstore import XenStore, layout
from trapgate.xenstore.editor import Editor

if TYPE_CHECKING:
    from trapgate._core import Domain as CoreDomain

__all__ = ["NetBackend"]


class NetBackend(Backend):
    """The back-end of one interface; `handle` is 0 for eth0 and so on."""

    kind = "vif"

    def __init__(
        self,
        store: XenStore,
        native: CoreDomain,
        handle: int,
        nic: Nic,
        mac: str,
        ended: Callable[[Backend], object] = lambda _backend: None,
    ) -> None:
        super().__init__(store, native, handle, ended)
        self.nic = nic
        self.mac = mac
        # One that is plugged in nowhere has a switch of its own.
        self._plug = (nic.switch or Switch())._plug()

    def _add(self, store: Editor) -> None:
        layout.add_nic(store, self._native.domid, layout.Nic(handle=self.number, mac=self.mac))

    def _offer(self) -> Offer:
        return {
            "feature-rx-copy": 1,
            "feature-rx-flip": 0,
            "feature-sg": 1,
            "feature-gso-tcpv4": 0,
            "feature-gso-tcpv6": 0,
            "feature-ipv6-csum-offload": 1,
            "feature-split-event-channels": 0,
        }

    def _connect(self, port: int) -> tuple[int, Offer]:
        if not self._front_flag("request-rx-copy"):
            raise RefusedError("the guest wants pages instead of copies")
        tx, rx = self._front_number("tx-ring-ref"), self._front_number("rx-ring-ref")
        scatter = self._front_flag("feature-sg")
        return self._native.connect_net(port, tx, rx, scatter, self._plug), {}

    def _release(self) -> None:
        self._plug.close()
