"""XenStore's watches: who hears of what, by which path and in which order, and what happens when nobody reads."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest

import store_guest as xs
from store_guest import Guest, errors, message
from trapgate.errors import StoreError
from trapgate.xenstore import Quota, XenStore
from trapgate.xenstore.layout import Disk, Domain, add_disk, add_domain

UUID = "00000000-0000-0000-0000-00000000000"
HOME = "/local/domain/1"


@pytest.fixture
def store() -> XenStore:
    store = XenStore()
    for domid in (1, 2):
        add_domain(store, Domain(domid=domid, name=f"guest{domid}", uuid=f"{UUID}{domid}", memory=1024))
    return store


@pytest.fixture
def guest(store: XenStore) -> Guest:
    return Guest(store)


def watch(guest: Guest, path: str, token: str = "t") -> None:
    """Set a watch and take its first event."""
    assert guest.ask(xs.WATCH, f"{path}|{token}|") == "OK|"
    assert guest.take_events() == [(path, token)]


def test_events_have_the_kind_of_path_that_the_watch_has(store: XenStore, guest: Guest) -> None:
    watch(guest, "memory/target", "relative")
    watch(guest, f"{HOME}/memory/target", "absolute")
    store.write(f"{HOME}/memory/target", 2048)
    assert guest.take_events() == [("memory/target", "relative"), (f"{HOME}/memory/target", "absolute")]


def test_a_watch_hears_of_the_node_and_all_below(store: XenStore, guest: Guest) -> None:
    watch(guest, "device")
    add_disk(store, 1, Disk(name="xvda"))
    paths = {path for path, _ in guest.take_events()}
    assert {"device/vbd/51712", "device/vbd/51712/backend", "device/vbd/51712/state"} <= paths
    store.write(f"{HOME}/device", "x")
    store.write(f"{HOME}/device2", "x")
    store.write(f"{HOME}/devic", "x")
    store.write(f"{HOME}/control/shutdown", "poweroff")
    assert guest.take_events() == [("device", "t")]


def test_creation_change_permissions_and_removal_are_told(store: XenStore, guest: Guest) -> None:
    watch(guest, "data/x")
    path = f"{HOME}/data/x"
    changes: list[Callable[[], None]] = [
        lambda: store.mkdir(path),
        lambda: store.write(path, "v"),
        lambda: store.write(path, "v"),
        lambda: store.set_permissions(path, "n1,r2"),
        lambda: store.rm(path),
    ]
    for change in changes:
        change()
        assert guest.take_events() == [("data/x", "t")]
    store.rm(path)
    assert guest.take_events() == []
    store.mkdir(f"{HOME}/data/x/y")
    assert guest.take_events() == [("data/x/y", "t")]
    store.mkdir(f"{HOME}/data/x/y")
    store.mkdir(f"{HOME}/data/x")
    assert guest.take_events() == []


def test_a_removal_is_told_above_once_and_below_by_the_watchs_own_path(store: XenStore, guest: Guest) -> None:
    for name in ("a/b/c", "a/d"):
        store.write(f"{HOME}/data/{name}", "v")
    watch(guest, "data", "above")
    watch(guest, "data/a/b/c", "below")
    watch(guest, "data/a/b/c/none", "none")
    store.rm(f"{HOME}/data/a")
    assert guest.take_events() == [("data/a/b/c", "below"), ("data/a", "above")]


def test_the_guests_own_change_is_told_after_the_reply(guest: Guest) -> None:
    watch(guest, "data")
    guest.push(message(xs.WRITE, b"data/x\0v", 5) + message(xs.RM, b"data/x\0", 6))
    guest.serve()
    event = message(xs.EVENT, b"data/x\0t\0")
    assert guest.pull() == message(xs.WRITE, b"OK\0", 5) + event + message(xs.RM, b"OK\0", 6) + event


def test_what_may_not_be_read_is_not_told(store: XenStore, guest: Guest) -> None:
    watch(guest, "/local/domain/2", "other")
    watch(guest, "/", "root")
    store.write("/local/domain/2/name", "x")
    store.write("/secret/x", "x")
    assert guest.take_events() == []
    store.write(f"{HOME}/name", "x")
    assert guest.take_events() == [(f"{HOME}/name", "root")]
    # Whoever loses the right to read hears of it a last time.
    store.write("/shared", "v")
    store.set_permissions("/shared", "n0,r1")
    assert guest.take_events() == [("/shared", "root")]
    store.set_permissions("/shared", "n0")
    assert guest.take_events() == [("/shared", "root")]
    store.write("/shared", "w")
    assert guest.take_events() == []
    # A node may be secret in a directory that is not: that there is one can be seen.
    store.set_permissions("/", "r0")
    assert guest.take_events() == [("/", "root")]
    store.write("/shared", "w")
    assert guest.take_events() == [("/shared", "root")]


def test_watches_are_known_by_path_and_token(store: XenStore, guest: Guest) -> None:
    watch(guest, "data", "1")
    watch(guest, "data", "2")
    assert guest.ask(xs.WATCH, "data|1|") == "EEXIST"
    assert guest.ask(xs.WATCH, f"{HOME}/data|1|") == "EEXIST"
    assert errors(guest, xs.UNWATCH, ["data|3|", "other|1|"]) == ["ENOENT"] * 2
    assert guest.ask(xs.UNWATCH, "data|1|") == "OK|"
    assert guest.ask(xs.UNWATCH, "data|1|") == "ENOENT"
    store.write(f"{HOME}/data", "x")
    assert guest.take_events() == [("data", "2")]
    # The transaction's number does not matter to them.
    assert guest.ask(xs.WATCH, "data|1|", transaction=99) == "OK|"
    assert guest.ask(xs.UNWATCH, "data|1|", transaction=99) == "OK|"
    assert errors(
        guest, xs.WATCH, ["data|", "data", "", "|t|", "a//b|t|", "data|a|b|", "@|t|", "@a/b|t|"]
    ) == (["EINVAL"] * 8)


def test_all_watches_and_transactions_can_be_reset(store: XenStore, guest: Guest) -> None:
    watch(guest, "data")
    number = int(guest.ask(xs.START, "|").removesuffix("|"))
    assert guest.ask(xs.RESET, "|") == "OK|"
    store.write(f"{HOME}/data", "x")
    assert guest.take_events() == []
    assert guest.ask(xs.END, "T|", number) == "ENOENT"
    assert store.usage(1).memory == Guest(XenStore()).store.usage(1).memory + sum(
        len(f"{HOME}/{name}") + 8
        for name in (
            "control/shutdown control/feature-poweroff control/feature-reboot control/feature-suspend "
            "control/sysrq device/suspend/event-channel data drivers feature attr error"
        ).split()
    ) + len("x")


def test_special_events(store: XenStore, guest: Guest) -> None:
    calls: list[str] = []
    store.watch("@introduceDomain", calls.append)
    store.watch("@releaseDomain", calls.append)
    assert guest.ask(xs.WATCH, "@releaseDomain|t|") == "OK|"
    assert guest.take_events() == [("@releaseDomain", "t")]
    Guest(store, 2)
    store.release(2)
    assert calls == ["@introduceDomain", "@releaseDomain"] * 2
    assert guest.take_events() == [], "only with permission"
    store.set_permissions("@releaseDomain", "n0,r1")
    assert guest.take_events() == [("@releaseDomain", "t")]
    Guest(store, 2)
    store.release(2)
    assert guest.take_events() == [("@releaseDomain", "t")]


def test_an_event_that_waits_is_not_queued_again(store: XenStore, guest: Guest) -> None:
    watch(guest, "data")
    # 16 bytes each do not go evenly into the ring: the last one is half sent, and then a change is news.
    for _ in range(500):
        store.write(f"{HOME}/data/xyz", "v")
    assert guest.take_events() == [("data/xyz", "t")] * (1024 // 27 + 2)


def test_no_change_is_missed_by_a_guest_that_does_not_read(store: XenStore, guest: Guest) -> None:
    """More events than are kept: those of one watch become one, of the watch's own path."""
    watch(guest, "data", "many")
    watch(guest, "memory/target", "one")
    watch(guest, "cpu", "two")
    for number in range(5000):
        store.write(f"{HOME}/data/{number}", "v")
        if number == 10:
            store.write(f"{HOME}/memory/target", 1)
        if number in (20, 4990):
            store.write(f"{HOME}/cpu/0", number)
    assert store._connections[1].pending < 300 * 40
    events = guest.take_events()
    assert events.count(("data", "many")) == 1
    assert events.count(("memory/target", "one")) == 1
    assert ("cpu/0", "two") in events
    # Once it reads again all is as before.
    store.write(f"{HOME}/data/last", "v")
    assert guest.take_events() == [("data/last", "many")]


def test_a_token_too_long_for_the_changed_path(store: XenStore, guest: Guest) -> None:
    token = "t" * (4096 - len("data||"))
    watch(guest, "data", token)
    store.write(f"{HOME}/data/x", "v")
    assert guest.take_events() == [("data", token)]


def test_the_toolstack_watches_by_functions(store: XenStore, guest: Guest) -> None:
    calls: list[str] = []
    path = f"{HOME}/control"
    with store.watch(path, calls.append) as handle:
        assert calls == [path]
        guest.ask(xs.WRITE, "control/shutdown|")
        store.write(f"{HOME}/name", "x")
        assert calls == [path, f"{path}/shutdown"]
    handle.cancel()
    store.write(f"{path}/shutdown", "x")
    assert len(calls) == 2
    with pytest.raises(StoreError):
        store.watch("control", calls.append)


def test_a_watchs_function_may_use_the_store(store: XenStore, guest: Guest) -> None:
    """A back-end follows its front-end's state, within the guest's request."""
    add_disk(store, 1, Disk(name="xvda"))
    front, back = f"{HOME}/device/vbd/51712", "/local/domain/0/backend/vbd/1/51712"
    order: list[str] = []

    def follow(_path: str) -> None:
        order.append("in")
        with store.transaction() as t:
            if t.get(f"{front}/state") == b"3":
                t.write(f"{back}/sectors", 100)
                t.write(f"{back}/state", 4)
        order.append("out")

    store.watch(f"{front}/state", follow)
    watch(guest, f"{back}/state", "s")
    assert guest.ask(xs.WRITE, "device/vbd/51712/state|3") == "OK|"
    assert guest.take_events() == [(f"{back}/state", "s")]
    assert guest.ask(xs.READ, f"{back}/state|") == "4"
    assert order == ["in", "out"] * 2


def test_a_watchs_function_may_release_the_domain_that_is_served(store: XenStore, guest: Guest) -> None:
    def end(path: str) -> None:
        if store.exists(path):
            store.release(1)

    store.watch(f"{HOME}/data/end", end)
    guest.push(b"".join(message(xs.WRITE, b"data/end\0", n) for n in range(30)))
    assert guest.serve() is False
    assert not store.introduced(1)


def test_functions_are_called_in_order_and_not_within_each_other(store: XenStore) -> None:
    calls: list[str] = []

    def first(path: str) -> None:
        calls.append(f"first {path}")
        if path == "/a/1":
            store.write("/a/2", "")
        calls.append("end")

    store.watch("/a", first)
    store.watch("/a", lambda path: calls.append(f"second {path}"))
    calls.clear()
    store.write("/a/1", "")
    assert calls == ["first /a/1", "end", "second /a/1", "first /a/2", "end", "second /a/2"]


def test_what_a_function_raises_comes_out_and_the_others_are_still_called(store: XenStore) -> None:
    calls: list[str] = []

    def fails(path: str) -> None:
        if path == "/a":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.watch("/a", fails)
    store.watch("/a", calls.append)
    with pytest.raises(ZeroDivisionError):
        store.write("/a", "x")
    assert store.read("/a") == b"x"
    assert calls == ["/a"]
    store.write("/b", "")
    assert calls == ["/a", "/a"]


def test_a_cancelled_watch_is_not_called_for_what_was_before(store: XenStore) -> None:
    calls: list[str] = []
    store.watch("/a", lambda path: second.cancel() if path == "/a/x" else None)
    second = store.watch("/a", calls.append)
    store.write("/a/x", "")
    assert calls == ["/a"]


def test_guests_wait_while_another_threads_function_is_slow(store: XenStore, guest: Guest) -> None:
    """What one domain makes a back-end do must not pile up without end."""
    entered, leave = threading.Event(), threading.Event()
    called = [0] * 6

    def slow(_path: str) -> None:
        called[0] += 1
        if called[0] == 2:
            entered.set()
            leave.wait(60)

    def count(at: int) -> Callable[[str], None]:
        def add(_path: str) -> None:
            called[at] += 1

        return add

    store.watch(HOME, slow)
    for at in range(1, 6):
        store.watch(HOME, count(at))
    thread = threading.Thread(target=store.write, args=(f"{HOME}/name", "x"), daemon=True)
    thread.start()
    assert entered.wait(60)
    before = list(called)
    refused = 0
    try:
        for number in range(900):
            path = b"data/%d\0" % number
            guest.push(message(xs.WRITE, path + b"v") + message(xs.RM, path))
            at = guest.page.get(xs.REQ_CONS)
            refused += guest.serve() and guest.page.get(xs.REQ_CONS) == at
            guest.pull()
        assert refused
        assert called == before
        assert len(store._calls) <= 4096 + 16 * 6
    finally:
        leave.set()
        thread.join(60)
    assert not thread.is_alive()
    # Nothing is lost: each of the others was called as often.
    guest.take()
    assert len(set(called[1:])) == 1
    assert called[1] > 600
    assert len(store._calls) == 0


def test_events_of_one_guests_changes_reach_another(store: XenStore, guest: Guest) -> None:
    other = Guest(store, 2, quota=Quota(outstanding=3))
    guest.ask(xs.SET_PERMS, "data|n1|r2|")
    watch(other, f"{HOME}/data")
    before = other.notified
    guest.ask(xs.WRITE, "data/x|v")
    assert other.notified == before + 1
    assert other.take_events() == [(f"{HOME}/data/x", "t")]
    # The other never reads again: its events are kept, within bounds, and the writer is not held up.
    for number in range(3000):
        assert guest.ask(xs.WRITE, f"data/x{number % 300}|v") == "OK|"
    assert store._connections[2].pending < 300 * 60
    assert other.take_events()[-1] == (f"{HOME}/data", "t")


def test_a_cancelled_watch_lets_go_of_its_function_at_once() -> None:
    class Owner:
        def hear(self, path: str) -> None: ...

    store, owner = XenStore(), Owner()
    gone = weakref.ref(owner)
    watch = store.watch("/a", owner.hear)
    watch.cancel()
    gc.disable()
    try:
        del owner
        assert gone() is None
    finally:
        gc.enable()
