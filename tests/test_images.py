"""Images: sources read as apt reads them, a pull from a small package tree of our own, and the real one."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from trapgate import errors, images
from trapgate.images import apt, modules, sources
from trapgate.images.cpio import Archive

NEEDED = ("apt-get", "apt-cache", "apt-config", "dpkg-deb")
needs_apt = pytest.mark.skipif(any(shutil.which(tool) is None for tool in NEEDED), reason="needs apt")

KERNEL = b"not a kernel, but as long as one" * 4096
BUSYBOX = b"not a program" * 1000
MODULES = "/lib/modules/6.1.0-99-amd64"
NEEDS = {**dict.fromkeys(modules.WANTED, ""), "ext4": "jbd2,mbcache", "jbd2": "crc32c_generic"}


def module(needs: str, aliases: str = "") -> bytes:
    """Give what of a kernel module is looked at."""
    return f"\x7fELF\0license=GPL\0{aliases}depends={needs}\0name=x\0".encode()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/trapgate"


def make_package(pool: Path, name: str, version: str, depends: str, files: dict[str, bytes]) -> str:
    """Build a .deb in `pool` and give its paragraph of the package index."""
    tree = pool / "build"
    (tree / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody <n@invalid>\n"
    control += (f"Depends: {depends}\n" if depends else "") + "Description: test\n"
    (tree / "DEBIAN/control").write_text(control)
    for file, data in files.items():
        target = tree / file.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    deb = pool / f"{name}_{version}_amd64.deb"
    subprocess.run(
        ["dpkg-deb", "-Zgzip", "--root-owner-group", "-b", tree, deb], check=True, capture_output=True
    )
    shutil.rmtree(tree)
    data = deb.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return f"{control}Filename: pool/{deb.name}\nSize: {len(data)}\nSHA256: {digest}\n"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a package tree with a kernel and a BusyBox, and an apt configuration that knows only it."""
    root = tmp_path / "mirror"
    index = root / "dists/bookworm/main/binary-amd64"
    pool = root / "pool"
    index.mkdir(parents=True)
    pool.mkdir()
    paragraphs = [
        make_package(pool, "linux-image-amd64", "6.1.99-1", "linux-image-6.1.0-99-amd64 (= 6.1.99-1)", {}),
        make_package(
            pool,
            "linux-image-6.1.0-99-amd64",
            "6.1.99-1",
            "kmod, linux-base",
            {
                "/boot/config-6.1.0-99-amd64": b"",
                "/boot/vmlinuz-6.1.0-99-amd64": KERNEL,
                **{f"{MODULES}/kernel/{name}.ko": module(needs) for name, needs in NEEDS.items()},
                f"{MODULES}/kernel/other.ko": module(""),
            },
        ),
        make_package(pool, "busybox-static", "1.35", "", {"/bin/busybox": BUSYBOX}),
    ]
    packages = "\n".join(paragraphs).encode()
    (index / "Packages").write_bytes(packages)
    (index / "Packages.gz").write_bytes(gzip.compress(packages))
    release = "Origin: Debian\nSuite: oldstable\nCodename: bookworm\nArchitectures: amd64\nComponents: main\n"
    release += "Date: Sat, 01 Jan 2022 00:00:00 UTC\nSHA256:\n"
    for name in ("Packages", "Packages.gz"):
        data = (index / name).read_bytes()
        release += f" {hashlib.sha256(data).hexdigest()} {len(data)} main/binary-amd64/{name}\n"
    (root / "dists/bookworm/Release").write_text(release)
    use_sources(tmp_path, monkeypatch, f"deb [trusted=yes] file:{root} bookworm main\n")
    return root


def use_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "host.list").write_text(text)
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/host.list"; Dir::Etc::sourceparts "/dev/null";\n'
        'Dir::Etc::parts "/dev/null"; Dir::Etc::main "/dev/null";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))


@needs_apt
@pytest.mark.usefixtures("mirror")
def test_pull_builds_the_image_from_packages(cache: Path) -> None:
    told: list[tuple[str, float | None]] = []
    image = images.pull("debian-12", progress=lambda text, part: told.append((text, part)))
    assert image.kernel.read_bytes() == KERNEL
    initrd = image.initrd.read_bytes()
    assert BUSYBOX in initrd
    assert f"{MODULES}/kernel/xen-blkfront.ko".encode()[1:] in initrd
    assert b"other.ko" not in initrd
    assert image.append == "console=ttyS0"
    assert image.packages == {"linux-image-6.1.0-99-amd64": "6.1.99-1", "busybox-static": "1.35"}
    assert images.path("debian-12") == image.kernel.parent == cache / "images/debian-12"
    assert [d.path for d in images.available() if d.name == "debian-12"] == [image.kernel.parent]
    assert all(part is None or 0 <= part <= 1 for _, part in told)
    assert {"Fetching package lists", "Unpacking"} <= {text for text, _ in told}
    # Nothing is left beside it but the lock.
    assert {p.name for p in cache.iterdir()} == {"images"}
    assert {p.name for p in (cache / "images").iterdir()} == {"debian-12", ".debian-12.lock"}


def test_modules_come_with_the_tables_of_depmod() -> None:
    root = Archive()
    folder = f"{MODULES}/kernel/fs"
    aliases = "alias=fs-ext4\0alias=ext3\0softdep=pre: crypto-crc32c\0"
    files = {
        f"{folder}/ext4.ko": module("jbd2,crc16", aliases),
        f"{folder}/jbd2.ko": module("crc16,crc32c_intel"),
        f"{folder}/crc16.ko": module(""),
        f"{folder}/crc32c-intel.ko": module("", "alias=crc32c\0"),
    }
    modules.add(root, files)
    archive = root.to_bytes().decode("latin-1")
    # What a module needs comes before it, when it is read from the end.
    assert "kernel/fs/ext4.ko: kernel/fs/jbd2.ko kernel/fs/crc16.ko kernel/fs/crc32c-intel.ko\n" in archive
    assert "kernel/fs/crc16.ko:\n" in archive
    assert "alias fs-ext4 ext4\nalias ext3 ext4\nalias crc32c crc32c_intel\n" in archive
    assert "softdep ext4 pre: crypto-crc32c\n" in archive
    assert all(f"{name[1:]}\0" in archive for name in files)
    for wrong, why in (
        ({f"{folder}/a.ko": module("b")}, "need b"),
        ({f"{folder}/a.ko": b"nothing"}, "does not say"),
        ({f"{folder}/a.ko": module(""), "/lib/modules/7/kernel/b.ko": module("")}, "2 folders"),
        ({"/lib/modules/a.ko": module("")}, "not where"),
    ):
        with pytest.raises(errors.ImageError, match=why):
            modules.add(Archive(), wrong)


@needs_apt
def test_what_packages_need_is_told(mirror: Path, tmp_path: Path) -> None:
    pool = mirror / "pool"
    paragraphs = [
        make_package(pool, "compiler", "1", "libcompiler (= 1)", {}),
        make_package(pool, "libcompiler", "1", "libc", {}),
        make_package(pool, "libc", "2", "", {}),
        make_package(pool, "editor", "1", "libeditor", {}),
    ]
    (mirror / "Packages").write_text("\n".join(paragraphs))
    (tmp_path / "apt").mkdir()
    line = f"deb [trusted=yes] file:{mirror} ./"
    private = apt.PrivateApt(tmp_path / "apt", release="bookworm", architecture="amd64", source=line)
    private.update(lambda _part: None)
    assert private.needed(["compiler"]) == ["compiler", "libc", "libcompiler"]
    with pytest.raises(errors.ImageError, match="apt cannot tell what editor need"):
        private.needed(["editor"])


@needs_apt
@pytest.mark.usefixtures("cache")
def test_a_cached_image_needs_no_mirror_and_refresh_does(mirror: Path) -> None:
    first = images.pull("debian-12")
    initrd = first.initrd.read_bytes()
    shutil.rmtree(mirror / "pool")
    assert images.pull("debian-12") == first
    with pytest.raises(errors.ImageError, match="apt-get download failed"):
        images.pull("debian-12", refresh=True)
    # What was there is still whole after the failure.
    assert images.pull("debian-12").initrd.read_bytes() == initrd


@needs_apt
@pytest.mark.usefixtures("mirror")
def test_the_same_packages_give_the_same_bytes(cache: Path) -> None:
    first = images.pull("debian-12").initrd.read_bytes()
    shutil.rmtree(cache)
    assert images.pull("debian-12").initrd.read_bytes() == first


@needs_apt
@pytest.mark.usefixtures("mirror")
@pytest.mark.parametrize("damage", ["cut", "no record", "older recipe"])
def test_an_incomplete_or_old_image_is_built_anew(cache: Path, damage: str) -> None:
    image = images.pull("debian-12")
    record = image.kernel.parent / "image.json"
    match damage:
        case "cut":
            image.kernel.write_bytes(b"")
        case "no record":
            record.unlink()
        case _:
            record.write_text(json.dumps({**json.loads(record.read_text()), "recipe": 0}))
    with pytest.raises(errors.ImageError, match="images pull debian-12"):
        images.path("debian-12")
    assert images.pull("debian-12").kernel.read_bytes() == KERNEL
    assert {p.name for p in (cache / "images").iterdir()} == {"debian-12", ".debian-12.lock"}


@needs_apt
@pytest.mark.usefixtures("mirror", "cache")
def test_processes_that_pull_at_once_build_it_once() -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        results = pool.map(_pull_and_count, range(3))
    assert sum(built for built, _ in results) == 1
    assert len({inode for _, inode in results}) == 1


def _pull_and_count(_: int) -> tuple[bool, int]:
    texts: list[str] = []
    image = images.pull("debian-12", progress=lambda text, _part: texts.append(text))
    return "Unpacking" in texts, image.kernel.stat().st_ino


@needs_apt
@pytest.mark.usefixtures("cache")
def test_a_host_without_the_release_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_sources(tmp_path, monkeypatch, "deb [trusted=yes] file:/nowhere trixie main\n")
    with pytest.raises(
        errors.HostUnavailable, match="none of this host's apt sources serves Debian bookworm"
    ):
        images.pull("debian-12")


@needs_apt
@pytest.mark.usefixtures("cache")
def test_a_mirror_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_sources(tmp_path, monkeypatch, f"deb [trusted=yes] file:{tmp_path}/gone bookworm main\n")
    with pytest.raises(errors.ImageError, match=r"apt-get update failed: .*gone"):
        images.pull("debian-12")


@needs_apt
@pytest.mark.usefixtures("cache")
def test_an_explicit_source_stands_for_the_hosts(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_sources(tmp_path, monkeypatch, "")
    line = f"deb [trusted=yes] file:{mirror} bookworm main"
    assert images.pull("debian-12", source=line).kernel.read_bytes() == KERNEL


@pytest.mark.usefixtures("cache")
def test_a_host_without_apt_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.HostUnavailable, match="this host has no apt-get"):
        images.pull("debian-12")


@pytest.mark.usefixtures("cache")
def test_an_unknown_name_lists_the_known_ones() -> None:
    for call in (images.pull, images.path):
        with pytest.raises(errors.ConfigError, match="no image 'debian-3'; there is: debian-12"):
            call("debian-3")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(errors.ImageError, match="could not be written"):
        images.pull("debian-12")


ONE_LINE = """\
# a comment
deb http://mirror.invalid/debian bookworm main contrib # and another
deb [arch=amd64 signed-by=/k.gpg] http://mirror.invalid/debian bookworm-updates main
deb-src http://mirror.invalid/debian bookworm main
deb http://mirror.invalid/debian trixie main
  deb http://security.invalid bookworm-security main
deb http://mirror.invalid/debian bookworms main
"""


def test_one_line_sources() -> None:
    assert sources.one_line_entries(ONE_LINE, "bookworm") == [
        "deb http://mirror.invalid/debian bookworm main contrib",
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.invalid/debian bookworm-updates main",
        "deb http://security.invalid bookworm-security main",
    ]


STANZAS = """\
# a comment
Types: deb deb-src
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF

Types: deb
URIs: http://mirror.invalid/debian
Suites: bookworm-backports
Components: main
Enabled: no

Types: deb-src
URIs: http://mirror.invalid/debian
Suites: bookworm
Components: main
"""


def test_deb822_sources() -> None:
    (entry,) = sources.stanza_entries(STANZAS, "bookworm")
    assert entry == (
        "Types: deb\nUris: http://mirror.invalid/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\n"
        "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n"
    )


@needs_apt
@pytest.mark.network
def test_the_hosts_own_mirror(cache: Path) -> None:
    """The real thing: a bzImage by its magic (Linux boot protocol, 202h) and a 64-bit ELF BusyBox."""
    image = images.pull("debian-12")
    kernel = image.kernel.read_bytes()
    assert kernel[0x202:0x206] == b"HdrS"
    assert b"\x7fELF\x02\x01\x01" in image.initrd.read_bytes()[:4096]
    assert image.kernel.is_relative_to(cache)
