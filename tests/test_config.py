"""Configs: what is accepted, what is refused and with which sentence."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapgate.config import Machine, format_size, parse_size
from trapgate.errors import ConfigError


def test_a_machine_has_defaults_and_compares_by_value() -> None:
    machine = Machine(kernel="vmlinuz")
    assert machine == Machine(kernel="vmlinuz", memory="512M", mode="full", clock="real")
    assert machine.memory_bytes == 512 << 20
    assert machine != machine.replace(append="quiet")
    assert pickle.loads(pickle.dumps(machine)) == machine
    assert hash(machine) == hash(Machine(kernel="vmlinuz"))


def test_a_machine_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Machine(kernel="vmlinuz").memory = "1G"  # type: ignore[misc]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"memory": 0}, "memory is 0; a machine needs at least 2M"),
    ({"memory": "0"}, "memory is 0; a machine needs at least 2M"),
    ({"memory": -4096}, "memory is -4096; a machine needs at least 2M"),
    ({"memory": "9" * 5000}, "it must be a number of bytes"),
    ({"memory": "lots"}, "memory is 'lots'; it must be a number of bytes or text such as 512M"),
    ({"memory": ""}, "memory is ''; it must be"),
    ({"memory": 1.5e9}, "memory is 1500000000.0; it must be"),
    ({"memory": True}, "memory is True; it must be"),
    ({"memory": "9999T"}, "memory is 9999T, more than the .* that this host has"),
    ({"memory": (64 << 20) + 1}, "whole number of 4 KiB pages"),
    ({"mode": "magic"}, "mode is 'magic'; it must be one of: full, para, hardware"),
    ({"mode": "hardware"}, "mode 'hardware' is not in this version of trapgate; use 'full'"),
    ({"engine": "v8"}, "engine is 'v8'; it must be one of: auto, translate, interpret"),
    ({"cpu": "z80"}, "cpu is 'z80'; it must be one of: x86-64-v2, x86-64-v3, host"),
    ({"clock": "wall"}, "clock is 'wall'; it must be one of: real, virtual"),
    ({"protocol": "uefi"}, "protocol is 'uefi'; it must be one of"),
    ({"debug_exit": "yes"}, "debug_exit is 'yes'; it must be true or false"),
    ({"append": "a\0b"}, "append must be text without NUL"),
    ({"append": 7}, "append must be text"),
    ({"seed": -1}, "seed is -1; it must fit into 64 bits"),
    ({"kernel": 7}, "kernel is 7; it must be a file name or the file's bytes"),
    ({"kernel": ""}, "kernel is an empty file name"),
    ({"kernel": None}, "kernel is None"),
    ({"initrd": 7}, "initrd is 7"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=[f"{c}"[:40] for c, _ in REFUSED])
def test_wrong_values_are_refused_with_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Machine(**{"kernel": "vmlinuz", **changes})


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the host's memory is not known here")
def test_all_of_the_hosts_memory_may_be_asked_for() -> None:
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert Machine(kernel="k", memory=host).memory_bytes == host
    with pytest.raises(ConfigError, match="more than"):
        Machine(kernel="k", memory=host + 4096)


def test_sizes() -> None:
    assert [parse_size(text) for text in ("1", "1K", "2m", "3G", "4 GiB", "5KB", " 6T ")] == [
        1,
        1 << 10,
        2 << 20,
        3 << 30,
        4 << 30,
        5 << 10,
        6 << 40,
    ]


@given(st.integers(min_value=0, max_value=1 << 45))
def test_a_formatted_size_is_exact_or_close(size: int) -> None:
    text = format_size(size)
    if "." in text:
        number, unit = float(text[:-1]), text[-1]
        assert abs(number * parse_size(f"1{unit}") - size) <= 0.05 * parse_size(f"1{unit}") + 1
    else:
        assert parse_size(text.removesuffix(" bytes")) == size


def test_toml(tmp_path: Path) -> None:
    file = tmp_path / "machine.toml"
    file.write_text('kernel = "vmlinuz"\nmemory = "64M"\nseed = 7\n')
    assert Machine.from_toml(file) == Machine(kernel=tmp_path / "vmlinuz", memory="64M", seed=7)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('memory = "64M"', "needs a kernel"),
        ('kernel = "k"\ncolour = 1', "a machine has no 'colour'; it has: append, clock, cpu"),
        ("kernel =", "is not TOML"),
    ],
)
def test_wrong_toml(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "machine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        Machine.from_toml(file)


def test_absent_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere: No such file"):
        Machine.from_toml(tmp_path / "nowhere")
