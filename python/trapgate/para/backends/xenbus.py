"""The life of a para-virtual device, as its back-end leads it (xen/include/public/io/xenbus.h).

Both ends have a directory in the store with a `state`, and each watches that of the other. What the guest writes
into its own directory is a claim: nothing but the numbers of its rings and port is taken from there, only when
it says that they stand, and they are checked where they are used.
"""

from __future__ import annotations

import enum
import logging
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from trapgate.errors import StateError, StoreError, TrapgateError
from trapgate.xenstore import PythonWatch, XenStore, layout
from trapgate.xenstore.editor import Editor, Value

if TYPE_CHECKING:
    from trapgate._core import Domain as CoreDomain

__all__ = ["Backend", "Offer", "RefusedError", "State"]

# Decimal, as the store has all numbers.
_NUMBER = re.compile(rb"[0-9]{1,10}")
#: Transactions are tried again when others have changed what they saw, but not for ever.
_ATTEMPTS = 100


class State(enum.IntEnum):
    """XenbusState."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


#: What is written into a back-end's directory.
Offer = Mapping[str, Value]


class RefusedError(TrapgateError):
    """The guest has written what cannot be connected; it loses the device, and nobody else hears of it."""


class Backend(ABC):
    """The back-end of one device of one guest.

    `ended` is called when the device is gone from the store. Everything may be called by any thread.
    """

    #: What kind of device it is in the store: vbd or vif.
    kind: ClassVar[str]

    def __init__(
        self,
        store: XenStore,
        native: CoreDomain,
        number: int,
        ended: Callable[[Backend], object] = lambda _backend: None,
    ) -> None:
        self._store = store
        self._native = native
        self._ended = ended
        #: The device's number in the store.
        self.number = number
        self._front = layout.frontend_path(native.domid, self.kind, number)
        self._back = layout.backend_path(native.domid, self.kind, number)
        self._lock = threading.RLock()
        self._state = State.UNKNOWN
        # The data plane's number, while the guest is connected.
        self._connection: int | None = None
        self._watch: PythonWatch | None = None
        self._wanted = True

    # What a kind of device adds.

    @abstractmethod
    def _add(self, store: Editor) -> None:
        """Write both directories."""

    @abstractmethod
    def _offer(self) -> Offer:
        """Give what the back-end can do."""

    @abstractmethod
    def _connect(self, port: int) -> tuple[int, Offer]:
        """Connect to the rings that the guest names; give the connection, and what the guest has to know then.

        Raises `StateError` or `RefusedError`.
        """

    @abstractmethod
    def _release(self) -> None:
        """Let go of what the device is made of."""

    # Life.

    @property
    def state(self) -> State:
        """The state that the guest sees."""
        return self._state

    def start(self) -> None:
        """Offer the device to the guest: in one step, so that it never sees a half of it."""

        def offer(store: Editor) -> None:
            self._add(store)
            self._put(store, {**self._offer(), "state": int(State.INIT_WAIT)})

        with self._lock:
            self._edit(offer)
            self._state = State.INIT_WAIT
            self._watch = self._store.watch(f"{self._front}/state", self._moved)

    def detach(self) -> None:
        """Ask the guest to give the device up.

        It is gone when the guest has done so, or at once if it makes no use of it.
        """
        with self._lock:
            if not self._wanted:
                return
            self._wanted = False
            idle = (State.UNKNOWN, State.INITIALISING, State.CLOSED)
            if self._front_state() in idle and self._connection is None:
                self._remove()
            else:
                self._change(State.CLOSING, {"online": 0})

    def stop(self) -> None:
        """End the device without asking the guest, which is gone."""
        with self._lock:
            self._disconnect()
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None
            self._release()

    def look(self) -> None:
        """Look whether the data plane has given the guest up."""
        with self._lock:
            if self._connection is not None and (fault := self._native.fault(self._connection)) is not None:
                self._refuse(fault)

    # What the guest does.

    def _moved(self, _path: str) -> None:
        with self._lock:
            if self._watch is None and self._state != State.INIT_WAIT:
                return
            front = self._front_state()
            if front in (State.INITIALISED, State.CONNECTED):
                if self._state == State.INIT_WAIT:
                    self._try_to_connect()
            elif front == State.INITIALISING:
                if self._state == State.CLOSED and self._wanted:
                    self._disconnect()
                    self._change(State.INIT_WAIT, self._offer())
            elif front == State.CLOSING:
                if self._state in (State.INIT_WAIT, State.CONNECTED):
                    self._change(State.CLOSING)
            elif front in (State.CLOSED, State.UNKNOWN):
                self._closed()

    def _try_to_connect(self) -> None:
        try:
            protocol = self._store.get(f"{self._front}/protocol") or b"x86_64-abi"
            if protocol != b"x86_64-abi":
                raise RefusedError(f"the guest speaks the protocol {protocol[:20]!r}")
            self._connection, offer = self._connect(self._front_number("event-channel"))
        except (RefusedError, StateError) as error:
            self._refuse(str(error))
        else:
            self._change(State.CONNECTED, offer)

    def _closed(self) -> None:
        """Give everything back, then say so: the guest looks whether its grants are free."""
        self._disconnect()
        if not self._wanted:
            self._remove()
        elif self._state != State.CLOSED:
            self._change(State.CLOSED)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._native.disconnect(connection)

    def _remove(self) -> None:
        self.stop()
        self._edit(lambda store: layout.remove_device(store, self._native.domid, self.kind, self.number))
        self._state = State.UNKNOWN
        self._ended(self)

    def _refuse(self, why: str) -> None:
        """Serve the guest no more: it has broken the rules."""
        logging.getLogger("trapgate").warning("%s of domain %d: %s", self._back, self._native.domid, why)
        self._disconnect()
        place = self._back.replace("/backend/", "/error/backend/", 1)
        self._store.write(f"{place}/error", f"22 {why}")
        self._change(State.CLOSING)

    # The store.

    def _front_state(self) -> State:
        value = self._store.get(f"{self._front}/state") or b""
        text = value.decode("ascii", "replace")
        return State(int(text)) if text in _STATES else State.UNKNOWN

    def _front_number(self, name: str) -> int:
        """Give a number of 32 bits that the guest has written."""
        value = self._store.get(f"{self._front}/{name}")
        if value is None or not _NUMBER.fullmatch(value) or int(value) >= 1 << 32:
            raise RefusedError(f"the guest's {name} is {value!r}, which is no number of 32 bits")
        return int(value)

    def _front_flag(self, name: str) -> bool:
        """Whether the guest says that it has a feature."""
        return self._store.get(f"{self._front}/{name}") == b"1"

    def _change(self, state: State, nodes: Offer | None = None) -> None:
        self._state = state
        self._edit(lambda store: self._put(store, {**(nodes or {}), "state": int(state)}))

    def _put(self, store: Editor, nodes: Offer) -> None:
        for name, value in nodes.items():
            store.write(f"{self._back}/{name}", value)

    def _edit(self, edit: Callable[[Editor], None]) -> None:
        """Make changes in one step."""
        for left in reversed(range(_ATTEMPTS)):
            try:
                with self._store.transaction() as transaction:
                    edit(transaction)
                return
            except StoreError as error:
                if error.code != "EAGAIN" or left == 0:
                    raise


_STATES = frozenset(str(int(state)) for state in State)
