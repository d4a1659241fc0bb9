"""The hypervisor: makes guests, lets them run together, and ends them.

It owns what they share: CPUs, memory, the numbers of domains, and XenStore. How they are run is the dispatcher's
matter, and who runs when the scheduler's.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from trapgate import exits
from trapgate._core import Neighbours
from trapgate.config import Machine, parse_size
from trapgate.errors import CapacityError, ConfigError, StateError
from trapgate.hypervisor import memory as memories
from trapgate.hypervisor import snapshot as snapshots
from trapgate.hypervisor.credit import CreditScheduler
from trapgate.hypervisor.dispatcher import Dispatcher
from trapgate.hypervisor.guest import Event, Guest, GuestState, Happening
from trapgate.hypervisor.memory import MemoryUse
from trapgate.hypervisor.permissions import Admission, Enforcement, Permissions
from trapgate.hypervisor.scheduler import DEFAULT_WEIGHT, Scheduler, VCpu
from trapgate.hypervisor.waits import Outcome, Wait
from trapgate.xenstore import XenStore
from trapgate.xenstore.nodes import DOMAIN_MAX, home

if TYPE_CHECKING:
    from trapgate.goal import Goal
    from trapgate.vm import VM

__all__ = ["Hypervisor"]

#: How often who waits looks at clocks and signals, in seconds.
_LOOK = 0.02
_MOST_CPUS = 1024


class Hypervisor:
    """Several guests in one process. Any thread may call; as a context manager it destroys them at the end.

    `store` is the XenStore of its para-virtual guests, `cpus` how many threads run guests (by default the host's
    CPUs), `scheduler` a policy (by default a `CreditScheduler`), `memory` what all guests together may have, in
    bytes or as "2G" (by default no limit), and `admission` a policy that is asked before a guest is made.
    """

    def __init__(
        self,
        store: XenStore | None = None,
        cpus: int | None = None,
        scheduler: Scheduler | None = None,
        memory: int | str | None = None,
        admission: Admission | None = None,
    ) -> None:
        if cpus is None:
            cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if isinstance(cpus, bool) or not isinstance(cpus, int) or not 1 <= cpus <= _MOST_CPUS:
            raise ConfigError(f"cpus is {cpus!r}; it must be a whole number of 1 to {_MOST_CPUS}")
        # Who may have event channels to whom is a matter of each guest's permissions.
        self._neighbours = Neighbours()
        #: The store that para-virtual guests share.
        self.store = XenStore() if store is None else store
        #: The policy that says who runs.
        self.scheduler: Scheduler = CreditScheduler() if scheduler is None else scheduler
        #: The policy that says who is let in.
        self.admission = admission
        #: Called with each `Event`, by the thread that made it happen. What they raise goes to the log.
        self.listeners: list[Callable[[Event], object]] = []
        self._total = None if memory is None else parse_size(memory, "memory")
        self._dispatcher = Dispatcher(self.scheduler, cpus, self._slice_ended)
        self._changed = self._dispatcher.changed
        self._guests: dict[str, Guest] = {}
        # Names, numbers and memory of guests that are being made.
        self._coming: dict[str, tuple[int, int]] = {}
        self._last_domid = 0
        self._closed = False

    # Life.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and destroy all guests; once is enough."""
        self._dispatcher.stop()
        for guest in self.list():
            self.destroy(guest)
        self._closed = True

    @property
    def cpus(self) -> int:
        """How many threads run guests."""
        return self._dispatcher.cpus

    @property
    def running(self) -> bool:
        """Whether guests run."""
        return self._dispatcher.running

    @property
    def memory(self) -> MemoryUse:
        """What memory there is for guests, and what of it is theirs."""
        with self._changed:
            return MemoryUse(total=self._total, reserved=sum(self._reserved()))

    # Guests.

    def create(
        self,
        config: Machine,
        *,
        name: str | None = None,
        weight: int = DEFAULT_WEIGHT,
        cap: int = 0,
        memory_target: int | str | None = None,
        permissions: Permissions | None = None,
        restart: bool = False,
        paused: bool = False,
        domid: int | None = None,
    ) -> Guest:
        """Make a guest; it runs when the hypervisor does.

        `weight` (1 to 65535) and `cap` (percent of one CPU, 0 for none) are its share of CPU time; `memory_target`
        is what its balloon is to bring it to; with `restart`, a guest that asks for a reset starts over; `paused`
        waits for `resume`; `domid` asks for a number. Raises `ConfigError` for wrong values, `CapacityError` if
        memory or numbers have run out, and what the admission policy raises.
        """
        target = config.memory_bytes if memory_target is None else parse_size(memory_target, "memory_target")
        memories.check_target(config, target)
        vcpu = VCpu(name or "", 0, weight, cap)
        asked = Permissions() if permissions is None else permissions
        name, vcpu.domid = self._reserve(name, domid, max(config.memory_bytes, target))
        vcpu.name = name
        try:
            granted = asked if self.admission is None else self.admission.admit(name, config, asked)
            vm = self._make(config, vcpu)
            try:
                Enforcement.check(vm, granted)
                guest = Guest(self, name, vm, vcpu, target, restart=restart)
                guest.permissions = granted
            except BaseException:
                vm.close()
                raise
        except BaseException:
            with self._changed:
                del self._coming[name]
            raise
        with self._changed:
            del self._coming[name]
            self._guests[name] = guest
            guest._paused = paused
            self._dispatcher.add(guest)
        self._tell(Happening.CREATED, guest)
        return guest

    def list(self) -> list[Guest]:
        """Give all guests that are not destroyed, in the order they were made."""
        with self._changed:
            return list(self._guests.values())

    def get(self, which: str | int) -> Guest:
        """Give the guest of a name or a domain's number; raises KeyError."""
        with self._changed:
            for guest in self._guests.values():
                if which in (guest.name, guest.domid):
                    return guest
        raise KeyError(f"there is no guest {which!r}")

    def pause(self, guest: Guest) -> None:
        """Let a guest run no more until `resume`; its clock stands still. Returns when it does not run."""
        with self._changed:
            self._check_alive(guest)
            if guest._paused:
                return
            guest._paused = True
            self._dispatcher.halt(guest)
            self._changed.notify_all()
        self._tell(Happening.PAUSED, guest)

    def resume(self, guest: Guest) -> None:
        """Let a paused guest run on."""
        with self._changed:
            self._check_alive(guest)
            if not guest._paused:
                return
            guest._paused = False
            self._dispatcher.wake(guest)
            self._changed.notify_all()
        self._tell(Happening.RESUMED, guest)

    def destroy(self, guest: Guest) -> None:
        """End a guest at once, whatever it does, and give back its memory and its number; once is enough.

        Raises `StateError` if a hook or a handler of the guest itself calls.
        """
        with self._changed:
            if self._dispatcher.runs_here(guest):
                raise StateError("a guest cannot be destroyed from within its own run; pause it instead")
            while guest._restarting:
                self._changed.wait()
            if guest._state is GuestState.DESTROYED:
                return
            guest._paused = True
            self._dispatcher.halt(guest)
            self._dispatcher.remove(guest)
            guest._state = GuestState.DESTROYED
            for wait in guest._waits:
                wait.stop()
        # The machine's end runs code of others (watches of XenStore): the lock is not held.
        guest.vm.close()
        with self._changed:
            self._guests.pop(guest.name, None)
            self._changed.notify_all()
        self._tell(Happening.DESTROYED, guest)

    def set_memory(self, guest: Guest, target: int | str) -> None:
        """Let a para-virtual guest have `target` bytes of memory: its balloon gives back or takes the difference.

        More must be free now; less is free when the guest has given it back, which `guest.memory` shows. Raises
        `CapacityError`, `ConfigError` for what cannot be, and `StateError` for a full guest.
        """
        size = parse_size(target, "target")
        with self._changed:
            self._check_alive(guest)
            if guest.config.mode == "para":
                memories.check_target(guest.config, size)
            else:
                memories.check_target(guest.config, -1)
            more = size - guest._balloon.reserved
            memories.require(more, self._total, self._reserved(), f"{guest.name!r}")
            guest._balloon.set(size)

    def snapshot(self, before: snapshots.Snapshot | None = None) -> snapshots.Snapshot:
        """Give what all guests do now; rates are since `before`, or since each guest was made."""
        with self._changed:
            now = time.monotonic()
            return snapshots.Snapshot(
                time=now,
                running=self.running,
                cpus=self.cpus,
                memory_total=self._total,
                memory_reserved=sum(self._reserved()),
                guests=tuple(snapshots.of_guest(guest, now, before) for guest in self._guests.values()),
            )

    # Running.

    def start(self) -> None:
        """Let guests run, on threads of the hypervisor's own, until `stop`."""
        if self._closed:
            raise StateError("the hypervisor is closed")
        self._dispatcher.start()

    def stop(self) -> None:
        """Let no guest run any more, and all their clocks stand still, until `start` or `run`."""
        self._dispatcher.stop()

    def run(
        self, *, until: Callable[[Hypervisor], bool] | None = None, timeout: float | None = None
    ) -> Outcome:
        """Let guests run until a condition is true, no guest can run on, or seconds of the host's time are over.

        Ctrl-C raises KeyboardInterrupt; nothing runs afterwards, unless it was started before.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._started():
            while True:
                if until is not None and until(self):
                    return Outcome.SATISFIED
                with self._changed:
                    self._check_failure()
                    if not any(self._can_run(g) for g in self._guests.values()):
                        return Outcome.ENDED
                    if not self.running:
                        return Outcome.STOPPED
                    left = _LOOK if end is None else min(_LOOK, end - time.monotonic())
                    if left <= 0:
                        return Outcome.TIMED_OUT
                    self._changed.wait(left)

    @contextmanager
    def _started(self) -> Iterator[None]:
        """Let guests run for the length of the block."""
        if self._dispatcher.inside:
            raise StateError("a thread that runs guests cannot wait for them; do it by another")
        if self.running:
            yield
            return
        self.start()
        try:
            yield
        finally:
            self.stop()

    def _wait_for(
        self, guest: Guest, goal: Goal, timeout: float | None, host_timeout: float | None
    ) -> exits.Exit:
        """Serve `VM.run` of a guest's machine: wait while all run."""
        with self._changed:
            guest._check_there()
            if guest.exit is not None:
                raise StateError(f"the guest {guest.name!r} cannot run on after {guest.exit.kind}")
            self._check_alive(guest)
            if guest._paused:
                raise StateError(f"the guest {guest.name!r} is paused; resume it first")
            wait = Wait(guest.vm, goal, timeout, host_timeout)
            # Otherwise whoever runs it looks, at the end of its slice.
            if not guest._in_slice:
                wait.check()
            guest._waits.append(wait)
        try:
            with self._started(), self._changed:
                while not wait.done:
                    self._check_failure()
                    wait.check_time()
                    if not wait.done:
                        self._changed.wait(_LOOK)
        finally:
            with self._changed:
                guest._waits.remove(wait)
        if wait.error is not None:
            raise wait.error
        assert wait.result is not None
        return wait.result

    def _stop_waits(self, guest: Guest) -> None:
        with self._changed:
            for wait in guest._waits:
                wait.stop()
            self._changed.notify_all()

    # What guests do.

    def _slice_ended(self, guest: Guest, result: exits.Exit | None, error: BaseException | None) -> None:
        """Take what a slice ended with; by the thread that ran it."""
        if error is not None:
            self._crash(guest, None, error)
        elif isinstance(result, exits.Reset) and guest.restart:
            self._restart(guest, result)
        elif isinstance(result, exits.Halted):
            self._end(guest, result, GuestState.BLOCKED, Happening.HALTED)
        elif isinstance(result, (exits.Shutdown, exits.Reset, exits.DebugExit, exits.Suspended)):
            self._end(guest, result, GuestState.SHUTDOWN, Happening.SHUTDOWN)
        elif result is not None:
            self._crash(guest, result, None)

    def _end(self, guest: Guest, result: exits.Exit, state: GuestState, kind: Happening) -> None:
        with self._changed:
            guest.exit = result
            if guest._state is not GuestState.DESTROYED:
                guest._state = state
            for wait in guest._waits:
                wait.tell(result)
            self._changed.notify_all()
        self._tell(kind, guest, exit=result)

    def _crash(self, guest: Guest, result: exits.Exit | None, error: BaseException | None) -> None:
        with self._changed:
            guest.exit, guest.error = result, error
            heard = bool(guest._waits)
            if guest._state is not GuestState.DESTROYED:
                guest._state = GuestState.CRASHED
            for wait in guest._waits:
                if error is not None:
                    wait.fail(error)
                elif result is not None:
                    wait.tell(result)
            self._changed.notify_all()
        if error is not None and not heard:
            _log().error("the guest %r ended by an error of its handlers", guest.name, exc_info=error)
        self._tell(Happening.CRASHED, guest, exit=result, error=error)

    def _restart(self, guest: Guest, result: exits.Exit) -> None:
        """Give a guest that asked for a reset a new machine."""
        with self._changed:
            if guest._state is GuestState.DESTROYED:
                return
            guest._restarting = True
            guest._state = GuestState.SHUTDOWN
            for wait in guest._waits:
                wait.tell(result)
            self._dispatcher.remove(guest)
        listeners = guest.console.listeners
        try:
            guest.vm.close()
            vm = self._make(guest.config, guest._vcpu)
            vm.console.listeners.extend(listeners)
            with self._changed:
                guest._set_vm(vm, guest.memory_target)
                guest._enforcement.apply(guest._permissions)
                self._dispatcher.add(guest)
        except Exception as error:
            self._crash(guest, result, error)
            return
        finally:
            with self._changed:
                guest._restarting = False
                self._changed.notify_all()
        self._tell(Happening.RESTARTED, guest, exit=result)

    def _tell(
        self,
        kind: Happening,
        guest: Guest,
        *,
        exit: exits.Exit | None = None,  # noqa: A002
        error: BaseException | None = None,
    ) -> None:
        event = Event(kind=kind, guest=guest, exit=exit, error=error)
        for listener in tuple(self.listeners):
            try:
                listener(event)
            except Exception:
                _log().exception("a listener of the hypervisor raised for %s of %r", kind.value, guest.name)

    # What they share.

    def _make(self, config: Machine, vcpu: VCpu) -> VM:
        from trapgate.vm import VM

        vm = VM(config, store=self.store, domid=vcpu.domid, name=vcpu.name)
        if config.mode == "para":
            vm.domain._native.join(self._neighbours)
        return vm

    def _reserve(self, name: str | None, domid: int | None, memory: int) -> tuple[str, int]:
        """Take a name, a number and memory for a guest that is to be made."""
        with self._changed:
            if self._closed:
                raise StateError("the hypervisor is closed")
            number = self._free_domid() if domid is None else domid
            if domid is not None and not self._is_free(domid):
                raise ConfigError(f"there is a domain of number {domid}")
            given = f"guest-{number}" if name is None else name
            if not given or not given.isprintable():
                raise ConfigError(f"the name is {given!r}; it must be printable text")
            if given in self._guests or given in self._coming:
                raise ConfigError(f"there is a guest {given!r}; names must differ")
            memories.require(memory, self._total, self._reserved(), f"{given!r}")
            self._coming[given] = (number, memory)
            if domid is None:
                self._last_domid = number
            return given, number

    def _free_domid(self) -> int:
        """Give the number after the last one that is free: one that was used is not used again soon."""
        for step in range(DOMAIN_MAX):
            domid = (self._last_domid + step) % DOMAIN_MAX + 1
            if self._is_free(domid):
                return domid
        raise CapacityError("all numbers of domains are in use; destroy a guest")

    def _is_free(self, domid: int) -> bool:
        """Whether nobody has a number, and nothing in the store is left of who had it."""
        used = {guest.domid for guest in self._guests.values()} | {n for n, _ in self._coming.values()}
        return (
            isinstance(domid, int)
            and 1 <= domid <= DOMAIN_MAX
            and domid not in used
            and not self.store.introduced(domid)
            and not self.store.exists(home(domid))
        )

    def _reserved(self) -> Iterator[int]:
        for guest in self._guests.values():
            yield guest._balloon.reserved
        for _, memory in self._coming.values():
            yield memory

    @staticmethod
    def _can_run(guest: Guest) -> bool:
        return guest._restarting or (guest.alive and guest.exit is None)

    @staticmethod
    def _check_alive(guest: Guest) -> None:
        if not guest.alive:
            raise StateError(f"the guest {guest.name!r} is {guest.state.value}")

    def _check_failure(self) -> None:
        if self._dispatcher.failure is not None:
            raise self._dispatcher.failure

    def __repr__(self) -> str:
        return f"<Hypervisor {'running' if self.running else 'stopped'} guests={len(self._guests)}>"


def _log() -> logging.Logger:
    return logging.getLogger("trapgate")
