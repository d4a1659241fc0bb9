"""XenStore, the small tree of names and values by which para-virtual guests and the toolstack agree on devices.

This is the server with Xen's protocol and rules, in Python and without a virtual machine: domains are
introduced with a shared page, and the toolstack works on the same tree by the methods of `XenStore`.
"""

from __future__ import annotations

from trapgate.xenstore.nodes import Access, Permission
from trapgate.xenstore.quota import Account, Quota
from trapgate.xenstore.ring import Page, RingError
from trapgate.xenstore.server import PythonWatch, StoreTransaction, XenStore

__all__ = [
    "Access",
    "Account",
    "Page",
    "Permission",
    "PythonWatch",
    "Quota",
    "RingError",
    "StoreTransaction",
    "XenStore",
]
