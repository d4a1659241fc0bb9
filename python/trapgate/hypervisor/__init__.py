"""Several guests in one process: full and para-virtual ones side by side, scheduled by a policy written in Python.

>>> with Hypervisor(memory="1G", cpus=2) as hypervisor:  # doctest: +SKIP
...     web = hypervisor.create(Machine.from_image("debian-12", mode="para", memory="256M"), weight=512)
...     web.console.expect("# ")
"""

from __future__ import annotations

from trapgate.hypervisor.credit import CreditScheduler
from trapgate.hypervisor.guest import Event, Guest, GuestState, Happening
from trapgate.hypervisor.hypervisor import Hypervisor
from trapgate.hypervisor.memory import MemoryUse
from trapgate.hypervisor.permissions import Admission, Permissions
from trapgate.hypervisor.scheduler import Scheduler, Turn, VCpu
from trapgate.hypervisor.setup import GuestSetup, Setup
from trapgate.hypervisor.snapshot import GuestSnapshot, Snapshot
from trapgate.hypervisor.waits import Outcome

__all__ = [
    "Admission",
    "CreditScheduler",
    "Event",
    "Guest",
    "GuestSetup",
    "GuestSnapshot",
    "GuestState",
    "Happening",
    "Hypervisor",
    "MemoryUse",
    "Outcome",
    "Permissions",
    "Scheduler",
    "Setup",
    "Snapshot",
    "Turn",
    "VCpu",
]
