"""XenStore's nodes as a guest and the toolstack see them: values, directories, paths, permissions, removal."""

from __future__ import annotations

import pickle

import pytest

import store_guest as xs
from store_guest import Guest, errors
from trapgate.errors import ConfigError, StoreError
from trapgate.xenstore import Access, Permission, XenStore
from trapgate.xenstore.layout import Domain, add_domain

UUID = "00000000-0000-0000-0000-00000000000"


@pytest.fixture
def store() -> XenStore:
    store = XenStore()
    for domid in (1, 2):
        add_domain(store, Domain(domid=domid, name=f"guest{domid}", uuid=f"{UUID}{domid}", memory=1024))
    return store


@pytest.fixture
def guest(store: XenStore) -> Guest:
    return Guest(store)


def test_values_are_bytes_as_they_came(store: XenStore, guest: Guest) -> None:
    assert guest.ask(xs.WRITE, b"data/x\0a\0b\xff") == "OK|"
    assert guest.request(xs.READ, "data/x|").payload == b"a\0b\xff"
    assert store.read("/local/domain/1/data/x") == b"a\0b\xff"
    assert guest.ask(xs.WRITE, "data/x|") == "OK|"
    assert guest.request(xs.READ, "data/x|").payload == b""


def test_directories_list_names_in_order(store: XenStore, guest: Guest) -> None:
    for name in ("b", "a", "c/d"):
        assert guest.ask(xs.WRITE, f"data/{name}|1") == "OK|"
    assert guest.ask(xs.DIRECTORY, "data|") == "b|a|c|"
    assert guest.ask(xs.DIRECTORY, "data/c|") == "d|"
    assert guest.ask(xs.READ, "data/c|") == ""
    assert guest.request(xs.DIRECTORY, "data/a|").payload == b""
    assert store.list("/local/domain/1/data") == ["b", "a", "c"]


def test_mkdir_leaves_what_is_there(guest: Guest) -> None:
    guest.ask(xs.WRITE, "data/x|v")
    assert guest.ask(xs.MKDIR, "data/x|") == "OK|"
    assert guest.ask(xs.READ, "data/x|") == "v"
    assert guest.ask(xs.MKDIR, "data/y/z|") == "OK|"
    assert guest.ask(xs.DIRECTORY, "data|") == "x|y|"


def test_removal(store: XenStore, guest: Guest) -> None:
    guest.ask(xs.WRITE, "data/a/b/c|1")
    guest.ask(xs.WRITE, "data/ab|1")
    assert guest.ask(xs.RM, "data/a|") == "OK|"
    assert guest.ask(xs.DIRECTORY, "data|") == "ab|"
    assert errors(guest, xs.READ, ["data/a/b/c|", "data/a/b|", "data/a|"]) == ["ENOENT"] * 3
    assert guest.ask(xs.RM, "data/a|") == "OK|", "absent, but its parent is there"
    assert guest.ask(xs.RM, "data/a/b|") == "ENOENT"
    assert guest.ask(xs.RM, "/|") == "EINVAL"
    with pytest.raises(StoreError) as caught:
        store.rm("/")
    assert caught.value.code == "EINVAL"
    with pytest.raises(StoreError) as caught:
        store.rm("/no/such/node")
    assert (caught.value.code, caught.value.errno) == ("ENOENT", 2)


WRONG_PATHS: list[bytes | str] = [
    "|",
    "",
    "data",
    "data/|",
    "data//x|",
    "//|",
    "/local/|",
    "data/a b|",
    "data/a.b|",
    "data/\xe9|",
    b"data/\xff\0",
    "@releaseDomain|",
    "data\n|",
    "/" + "n/" * 1600 + "n|",
    "/" + "n" * 3072 + "|",
    "n" * 2049 + "|",
    "/local/domain/1/" + "n" * 2049 + "|",
    "/local/domain/2/" + "n" * 2049 + "|",
]


@pytest.mark.parametrize("path", WRONG_PATHS)
@pytest.mark.parametrize("kind", [xs.READ, xs.DIRECTORY, xs.MKDIR, xs.RM, xs.WRITE])
def test_wrong_paths(guest: Guest, path: bytes | str, kind: int) -> None:
    assert guest.ask(kind, path) == "EINVAL"


def test_one_path_is_asked_for_and_no_more(guest: Guest) -> None:
    kinds = (xs.READ, xs.DIRECTORY, xs.MKDIR, xs.RM, xs.GET_PERMS, xs.DOMAIN_PATH)
    for kind in kinds:
        assert errors(guest, kind, ["name|name|", "name|x", "name", ""]) == ["EINVAL"] * 4


def test_longest_paths(guest: Guest) -> None:
    assert guest.ask(xs.READ, "data/" + "n" * 2043 + "|") == "ENOENT"
    assert guest.ask(xs.READ, "/" + "n" * 3071 + "|") == "EACCES"


def test_path_characters(guest: Guest) -> None:
    assert guest.ask(xs.WRITE, "data/azAZ09-_@|v") == "OK|"
    assert guest.ask(xs.READ, "/local/domain/1/data/azAZ09-_@|") == "v"


def test_domain_paths(guest: Guest) -> None:
    assert guest.ask(xs.DOMAIN_PATH, "1|") == "/local/domain/1|"
    assert guest.ask(xs.DOMAIN_PATH, "007|") == "/local/domain/7|"
    assert errors(guest, xs.DOMAIN_PATH, ["|", "-1|", "x|", "65536|", "999999999999|"]) == ["EINVAL"] * 5


def test_others_nodes_are_out_of_reach(guest: Guest) -> None:
    paths = ["/local/domain/2/name", "/local/domain/2/nothing", "/local/domain/2", "/nothing", "/", "/local"]
    for kind in (xs.READ, xs.DIRECTORY, xs.GET_PERMS):
        assert [guest.ask(kind, f"{path}|") for path in paths] == ["EACCES"] * 6
    assert [guest.ask(xs.WRITE, f"{path}|x") for path in paths] == ["EACCES"] * 6
    assert [guest.ask(xs.MKDIR, f"{path}|") for path in paths] == ["EACCES"] * 6
    # Of "/" everybody knows that it cannot be removed.
    assert [guest.ask(xs.RM, f"{path}|") for path in paths] == ["EACCES"] * 4 + ["EINVAL", "EACCES"]
    assert [guest.ask(xs.SET_PERMS, f"{path}|n1|") for path in paths] == ["EACCES"] * 6


def test_what_may_only_be_read_cannot_be_written(store: XenStore, guest: Guest) -> None:
    assert guest.ask(xs.READ, "name|") == "guest1"
    for kind, payload in ((xs.WRITE, "name|x"), (xs.RM, "name|"), (xs.MKDIR, "new|"), (xs.RM, "new|")):
        assert guest.ask(kind, payload) == "EACCES"
    assert guest.ask(xs.SET_PERMS, "name|n1|") == "EACCES"
    store.write("/shared", "v")
    store.set_permissions("/shared", "n0,w1")
    assert guest.ask(xs.READ, "/shared|") == "EACCES"
    assert guest.ask(xs.WRITE, "/shared|new") == "OK|"
    assert guest.ask(xs.SET_PERMS, "/shared|n0|b1|") == "EACCES", "writing is not owning"
    assert store.read("/shared") == b"new"


def test_the_first_entry_is_for_everybody_else(store: XenStore, guest: Guest) -> None:
    store.write("/board", "v")
    store.set_permissions("/board", ["r0", "n1"])
    assert guest.ask(xs.READ, "/board|") == "EACCES"
    assert Guest(store, 2).ask(xs.READ, "/board|") == "v"
    store.set_permissions("/board", "b0")
    assert guest.ask(xs.WRITE, "/board/mine|x") == "OK|"
    assert store.permissions("/board/mine") == (Permission(1, Access.BOTH),)


def test_new_nodes_inherit_and_belong_to_the_guest_that_makes_them(store: XenStore, guest: Guest) -> None:
    store.write("/local/domain/1/device/vbd/1/x", "")
    store.set_permissions("/local/domain/1/device/vbd/1", "n1,r0,r2")
    assert guest.ask(xs.WRITE, "device/vbd/1/a/b|x") == "OK|"
    assert guest.ask(xs.GET_PERMS, "device/vbd/1/a/b|") == "n1|r0|r2|"
    store.write("/local/domain/1/device/vbd/1/c", "x")
    assert guest.ask(xs.GET_PERMS, "device/vbd/1/c|") == "n1|r0|r2|"
    store.write("/top/below", "x")
    assert [str(entry) for entry in store.permissions("/top/below")] == ["n0"]


def test_a_guest_sets_permissions_of_its_own_nodes(store: XenStore, guest: Guest) -> None:
    other = Guest(store, 2)
    guest.ask(xs.WRITE, "data/x|secret")
    path = "/local/domain/1/data/x"
    assert other.ask(xs.READ, f"{path}|") == "EACCES"
    assert guest.ask(xs.SET_PERMS, "data/x|n1|r2|") == "OK|"
    assert other.ask(xs.READ, f"{path}|") == "secret"
    assert other.ask(xs.WRITE, f"{path}|x") == "EACCES"
    assert other.ask(xs.SET_PERMS, f"{path}|n2|") == "EACCES"
    assert guest.ask(xs.SET_PERMS, "data/x|n2|") == "EPERM"
    assert guest.ask(xs.SET_PERMS, "data/none|n1|") == "ENOENT"
    assert guest.ask(xs.GET_PERMS, "data/x|") == "n1|r2|"


@pytest.mark.parametrize(
    "entries", ["", "n1", "x1|", "n|", "1|", "nn1|", "n-1|", "n65536|", "n1|r|", "N1|", "n1x|"]
)
def test_wrong_permissions(guest: Guest, entries: str) -> None:
    assert guest.ask(xs.SET_PERMS, f"data|{entries}") == "EINVAL"


def test_special_names_have_permissions(store: XenStore, guest: Guest) -> None:
    assert guest.ask(xs.GET_PERMS, "@releaseDomain|") == "EACCES"
    store.set_permissions("@releaseDomain", "r0")
    assert guest.ask(xs.GET_PERMS, "@releaseDomain|") == "r0|"
    assert guest.ask(xs.READ, "@releaseDomain|") == "EINVAL"


def test_a_directory_that_no_reply_can_carry(store: XenStore, guest: Guest) -> None:
    for number in range(600):
        store.write(f"/local/domain/1/cpu/{number:07}", "")
    assert guest.ask(xs.DIRECTORY, "cpu|") == "E2BIG"
    assert len(store.list("/local/domain/1/cpu")) == 601


def test_the_toolstacks_values_and_errors(store: XenStore) -> None:
    store.write("/a", 17)
    store.write("/b", "\u00e9")
    store.write("/c", True)
    assert [store.read(f"/{name}") for name in "abc"] == [b"17", b"\xc3\xa9", b"1"]
    assert store.get("/none") is None
    assert not store.exists("/none")
    with pytest.raises(StoreError, match="at most 4096") as caught:
        store.write("/a", bytes(4097))
    assert caught.value.code == "E2BIG"
    with pytest.raises(StoreError, match="/none: there is no such node") as caught:
        store.read("/none")
    assert isinstance(caught.value, OSError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.code, str(again)) == ("ENOENT", "/none: there is no such node")
    for wrong in ("relative", "", "/a/", "@releaseDomain", "/a//b", "/\u00e9"):
        with pytest.raises(StoreError) as caught:
            store.read(wrong)
        assert caught.value.code == "EINVAL", wrong
    with pytest.raises(StoreError, match="at least the owner"):
        store.set_permissions("/a", [])


def test_a_released_domain_leaves_nothing_to_the_next_of_its_number(store: XenStore) -> None:
    guest = Guest(store, 2)
    guest.ask(xs.WRITE, "data/x|v")
    guest.ask(xs.WATCH, "data|t|")
    number = guest.ask(xs.START, "|").removesuffix("|")
    guest.ask(xs.WRITE, "data/y|v", int(number))
    store.write("/shared", "v")
    store.set_permissions("/shared", "n0,r1,r2")
    assert store.introduced(2)
    store.release(2)
    assert not store.introduced(2)
    assert not store.exists("/local/domain/2/data")
    assert store.exists("/local/domain/2/name"), "the toolstack's own stay"
    assert [str(entry) for entry in store.permissions("/shared")] == ["n0", "r1"]
    assert store.usage(2) == store.usage(3)
    assert Guest(store, 2).ask(xs.READ, "/shared|") == "EACCES"


@pytest.mark.parametrize("domid", [0, -1, 0x7FF0, 1 << 40])
def test_domains_have_numbers(store: XenStore, domid: int) -> None:
    with pytest.raises(ConfigError, match="it must be 1 to 32751"):
        Guest(store, domid)
