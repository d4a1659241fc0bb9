"""What was measured, as values: figures of each program in each peer, ratios, and their geometric means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SUBJECT", "Figures", "Report", "Row"]

#: What the peers are compared with.
SUBJECT = "trapgate"

# What part of the departures a guest must do without for that to count.
_LEAST_SAVING = 0.01


@dataclass(frozen=True)
class Figures:
    """What one operation of a program took in one peer, run after run, in nanoseconds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def as_dict(self) -> dict[str, Any]:
        """Give median, spread and all values."""
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


@dataclass(frozen=True, kw_only=True)
class Row:
    """One program."""

    name: str
    group: str
    #: What one operation is.
    operation: str
    #: By the peer's name, "trapgate" among them. A boot has no native figures.
    figures: dict[str, Figures]
    #: Of each guest of trapgate, how often one operation needs the monitor, by reason; empty unless that was counted.
    departures: dict[str, dict[str, float]] = field(default_factory=dict)

    def ratio(self, peer: str) -> float | None:
        """Give how many times as long as in `peer` it takes in trapgate, by the medians; None without figures."""
        if peer not in self.figures:
            return None
        return self.figures[SUBJECT].median / self.figures[peer].median

    def left(self, peer: str) -> float | None:
        """Give how often one operation needs the monitor; None if that was not counted."""
        return sum(self.departures[peer].values()) if peer in self.departures else None

    def break_even(self, peer: str, other: str) -> float | None:
        """Give how many nanoseconds more each departure would have to cost for `peer` to take no longer than `other`.

        On a processor whose exits cost more than those of a translator, `peer` is the quicker one from there on. 0 if
        it is so already, None if it never is, or if something was not measured.
        """
        mine, others = self.left(peer), self.left(other)
        if mine is None or others is None:
            return None
        longer = self.figures[peer].median - self.figures[other].median
        if longer <= 0:
            return 0.0
        saved = others - mine
        # A tick more or less that fell into a run is no saving.
        return longer / saved if saved > _LEAST_SAVING * others else None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was measured, and with what."""

    peers: tuple[str, ...]
    runs: int
    #: The engine of trapgate that was measured, if a guest was.
    engine: str
    #: The host's processor, and the versions of what took part.
    host: dict[str, str]
    rows: tuple[Row, ...]

    def mean(self, group: str, peer: str) -> float | None:
        """Give the geometric mean of a group's ratios to a peer; None if it has none."""
        ratios = [ratio for row in self.rows if row.group == group and (ratio := row.ratio(peer)) is not None]
        return _geometric(ratios)

    @property
    def groups(self) -> list[str]:
        """The groups that were measured."""
        return list(dict.fromkeys(row.group for row in self.rows))

    def as_dict(self) -> dict[str, Any]:
        """Give everything as plain values; times are nanoseconds, ratios trapgate's time by the peer's."""
        return {
            "host": self.host,
            "engine": self.engine,
            "runs": self.runs,
            "programs": [self._row(row) for row in self.rows],
            "geometric_means": {
                group: {peer: self.mean(group, peer) for peer in self.peers} for group in self.groups
            },
        }

    def _row(self, row: Row) -> dict[str, Any]:
        return {
            "name": row.name,
            "group": row.group,
            "operation": row.operation,
            "nanoseconds": {peer: figures.as_dict() for peer, figures in row.figures.items()},
            "ratios": {peer: row.ratio(peer) for peer in self.peers},
            "departures": row.departures,
            "break_even": {
                f"{peer}/{other}": row.break_even(peer, other)
                for peer in row.departures
                for other in row.departures
                if peer != other
            },
        }


def _geometric(values: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None
