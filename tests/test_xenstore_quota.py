"""XenStore's quotas: where each ends, that what fails leaves nothing behind, and that the accounts balance."""

from __future__ import annotations

import pytest

import store_guest as xs
from store_guest import Guest, message
from trapgate.errors import ConfigError
from trapgate.xenstore import Quota, XenStore
from trapgate.xenstore.layout import Domain, add_domain

UUID = "00000000-0000-0000-0000-00000000000"
HOME = "/local/domain/1"


@pytest.fixture
def store() -> XenStore:
    store = XenStore()
    add_domain(store, Domain(domid=1, name="guest", uuid=f"{UUID}1", memory=1024))
    return store


@pytest.fixture
def guest(store: XenStore) -> Guest:
    return Guest(store)


def until_refused(guest: Guest, kind: int, payload: str, transaction: int = 0) -> tuple[int, str]:
    """Ask with {} replaced by 0, 1, 2 ... until it fails; give how often it worked, and the error."""
    for number in range(20000):
        answer = guest.ask(kind, payload.replace("{}", f"{number}"), transaction)
        if answer.startswith("E"):
            return number, answer
    raise AssertionError("there is no end")


def test_defaults_are_xens() -> None:
    quota = Quota()
    assert (quota.nodes, quota.watches, quota.outstanding, quota.transactions) == (1000, 128, 20, 10)
    assert (quota.memory, quota.node_size, quota.permissions) == (2621440, 2048, 5)
    assert (quota.transaction_nodes, quota.path, quota.relative_path) == (1024, 3072, 2048)


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "7", None])
def test_a_quota_is_a_number(wrong: int) -> None:
    with pytest.raises(ConfigError, match="the quota nodes is"):
        Quota(nodes=wrong)


def test_nodes(store: XenStore, guest: Guest) -> None:
    owned = store.usage(1).nodes
    # In several directories, for one node's list of names is bounded, too.
    made = sum(until_refused(guest, xs.MKDIR, f"data/{letter}/{{}}|")[0] + 1 for letter in "ab")
    assert store.usage(1).nodes == 1000
    assert owned + made == 1000
    assert guest.ask(xs.MKDIR, "data/a/another|") == "ENOSPC"
    assert guest.ask(xs.WRITE, "data/a/0|changed") == "OK|", "what is there may still change"
    assert guest.ask(xs.RM, "data/a/0|") == "OK|"
    assert guest.ask(xs.MKDIR, "data/p/q|") == "ENOSPC"
    assert guest.ask(xs.READ, "data/p|") == "ENOENT", "half of it must not be made"
    assert guest.ask(xs.MKDIR, "data/p|") == "OK|"


def test_nodes_made_in_a_transaction(store: XenStore, guest: Guest) -> None:
    t = int(guest.ask(xs.START, "|").removesuffix("|"))
    for letter in "ab":
        number, error = until_refused(guest, xs.MKDIR, f"data/{letter}/{{}}|", t)
        assert error == "ENOSPC"
        assert number > 150
    assert guest.ask(xs.END, "T|", t) == "OK|"
    assert store.usage(1).nodes == 1000
    # Whether there is room is seen at the end again.
    guest.ask(xs.RM, "data/a/0|")
    t = int(guest.ask(xs.START, "|").removesuffix("|"))
    assert guest.ask(xs.MKDIR, "data/b/one|", t) == "OK|"
    assert guest.ask(xs.MKDIR, "data/z|") == "OK|"
    assert guest.ask(xs.END, "T|", t) == "ENOSPC"
    assert guest.ask(xs.READ, "data/b/one|") == "ENOENT"
    assert store.usage(1).nodes == 1000


def test_the_size_of_a_node(guest: Guest) -> None:
    # Eight bytes are for its one permission.
    assert guest.ask(xs.WRITE, "data/x|" + "v" * 2040) == "OK|"
    assert guest.ask(xs.WRITE, "data/x|" + "v" * 2041) == "ENOSPC"
    assert guest.ask(xs.WRITE, "data/new|" + "v" * 2041) == "ENOSPC"
    assert guest.ask(xs.SET_PERMS, "data/x|n1|r0|") == "ENOSPC"
    assert guest.ask(xs.MKDIR, "data/x/child|") == "ENOSPC"
    assert guest.ask(xs.DIRECTORY, "data|") == "x|"
    assert guest.request(xs.READ, "data/x|").payload == b"v" * 2040
    assert guest.ask(xs.GET_PERMS, "data/x|") == "n1|"
    assert guest.ask(xs.WRITE, "data/y|") == "OK|"
    number, error = until_refused(guest, xs.MKDIR, "data/y/" + "n" * 90 + "{}|")
    assert (number, error) == (22, "ENOSPC")


def test_permissions(guest: Guest) -> None:
    assert guest.ask(xs.SET_PERMS, "data|n1|r2|r3|r4|r5|") == "OK|"
    assert guest.ask(xs.SET_PERMS, "data|n1|r2|r3|r4|r5|r6|") == "ENOSPC"
    assert guest.ask(xs.SET_PERMS, "data|" + "r1|" * 1300) == "ENOSPC"


def test_watches(store: XenStore, guest: Guest) -> None:
    before = store.usage(1)
    assert until_refused(guest, xs.WATCH, "data|{}|") == (128, "E2BIG")
    assert guest.ask(xs.UNWATCH, "data|5|") == "OK|"
    assert guest.ask(xs.WATCH, "data|again|") == "OK|"
    guest.ask(xs.RESET, "|")
    assert store.usage(1) == before


def test_transactions(store: XenStore, guest: Guest) -> None:
    assert until_refused(guest, xs.START, "|") == (10, "ENOSPC")
    assert guest.ask(xs.END, "F|", 3) == "OK|"
    assert guest.ask(xs.START, "|") == "11|"


def test_nodes_that_a_transaction_touches(store: XenStore, guest: Guest) -> None:
    before = store.usage(1)
    t = int(guest.ask(xs.START, "|").removesuffix("|"))
    answers = [guest.ask(xs.READ, f"data/{number}|", t) for number in range(1030)]
    # The one above them is touched, too.
    assert answers == ["ENOENT"] * 1023 + ["ENOSPC"] * 7
    assert guest.ask(xs.READ, "data/7|", t) == "ENOENT"
    assert guest.ask(xs.END, "T|", t) == "OK|"
    assert store.usage(1) == before


def test_memory(store: XenStore) -> None:
    guest = Guest(store, quota=Quota(memory=20000))
    before = store.usage(1)
    number, error = until_refused(guest, xs.WRITE, "data/{}|" + "v" * 2000)
    assert error == "ENOSPC"
    assert number == (20000 - before.memory) // 2030
    assert guest.ask(xs.WATCH, "data|" + "t" * 3000 + "|") == "ENOSPC"
    t = int(guest.ask(xs.START, "|").removesuffix("|"))
    answers = [guest.ask(xs.READ, f"data/{n}|", t) for n in range(number)]
    assert "ENOSPC" in answers
    assert store.usage(1).memory <= 20000
    assert guest.ask(xs.END, "F|", t) == "OK|"
    for n in range(number):
        assert guest.ask(xs.RM, f"data/{n}|") == "OK|"
    assert store.usage(1) == before
    assert guest.ask(xs.WATCH, "data|" + "t" * 3000 + "|") == "OK|"


def test_quotas_are_each_guests_own(store: XenStore) -> None:
    small, large = Guest(store, 1, quota=Quota(watches=1)), Guest(store, 2)
    assert until_refused(small, xs.WATCH, "data|{}|") == (1, "E2BIG")
    assert until_refused(large, xs.WATCH, "data|{}|") == (128, "E2BIG")


def test_who_owns_too_much_already_may_change_it(store: XenStore) -> None:
    guest = Guest(store, quota=Quota(nodes=5, memory=50))
    assert store.usage(1).nodes > 5
    assert guest.ask(xs.WRITE, "control/shutdown|") == "OK|"
    assert guest.ask(xs.MKDIR, "data/x|") == "ENOSPC"
    assert guest.ask(xs.WRITE, "data|x") == "ENOSPC"
    assert guest.ask(xs.RM, "control/feature-poweroff|") == "OK|"


def test_the_toolstack_has_no_quota(store: XenStore) -> None:
    for number in range(1500):
        store.write(f"/many/{number}", bytes(3000))
    store.write(f"{HOME}/data/x", bytes(4096))
    # A guest may make it smaller, though not as small as its own have to be.
    guest = Guest(store)
    assert guest.ask(xs.WRITE, "data/x|" + "v" * 4000) == "OK|"
    assert guest.ask(xs.WRITE, "data/x|" + "v" * 4050) == "ENOSPC"
    store.set_permissions(f"{HOME}/data/x", ["n1", *(f"r{n}" for n in range(2, 30))])
    assert guest.ask(xs.GET_PERMS, "data/x|").count("|") == 29


def test_a_deep_path_costs_what_all_its_nodes_cost(store: XenStore, guest: Guest) -> None:
    before = store.usage(1)
    deep = "data" + "/n" * 1000
    assert guest.ask(xs.MKDIR, f"{deep}|") == "ENOSPC"
    assert store.usage(1) == before
    assert guest.ask(xs.MKDIR, f"{deep[:1800]}|") == "OK|"
    assert guest.ask(xs.RM, "data/n|") == "OK|"
    assert store.usage(1).nodes == before.nodes
    assert store.usage(1).memory == before.memory


def test_outstanding_counts_what_was_not_taken(store: XenStore) -> None:
    store.write(f"{HOME}/data/x", bytes(1000))
    guest = Guest(store, quota=Quota(outstanding=3))
    guest.push(b"".join(message(xs.READ, b"data/x\0", n) for n in range(10)))
    guest.serve()
    assert guest.page.get(xs.REQ_CONS) == 4 * 23, "one in the ring, three that wait"
    assert [reply.request for reply in guest.take()] == list(range(10))
