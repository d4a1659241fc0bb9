"""A guest that sends anything: XenStore never raises, never forgets its bounds, and serves the others."""

from __future__ import annotations

import random
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

import store_guest as xs
from store_guest import Guest, message
from trapgate.xenstore import Quota, XenStore
from trapgate.xenstore.layout import Disk, Domain, add_disk, add_domain
from trapgate.xenstore.quota import Ledger

UUID = "00000000-0000-0000-0000-00000000000"
SMALL = Quota(nodes=30, watches=5, outstanding=4, memory=4000, transactions=3, transaction_nodes=12)

paths = st.sampled_from(
    [
        *(b"data", b"data/a", b"data/a/b", b"/", b"name", b"device", b"error/x/y", b"", b"a b"),
        *(b"@releaseDomain", b"/local/domain/2/name", b"/shared", b"data/" + b"n/" * 20 + b"n", b"x" * 3000),
    ]
)
pieces = st.one_of(
    paths, st.binary(max_size=6), st.sampled_from([b"T", b"F", b"n1", b"r2", b"b1", b"token", b"v" * 1500])
)
payloads = st.builds(
    lambda parts, end: (b"\0".join(parts) + end)[:4096],
    st.lists(pieces, min_size=1, max_size=4),
    st.sampled_from([b"", b"\0"]),
)
kinds = st.one_of(
    st.sampled_from([1, 2, 3, 4, 4, 5, 6, 6, 7, 10, 11, 11, 12, 13, 14, 21]), st.integers(0, 2**32 - 1)
)
messages = st.builds(
    message, kinds, payloads, st.integers(0, 2**32 - 1), st.sampled_from([0, 0, 1, 2, 3, 2**32 - 1])
)


def two_guests(quota: Quota) -> tuple[XenStore, Guest, Guest]:
    store = XenStore(quota)
    for domid in (1, 2):
        add_domain(store, Domain(domid=domid, name=f"guest{domid}", uuid=f"{UUID}{domid}", memory=1024))
    add_disk(store, 1, Disk(name="xvda"))
    store.write("/shared", "v")
    store.set_permissions("/shared", "n0,b1,r2")
    return store, Guest(store, 1, limit=3), Guest(store, 2)


def check(store: XenStore, quota: Quota, foreign: int) -> None:
    """Assert what must hold whatever a guest does; `foreign` is how many nodes it cannot touch or own."""
    usage = store.usage(1)
    assert 0 <= usage.nodes <= quota.nodes
    assert 0 <= usage.memory <= quota.memory
    connection = store._connections[1]
    assert len(connection._transactions) <= quota.transactions
    assert len(connection._own_watches) <= quota.watches
    assert connection.pending <= (quota.outstanding + 1 + 3 * quota.watches) * 4112
    assert len(store._tree) <= foreign + quota.nodes
    assert len(store._awake) == len(store._calls) == 0
    # The accounts are what is there.
    ledger = Ledger()
    for path in store._tree.paths():
        node = store._tree.get(path)
        assert node is not None
        ledger.charge(node.owner, 1, node.cost(path))
        if path != "/" and not path.startswith("@"):
            parent, _, name = path.rpartition("/")
            above = store._tree.get(parent or "/")
            assert above is not None
            assert above.children.count(name) == 1
    for watch in connection._own_watches.values():
        ledger.charge(1, 0, len(watch.path) + len(watch.token))
    for transaction in connection._transactions.values():
        ledger.charge(1, 0, sum(touched.cost for touched in transaction._touched.values()))
    assert ledger.of(1) == usage


@settings(max_examples=120)
@given(st.lists(messages, max_size=60), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_any_requests_keep_all_bounds(sent: list[bytes], start: int, chance: random.Random) -> None:
    store, _, other = two_guests(SMALL)
    store.release(1)
    add_domain(store, Domain(domid=1, name="guest1", uuid=f"{UUID}1", memory=1024))
    guest = Guest(store, 1, start=start, limit=3)
    foreign = len(store._tree)
    stream = b"".join(sent)
    for _ in range(2000):
        if not stream:
            break
        n = chance.randrange(1, 1200)
        stream = stream[guest.push(stream[:n]) :]
        before = guest.page.get(xs.REQ_CONS)
        guest.serve()
        # At most three requests, at most one of which was in pieces.
        assert (guest.page.get(xs.REQ_CONS) - before) & 0xFFFFFFFF <= 1024
        if chance.random() < 0.5:
            guest.take()
        check(store, SMALL, foreign)
    assert not stream
    guest.take()
    # All of it was answered in order: every request has one reply, with its number.
    assert guest.page.get(xs.ERROR_FIELD) == 0
    assert guest.ask(xs.READ, "name|") == "guest1"
    assert other.ask(xs.READ, "name|") == "guest2"
    store.release(1)
    assert store.usage(1) == store.usage(3)


@settings(max_examples=150)
@given(st.lists(messages, max_size=40))
def test_every_request_has_one_reply_in_order(sent: list[bytes]) -> None:
    store, guest, _ = two_guests(SMALL)
    replies = []
    for data in sent:
        for _ in range(20):
            data = data[guest.push(data) :]
            replies += [reply for reply in guest.take() if reply.type != xs.EVENT]
    headers = [struct.unpack_from("<III", data) for data in sent]
    assert [(reply.request, reply.transaction) for reply in replies] == [header[1:] for header in headers]
    for reply, header in zip(replies, headers, strict=True):
        assert reply.type in (header[0], xs.ERROR)
        if reply.type == xs.ERROR:
            assert reply.payload.startswith(b"E")
            assert reply.payload.endswith(b"\0")
        assert len(reply.payload) <= 4096
    assert store.failure(1) == 0


indices = st.sampled_from(
    [xs.REQ_CONS, xs.REQ_PROD, xs.RSP_CONS, xs.RSP_PROD, xs.FEATURES, 0x814, xs.ERROR_FIELD]
)
actions = st.one_of(
    st.tuples(st.just("bytes"), st.integers(0, 1023), st.binary(max_size=64)),
    st.tuples(st.just("set"), indices, st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 3000))),
    st.tuples(st.just("add"), indices, st.integers(0, 1100)),
    st.tuples(st.just("send"), messages),
    st.tuples(st.just("write")),
    st.tuples(st.just("lose")),
)


@settings(max_examples=400)
@given(st.lists(actions, max_size=40))
def test_any_bytes_and_indices_do_no_harm(steps: list[tuple[object, ...]]) -> None:
    store, guest, other = two_guests(SMALL)
    foreign = len(store._tree) + 3
    page = guest.page
    failed = 0
    for step in steps:
        match step:
            case ("bytes", int(offset), bytes(data)):
                page.data[offset : offset + len(data)] = data
                del page.data[4096:]
            case ("set", int(offset), int(value)):
                page.set(offset, value)
            case ("add", int(offset), int(value)):
                page.set(offset, page.get(offset) + value)
            case ("send", bytes(data)):
                if (page.get(xs.REQ_PROD) - page.get(xs.REQ_CONS)) & 0xFFFFFFFF <= 1024:
                    guest.push(data)
            case ("write",):
                store.write("/local/domain/1/data/x", "v")
            case _:
                page.lost = True
        image = bytes(page.data)
        served = guest.serve()
        if failed:
            assert not served
            assert page.data == image
            assert store.failure(1) == failed
            assert store._connections[1].pending == 0
        failed = store.failure(1)
        assert failed in (0, 1, 2, 3)
        if failed and not page.lost and page.data != image:
            assert page.get(xs.ERROR_FIELD) == failed
        check(store, SMALL, foreign)
    assert other.ask(xs.READ, "/shared|") in ("v", store.read("/shared").decode("latin-1").replace("\0", "|"))
    assert other.ask(xs.WRITE, "data/x|1") == "OK|"


def test_a_flood_is_served_in_bounded_steps() -> None:
    store, guest, other = two_guests(Quota())
    guest.ask(xs.WATCH, "data|t|")
    flood = message(xs.WRITE, b"data/x\0v") * 40
    for _ in range(300):
        guest.push(flood)
        before = guest.page.get(xs.REQ_CONS)
        store.serve(1, 5)
        assert (guest.page.get(xs.REQ_CONS) - before) & 0xFFFFFFFF <= 5 * 24
        assert other.ask(xs.READ, "name|") == "guest2"
    check(store, Quota(), len(store._tree))
