"""Para-virtual guests: the domain behind a `VM` of mode `para`, its hypercall table and its back-ends."""

from __future__ import annotations

from trapgate.para.domain import Domain
from trapgate.para.hypercalls import Call, Hypercall, Hypercalls, HypercallStats

__all__ = ["Call", "Domain", "Hypercall", "HypercallStats", "Hypercalls"]
