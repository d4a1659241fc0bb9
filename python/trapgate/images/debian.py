"""The recipe of `debian-12`: Debian's own kernel, unmodified, and an initial RAM file system around BusyBox.

The kernel is the one that `linux-image-amd64` stands for in the host's mirror of Debian 12; BusyBox is the
static one of the same release. The file system is built here, so that it holds nothing else but the kernel's own
modules for para-virtual devices and for a file system on a disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trapgate.errors import ImageError
from trapgate.images import modules
from trapgate.images.apt import PrivateApt, unpack
from trapgate.images.cpio import Archive

__all__ = ["APPEND", "DESCRIPTION", "RECIPE", "Built", "build", "initramfs"]

#: Counted up when what is built changes, so that older cached images are built anew.
RECIPE = 2
DESCRIPTION = "Debian 12 (bookworm), 64-bit: the distribution's kernel and a BusyBox shell"
APPEND = "console=ttyS0"

_RELEASE = "bookworm"
_KERNEL = "linux-image-amd64"
_BUSYBOX = "busybox-static"

#: Told what is being done and, where that can be known, how far it is, from 0 to 1.
Progress = Callable[[str, float | None], None]

# BusyBox's init is process 1: it reaps orphans, respawns the shell, and turns `poweroff` into an orderly end.
# cttyhack finds the terminal behind /dev/console and makes it the shell's controlling terminal, without which
# there is neither Ctrl-C nor job control.
_INITTAB = """\
::sysinit:/etc/init.d/rcS
::respawn:/bin/cttyhack /bin/sh -l
::ctrlaltdel:/sbin/reboot
::shutdown:umount -a -r 2>/dev/null
"""

_RC_S = """\
#!/bin/sh
/bin/busybox mount -t proc -o nosuid,noexec,nodev proc /proc
/bin/busybox mount -t sysfs -o nosuid,noexec,nodev sysfs /sys
/bin/busybox mount -t devtmpfs -o nosuid,mode=0755 devtmpfs /dev
/bin/busybox mkdir -p /dev/pts /dev/shm
/bin/busybox mount -t devpts -o nosuid,noexec,gid=5,mode=620 devpts /dev/pts
/bin/busybox mount -t tmpfs -o nosuid,nodev tmpfs /tmp
/bin/busybox --install -s
for alias in /sys/bus/xen/devices/*/modalias; do
    [ ! -e "$alias" ] || modprobe -q "$(cat "$alias")"
done
hostname -F /etc/hostname
ip link set lo up
echo
echo "Debian GNU/Linux 12 (bookworm), Linux $(uname -r). Type 'poweroff' to end."
"""

_PROFILE = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root
export PS1='root@\\h:\\w# '
cd
"""

_OS_RELEASE = """\
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
VERSION_CODENAME=bookworm
ID=debian
"""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a recipe gives."""

    kernel: bytes
    initrd: bytes
    #: Package name to version, for the record.
    packages: dict[str, str]


def build(folder: Path, progress: Progress, source: str | None = None) -> Built:
    """Fetch the packages into `folder` and make the image."""
    apt = PrivateApt(folder, release=_RELEASE, architecture="amd64", source=source)
    apt.update(lambda part: progress("Fetching package lists", part))
    kernel = _current_kernel(apt.show(_KERNEL))
    names = (kernel, _BUSYBOX)
    packages = {name: apt.show(name).get("version", "") for name in names}
    files = apt.download(names, lambda part: progress(f"Fetching {kernel} and {_BUSYBOX}", part))
    progress("Unpacking", None)
    of_kernel = unpack(
        files[0],
        lambda name: name.startswith("/boot/vmlinuz-") or modules.wanted(name),
        1 + len(modules.WANTED),
    )
    (vmlinuz,) = [of_kernel.pop(name) for name in [*of_kernel] if name.startswith("/boot/")]
    (busybox,) = unpack(files[1], lambda name: name in {"/bin/busybox", "/usr/bin/busybox"}, 1).values()
    return Built(kernel=vmlinuz, initrd=initramfs(busybox, of_kernel), packages=packages)


def _current_kernel(meta: dict[str, str]) -> str:
    """Give the package of the kernel that the meta package depends on."""
    match = re.search(r"\blinux-image-[0-9][a-z0-9.+-]*", meta.get("depends", ""))
    if match is None:
        raise ImageError(f"{_KERNEL} {meta.get('version', '')} depends on no kernel image")
    return match[0]


def initramfs(busybox: bytes, kernel_modules: Mapping[str, bytes]) -> bytes:
    """Make the initial RAM file system. It is not compressed: the guest would pay for unpacking it."""
    root = Archive()
    for name in ("/proc", "/sys", "/dev", "/sbin", "/usr/bin", "/usr/sbin", "/mnt"):
        root.directory(name)
    root.directory("/root", mode=0o700)
    root.directory("/tmp", mode=0o1777)
    # The kernel opens this before anything is mounted.
    root.character_device("/dev/console", 5, 1)
    root.file("/bin/busybox", busybox, mode=0o755)
    root.symlink("/bin/sh", "busybox")
    root.symlink("/init", "bin/busybox")
    root.file("/etc/inittab", _INITTAB)
    root.file("/etc/init.d/rcS", _RC_S, mode=0o755)
    root.file("/etc/profile", _PROFILE)
    root.file("/etc/hostname", "debian\n")
    root.file("/etc/hosts", "127.0.0.1 localhost debian\n")
    root.file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    root.file("/etc/group", "root:x:0:\ntty:x:5:\n")
    root.file("/etc/os-release", _OS_RELEASE)
    # What `mount` tries that the kernel has not loaded yet.
    root.file("/etc/filesystems", "ext4\n")
    modules.add(root, kernel_modules)
    return root.to_bytes()
