"""PV GRUB, which shares nothing with Linux but the interface: it makes its own page tables, polls with all events
masked, and hands console, store and disk over to the kernel that it starts."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path

import pytest

from conftest import PROMPT
from packages import Packages
from trapgate import VM, Disk, Machine, exits
from trapgate.images.apt import unpack

pytestmark = [pytest.mark.boot, pytest.mark.network]

_MIB = 1 << 20
_MENU = """\
set timeout=1
menuentry "Debian" {
    linux /boot/vmlinuz console=hvc0 from=grub
    initrd /boot/initrd
}
"""


@pytest.fixture(scope="module")
def grub(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Debian's own image of GRUB, with all its modules inside."""
    packages = Packages(tmp_path_factory.mktemp("apt"))
    (package,) = packages.fetch("grub-xen-host", dependencies=False)
    (image,) = unpack(package, lambda name: name.endswith("/grub-x86_64-xen.bin"), 1).values()
    return Machine(kernel=image, mode="para", memory="256M")


@pytest.fixture(scope="module")
def bootable(debian: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk without partitions that has the stock kernel and a menu; a guest makes the file system."""
    assert isinstance(debian.kernel, Path)
    assert isinstance(debian.initrd, Path)
    folder = tmp_path_factory.mktemp("disks")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in (
            ("boot/vmlinuz", debian.kernel.read_bytes()),
            ("boot/initrd", debian.initrd.read_bytes()),
            ("boot/grub/grub.cfg", _MENU.encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (folder / "files").write_bytes(archive.getvalue())
    disk = folder / "disk"
    with disk.open("wb") as file:
        file.truncate(64 * _MIB)
    disks = (Disk(disk), Disk(folder / "files", "xvdb", read_only=True))
    with VM(debian.replace(mode="para", append="console=hvc0", disks=disks)) as vm:
        vm.console.expect(PROMPT, timeout=240)
        vm.console.command("mke2fs -F /dev/xvda >/dev/null 2>&1; mount -t ext4 /dev/xvda /mnt", PROMPT)
        vm.console.command("tar x -f /dev/xvdb -C /mnt; umount /mnt", PROMPT, timeout=60)
        assert vm.console.command("echo $?", PROMPT) == "0\n"
    return disk


def test_grub_comes_to_its_prompt(grub: Machine) -> None:
    with VM(grub) as vm:
        console = vm.console
        console.expect("grub> ", timeout=60)
        assert "no such device: /boot/grub/grub.cfg" in console.transcript
        console.send("echo a${grub_cpu}b\r")
        console.expect("ax86_64b", timeout=20)
        console.expect("grub> ", timeout=20)
        # Its clock goes by the time record of shared_info.
        began = vm.now
        console.send("sleep 2; echo a${grub_platform}b\r")
        console.expect("axenb", timeout=20)
        assert 1.9 < vm.now - began < 4
        console.send("halt\r")
        assert isinstance(vm.run(timeout=20), exits.Shutdown)


def test_grub_reads_a_disk(grub: Machine, bootable: Path) -> None:
    with VM(grub.replace(disks=(Disk(bootable, read_only=True),))) as vm:
        console = vm.console
        console.expect("Debian", timeout=60)
        console.send("c")
        console.expect("grub> ", timeout=20)
        console.send("ls (xen/xvda)/boot\r")
        console.expect("vmlinuz", timeout=20)
        console.expect("grub> ", timeout=20)
        console.send("cat /boot/grub/grub.cfg\r")
        console.expect("initrd /boot/initrd", timeout=20)


def test_grub_starts_the_stock_kernel_from_a_disk(grub: Machine, bootable: Path) -> None:
    started = time.monotonic()
    with VM(grub.replace(disks=(Disk(bootable),))) as vm:
        console = vm.console
        console.expect("GNU GRUB", timeout=60)
        console.expect("Run /init as init process", timeout=240)
        console.expect(PROMPT, timeout=60)
        assert time.monotonic() - started < 120
        console.command("dmesg -n 1; stty cols 250", PROMPT)
        assert "from=grub" in console.command("cat /proc/cmdline", PROMPT)
        # GRUB had the disk, and has given it over.
        console.command("mount /dev/xvda /mnt", PROMPT)
        assert console.command("cat /mnt/boot/grub/grub.cfg", PROMPT) == _MENU
        console.command("echo written > /mnt/new; umount /mnt", PROMPT)
        console.sendline("poweroff")
        assert isinstance(vm.run(timeout=60), exits.Shutdown)
