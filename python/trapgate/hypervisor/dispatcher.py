"""The mechanics under a scheduler: threads that stand for CPUs, slices, wake-ups and clocks. Policy is elsewhere.

A thread asks the policy for a vCPU, runs a slice of it without the interpreter lock, and tells the policy what was
used. A guest that waits has no thread; its bell (see `_core.Bell`) or its timer makes it runnable again. One more
thread listens to the bells while all others run guests, so that who wakes can take the place of who runs.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from trapgate import exits, slices
from trapgate.errors import StateError
from trapgate.hypervisor.guest import Guest, GuestState

if TYPE_CHECKING:
    from trapgate.hypervisor.scheduler import Scheduler, VCpu

__all__ = ["Dispatcher"]

_SECOND = 1_000_000_000
#: Bounds of a slice, in nanoseconds: a policy's wrong number must neither stop everything nor take all for ever.
_LEAST, _MOST = 200_000, 100_000_000
#: How long an idle thread waits at most, in microseconds.
_PATIENCE = 500_000
#: A ring that means nobody in particular.
_NOBODY = 0


class Dispatcher:
    """Runs guests on a number of threads as a policy says. `changed` is its lock, and is notified of everything."""

    def __init__(
        self,
        policy: Scheduler,
        cpus: int,
        ended: Callable[[Guest, exits.Exit | None, BaseException | None], None],
    ) -> None:
        """`ended` is called, without the lock, when a guest's slice ended with an exit or an error."""
        from trapgate._core import Bell

        self.changed = threading.Condition(threading.RLock())
        self.policy = policy
        self.cpus = cpus
        #: What a policy raised; it ends all threads.
        self.failure: BaseException | None = None
        self._ended = ended
        self._bell = Bell()
        self._numbers = itertools.count(1)
        self._by_number: dict[int, Guest] = {}
        self._number_of: dict[Guest, int] = {}
        self._by_vcpu: dict[VCpu, Guest] = {}
        self._timers: list[tuple[int, int, Guest]] = []
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._stopping = False

    # Threads.

    @property
    def running(self) -> bool:
        """Whether guests run."""
        return bool(self._threads) and not self._stopping

    @property
    def inside(self) -> bool:
        """Whether the caller is one of these threads."""
        return threading.current_thread() in self._threads

    @staticmethod
    def runs_here(guest: Guest) -> bool:
        """Whether the calling thread is in a slice of a guest."""
        return guest._thread == threading.get_ident()

    def start(self) -> None:
        """Start the threads; a StateError if they run."""
        with self.changed:
            if self._threads:
                raise StateError("the hypervisor runs already")
            self._stopping, self.failure = False, None
            self.policy.start(self.cpus, time.monotonic_ns())
            self._threads = [self._thread(f"trapgate-cpu{n}", self._work, n) for n in range(self.cpus)]
            self._threads.append(self._thread("trapgate-bell", self._watch))
            # No time passed for them meanwhile: what their timers were set to is wrong.
            for guest in self._by_number.values():
                if guest._state is GuestState.RUNNING:
                    # It was so when its policy raised, which does not count on it any more.
                    guest._state = GuestState.BLOCKED
                self.wake(guest)
            for thread in self._threads:
                thread.start()

    def stop(self) -> None:
        """End the threads, and let all clocks stand still. Nothing happens if they do not run."""
        if self.inside:
            raise StateError("the hypervisor cannot be stopped by a thread of its own; do it by another")
        with self.changed:
            threads = self._threads
            self._stopping = True
            for guest in self._by_number.values():
                if guest._in_slice:
                    guest.vm._core.stop()
        self._bell.ring(_NOBODY)
        for thread in threads:
            thread.join()
        with self.changed:
            self._threads = []
            for guest in self._by_number.values():
                self._stop_clock(guest)
            self.changed.notify_all()

    def _thread(self, name: str, job: Callable[..., None], *arguments: int) -> threading.Thread:
        return threading.Thread(target=self._guarded, args=(job, *arguments), name=name, daemon=True)

    def _guarded(self, job: Callable[..., None], *arguments: int) -> None:
        try:
            job(*arguments)
        except BaseException as error:
            with self.changed:
                self.failure = self.failure or error
                self._stopping = True
        finally:
            with self.changed:
                self.changed.notify_all()
            # One tells the next.
            self._bell.ring(_NOBODY)

    def _watch(self) -> None:
        """Hear the bells while all CPUs are busy."""
        while not self._stopping:
            heard = self._bell.wait(_PATIENCE, watcher=True)
            with self.changed:
                self._hear(heard)

    def _work(self, cpu: int) -> None:
        """Be a CPU."""
        while True:
            with self.changed:
                if self._stopping:
                    return
                self._hear(self._bell.wait(0))
                guest, length = self._choose(cpu)
                if guest is None:
                    self._idle += 1
                elif self._idle and any(g._state is GuestState.RUNNABLE for g in self._by_number.values()):
                    self._bell.ring(_NOBODY)
            if guest is not None:
                self._run(guest, length)
                continue
            heard = self._bell.wait(length // 1000)
            with self.changed:
                self._idle -= 1
                self._hear(heard)

    def _choose(self, cpu: int) -> tuple[Guest | None, int]:
        """Give the guest to run and for how long, or None and how long there is nothing to do; in nanoseconds."""
        now = time.monotonic_ns()
        alarm = self._next_alarm(now)
        turn = self.policy.next(cpu, now)
        if turn is None:
            times = [at for at in (alarm, self.policy.due(now)) if at is not None]
            return None, max(0, min([now + _PATIENCE * 1000, *times]) - now)
        guest = self._by_vcpu[turn.vcpu]
        guest._state, guest._in_slice, guest._woken = GuestState.RUNNING, True, False
        length = turn.nanoseconds if alarm is None else min(turn.nanoseconds, alarm - now)
        return guest, min(max(length, _LEAST), _MOST)

    def _run(self, guest: Guest, length: int) -> None:
        """Run a slice of a guest and put away what came of it."""
        result, error = slices.SliceResult(), None
        guest._thread = threading.get_ident()
        started = time.thread_time_ns()
        waits = guest._waits

        def check() -> bool:
            found = [wait.check() for wait in tuple(waits)]
            return any(found)

        try:
            watches = any(wait.watches_console for wait in tuple(waits))
            result = slices.run(guest.vm, length / 1_000_000, watches_console=watches, check=check)
        except BaseException as raised:
            error = raised
        used = time.thread_time_ns() - started
        with self.changed:
            now = time.monotonic_ns()
            guest._cpu_time += used
            guest._slices += 1
            guest._in_slice, guest._thread = False, None
            self.policy.used(guest._vcpu, used, now)
            guest._state = GuestState.RUNNABLE
            over = error is not None or result.exit is not None
            if over or guest._paused or (result.blocked and not guest._woken):
                self.policy.block(guest._vcpu, now)
                guest._state = GuestState.BLOCKED
                if guest._paused:
                    self._stop_clock(guest)
                elif not over and result.wants_at is not None:
                    self._set_alarm(guest, round(result.wants_at * _SECOND))
            self.changed.notify_all()
        if over:
            self._ended(guest, result.exit, error)

    # Guests. The lock is held.

    def add(self, guest: Guest) -> None:
        """Take a new guest, or one with a new machine, and make it runnable."""
        with self.changed:
            number = self._number_of[guest] = next(self._numbers)
            self._by_number[number] = guest
            self._by_vcpu[guest._vcpu] = guest
            guest._state = GuestState.BLOCKED
            guest.vm._core.set_bell(self._bell, number)
            self.policy.add(guest._vcpu, time.monotonic_ns())
            self.wake(guest)

    def remove(self, guest: Guest) -> None:
        """Let go of a guest that does not run."""
        with self.changed:
            if (number := self._number_of.pop(guest, None)) is not None:
                del self._by_number[number], self._by_vcpu[guest._vcpu]
                self.policy.remove(guest._vcpu, time.monotonic_ns())

    def wake(self, guest: Guest) -> None:
        """Make a guest runnable, or remember that it is to be."""
        if guest._in_slice or guest._paused:
            guest._woken = True
        elif guest._state is GuestState.BLOCKED:
            guest._state = GuestState.RUNNABLE
            guest._wants_at = None
            victim = self.policy.wake(guest._vcpu, time.monotonic_ns())
            other = None if victim is None else self._by_vcpu.get(victim)
            if other is not None and other._in_slice:
                other.vm._core.stop()
            if self._idle:
                self._bell.ring(_NOBODY)

    def halt(self, guest: Guest) -> None:
        """Take a guest out of the policy's hands, and wait until no thread runs it; its clock stands still."""
        if guest._state is GuestState.RUNNABLE:
            self.policy.block(guest._vcpu, time.monotonic_ns())
            guest._state = GuestState.BLOCKED
        while guest._in_slice:
            if self.runs_here(guest):
                return
            guest.vm._core.stop()
            self.changed.wait(0.05)
        self._stop_clock(guest)

    @staticmethod
    def _stop_clock(guest: Guest) -> None:
        if (core := guest.vm._core_or_none) is not None:
            core.stop_clock()

    def _hear(self, numbers: list[int]) -> None:
        for number in numbers:
            if (guest := self._by_number.get(number)) is not None:
                self.wake(guest)

    def _set_alarm(self, guest: Guest, at: int) -> None:
        guest._wants_at = at
        heapq.heappush(self._timers, (at, next(self._numbers), guest))

    def _next_alarm(self, now: int) -> int | None:
        """Wake those whose time has come, and give the next time."""
        while self._timers:
            at, _, guest = self._timers[0]
            if guest._wants_at != at or guest._state is not GuestState.BLOCKED:
                heapq.heappop(self._timers)
            elif at <= now:
                heapq.heappop(self._timers)
                self.wake(guest)
            else:
                return at
        return None
