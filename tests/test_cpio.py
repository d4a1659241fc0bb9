"""The cpio writer, read back by the `cpio` program and by a reader of our own."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from trapgate.images.cpio import Archive


def sample() -> Archive:
    root = Archive()
    root.file("/etc/one", "1\n")
    root.file("/etc/empty", b"")
    root.file("/bin/tool", b"\x7fELF" + bytes(range(256)), mode=0o755)
    root.symlink("/bin/sh", "tool")
    root.character_device("/dev/console", 5, 1)
    root.directory("/tmp", mode=0o1777)
    return root


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs the cpio program")
def test_cpio_extracts_what_was_put_in(tmp_path: Path) -> None:
    archive = sample().to_bytes()
    subprocess.run(
        ["cpio", "-idm", "--quiet", "--no-absolute-filenames", "bin/*", "etc/*", "tmp"],
        input=archive,
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "etc/one").read_text() == "1\n"
    assert (tmp_path / "etc/empty").read_bytes() == b""
    tool = tmp_path / "bin/tool"
    assert tool.read_bytes() == b"\x7fELF" + bytes(range(256))
    assert stat.S_IMODE(tool.stat().st_mode) == 0o755
    assert (tmp_path / "bin/sh").readlink() == Path("tool")
    assert stat.S_IMODE((tmp_path / "tmp").stat().st_mode) == 0o1777


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs the cpio program")
def test_cpio_lists_owner_time_and_device() -> None:
    result = subprocess.run(
        ["cpio", "-itv", "--quiet", "--numeric-uid-gid"],
        input=sample().to_bytes(),
        capture_output=True,
        check=True,
        env={"TZ": "UTC", "LC_ALL": "C"},
    )
    lines = {
        line.split()[-1]: line.split() for line in result.stdout.decode().splitlines() if "->" not in line
    }
    mode, _, owner, group, major, minor, *time = lines["dev/console"][:-1]
    assert (mode, owner, group) == ("crw-------", "0", "0")
    assert (major, minor) == ("5,", "1")
    assert time == ["Jan", "1", "1970"]


def test_parents_come_before_children() -> None:
    names = entry_names(sample().to_bytes())
    assert names[-1] == "TRAILER!!!"
    for name in names[:-1]:
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(name)


def test_same_entries_in_another_order_give_the_same_bytes() -> None:
    other = Archive()
    other.directory("/tmp", mode=0o1777)
    other.character_device("/dev/console", 5, 1)
    other.symlink("/bin/sh", "tool")
    other.file("/bin/tool", b"\x7fELF" + bytes(range(256)), mode=0o755)
    other.file("/etc/empty", b"")
    other.file("/etc/one", b"1\n")
    assert other.to_bytes() == sample().to_bytes()


@pytest.mark.parametrize("name", ["relative", "/", "/a/../b", ""])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not an absolute name"):
        Archive().file(name, b"")


def test_a_name_is_added_once() -> None:
    root = Archive()
    root.file("/a", b"")
    with pytest.raises(ValueError, match="already"):
        root.symlink("/a", "b")


def test_a_file_is_no_directory() -> None:
    root = Archive()
    root.file("/a", b"")
    with pytest.raises(ValueError, match="not a directory"):
        root.file("/a/b", b"")


def entry_names(archive: bytes) -> list[str]:
    """Read the names in order, checking each header's magic and alignment."""
    names: list[str] = []
    offset = 0
    while not names or names[-1] != "TRAILER!!!":
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        start = offset + 110
        names.append(archive[start : start + name_size - 1].decode())
        offset = -(-(start + name_size) // 4) * 4
        offset = -(-(offset + size) // 4) * 4
    return names
