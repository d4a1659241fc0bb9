"""The entries of a domain and its devices: what Linux and PV GRUB look for, with xl's permissions."""

from __future__ import annotations

from typing import Any

import pytest

import store_guest as xs
from store_guest import Guest
from trapgate.errors import ConfigError
from trapgate.xenstore import XenStore
from trapgate.xenstore.layout import (
    Console,
    Disk,
    Domain,
    Nic,
    add_disk,
    add_domain,
    add_nic,
    remove_device,
    remove_domain,
    virtual_device,
)

UUID = "0f0e0d0c-0b0a-0908-0706-050403020100"
DOMAIN = Domain(
    domid=7, name="debian", uuid=UUID, memory=262144, vcpus=2, console=Console(ring_ref=4093, port=2)
)
DISK = Disk(name="xvda", params="/images/debian.raw")
NIC = Nic(handle=0, mac="00:16:3e:01:02:03", script="none")


def entries(store: XenStore, path: str) -> dict[str, str]:
    """Give the values of all nodes below a path that have one."""
    found = {}
    for name in store.list(path):
        value = store.read(f"{path}/{name}").decode()
        if value:
            found[name] = value
        found.update({f"{name}/{k}": v for k, v in entries(store, f"{path}/{name}").items()})
    return found


@pytest.fixture
def store() -> XenStore:
    store = XenStore()
    with store.transaction() as t:
        add_domain(t, DOMAIN)
        add_disk(t, 7, DISK)
        add_nic(t, 7, NIC)
    return store


def test_all_entries(store: XenStore) -> None:
    front, back = "/local/domain/7/device", "/local/domain/0/backend"
    assert entries(store, "/local/domain/7") == {
        "name": "debian",
        "domid": "7",
        "vm": f"/vm/{UUID}",
        "memory/target": "262144",
        "memory/static-max": "262144",
        "control/platform-feature-multiprocessor-suspend": "1",
        "cpu/0/availability": "online",
        "cpu/1/availability": "online",
        "console/backend": f"{back}/console/7/0",
        "console/backend-id": "0",
        "console/type": "xenconsoled",
        "console/ring-ref": "4093",
        "console/port": "2",
        "console/limit": "1048576",
        "console/output": "pty",
        "device/vbd/51712/backend": f"{back}/vbd/7/51712",
        "device/vbd/51712/backend-id": "0",
        "device/vbd/51712/state": "1",
        "device/vbd/51712/virtual-device": "51712",
        "device/vbd/51712/device-type": "disk",
        "device/vif/0/backend": f"{back}/vif/7/0",
        "device/vif/0/backend-id": "0",
        "device/vif/0/state": "1",
        "device/vif/0/handle": "0",
        "device/vif/0/mac": "00:16:3e:01:02:03",
    }
    assert entries(store, "/local/domain/0/backend") == {
        "vbd/7/51712/frontend": f"{front}/vbd/51712",
        "vbd/7/51712/frontend-id": "7",
        "vbd/7/51712/online": "1",
        "vbd/7/51712/state": "1",
        "vbd/7/51712/removable": "0",
        "vbd/7/51712/dev": "xvda",
        "vbd/7/51712/mode": "w",
        "vbd/7/51712/type": "file",
        "vbd/7/51712/params": "/images/debian.raw",
        "vif/7/0/frontend": f"{front}/vif/0",
        "vif/7/0/frontend-id": "7",
        "vif/7/0/online": "1",
        "vif/7/0/state": "1",
        "vif/7/0/handle": "0",
        "vif/7/0/mac": "00:16:3e:01:02:03",
        "vif/7/0/script": "none",
    }
    assert entries(store, f"/vm/{UUID}") == {"name": "debian", "uuid": UUID}


def test_permissions(store: XenStore) -> None:
    top = "/local/domain/7"
    expected = {
        "n0,r7": [
            *(f"{top}{name}" for name in ("", "/cpu", "/cpu/1/availability", "/memory", "/memory/target")),
            *(f"{top}{name}" for name in ("/device", "/device/vbd", "/control", "/name", "/console/port")),
            f"/vm/{UUID}",
            f"/vm/{UUID}/name",
            "/local/domain/0/backend/vbd/7/51712",
            "/local/domain/0/backend/vif/7/0/state",
        ],
        "n7": [
            *(
                f"{top}/control/{name}"
                for name in ("shutdown", "sysrq", "feature-poweroff", "feature-reboot")
            ),
            *(
                f"{top}/{name}"
                for name in ("control/feature-suspend", "device/suspend/event-channel", "data")
            ),
            *(f"{top}/{name}" for name in ("drivers", "feature", "attr", "error")),
        ],
        "n7,r0": [f"{top}/device/vbd/51712", f"{top}/device/vbd/51712/state", f"{top}/device/vif/0/mac"],
        "n0": ["/local/domain/0/backend", "/local/domain/0", "/local/domain", "/vm"],
    }
    for permissions, paths in expected.items():
        for path in paths:
            assert ",".join(map(str, store.permissions(path))) == permissions, path


def test_a_guest_finds_its_disk_as_grub_does(store: XenStore) -> None:
    guest = Guest(store, 7)
    assert guest.ask(xs.DIRECTORY, "device/vbd|") == "51712|"
    backend = guest.ask(xs.READ, "device/vbd/51712/backend|")
    assert guest.ask(xs.READ, f"{backend}/dev|") == "xvda"
    assert guest.ask(xs.READ, "device/vbd/51712/backend-id|") == "0"
    for name, value in (
        ("ring-ref", "8"),
        ("event-channel", "5"),
        ("protocol", "x86_64-abi"),
        ("state", "3"),
    ):
        assert guest.ask(xs.WRITE, f"device/vbd/51712/{name}|{value}") == "OK|"
    assert guest.ask(xs.READ, f"{backend}/sectors|") == "ENOENT"
    assert guest.ask(xs.WRITE, f"{backend}/state|4") == "EACCES"


def test_a_guest_is_shut_down(store: XenStore) -> None:
    guest = Guest(store, 7)
    assert guest.ask(xs.WRITE, "control/feature-poweroff|1") == "OK|"
    assert guest.ask(xs.WATCH, "control/shutdown|s|") == "OK|"
    guest.take_events()
    store.write("/local/domain/7/control/shutdown", "poweroff")
    assert guest.take_events() == [("control/shutdown", "s")]
    # Linux blanks it within a transaction.
    number = int(guest.ask(xs.START, "|").removesuffix("|"))
    assert guest.ask(xs.READ, "control/shutdown|", number) == "poweroff"
    assert guest.ask(xs.WRITE, "control/shutdown|", number) == "OK|"
    assert guest.ask(xs.END, "T|", number) == "OK|"
    assert store.read("/local/domain/7/control/shutdown") == b""
    assert guest.ask(xs.WRITE, "control/other|1") == "EACCES"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("xvda", 51712),
        ("xvdb", 51728),
        ("xvdp", 51952),
        ("xvdq", 1 << 28 | 16 << 8),
        ("xvdaa", 1 << 28 | 26 << 8),
    ],
)
def test_numbers_of_disks(name: str, number: int) -> None:
    assert virtual_device(name) == number


@pytest.mark.parametrize("name", ["", "xvd", "sda", "xvdA", "xvda1", "xvdaaaa"])
def test_wrong_names_of_disks(name: str) -> None:
    with pytest.raises(ConfigError, match="it must be xvda, xvdb"):
        virtual_device(name)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"domid": 0}, "it must be 1 to 32751"),
        ({"uuid": "x"}, "the domain's uuid is 'x'"),
        ({"uuid": "../../local/domain/0"}, "the domain's uuid"),
        ({"memory": 0}, "needs memory"),
        ({"vcpus": 0}, "a vCPU"),
    ],
)
def test_wrong_domains(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Domain(**{"domid": 1, "name": "n", "uuid": UUID, "memory": 1, **changes})


@pytest.mark.parametrize(
    "mac", ["", "00:16:3E:01:02:03", "01:16:3e:01:02:03", "00:16:3e:01:02", "00-16-3e-01-02-03"]
)
def test_wrong_interfaces(mac: str) -> None:
    with pytest.raises(ConfigError, match="not the address of one interface"):
        Nic(handle=0, mac=mac)
    with pytest.raises(ConfigError, match="it must be 0 or more"):
        Nic(handle=-1, mac="00:16:3e:01:02:03")


def test_a_domain_can_be_written_again_and_removed(store: XenStore) -> None:
    before = {path: entries(store, path) for path in ("/local", "/vm")}
    guest = Guest(store, 7)
    guest.ask(xs.WRITE, "data/x|1")
    guest.ask(xs.WRITE, "device/vbd/51712/state|6")
    store.release(7)
    add_domain(store, DOMAIN)
    add_disk(store, 7, DISK)
    add_nic(store, 7, NIC)
    assert {path: entries(store, path) for path in ("/local", "/vm")} == before
    remove_device(store, 7, "vif", 0)
    remove_device(store, 7, "vif", 0)
    assert not store.exists("/local/domain/0/backend/vif/7/0")
    add_domain(store, Domain(domid=8, name="other", uuid=UUID.replace("0", "1"), memory=1))
    remove_domain(store, 7)
    remove_domain(store, 7)
    assert store.list("/local/domain") == ["0", "8"]
    assert store.list("/vm") == [UUID.replace("0", "1")]
    assert store.list("/local/domain/0/backend/vbd") == []
    assert store.usage(7).nodes == 0
