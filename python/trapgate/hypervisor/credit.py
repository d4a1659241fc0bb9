"""The default scheduler: credit that is burned the faster the smaller the weight, after Xen's credit2, with caps.

Who has most credit runs next. When that is nobody with credit left, all get some more; what is not spent does not
pile up. So who mostly waits has more credit than who always runs, and runs at once when it wakes; and those who always
run get CPU time in proportion to their weights, whatever the host's other work leaves of it. A cap is a budget of
its own, renewed by the clock: without it one does not run, though a CPU is idle.
"""

from __future__ import annotations

from dataclasses import dataclass

from trapgate.hypervisor.scheduler import MOST_WEIGHT, Turn, VCpu

__all__ = ["CreditScheduler"]

_MILLISECOND = 1_000_000
#: A turn is not cut shorter than this by what is left of a budget; the rest is owed.
_LEAST = _MILLISECOND
#: How much more credit one must have to interrupt another.
_MARGIN = _MILLISECOND


@dataclass(eq=False, slots=True)
class _Account:
    """What is kept of a vCPU; times in nanoseconds."""

    vcpu: VCpu
    #: How far it is from having to wait for others; less than nothing if it ran though it had none.
    credit: float
    #: CPU time that its cap leaves it in this period.
    budget: float
    runnable: bool = False
    #: When it began to run, if it runs.
    since: int | None = None
    #: Grows with each turn that is queued for: who waits longest goes first among equals.
    ticket: int = 0

    @property
    def parked(self) -> bool:
        """Whether its cap keeps it from running."""
        return self.vcpu.cap != 0 and self.budget <= 0

    def burn(self, nanoseconds: float) -> float:
        """Give what running costs; at the greatest weight, a nanosecond each."""
        return nanoseconds * MOST_WEIGHT / self.vcpu.weight


class CreditScheduler:
    """Shares CPU time by weight and enforces caps; no CPU is idle while somebody may run.

    `slice` is how long one runs at a time while others wait, and `period` the time over which caps hold, in
    milliseconds.
    """

    def __init__(self, *, slice: float = 10, period: float = 30) -> None:  # noqa: A002
        self.slice = round(slice * _MILLISECOND)
        self.period = round(period * _MILLISECOND)
        self._cpus = 1
        self._accounts: dict[VCpu, _Account] = {}
        self._renewed = 0
        self._ticket = 0

    def start(self, cpus: int, now: int) -> None:
        """Learn how many CPUs there are."""
        self._cpus = cpus
        self._renewed = now

    def add(self, vcpu: VCpu, now: int) -> None:
        """Open an account; it begins with what all have at most."""
        self._accounts[vcpu] = _Account(vcpu, credit=self._most(vcpu), budget=self._allowance(vcpu))

    def remove(self, vcpu: VCpu, now: int) -> None:
        """Close an account."""
        del self._accounts[vcpu]

    def wake(self, vcpu: VCpu, now: int) -> VCpu | None:
        """Queue it; name a running one with less credit if no CPU is free."""
        self._renew(now)
        account = self._accounts[vcpu]
        account.runnable = True
        self._queue(account)
        running = [other for other in self._accounts.values() if other.since is not None]
        if account.parked or len(running) < self._cpus:
            return None

        def left(other: _Account) -> float:
            """Credit in proportion to weight, so that it can be compared, less what was burned since it began."""
            return other.credit - other.burn(now - (other.since or now))

        last = min(running, key=left)
        return last.vcpu if left(last) + last.burn(_MARGIN) < account.credit else None

    def block(self, vcpu: VCpu, now: int) -> None:
        """Take it out of the queue."""
        self._accounts[vcpu].runnable = False

    def next(self, cpu: int, now: int) -> Turn | None:
        """Give out the one with most credit."""
        self._renew(now)
        waiting = [a for a in self._accounts.values() if a.runnable and a.since is None and not a.parked]
        if not waiting:
            return None
        account = min(waiting, key=lambda a: (-a.credit, a.ticket))
        if account.credit <= 0:
            self._give(-account.credit)
        account.since = now
        # With nobody else to run there is no need to look around often.
        length = self.slice if len(waiting) > 1 else max(self.slice, self.period)
        if account.vcpu.cap:
            length = min(length, max(_LEAST, round(account.budget)))
        return Turn(account.vcpu, length)

    def used(self, vcpu: VCpu, nanoseconds: int, now: int) -> None:
        """Charge for what was used, and queue it behind its equals."""
        account = self._accounts[vcpu]
        account.credit -= account.burn(nanoseconds)
        account.budget -= nanoseconds
        account.since = None
        self._queue(account)

    def due(self, now: int) -> int | None:
        """Give the start of the next period, if somebody waits for its budget."""
        if any(a.runnable and a.since is None and a.parked for a in self._accounts.values()):
            return self._renewed + self.period
        return None

    def _queue(self, account: _Account) -> None:
        self._ticket += 1
        account.ticket = self._ticket

    def _most(self, vcpu: VCpu) -> float:
        """Give the credit that one has at most: a slice of the least weight that there is."""
        least = min((other.weight for other in (vcpu, *self._accounts)), default=vcpu.weight)
        return self.slice * MOST_WEIGHT / least

    def _give(self, lacking: float) -> None:
        """Give all the same credit, so much that who lacks this has some."""
        for vcpu, account in self._accounts.items():
            most = self._most(vcpu)
            account.credit = min(account.credit + lacking + most, most)

    def _allowance(self, vcpu: VCpu) -> float:
        """Give what a vCPU may use in a period at most."""
        return self.period * (vcpu.cap or 100) / 100

    def _renew(self, now: int) -> None:
        """Renew budgets if a period has ended; what was not used is lost, what was used too much is owed."""
        periods = (now - self._renewed) // self.period
        if periods > 0:
            self._renewed += periods * self.period
            for vcpu, account in self._accounts.items():
                allowance = self._allowance(vcpu)
                account.budget = min(account.budget + allowance * periods, allowance)
