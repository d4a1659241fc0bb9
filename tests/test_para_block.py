"""Disks of para-virtual guests: what a guest writes is there for the next one, and nothing else of the host is."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import PROMPT
from packages import Packages, add, with_files
from trapgate import VM, Disk, Machine, exits
from trapgate.cli import boot
from trapgate.errors import ConfigError
from trapgate.images.cpio import Archive
from trapgate.para import Call

pytestmark = [pytest.mark.boot, pytest.mark.network]

_MIB = 1 << 20
_TOOLS = frozenset({"/sbin/mke2fs", "/sbin/e2fsck", "/etc/mke2fs.conf"})


@pytest.fixture(scope="module")
def guest(debian: Machine, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Debian as a para-virtual guest, with the tools of ext4."""
    packages = Packages(tmp_path_factory.mktemp("apt"))
    root = Archive()
    for package in packages.fetch("e2fsprogs"):
        add(
            root,
            package,
            lambda name: name in _TOOLS or (".so" in name and name.startswith(("/lib", "/usr/lib"))),
        )
    root.symlink("/sbin/mkfs.ext4", "mke2fs")
    return with_files(debian, root).replace(mode="para", append="console=hvc0")


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(_image(tmp_path / "disk", 64 * _MIB))


def _image(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def _boot(machine: Machine) -> VM:
    vm = VM(machine)
    try:
        vm.console.expect(PROMPT, timeout=240)
        # Neither the kernel's messages nor the ends of lines are to be among the answers.
        vm.console.command("dmesg -n 1; stty cols 250", PROMPT)
    except BaseException:
        vm.close()
        raise
    return vm


@pytest.fixture(scope="module")
def booted(guest: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VM]:
    """Give a guest with a scratch disk xvda and a read-only xvdb, whose sectors are numbered."""
    folder = tmp_path_factory.mktemp("disks")
    fixed = folder / "fixed"
    fixed.write_bytes(b"".join(bytes([n]) * 512 for n in range(64)))
    disks = (Disk(_image(folder / "scratch", 32 * _MIB)), Disk(fixed, "xvdb", read_only=True))
    with _boot(guest.replace(disks=disks)) as vm:
        yield vm


def test_a_file_system_outlives_its_guests(guest: Machine, disk: Disk) -> None:
    machine = guest.replace(disks=(disk,))
    with _boot(machine) as vm:
        console = vm.console
        assert "flush diskcache: enabled" in console.transcript
        console.command("mkfs.ext4 -q -F /dev/xvda && mount /dev/xvda /mnt && mkdir /mnt/a", PROMPT)
        console.command(
            "for i in 1 2 3 4 5 6; do dd if=/dev/urandom of=/mnt/a/$i bs=64k count=$((i * 9)) 2>/dev/null; done",
            PROMPT,
        )
        sums = console.command("cd /mnt/a; sha256sum *; cd", PROMPT)
        assert len(sums.splitlines()) == 6
        console.command("echo end > /mnt/end; sync", PROMPT)
        # What a sync has answered for is there, though the machine is lost in the next moment.
        console.command("echo never > /mnt/late", PROMPT)
    with _boot(machine) as vm:
        console = vm.console
        console.command("mount /dev/xvda /mnt", PROMPT)
        assert console.command("cd /mnt/a; sha256sum *; cat /mnt/end; cd", PROMPT) == f"{sums}end\n"
        assert "recovery complete" in console.command("dmesg", PROMPT)
        console.command("umount /mnt", PROMPT)
        assert console.command("e2fsck -f -n /dev/xvda >/dev/null 2>&1; echo $?", PROMPT) == "0\n"
        console.sendline("reboot -f")
        assert isinstance(vm.run(timeout=60), exits.Reset)
    with _boot(machine) as vm:
        vm.console.command("mount /dev/xvda /mnt", PROMPT)
        assert vm.console.command("cd /mnt/a; sha256sum *; cd", PROMPT) == sums


def test_many_writers_at_once_find_what_they_wrote(booted: VM) -> None:
    console = booted.console
    console.command("mkfs.ext4 -q -F /dev/xvda; mount /dev/xvda /mnt", PROMPT)
    console.command(
        "w() { for n in 1 2 3; do dd if=/dev/urandom of=/mnt/$1.$n bs=7k count=60 2>/dev/null;"
        " sha256sum /mnt/$1.$n >> /tmp/sums.$1; sync; done; }",
        PROMPT,
    )
    console.command("for i in 1 2 3 4 5; do w $i & done; wait", PROMPT, timeout=120)
    console.command("umount /mnt; echo 3 > /proc/sys/vm/drop_caches; mount /dev/xvda /mnt", PROMPT)
    answer = console.command("cat /tmp/sums.* | sha256sum -c | grep -c OK", PROMPT)
    assert answer == "15\n"
    console.command("umount /mnt", PROMPT)


@pytest.mark.long
def test_no_crash_loses_what_was_synced(guest: Machine, disk: Disk) -> None:
    machine = guest.replace(disks=(disk,))
    chance = random.Random(1)
    synced: dict[str, str] = {}
    with _boot(machine) as vm:
        vm.console.command("mkfs.ext4 -q -F /dev/xvda", PROMPT)
    for crash in range(8):
        with _boot(machine) as vm:
            console = vm.console
            console.command("mount /dev/xvda /mnt", PROMPT)
            for name, digest in synced.items():
                assert console.command(f"sha256sum < /mnt/{name}", PROMPT).split()[0] == digest
            # Others write meanwhile without a sync, so that there is always something under way.
            console.command("while true; do cp /bin/busybox /mnt/other; rm /mnt/other; done &", PROMPT)
            end = vm.now + chance.uniform(1, 4)
            for n in itertools.count():
                name = f"{crash}.{n}"
                size = chance.randrange(1, 200_000)
                text = f"head -c {size} /dev/urandom > /mnt/{name}; sync; sha256sum < /mnt/{name}"
                synced[name] = console.command(text, PROMPT, timeout=60).split()[0]
                if vm.now > end:
                    break
            # It goes down wherever it is.
            vm.run(max_instructions=chance.randrange(50_000_000))
    with _boot(machine) as vm:
        vm.console.command("mount /dev/xvda /mnt; umount /mnt", PROMPT)
        assert vm.console.command("e2fsck -f -n /dev/xvda >/dev/null 2>&1; echo $?", PROMPT) == "0\n"
    assert len(synced) > 30


def test_guest_and_host_see_the_same_bytes(booted: VM) -> None:
    path = Path(booted.config.disks[0].path)
    booted.console.command(
        "dd if=/dev/urandom of=/dev/xvda bs=1M count=8 seek=3 conv=fsync 2>/dev/null;"
        " echo 3 > /proc/sys/vm/drop_caches",
        PROMPT,
    )
    guests = booted.console.command("sha256sum < /dev/xvda", PROMPT, timeout=60).split()[0]
    assert guests == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_size == 32 * _MIB


def test_discarded_blocks_are_given_back(booted: VM) -> None:
    path = Path(booted.config.disks[0].path)
    console = booted.console
    console.command("dd if=/dev/urandom of=/dev/xvda bs=1M count=8 conv=fsync 2>/dev/null", PROMPT)
    before = path.stat().st_blocks
    assert console.command("blkdiscard /dev/xvda; echo $?", PROMPT) == "0\n"
    assert path.stat().st_blocks < before - 8 * _MIB // 512 + 100


def test_a_read_only_disk_is_read_only(booted: VM) -> None:
    console = booted.console
    assert console.command("cat /sys/block/xvdb/ro /sys/block/xvdb/size", PROMPT) == "1\n64\n"
    assert (
        console.command("dd if=/dev/xvdb bs=512 skip=53 count=1 2>/dev/null | head -c1; echo", PROMPT)
        == "5\n"
    )
    before = Path(booted.config.disks[1].path).read_bytes()
    console.command("dd if=/dev/zero of=/dev/xvdb bs=512 count=1 conv=fsync", PROMPT)
    assert Path(booted.config.disks[1].path).read_bytes() == before


def test_disks_come_and_go(booted: VM, tmp_path: Path) -> None:
    console = booted.console
    late = Disk(_image(tmp_path / "late", _MIB), "xvdc")
    for _ in range(2):
        booted.attach_disk(late)
        with pytest.raises(ConfigError, match="in use by another"):
            booted.attach_disk(late)
        answer = console.command(
            "until [ -b /dev/xvdc ]; do sleep 0.1; done; cat /sys/block/xvdc/size", PROMPT, timeout=20
        )
        assert answer == "2048\n"
        console.command("echo again > /dev/xvdc; sync", PROMPT)
        booted.detach_disk("xvdc")
        console.command("while [ -b /dev/xvdc ]; do sleep 0.1; done", PROMPT, timeout=20)
        assert "xvdc" not in [disk.name for disk in booted.domain.disks]
        assert Path(late.path).read_bytes()[:6] == b"again\n"
    with pytest.raises(ConfigError, match="no disk xvdz"):
        booted.detach_disk("xvdz")


def test_a_guest_that_lies_in_the_store_loses_its_disk_alone(guest: Machine, disk: Disk) -> None:
    front, back = "/local/domain/1/device/vbd/51712", "/local/domain/0/backend/vbd/1/51712"
    with VM(guest.replace(disks=(disk,))) as vm:
        store = vm.domain.store
        for node, value in (
            ("ring-ref", "99999"),
            ("ring-ref", ""),
            ("ring-ref", "1e3"),
            ("ring-ref", "99999999999999999999"),
            ("event-channel", "4095"),
            ("event-channel", "-1"),
            ("protocol", "x86_32-abi"),
            ("backend", "/local/domain/0/backend/vbd/7/51712"),
        ):
            assert store.read(f"{back}/state") == b"2"
            names = {"ring-ref": "8", "event-channel": "1", "protocol": "x86_64-abi", node: value}
            for name, given in names.items():
                store.write(f"{front}/{name}", given)
            # Nothing is looked at before the guest says that it stands.
            assert store.read(f"{back}/state") == b"2"
            store.write(f"{front}/state", 3)
            assert store.read(f"{back}/state") == b"5"
            error = "/local/domain/0/error/backend/vbd/1/51712/error"
            assert store.read(error).startswith(b"22 ")
            store.rm(error)
            store.write(f"{front}/state", 6)
            assert store.read(f"{back}/state") == b"6"
            store.write(f"{front}/state", 1)


def test_a_guest_that_breaks_its_ring_loses_its_disk_alone(booted: VM, tmp_path: Path) -> None:
    console = booted.console
    booted.attach_disk(Disk(_image(tmp_path / "late", _MIB), "xvdd"))
    console.command("until [ -b /dev/xvdd ]; do sleep 0.1; done", PROMPT, timeout=20)
    # The ring's page is the one that its grant names; the table lies behind shared_info.
    front, back = "/local/domain/1/device/vbd/51760", "/local/domain/0/backend/vbd/1/51760"
    reference = int(booted.domain.store.read(f"{front}/ring-ref"))
    entry = booted._core.regions()[1][0] + 4096 + reference * 8
    flags, _domid, frame = struct.unpack("<HHI", booted.mem.read(entry, 8))
    assert flags == 1 | 8 | 16
    port = int(booted.domain.store.read(f"{front}/event-channel"))

    def wild(call: Call, before: Callable[[Call], int | None]) -> int | None:
        if call.args[0] == 4 and call.memory.linear.read(call.args[1], 4) == struct.pack("<I", port):
            (produced,) = struct.unpack("<I", booted.mem.read(frame << 12, 4))
            booted.mem.write(frame << 12, struct.pack("<I", produced + 1000))
        return before(call)

    row = booted.hypercalls["event_channel_op"]
    row.wrap(wild)
    console.command("dd if=/dev/xvdd of=/dev/null count=1 &", PROMPT)
    booted.run(until=lambda vm: vm.domain.store.read(f"{back}/state") != b"4", timeout=20)
    row.restore()
    error = booted.domain.store.read("/local/domain/0/error/backend/vbd/1/51760/error")
    assert b"requests into a ring of 32" in error
    assert struct.unpack("<H", booted.mem.read(entry, 2))[0] & (8 | 16) == 0
    # Whoever waits for the lost disk waits for ever; everything else goes on.
    assert console.command("head -c 512 /dev/xvda | wc -c", PROMPT) == "512\n"


def test_a_run_by_counted_instructions_repeats_itself(guest: Machine, tmp_path: Path) -> None:
    digests = []
    for n in range(2):
        disk = Disk(_image(tmp_path / str(n), 8 * _MIB))
        with VM(guest.replace(disks=(disk,), clock="virtual")) as vm:
            vm.console.expect(PROMPT, timeout=240)
            vm.console.command(
                "mke2fs -q -F /dev/xvda; mount /dev/xvda /mnt; cp -r /etc /mnt; umount /mnt", PROMPT
            )
            digests.append((vm.icount, hashlib.sha256(Path(disk.path).read_bytes()).digest()))
    assert digests[0] == digests[1]


def test_a_file_that_is_written_to_is_one_machines(guest: Machine, disk: Disk) -> None:
    with VM(guest.replace(disks=(disk,))), pytest.raises(ConfigError, match="in use by another machine"):
        VM(guest.replace(disks=(disk,)))
    shared = Disk(disk.path, read_only=True)
    with VM(guest.replace(disks=(shared,))), VM(guest.replace(disks=(shared,))):
        pass
    VM(guest.replace(disks=(disk,))).close()


def test_configs_say_what_is_wrong(tmp_path: Path) -> None:
    machine = Machine(kernel=b"", mode="para", disks=(Disk("a"), Disk("b", "xvdb", True)))
    assert pickle.loads(pickle.dumps(machine)) == machine
    with pytest.raises(ConfigError, match="mode 'para'"):
        Machine(kernel=b"", disks=(Disk("a"),))
    with pytest.raises(ConfigError, match="two disks have the name xvda"):
        Machine(kernel=b"", mode="para", disks=(Disk("a"), Disk("b")))
    with pytest.raises(ConfigError, match="it must be xvda, xvdb and so on"):
        Disk("a", "sda")
    with pytest.raises(ConfigError, match="must be a file name"):
        Disk("")
    toml = tmp_path / "machine.toml"
    toml.write_text(
        'kernel = "k"\nmode = "para"\n[[disks]]\npath = "d"\n[[disks]]\npath = "e"\nname = "xvdb"\n'
    )
    assert Machine.from_toml(toml).disks == (Disk(tmp_path / "d"), Disk(tmp_path / "e", "xvdb"))
    with pytest.raises(ConfigError, match="no 'size'"):
        Machine.from_dict({"kernel": b"", "mode": "para", "disks": [{"path": "a", "size": 3}]})
    for content, why in ((b"", "0 bytes"), (bytes(700), "700 bytes")):
        odd = tmp_path / "odd"
        odd.write_bytes(content)
        with pytest.raises(ConfigError, match=why):
            VM(Machine(kernel=b"", mode="para", disks=(Disk(odd),)))
    with pytest.raises(ConfigError, match="No such file"):
        VM(Machine(kernel=b"", mode="para", disks=(Disk(tmp_path / "none"),)))


def test_the_command_takes_disks(tmp_path: Path) -> None:
    assert boot._disks(("a", "b,c,ro")) == (Disk("a"), Disk("b,c", "xvdb", True))
    image = _image(tmp_path / "disk", _MIB)
    command = [sys.executable, "-m", "trapgate", "boot", "--mode", "para", "--append", "console=hvc0"]
    options = ["--disk", str(image), "--disk", f"{tmp_path / 'other'},ro", "--timeout", "240"]
    missing = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=300)
    assert missing.returncode == 1
    assert "cannot use the disk" in missing.stderr
    _image(tmp_path / "other", _MIB)
    done = subprocess.run(
        [*command, *options, "--expect", "blkfront: xvdb"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
