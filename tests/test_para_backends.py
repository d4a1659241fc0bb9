"""The life of a back-end by itself: a guest that is only its entries in the store, and a data plane that is a list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapgate import Disk, Nic
from trapgate.errors import StateError
from trapgate.para.backends import Backend, BlockBackend, NetBackend, State
from trapgate.xenstore import XenStore, layout

_FRONT = "/local/domain/7/device/vbd/51712"
_BACK = "/local/domain/0/backend/vbd/7/51712"


class _Native:
    """A data plane in which everything can be connected whose ring is not 13."""

    domid = 7

    def __init__(self) -> None:
        self.connected: dict[int, int] = {}
        self.faults: dict[int, str] = {}
        self._next = 100

    def connect_block(self, port: int, ring: int, _disk: object) -> int:
        if ring == 13:
            raise StateError("no such ring")
        self._next += 1
        self.connected[self._next] = port
        return self._next

    def connect_net(self, port: int, tx: int, _rx: int, _scatter: bool, _plug: object) -> int:
        return self.connect_block(port, tx, None)

    def disconnect(self, number: int) -> None:
        del self.connected[number]

    def fault(self, number: int) -> str | None:
        return self.faults.get(number)


class _Guest:
    def __init__(self, backend: type[Backend] = BlockBackend) -> None:
        self.store = XenStore()
        self.native = _Native()
        self.ended: list[Backend] = []
        native = cast("Any", self.native)
        image = cast("Any", SimpleNamespace(size=1 << 20))
        self.backend: Backend
        if backend is BlockBackend:
            self.backend = BlockBackend(self.store, native, Disk("a"), image, self.ended.append)
        else:
            self.backend = NetBackend(self.store, native, 0, Nic(), "00:16:3e:00:00:01", self.ended.append)

    def say(self, state: int, **nodes: object) -> int:
        """Write what a guest writes and give the state that answers it."""
        for name, value in nodes.items():
            self.store.write(f"{_FRONT}/{name.replace('_', '-')}", str(value))
        self.store.write(f"{_FRONT}/state", state)
        return int(self.store.read(f"{_BACK}/state"))


@contextmanager
def _heard(store: XenStore, path: str) -> Iterator[list[bytes | None]]:
    """List what a node was, one after the other."""
    values: list[bytes | None] = []
    with store.watch(path, lambda _path: values.append(store.get(path))):
        yield values


def test_a_disk_is_offered_in_one_step() -> None:
    guest = _Guest()
    with _heard(guest.store, f"{_BACK}/state") as states, _heard(guest.store, f"{_FRONT}/state") as fronts:
        guest.backend.start()
    assert (states, fronts) == ([None, b"2"], [None, b"1"])
    read = guest.store.read
    assert read(f"{_BACK}/feature-flush-cache") == read(f"{_BACK}/feature-discard") == b"1"
    assert guest.store.get(f"{_BACK}/feature-persistent") is None


def test_a_guest_connects_as_often_as_it_likes() -> None:
    guest = _Guest()
    guest.backend.start()
    for port in (5, 6, 5):
        with _heard(guest.store, f"{_BACK}/state") as states:
            assert guest.say(3, ring_ref=8, event_channel=port) == 4
        # From 2 to 4 there is nothing between.
        assert states == [b"2", b"4"]
        assert [*guest.native.connected.values()] == [port]
        assert guest.store.read(f"{_BACK}/sectors") == b"2048"
        assert guest.say(4) == 4
        assert guest.say(5) == 5
        assert guest.say(6) == 6
        assert guest.native.connected == {}
        # As GRUB does: what is not read yet may be anything.
        assert guest.say(1, ring_ref="", event_channel="") == 2
    assert guest.ended == []


def test_a_fault_of_the_rings_ends_the_connection() -> None:
    guest = _Guest()
    guest.backend.start()
    guest.say(3, ring_ref=8, event_channel=5)
    guest.backend.look()
    assert guest.backend.state is State.CONNECTED
    (connection,) = guest.native.connected
    guest.native.faults[connection] = "wild"
    guest.backend.look()
    assert guest.native.connected == {}
    assert guest.store.read("/local/domain/0/error/backend/vbd/7/51712/error") == b"22 wild"
    assert (guest.backend.state, guest.say(6), guest.say(1)) == (State.CLOSING, 6, 2)


def test_a_disk_is_gone_when_the_guest_has_let_go() -> None:
    guest = _Guest()
    guest.backend.start()
    guest.say(3, ring_ref=8, event_channel=5)
    guest.backend.detach()
    guest.backend.detach()
    assert guest.store.read(f"{_BACK}/online") == b"0"
    assert guest.say(5) == 5
    assert guest.ended == []
    guest.store.write(f"{_FRONT}/state", 6)
    assert (guest.ended, guest.native.connected) == ([guest.backend], {})
    assert not guest.store.exists(_FRONT)
    assert not guest.store.exists(_BACK)


@pytest.mark.parametrize("state", [1, 6])
def test_a_disk_that_is_not_in_use_is_gone_at_once(state: int) -> None:
    guest = _Guest()
    guest.backend.start()
    guest.say(state)
    guest.backend.detach()
    assert guest.ended == [guest.backend]
    assert not guest.store.exists(_BACK)


def test_a_guest_that_removes_its_entries_is_disconnected() -> None:
    guest = _Guest()
    guest.backend.start()
    guest.say(3, ring_ref=8, event_channel=5)
    guest.store.rm(_FRONT)
    assert (guest.native.connected, guest.store.read(f"{_BACK}/state")) == ({}, b"6")


def test_interfaces_connect_at_state_4() -> None:
    guest = _Guest(NetBackend)
    guest.backend.start()
    front, back = layout.frontend_path(7, "vif", 0), layout.backend_path(7, "vif", 0)
    nodes = {"tx-ring-ref": 8, "rx-ring-ref": 9, "event-channel": 5, "request-rx-copy": 1, "feature-sg": 1}
    for name, value in nodes.items():
        guest.store.write(f"{front}/{name}", value)
    guest.store.write(f"{front}/state", 4)
    assert guest.store.read(f"{back}/state") == b"4"
    assert [*guest.native.connected.values()] == [5]


_NODES = st.dictionaries(
    st.sampled_from(["ring_ref", "event_channel", "protocol", "backend", "online"]),
    st.sampled_from(
        ["", "8", "13", "-1", "4294967296", "x86_64-abi", "x86_32-abi", "/local/domain/0", "\x00"]
    ),
)


@given(st.lists(st.tuples(st.one_of(st.integers(0, 9), st.sampled_from(["", "a", "07", "99999"])), _NODES)))
def test_nothing_that_a_guest_writes_confuses_it(steps: list[tuple[int | str, dict[str, str]]]) -> None:
    guest = _Guest()
    guest.backend.start()
    for state, nodes in steps:
        for name, value in nodes.items():
            guest.store.write(f"{_FRONT}/{name.replace('_', '-')}", value)
        guest.store.write(f"{_FRONT}/state", state)
        shown = int(guest.store.read(f"{_BACK}/state"))
        assert shown == guest.backend.state
        assert shown in (2, 4, 5, 6)
        # There is a connection whenever the guest is told so, and at most until it has closed.
        assert len(guest.native.connected) == 1 if shown == 4 else len(guest.native.connected) <= (shown == 5)
    # It gets its disk by the rules whatever was before.
    guest.say(6)
    guest.say(1)
    assert guest.say(3, ring_ref=8, event_channel=5, protocol="x86_64-abi") == 4
    guest.backend.stop()
    assert guest.native.connected == {}
