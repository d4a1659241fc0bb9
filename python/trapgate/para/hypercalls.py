"""The hypercall table of a para-virtual guest: a row for each number, which can be looked at and changed at any time.

A row is served by a native handler, by a Python function, or by an error number. Native ones never enter Python;
a function sees typed arguments, reads and writes guest memory, and may make the native call itself.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from trapgate.errors import ConfigError, StateError

if TYPE_CHECKING:
    from trapgate._core import Core
    from trapgate._core import Domain as CoreDomain
    from trapgate.memory import Memory
    from trapgate.vm import VM

__all__ = ["Call", "Handler", "Hypercall", "HypercallStats", "Hypercalls"]

_MASK = (1 << 64) - 1

#: What the arguments of each call are called, after Xen's headers; the others are "arg0" and so on.
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "set_trap_table": ("traps",),
    "mmu_update": ("requests", "count", "done", "domain"),
    "set_gdt": ("frames", "entries"),
    "stack_switch": ("ss", "sp"),
    "set_callbacks": ("event", "failsafe", "syscall"),
    "fpu_taskswitch": ("set",),
    "set_debugreg": ("register", "value"),
    "get_debugreg": ("register",),
    "update_descriptor": ("address", "descriptor"),
    "memory_op": ("command", "argument"),
    "multicall": ("calls", "count"),
    "update_va_mapping": ("va", "entry", "flags"),
    "set_timer_op": ("timeout",),
    "xen_version": ("command", "argument"),
    "console_io": ("command", "count", "buffer"),
    "grant_table_op": ("command", "argument", "count"),
    "vm_assist": ("command", "kind"),
    "iret": (),
    "vcpu_op": ("command", "vcpu", "argument"),
    "set_segment_base": ("which", "base"),
    "mmuext_op": ("operations", "count", "done", "domain"),
    "nmi_op": ("command", "argument"),
    "sched_op": ("command", "argument"),
    "callback_op": ("command", "argument"),
    "event_channel_op": ("command", "argument"),
    "physdev_op": ("command", "argument"),
}


class Call:
    """A hypercall as its Python handler sees it.

    Arguments have the names of Xen's headers (`call.command`), or are taken by number from `args`; each is an
    unsigned number of 64 bits. `memory` is the guest's memory at its linear addresses.
    """

    def __init__(self, vm: VM, number: int, name: str, args: tuple[int, ...]) -> None:
        self.vm = vm
        #: The call's number and its name in Xen's headers.
        self.number = number
        self.name = name
        self.args = args
        self._made: int | None = None
        self._done = False

    @property
    def memory(self) -> Memory:
        """Memory of the guest."""
        return self.vm.mem

    @property
    def arguments(self) -> dict[str, int]:
        """The arguments by name; those that the call does not have are left out."""
        return dict(zip(_ARGUMENTS.get(self.name, ()), self.args, strict=False))

    def native(self, *args: int) -> int:
        """Make the call by its native handler, with these arguments or the guest's own, and give its result.

        For a call that does not return to its caller (iret) the result means nothing, and the handler has to give
        it back as it is.
        """
        given = (*(args or self.args), 0, 0, 0, 0, 0)[:5]
        result = self.vm._core.native_hypercall(self.number, [value & _MASK for value in given])
        self._done = result is None
        return 0 if result is None else _signed(result)

    def __getattr__(self, name: str) -> int:
        names = _ARGUMENTS.get(self.__dict__.get("name", ""), ())
        if name in names:
            return self.args[names.index(name)]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value:#x}" for name, value in self.arguments.items())
        return f"<Call {self.name}({inside})>"


#: A function that serves a hypercall: it gives the result, a negative one being an error number; None is 0.
Handler: TypeAlias = Callable[[Call], "int | None"]


@dataclass(frozen=True, kw_only=True)
class HypercallStats:
    """What was seen of a hypercall."""

    number: int
    name: str
    #: Who serves it now: "native", "python" or "error".
    handler: str
    calls: int
    #: Nanoseconds in native handlers, estimated from a sample of the calls.
    nanoseconds: int


class Hypercall:
    """A row of the table."""

    def __init__(self, table: Hypercalls, number: int, name: str, errno: int | None) -> None:
        self._table = table
        #: Number, and name in Xen's headers.
        self.number = number
        self.name = name
        self._first_errno = errno
        self._handler: Handler | None = None
        #: The error number that calls get, if they do.
        self.errno = errno
        self._watchers: list[Callable[[Call, int], object]] = []

    @property
    def handler(self) -> str:
        """Who serves it now: "native", "python" or "error"."""
        if self._handler is not None:
            return "python"
        return "native" if self.errno is None else "error"

    def replace(self, handler: Handler) -> None:
        """Let a Python function serve the call from now on, whatever served it before."""
        self._handler, self.errno = handler, None
        self._apply()

    def wrap(self, wrapper: Callable[[Call, Handler], int | None]) -> None:
        """Let a function serve the call that is given what served it before, and may call that.

        >>> table["sched_op"].wrap(lambda call, before: before(call))  # doctest: +SKIP
        """
        before = self._serve()

        def wrapped(call: Call) -> int | None:
            return wrapper(call, before)

        self.replace(wrapped)

    def forbid(self, errno: int = errnos.EPERM) -> None:
        """Let each call end with an error number (positive, as in `errno`)."""
        if not 0 < errno < 4096:
            raise ConfigError(f"{errno} is no error number")
        self._handler, self.errno = None, errno
        self._apply()

    def restore(self) -> None:
        """Undo `replace`, `wrap` and `forbid`: the call is served as it was at first."""
        self._handler, self.errno = None, self._first_errno
        self._apply()

    def trace(self, watcher: Callable[[Call, int], object]) -> Callable[[], None]:
        """Have a function called with each call and its result; give what ends that.

        While it lasts, the calls go through Python.
        """
        self._watchers.append(watcher)
        self._apply()

        def end() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)
                self._apply()

        return end

    @property
    def calls(self) -> int:
        """Calls so far."""
        return self._table.stats()[self.name].calls

    def _serve(self) -> Handler:
        """Give what serves the call now, as a function."""
        if self._handler is not None:
            return self._handler
        if self.errno is not None:
            code = -self.errno
            return lambda call: code
        return lambda call: call.native()

    def _apply(self) -> None:
        if self._handler is not None or self._watchers:
            self._table._set(self.number, "outside", 0)
        elif self.errno is not None:
            self._table._set(self.number, "errno", self.errno)
        else:
            self._table._set(self.number, "native", 0)

    def _run(self, call: Call) -> int:
        result = self._serve()(call)
        value = 0 if result is None else result
        for watcher in tuple(self._watchers):
            watcher(call, value)
        return value

    def __repr__(self) -> str:
        return f"<Hypercall {self.number} {self.name}: {self.handler}>"


class Hypercalls(Mapping[str, Hypercall]):
    """The table: rows by name, and by number with `by_number`.

    What is changed takes effect at the guest's next call, also while it runs, by any thread. An exception in a
    Python handler ends the run and comes out of `VM.run`; the call is made again when the guest is run on.
    """

    def __init__(self, vm: VM, domain: CoreDomain) -> None:
        self._vm = vm
        self._domain_or_none: CoreDomain | None = domain
        self._rows: dict[str, Hypercall] = {}
        for number, name, kind, errno, _, _ in domain.hypercalls():
            self._rows[name] = Hypercall(self, number, name, errno if kind == "errno" else None)
        self._by_number = {row.number: row for row in self._rows.values()}
        self._waiting: tuple[int, tuple[int, ...], int | None] | None = None

    @property
    def _domain(self) -> CoreDomain:
        if self._domain_or_none is None:
            raise StateError("the machine is closed")
        return self._domain_or_none

    def _release(self) -> None:
        """Let go of the domain, which holds the guest's memory."""
        self._domain_or_none = None

    def __getitem__(self, name: str) -> Hypercall:
        try:
            return self._rows[name]
        except KeyError:
            raise KeyError(f"there is no hypercall {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def by_number(self, number: int) -> Hypercall:
        """Give the row of a number; raises KeyError."""
        return self._by_number[number]

    def stats(self) -> dict[str, HypercallStats]:
        """Give what was seen of each call so far."""
        return {
            name: HypercallStats(
                number=number,
                name=name,
                handler=self._rows[name].handler,
                calls=calls,
                nanoseconds=nanoseconds,
            )
            for number, name, _, _, calls, nanoseconds in self._domain.hypercalls()
        }

    @property
    def unknown(self) -> int:
        """Calls with numbers that have no row; they get ENOSYS."""
        return self._domain.counters()[0]

    def _set(self, number: int, kind: str, errno: int) -> None:
        self._domain.set_hypercall(number, kind, errno)

    def _dispatch(self, core: Core) -> None:
        """Serve the call that waits, if one does."""
        waiting = self._waiting or core.take_hypercall()
        if waiting is None:
            return
        # Should the handler raise, the call is served when the guest runs on.
        self._waiting = waiting
        number, args, result_at = waiting
        row = self._by_number[number]
        call = Call(self._vm, number, row.name, tuple(args))
        value = row._run(call)
        self._waiting = None
        if not call._done:
            core.finish_hypercall(result_at, value & _MASK)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
