"""Networks of para-virtual guests: guests that talk to each other, and to a Python that speaks their language."""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from conftest import PROMPT
from trapgate import VM, Machine, Nic, Switch
from trapgate.errors import ConfigError, StateError
from trapgate.network import Tap
from trapgate.xenstore import XenStore

pytestmark = [pytest.mark.boot, pytest.mark.network]

_OURS = "02:00:00:00:00:99"
_BROADCAST = "ff:ff:ff:ff:ff:ff"


@pytest.fixture(scope="module")
def guest(debian: Machine) -> Machine:
    return debian.replace(mode="para", append="console=hvc0", memory="128M")


def _start(vm: VM, address: str) -> None:
    vm.console.expect(PROMPT, timeout=240)
    vm.console.command("dmesg -n 1; stty cols 250", PROMPT)
    vm.console.command("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6", PROMPT)
    vm.console.command(f"ip addr add {address}/24 dev eth0; ip link set eth0 up", PROMPT)


@contextmanager
def _running(vm: VM) -> Iterator[None]:
    """Run a machine by a thread of its own for the time being."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            vm.run(host_timeout=0.2)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def pair(guest: Machine) -> Iterator[tuple[VM, VM, Switch]]:
    """Give 10.0.0.1 and 10.0.0.2 at one switch."""
    switch, store = Switch(), XenStore()
    machine = guest.replace(nics=(Nic(switch=switch),))
    with VM(machine, store=store) as one, VM(machine, store=store, domid=2, name="other") as other:
        _start(one, "10.0.0.1")
        _start(other, "10.0.0.2")
        yield one, other, switch


# What Python says and hears.


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _ip(source: str, to: str) -> bytes:
    return b"".join(bytes(map(int, address.split("."))) for address in (source, to))


def _ping(to: bytes, addresses: bytes, data: bytes) -> bytes:
    icmp = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + data
    icmp = icmp[:2] + struct.pack("!H", 0xFFFF - _sum(icmp)) + icmp[4:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(icmp), 0, 0, 64, 1, 0) + addresses
    header = header[:10] + struct.pack("!H", 0xFFFF - _sum(header)) + header[12:]
    return to + _mac(_OURS) + b"\x08\x00" + header + icmp


def _answer_arp(tap: Tap, frame: bytes) -> None:
    """Say where 10.0.0.9 is to whoever asks."""
    if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\x01" and frame[38:42] == bytes([10, 0, 0, 9]):
        body = frame[14:20] + b"\0\x02" + _mac(_OURS) + frame[38:42] + frame[22:32]
        tap.send(frame[6:12] + _mac(_OURS) + b"\x08\x06" + body)


def _heard(vm: VM, tap: Tap, wanted: Callable[[bytes], bool]) -> bytes:
    """Let the guest run until it has sent what is wanted."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        vm.run(host_timeout=0.05)
        while (frame := tap.receive(0)) is not None:
            _answer_arp(tap, frame)
            if wanted(frame):
                return frame
    raise AssertionError("the guest has not sent what was expected")


# Guests with each other.


def test_guests_reach_each_other(pair: tuple[VM, VM, Switch]) -> None:
    one, other, _ = pair
    with _running(other):
        for size in (8, 1400, 9000, 60000):
            answer = one.console.command(f"ping -c 3 -s {size} 10.0.0.2", PROMPT, timeout=60)
            assert "3 packets received, 0% packet loss" in answer
        assert "100% packet loss" in one.console.command("ping -c 1 -W 1 10.0.0.3", PROMPT, timeout=60)
    for vm in (one, other):
        assert "still in use" not in vm.console.command("dmesg", PROMPT)


def test_a_stream_arrives_whole(pair: tuple[VM, VM, Switch]) -> None:
    one, other, _ = pair
    other.console.command("nc -l -p 5000 > /tmp/got & sleep 0.2", PROMPT)
    one.console.command("dd if=/dev/urandom of=/tmp/sent bs=1k count=6000 2>/dev/null", PROMPT)
    with _running(other):
        one.console.command("nc -w 5 10.0.0.2 5000 < /tmp/sent", PROMPT, timeout=120)
        sums = one.console.command("sha256sum < /tmp/sent", PROMPT)
    other.run(timeout=1)
    assert other.console.command("sha256sum < /tmp/got", PROMPT).split()[0] == sums.split()[0]


def test_large_frames_go_over_pages(pair: tuple[VM, VM, Switch]) -> None:
    one, other, switch = pair
    with switch.tap() as tap:
        for vm in (one, other):
            vm.console.command("ip link set eth0 mtu 16000", PROMPT)
        with _running(other):
            answer = one.console.command("ping -c 3 -s 15000 10.0.0.2", PROMPT, timeout=60)
        assert "3 packets received" in answer
        for vm in (one, other):
            vm.console.command("ip link set eth0 mtu 1500", PROMPT)
        # The switch knows where both are: nobody else hears them.
        assert all(len(frame) < 100 for frame in iter(lambda: tap.receive(0), None))


def test_an_interface_can_be_connected_again(pair: tuple[VM, VM, Switch]) -> None:
    one, other, _ = pair
    for _round in range(2):
        one.console.command("rmmod xen-netfront; modprobe xen-netfront", PROMPT, timeout=30)
        one.console.command("ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up", PROMPT)
        with _running(other):
            assert "2 packets received" in one.console.command("ping -c 2 10.0.0.2", PROMPT, timeout=60)
    assert "still in use" not in one.console.command("dmesg", PROMPT)


# Guests with Python.


def test_python_reaches_a_guest(pair: tuple[VM, VM, Switch]) -> None:
    one, _, switch = pair
    with switch.tap() as tap:
        mac = _mac(one.domain.nics[0].mac or "")
        for size in (0, 1, 56, 1000):
            data = hashlib.sha256(bytes([size % 256])).digest() * 32
            tap.send(_ping(mac, _ip("10.0.0.9", "10.0.0.1"), data[:size]))
            reply = _heard(one, tap, lambda frame: frame[12:14] == b"\x08\0" and frame[23] == 1)
            assert (reply[:6], reply[6:12], reply[34], reply[42 : 42 + size]) == (
                _mac(_OURS),
                mac,
                0,
                data[:size],
            )


def test_what_leaves_has_its_checksum(pair: tuple[VM, VM, Switch]) -> None:
    one, _, switch = pair
    with switch.tap() as tap:
        one.console.sendline("echo hello | nc -w 1 10.0.0.9 77")
        syn = _heard(one, tap, lambda frame: frame[12:14] == b"\x08\0" and frame[23] == 6)
        segment = syn[34 : 14 + int.from_bytes(syn[16:18], "big")]
        assert segment[13] == 2
        assert _sum(syn[26:34] + struct.pack("!HH", 6, len(segment)) + segment) == 0xFFFF
        one.console.send("\x03")
        one.console.expect(PROMPT, timeout=30)


def test_a_listener_hears(pair: tuple[VM, VM, Switch]) -> None:
    one, _, switch = pair
    heard: list[bytes] = []
    with switch.tap(heard.append) as tap:
        one.console.command("ping -c 1 -W 1 10.0.0.77", PROMPT, timeout=30)
        end = time.monotonic() + 10
        while not heard and time.monotonic() < end:
            time.sleep(0.02)
        with pytest.raises(StateError, match="listener"):
            tap.receive()
    assert heard[0][:6] == _mac(_BROADCAST)
    with pytest.raises(StateError, match="closed"):
        tap.send(heard[0])


def test_a_flood_drowns_nobody(pair: tuple[VM, VM, Switch]) -> None:
    one, other, switch = pair
    with switch.tap() as tap, switch.tap() as idle:
        frame = _mac(_BROADCAST) + _mac(_OURS) + b"\x88\xb5" + bytes(1400)
        for _ in range(20_000):
            tap.send(frame)
        assert idle.dropped > 18_000
        # Runts and wild headers are the guest's to judge.
        for junk in (bytes(14), b"\xff" * 14, frame[:60], bytes(60_000), b"\xff" * 65_535):
            tap.send(junk)
        for size in (0, 13, 65_536):
            with pytest.raises(ConfigError, match="14 to 65535 bytes"):
                tap.send(bytes(size))
    with _running(other):
        assert "2 packets received" in one.console.command("ping -c 2 10.0.0.2", PROMPT, timeout=60)


def test_interfaces_come_and_go(pair: tuple[VM, VM, Switch]) -> None:
    one = pair[0]
    handle = one.attach_nic(Nic(mac="00:16:3e:00:00:01"))
    assert handle == 1
    wait = "until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done; cat /sys/class/net/eth1/address"
    assert one.console.command(wait, PROMPT, timeout=20) == "00:16:3e:00:00:01\n"
    one.detach_nic(1)
    one.console.command("while [ -e /sys/class/net/eth1 ]; do sleep 0.1; done", PROMPT, timeout=20)
    assert len(one.domain.nics) == 1
    with pytest.raises(ConfigError, match="no network interface 1"):
        one.detach_nic(1)


# Without a guest's help.


def test_a_guest_that_lies_in_the_store_loses_its_interface_alone(guest: Machine) -> None:
    front, back = "/local/domain/1/device/vif/0", "/local/domain/0/backend/vif/1/0"
    with VM(guest.replace(nics=(Nic(mac="00:16:3e:00:00:01"),))) as vm:
        store = vm.domain.store
        assert store.read(f"{front}/mac") == b"00:16:3e:00:00:01"
        for node, value in (
            ("request-rx-copy", "0"),
            ("tx-ring-ref", "99999"),
            ("rx-ring-ref", ""),
            ("event-channel", "1"),
        ):
            assert store.read(f"{back}/state") == b"2"
            good = {"request-rx-copy": "1", "tx-ring-ref": "8", "rx-ring-ref": "9", "event-channel": "5"}
            for name, given in {**good, node: value}.items():
                store.write(f"{front}/{name}", given)
            for state, answer in ((4, b"5"), (6, b"6"), (1, b"2")):
                store.write(f"{front}/state", state)
                assert store.read(f"{back}/state") == answer


def test_configs_say_what_is_wrong(guest: Machine) -> None:
    for mac in ("", "00:16:3e", "01:16:3e:00:00:01", "00:16:3E:00:00:01", "00:16:3e:00:00:01:02"):
        with pytest.raises(ConfigError, match="mac is"):
            Nic(mac=mac)
    with pytest.raises(ConfigError, match=r"trapgate\.Switch"):
        Nic(switch="lan")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="mode 'para'"):
        Machine(kernel=b"", nics=(Nic(),))
    machine = Machine.from_dict({"kernel": b"", "mode": "para", "nics": [{}, {"mac": "00:16:3e:00:00:01"}]})
    assert machine.nics == (Nic(), Nic(mac="00:16:3e:00:00:01"))
    # The address follows from the seed.
    with VM(guest.replace(nics=(Nic(),), seed=5)) as one, VM(guest.replace(nics=(Nic(),), seed=5)) as other:
        assert one.domain.nics[0].mac == other.domain.nics[0].mac
