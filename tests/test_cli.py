"""The command: what it prints, in which form, and that wrong use ends in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def trapgate(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trapgate", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


def refused(result: subprocess.CompletedProcess[str], status: int) -> str:
    """Check that the command ended in one sentence, and give it."""
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("trapgate: error: ")
    return lines[0].removeprefix("trapgate: error: ")


def test_help_and_version() -> None:
    assert trapgate("--version").stdout.startswith("trapgate 0.")
    for command in ((), ("boot",), ("decode",), ("images",), ("images", "pull")):
        result = trapgate(*command, "--help")
        assert result.returncode == 0
        assert "Usage: trapgate" in result.stdout


WRONG = [
    (("fly",), 2, "No such command 'fly'"),
    (("boot", "--altitude", "3"), 2, "No such option"),
    (("boot", "--memory", "lots", "--kernel", "k"), 1, "memory is 'lots'; it must be"),
    (("boot", "--memory", "0", "--kernel", "k"), 1, "memory is 0; a machine needs at least"),
    (("boot", "--memory", "9999T"), 1, "memory is 9999T, more than the"),
    (("boot", "--mode", "sideways"), 1, "mode is 'sideways'; it must be one of: full, para, hardware"),
    (("boot", "--mode", "hardware"), 1, "mode 'hardware' is not in this version of trapgate"),
    (("boot", "--clock", "broken"), 1, "clock is 'broken'"),
    (("boot", "--engine", "steam"), 1, "engine is 'steam'"),
    (("boot", "--cpu", "z80"), 1, "cpu is 'z80'"),
    (("boot", "--expect", "("), 2, "--expect '(' is not a regular expression"),
    (("boot", "--timeout", "-1"), 2, "--timeout is -1.0; it must be a number of seconds"),
    (("boot", "--timeout", "nan"), 2, "--timeout is nan; it must be a number of seconds"),
    (("boot", "debian-12", "--kernel", "k"), 2, "give an image or --kernel, not both"),
    (("boot", "debian-3"), 1, "there is no image 'debian-3'; there is: debian-12"),
    (("boot", "--kernel", "/nowhere/vmlinuz"), 1, "cannot read the kernel /nowhere/vmlinuz: No such file"),
    (("boot", "--kernel", "/"), 1, "cannot read the kernel /: Is a directory"),
    (("boot", "--kernel", "/dev/zero"), 1, "the kernel /dev/zero is not a file"),
    (
        ("boot", "--kernel", __file__, "--initrd", "/nowhere/i"),
        1,
        "cannot read the initrd /nowhere/i: No such",
    ),
    (("boot", "--kernel", __file__), 1, ""),
    (("images", "pull", "debian-3"), 1, "there is no image 'debian-3'; there is: debian-12"),
    (("images", "path", "debian-3"), 1, "there is no image 'debian-3'; there is: debian-12"),
    (
        ("images", "path", "debian-12"),
        1,
        "image debian-12 has not been pulled; run: trapgate images pull debian-12",
    ),
]


@pytest.mark.parametrize(("arguments", "status", "sentence"), WRONG, ids=[" ".join(w[0])[:60] for w in WRONG])
def test_wrong_use_is_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], status: int, sentence: str
) -> None:
    result = trapgate(*arguments, XDG_CACHE_HOME=str(tmp_path))
    assert sentence in refused(result, status)
    # Nothing was fetched for it.
    assert not any(tmp_path.iterdir()) or arguments[0] == "images"


def test_images_are_listed_as_lines_and_as_json(tmp_path: Path) -> None:
    result = trapgate("images", "list", XDG_CACHE_HOME=str(tmp_path))
    assert result.stdout.split("\t")[:2] == ["debian-12", "not fetched"]
    listed = json.loads(trapgate("images", "list", "--json", XDG_CACHE_HOME=str(tmp_path)).stdout)
    assert [(image["name"], image["path"]) for image in listed] == [("debian-12", None)]


def test_a_reader_that_leaves_is_no_error() -> None:
    script = f"{sys.executable} -m trapgate images list | true"
    result = subprocess.run(script, shell=True, capture_output=True, text=True, timeout=120, check=False)
    assert result.stderr == ""
