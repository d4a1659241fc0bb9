"""Control planes of the back-ends: how a guest's devices are offered, connected and taken away, by XenStore.

The data planes, which answer the rings, are in Rust.
"""

from __future__ import annotations

from trapgate.para.backends.block import BlockBackend
from trapgate.para.backends.net import NetBackend
from trapgate.para.backends.xenbus import Backend, State

__all__ = ["Backend", "BlockBackend", "NetBackend", "State"]
