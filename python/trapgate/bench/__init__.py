"""How fast guests run: the same small programs in trapgate, on the host itself and in QEMU's TCG.

    report = trapgate.bench.run(["compute"], peers=("native",), runs=3)
    print(report.mean("compute", "native"))

The programs are compiled by the host's compiler, put into the initial RAM file system of the image `debian-12`,
and run from its shell. Every run measures each program with everything before the next run measures again, so
that a host that is busy for a while is busy for all of them.
"""

from __future__ import annotations

from trapgate.bench.programs import GROUPS, PROGRAMS, Program, select
from trapgate.bench.report import Figures, Report, Row
from trapgate.bench.runner import PEERS, run

__all__ = ["GROUPS", "PEERS", "PROGRAMS", "Figures", "Program", "Report", "Row", "run", "select"]
