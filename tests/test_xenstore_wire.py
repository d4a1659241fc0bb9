"""XenStore's bytes: messages in pieces, rings that wrap, indices that lie, and a page that goes away."""

from __future__ import annotations

import pytest

import store_guest as xs
from store_guest import FakePage, Guest, message
from trapgate.errors import StateError, TrapgateError
from trapgate.xenstore import XenStore
from trapgate.xenstore.layout import Domain, add_domain
from trapgate.xenstore.wire import Assembler, OverlongMessage, one_string, strings


@pytest.fixture
def store() -> XenStore:
    store = XenStore()
    add_domain(
        store, Domain(domid=1, name="debian", uuid="0" * 8 + "-0000-0000-0000-" + "0" * 12, memory=1024)
    )
    return store


def test_a_read_byte_for_byte(store: XenStore) -> None:
    guest = Guest(store)
    guest.page.write(0, b"\2\0\0\0\7\0\0\0\0\0\0\0\5\0\0\0name\0")
    guest.page.set(xs.REQ_PROD, 21)
    assert guest.serve() is False
    assert guest.page.get(xs.REQ_CONS) == 21
    assert guest.page.get(xs.RSP_PROD) == 22
    assert guest.page.read(0x400, 22) == b"\2\0\0\0\7\0\0\0\0\0\0\0\6\0\0\0debian"
    assert guest.notified == 1


def test_an_error_keeps_the_numbers_of_its_request(store: XenStore) -> None:
    guest = Guest(store)
    guest.push(message(xs.READ, b"name/none\0", 0xFFFFFFFE) + message(xs.READ, b"name\0", 5, 77))
    guest.serve()
    expected = message(xs.ERROR, b"ENOENT\0", 0xFFFFFFFE) + message(xs.ERROR, b"ENOENT\0", 5, 77)
    assert guest.pull() == expected


def test_the_reply_to_a_watch_comes_before_its_first_event(store: XenStore) -> None:
    guest = Guest(store)
    guest.push(message(xs.WATCH, b"device\0ffff8880\0", 9))
    guest.serve()
    assert guest.pull() == message(xs.WATCH, b"OK\0", 9) + message(xs.EVENT, b"device\0ffff8880\0")


def test_a_request_may_come_byte_by_byte(store: XenStore) -> None:
    guest = Guest(store)
    request = message(xs.READ, b"name\0", 3)
    for at, byte in enumerate(request):
        assert guest.pull() == b"", at
        guest.push(bytes([byte]))
        assert guest.serve() is False
    assert guest.pull() == message(xs.READ, b"debian", 3)


@pytest.mark.parametrize("start", [1009, 1023, 0xFFFFFFF8, 0xFFFFFFFF - 1030])
def test_rings_and_indices_wrap(store: XenStore, start: int) -> None:
    guest = Guest(store, start=start)
    for round_ in range(100):
        assert guest.ask(xs.WRITE, f"data/x|value {round_}") == "OK|"
        assert guest.ask(xs.READ, "data/x|") == f"value {round_}"


def test_a_message_larger_than_the_ring_goes_through_in_both_directions(store: XenStore) -> None:
    store.write("/local/domain/1/data/large", bytes(range(256)) * 16)
    guest = Guest(store, start=500)
    assert guest.request(xs.READ, "data/large|").payload == bytes(range(256)) * 16
    # Its path alone fills the ring three times; a component more and it is no path.
    assert guest.ask(xs.READ, b"data/" + b"n" * 2043 + b"\0") == "ENOENT"
    assert guest.ask(xs.READ, b"data/" + b"n" * 2044 + b"\0") == "EINVAL"
    assert guest.ask(xs.READ, b"/" + b"n" * 4095) == "EINVAL"


def test_replies_that_do_not_fit_wait_for_room_and_none_is_lost(store: XenStore) -> None:
    store.write("/local/domain/1/data/large", bytes(4096))
    guest = Guest(store)
    requests = b"".join(message(xs.READ, b"data/large\0", n) for n in range(8))
    assert guest.push(requests) == len(requests)
    guest.serve()
    assert guest.page.get(xs.RSP_PROD) == 1024
    before = guest.notified
    assert guest.serve() is False
    assert guest.notified == before, "an event for nothing"
    assert [(r.type, r.request, len(r.payload)) for r in guest.take()] == [
        (xs.READ, n, 4096) for n in range(8)
    ]


def test_a_guest_that_makes_room_meanwhile_is_not_forgotten(store: XenStore) -> None:
    """Another of its processors reads as soon as something is there, so that it never sees the ring full."""
    store.write("/local/domain/1/data/large", bytes(4096))
    guest = Guest(store)
    guest.push(message(xs.READ, b"data/large\0", 1))
    received = b""
    plain_write = guest.page.write

    def write(offset: int, data: bytes, /) -> None:
        nonlocal received
        plain_write(offset, data)
        if offset == xs.RSP_PROD:
            received += guest.pull()

    guest.page.write = write  # type: ignore[method-assign]
    guest.serve()
    assert received == message(xs.READ, bytes(4096), 1)


def test_requests_wait_in_the_ring_while_many_replies_are_not_taken(store: XenStore) -> None:
    guest = Guest(store)
    # 16 bytes each way: the reply ring is full after 42 of them, and then 20 may be outstanding.
    flood = b"".join(message(xs.READ, b"none\0", n) for n in range(48))
    sent = 0
    for _ in range(20):
        sent += guest.push((flood * 20)[sent : sent + 1024])
        guest.serve()
    assert guest.page.get(xs.REQ_PROD) - guest.page.get(xs.REQ_CONS) > 900
    assert store._connections[1].pending < 21 * 23
    replies = guest.take()
    assert [reply.request for reply in replies] == [n % 48 for n in range(len(replies))]
    assert len(replies) == sent // 21


def test_serve_is_bounded_and_says_that_more_is_there(store: XenStore) -> None:
    guest = Guest(store, limit=5)
    guest.push(b"".join(message(xs.READ, b"name\0", n) for n in range(12)))
    assert guest.serve() is True
    assert guest.page.get(xs.REQ_CONS) == 5 * 21
    assert guest.serve() is True
    assert guest.serve() is False
    assert guest.page.get(xs.REQ_CONS) == 12 * 21
    with pytest.raises(TrapgateError, match="at least one"):
        store.serve(1, 0)


@pytest.mark.parametrize("index", [xs.REQ_PROD, xs.RSP_CONS])
@pytest.mark.parametrize("distance", [1025, 0x80000000, 0xFFFFFFFF])
def test_wild_indices_end_the_service(store: XenStore, index: int, distance: int) -> None:
    guest = Guest(store, start=0x123)
    guest.request(xs.WATCH, "device|t|")
    if index == xs.RSP_CONS:
        # That index is looked at when there is something to send.
        guest.push(message(xs.READ, b"name\0"))
    base = guest.page.get(xs.REQ_CONS if index == xs.REQ_PROD else xs.RSP_PROD)
    guest.page.set(index, base + distance if index == xs.REQ_PROD else base - distance)
    assert guest.serve() is False
    assert guest.page.get(xs.ERROR_FIELD) == 2
    assert store.failure(1) == 2
    guest.page.set(index, base)
    guest.push(message(xs.READ, b"name\0"))
    image = bytes(guest.page.data)
    store.write("/local/domain/1/device/vbd", "")
    assert guest.serve() is False
    assert guest.page.data == image, "a guest that was given up is still served"


@pytest.mark.parametrize("index", [xs.REQ_PROD, xs.RSP_CONS])
def test_a_distance_of_the_whole_ring_is_fine(store: XenStore, index: int) -> None:
    guest = Guest(store, start=0xFFFFFF00)
    own = 0xFFFFFF00
    guest.page.set(index, own + 1024 if index == xs.REQ_PROD else own - 1024)
    guest.serve()
    assert guest.page.get(xs.ERROR_FIELD) == 0


@pytest.mark.parametrize("length", [4097, 0x10000, 0xFFFFFFFF])
def test_an_overlong_payload_ends_the_service_without_an_answer(store: XenStore, length: int) -> None:
    guest = Guest(store)
    guest.push(message(xs.READ, b"name\0", 1) + message(xs.WRITE, b"", 2)[:12] + length.to_bytes(4, "little"))
    guest.serve()
    assert guest.page.get(xs.ERROR_FIELD) == 3
    assert store.failure(1) == 3
    assert guest.pull() == message(xs.READ, b"debian", 1)
    guest.push(message(xs.READ, b"name\0", 3))
    assert guest.serve() is False
    assert guest.pull() == b""


def test_a_page_that_is_lost_ends_the_service(store: XenStore) -> None:
    guest = Guest(store)
    guest.page.lost = True
    assert guest.serve() is False
    assert store.failure(1) == 1
    store.write("/local/domain/1/name", "other")
    store.release(1)
    with pytest.raises(StateError, match="domain 1 is not introduced"):
        store.serve(1)


def test_our_own_indices_are_not_taken_from_the_page(store: XenStore) -> None:
    guest = Guest(store)
    guest.request(xs.READ, "name|")
    consumed, produced = guest.page.get(xs.REQ_CONS), guest.page.get(xs.RSP_PROD)
    guest.page.set(xs.REQ_CONS, 0x5555)
    guest.page.set(xs.RSP_PROD, 0x6666)
    guest.page.accesses.clear()
    assert guest.serve() is False
    assert {offset for kind, offset, _ in guest.page.accesses if kind == "read"} <= {xs.REQ_PROD, xs.RSP_CONS}
    guest.page.write(consumed, message(xs.READ, b"name\0", 4))
    guest.page.set(xs.REQ_PROD, consumed + 21)
    guest.serve()
    assert guest.page.get(xs.REQ_CONS) == consumed + 21
    assert guest.page.get(xs.RSP_PROD) == produced + 22


def test_the_producers_index_is_read_once_for_all_that_is_taken(store: XenStore) -> None:
    guest = Guest(store)
    guest.push(b"".join(message(xs.READ, b"name\0", n) for n in range(5)))
    guest.page.accesses.clear()
    guest.serve()
    reads = [offset for kind, offset, n in guest.page.accesses if kind == "read" and n == 4]
    assert reads.count(xs.REQ_PROD) == 1
    # Every access to an index is one of its four bytes.
    assert all(n == 4 for _, offset, n in guest.page.accesses if offset >= 0x800)


def test_what_the_page_offers(store: XenStore) -> None:
    guest = Guest(store)
    assert guest.page.get(xs.FEATURES) == 2
    assert guest.page.get(xs.ERROR_FIELD) == 0


@pytest.mark.parametrize(("kind", "name"), [(k, "EACCES") for k in (0, 8, 9, 17, 18, 19)])
def test_requests_of_the_toolstack_are_not_for_guests(store: XenStore, kind: int, name: str) -> None:
    guest = Guest(store)
    assert guest.ask(kind, "1|2|3|") == name
    # Whether there is such a transaction does not matter then.
    assert guest.ask(kind, "1|", transaction=5) == name


@pytest.mark.parametrize("kind", [15, 16, 20, 22, 23, 0x7FFFFFFF, 0xFFFFFFFF])
def test_unknown_requests(store: XenStore, kind: int) -> None:
    guest = Guest(store)
    guest.push(message(kind, b"name\0", 6, 4))
    guest.serve()
    assert guest.pull() == message(xs.ERROR, b"ENOSYS\0", 6, 4)
    assert guest.ask(xs.READ, "name|") == "debian"


def test_pieces_and_strings() -> None:
    assembler = Assembler()
    assert assembler.missing == 16
    assembler.feed(message(2, b"abc")[:16])
    assert assembler.next() is None
    assert assembler.missing == 3
    assembler.feed(b"abc")
    whole = assembler.next()
    assert whole is not None
    assert whole.payload == b"abc"
    assert assembler.missing == 16
    assembler.feed(message(2, bytes(4097))[:16])
    for _ in range(2):
        with pytest.raises(OverlongMessage, match="4097 bytes"):
            assembler.next()
    assert strings(b"a\0\0b") == [b"a", b""]
    assert one_string(b"\0") == b""
    for wrong in (b"", b"a", b"a\0b", b"a\0b\0", b"\0\0"):
        with pytest.raises(TrapgateError):
            one_string(wrong)


def test_two_pages_do_not_mix(store: XenStore) -> None:
    one, two = Guest(store), Guest(store, 2)
    assert one.ask(xs.READ, "domid|") == "1"
    assert two.ask(xs.READ, "domid|") == "EACCES"
    assert isinstance(two.page, FakePage)
    with pytest.raises(StateError, match="introduced already"):
        Guest(store, 2)
