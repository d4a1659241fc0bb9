"""The files that guests are booted from, the same ones for every peer."""

from __future__ import annotations

import hashlib
import lzma
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from trapgate import images
from trapgate.errors import ImageError
from trapgate.images import Progress
from trapgate.images.cpio import Archive

__all__ = ["APPEND", "PROGRAM", "PROMPT", "Files", "prepare", "vmlinux"]

#: The guest kernel's command line. Without mitigations, of which a kernel takes others for each processor it sees.
APPEND = "console=ttyS0 mitigations=off"
#: What the guest's shell shows when it waits.
PROMPT = "root@debian:~# "
#: Where the programs are in the guest.
PROGRAM = "/bench/guest-bench"


@dataclass(frozen=True, kw_only=True)
class Files:
    """What guests are booted from."""

    #: The distribution's kernel as it comes.
    bzimage: Path
    #: The ELF file in it.
    elf: Path
    #: The image's initial RAM file system, as it comes.
    initrd: Path
    #: The same with the programs in it.
    initrd_with_programs: Path
    #: The package of the kernel and its version.
    kernel: str


def prepare(folder: Path, program: Path, progress: Progress) -> Files:
    """Fetch the image unless it is there and put the programs beside its files."""
    image = images.pull("debian-12", progress=progress)
    progress("Unpacking the kernel", None)
    archive = Archive()
    archive.file(PROGRAM, program.read_bytes(), mode=0o755)
    initrd = folder / "initrd"
    # The kernel unpacks archives one after the other.
    initrd.write_bytes(image.initrd.read_bytes() + archive.to_bytes())
    return Files(
        bzimage=image.kernel,
        elf=_unpacked(image.kernel),
        initrd=image.initrd,
        initrd_with_programs=initrd,
        kernel=next((f"{name} {version}" for name, version in image.packages.items() if "linux" in name), ""),
    )


def _unpacked(bzimage: Path) -> Path:
    """Give the ELF file in a bzImage, made once and kept in the cache."""
    contents = bzimage.read_bytes()
    folder = images.cache_folder() / "bench"
    kept = folder / f"vmlinux-{hashlib.sha256(contents).hexdigest()[:16]}"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Whole or not at all, though several do it at once.
        new = folder / f".{kept.name}-{os.getpid()}"
        new.write_bytes(vmlinux(contents))
        new.rename(kept)
    return kept


def vmlinux(bzimage: bytes) -> bytes:
    """Unpack the ELF file in a bzImage.

    Fields of the header: setup_sects at 1F1h, "HdrS" at 202h, payload_offset at 248h, counted from the end of the
    setup, payload_length at 24Ch (the kernel's Documentation/arch/x86/boot.rst). The last four bytes of a payload
    are the length of what is in it.
    """
    if bzimage[0x202:0x206] != b"HdrS":
        raise ImageError("the image's kernel is no bzImage")
    setup = (bzimage[0x1F1] or 4) + 1
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = setup * 512 + offset
    payload = bzimage[start : start + length]
    try:
        if payload.startswith(b"\xfd7zXZ\0"):
            contents = lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(payload)
        elif payload.startswith(b"\x1f\x8b"):
            contents = zlib.decompressobj(wbits=31).decompress(payload)
        else:
            raise ImageError("the image's kernel is compressed in a way that the benchmark does not unpack")
    except (lzma.LZMAError, zlib.error) as error:
        raise ImageError(f"the image's kernel cannot be unpacked: {error}") from error
    if not contents.startswith(b"\x7fELF"):
        raise ImageError("the image's kernel holds no ELF file")
    return contents
