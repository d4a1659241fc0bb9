"""XenStore's transactions: unseen until the end, all or nothing, and tried again when somebody interferes."""

from __future__ import annotations

import pytest

import store_guest as xs
from store_guest import Guest
from trapgate.errors import StateError, StoreError
from trapgate.xenstore import XenStore
from trapgate.xenstore.layout import Domain, add_domain

UUID = "00000000-0000-0000-0000-00000000000"
HOME = "/local/domain/1"


@pytest.fixture
def store() -> XenStore:
    store = XenStore()
    add_domain(store, Domain(domid=1, name="guest", uuid=f"{UUID}1", memory=1024))
    store.write(f"{HOME}/data/x", "old")
    return store


@pytest.fixture
def guest(store: XenStore) -> Guest:
    return Guest(store)


def start(guest: Guest) -> int:
    text = guest.ask(xs.START, "|")
    number = int(text.removesuffix("|"))
    assert text == f"{number}|"
    assert number > 0
    return number


def test_changes_are_seen_inside_at_once_and_outside_at_the_end(store: XenStore, guest: Guest) -> None:
    t = start(guest)
    assert guest.ask(xs.WRITE, "data/x|new", t) == "OK|"
    assert guest.ask(xs.WRITE, "data/y/z|1", t) == "OK|"
    assert guest.ask(xs.READ, "data/x|", t) == "new"
    assert guest.ask(xs.DIRECTORY, "data|", t) == "x|y|"
    assert guest.ask(xs.READ, "data/x|") == "old"
    assert guest.ask(xs.DIRECTORY, "data|") == "x|"
    assert guest.ask(xs.END, "T|", t) == "OK|"
    assert store.read(f"{HOME}/data/x") == b"new"
    assert guest.ask(xs.READ, "data/y/z|") == "1"
    assert guest.ask(xs.READ, "data/x|", t) == "ENOENT", "the transaction is over"
    assert guest.ask(xs.END, "T|", t) == "ENOENT"


def test_a_transaction_can_be_given_up(store: XenStore, guest: Guest) -> None:
    usage = store.usage(1)
    t = start(guest)
    guest.ask(xs.WRITE, "data/new|1", t)
    assert guest.ask(xs.RM, "data/x|", t) == "OK|"
    assert guest.ask(xs.READ, "data/x|", t) == "ENOENT"
    assert guest.ask(xs.END, "F|", t) == "OK|"
    assert guest.ask(xs.DIRECTORY, "data|") == "x|"
    assert store.usage(1) == usage


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ((xs.READ, "data/x|"), "write"),
        ((xs.READ, "data/x|"), "rm"),
        ((xs.READ, "data/x|"), "set_permissions"),
        ((xs.WRITE, "data/x|mine"), "write"),
        ((xs.READ, "data/none|"), "create"),
        ((xs.WRITE, "data/none|"), "create"),
        ((xs.DIRECTORY, "data|"), "create"),
        ((xs.RM, "data|"), "write"),
    ],
)
def test_interference_fails_the_end(
    store: XenStore, guest: Guest, inside: tuple[int, str], outside: str
) -> None:
    t = start(guest)
    guest.ask(*inside, t)
    guest.ask(xs.WRITE, "data/other|1", t)
    path = f"{HOME}/data/x"
    {
        "write": lambda: store.write(path, "old"),
        "rm": lambda: store.rm(path),
        "set_permissions": lambda: store.set_permissions(path, "n1,r0"),
        "create": lambda: store.write(f"{HOME}/data/none", ""),
    }[outside]()
    usage = store.usage(1)
    assert guest.ask(xs.END, "T|", t) == "EAGAIN"
    assert not store.exists(f"{HOME}/data/other")
    assert store.usage(1).nodes == usage.nodes
    assert store.usage(1).memory < usage.memory
    # Tried again it works.
    t = start(guest)
    guest.ask(*inside, t)
    assert guest.ask(xs.END, "T|", t) == "OK|"


def test_what_was_not_looked_at_does_not_matter(store: XenStore, guest: Guest) -> None:
    t = start(guest)
    guest.ask(xs.WRITE, "data/x|mine", t)
    store.write(f"{HOME}/memory/target", 7)
    store.write(f"{HOME}/data", 7)
    assert guest.ask(xs.END, "T|", t) == "OK|"


def test_two_transactions_of_one_guest(guest: Guest) -> None:
    one, two = start(guest), start(guest)
    assert one != two
    assert guest.ask(xs.READ, "data/x|", one) == "old"
    assert guest.ask(xs.WRITE, "data/x|two", two) == "OK|"
    assert guest.ask(xs.END, "T|", two) == "OK|"
    assert guest.ask(xs.READ, "data/x|", one) == "old"
    assert guest.ask(xs.END, "T|", one) == "EAGAIN"


def test_a_node_that_vanishes_outside_does_no_harm_inside(store: XenStore, guest: Guest) -> None:
    """A transaction that is bound to fail may have seen parts of different stores."""
    store.write(f"{HOME}/data/dir/child/leaf", "1")
    t = start(guest)
    assert guest.ask(xs.DIRECTORY, "data/dir|", t) == "child|"
    store.rm(f"{HOME}/data/dir/child")
    assert guest.ask(xs.RM, "data/dir|", t) == "OK|"
    assert guest.ask(xs.END, "T|", t) == "EAGAIN"
    store.write(f"{HOME}/data/dir/child/leaf", "1")
    t = start(guest)
    assert guest.ask(xs.READ, "data/dir/child/leaf|", t) == "1"
    store.rm(f"{HOME}/data/dir")
    assert guest.ask(xs.RM, "data/dir/child/leaf|", t) == "OK|"
    assert guest.ask(xs.WRITE, "data/dir/child/leaf/more|1", t) == "OK|"
    assert guest.ask(xs.END, "T|", t) == "EAGAIN"
    assert not store.exists(f"{HOME}/data/dir")


def test_events_come_at_the_end_and_once(store: XenStore, guest: Guest) -> None:
    assert guest.ask(xs.WATCH, "data|t|") == "OK|"
    store.write(f"{HOME}/data/gone/below", "v")
    guest.take_events()
    t = start(guest)
    for value in range(3):
        guest.ask(xs.WRITE, f"data/x|{value}", t)
    guest.ask(xs.WRITE, "data/y|1", t)
    guest.ask(xs.RM, "data/gone|", t)
    assert guest.take_events() == []
    assert guest.request(xs.END, "T|", t).payload == b"OK\0"
    assert guest.take_events() == [("data/x", "t"), ("data/y", "t"), ("data/gone", "t")]
    t = start(guest)
    guest.ask(xs.WRITE, "data/x|9", t)
    guest.ask(xs.END, "F|", t)
    assert guest.take_events() == []


def test_several_changes_of_a_node_are_one_from_its_first_state_to_its_last(
    store: XenStore, guest: Guest
) -> None:
    other = Guest(store, 2)
    guest.ask(xs.SET_PERMS, "data/x|n1|r2|")
    other.ask(xs.WATCH, f"{HOME}/data/x|t|")
    other.take_events()
    t = start(guest)
    # Who could read it hears that it changed, though not into what.
    guest.ask(xs.SET_PERMS, "data/x|n1|", t)
    guest.ask(xs.WRITE, "data/x|secret", t)
    assert guest.ask(xs.END, "T|", t) == "OK|"
    assert other.take_events() == [(f"{HOME}/data/x", "t")]
    # A change is told above also when the node went with a larger part later; what came and went is not.
    store.write(f"{HOME}/data/a/b", "v")
    guest.ask(xs.WATCH, "data|t|")
    guest.take_events()
    t = start(guest)
    guest.ask(xs.WRITE, "data/a/b|1", t)
    guest.ask(xs.WRITE, "data/a/c|1", t)
    guest.ask(xs.RM, "data/a|", t)
    assert guest.ask(xs.END, "T|", t) == "OK|"
    assert guest.take_events() == [("data/a/b", "t"), ("data/a", "t")]


def test_wrong_uses(guest: Guest) -> None:
    t = start(guest)
    assert guest.ask(xs.START, "|", t) == "EBUSY"
    assert guest.ask(xs.START, "|", t + 1) == "ENOENT"
    assert guest.ask(xs.END, "T|") == "ENOENT"
    for payload in ("|", "", "T", "X|", "TT|", "T|T|", "t|"):
        assert guest.ask(xs.END, payload, t) == "EINVAL"
    assert guest.ask(xs.END, "T|", t) == "OK|", "none of these has ended it"
    assert guest.ask(xs.READ, "name|", 0xFFFFFFFF) == "ENOENT"


def test_a_transaction_is_its_guests_own(store: XenStore, guest: Guest) -> None:
    t = start(guest)
    assert Guest(store, 2).ask(xs.END, "T|", t) == "ENOENT"


def test_numbers_go_round_without_zero_and_without_those_in_use(store: XenStore, guest: Guest) -> None:
    first = start(guest)
    store._connections[1]._last_transaction = 0xFFFFFFFE
    numbers = [start(guest), start(guest)]
    assert first == 1
    assert numbers == [0xFFFFFFFF, 2]


def test_the_toolstacks_transactions(store: XenStore, guest: Guest) -> None:
    calls: list[str] = []
    store.watch("/a", calls.append)
    with store.transaction() as t:
        t.write("/a/x", 1)
        t.mkdir("/a/y")
        t.set_permissions("/a/y", "n1")
        assert t.list("/a") == ["x", "y"]
        assert not store.exists("/a")
        assert calls == ["/a"]
    assert calls == ["/a", "/a/x", "/a/y"]
    with pytest.raises(StateError, match="has ended"):
        t.read("/a/x")

    def interrupted() -> None:
        with store.transaction() as t:
            t.rm("/a")
            raise ZeroDivisionError

    def disturbed() -> None:
        with store.transaction() as t:
            t.write(f"{HOME}/data/x", t.read(f"{HOME}/data/x") + b"!")
            guest.ask(xs.WRITE, "data/x|guest")

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert store.list("/a") == ["x", "y"]
    with pytest.raises(StoreError) as caught:
        disturbed()
    assert caught.value.code == "EAGAIN"
    assert store.read(f"{HOME}/data/x") == b"guest"
    with store.transaction() as t:
        t.write("/a/z", 1)
        t.abort()
    assert not store.exists("/a/z")
