"""Decode from Python: objects and columns, over buffers of every kind."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trapgate
from trapgate import errors, instructions
from trapgate.instructions import CLASSES, INVALID, TRUNCATED, flag_names, mnemonics


def one(code: str, bits: int = 64, cpu: str = "x86-64-v2") -> trapgate.Instruction:
    (found,) = trapgate.decode(bytes.fromhex(code), bits, cpu=cpu)
    return found


def test_an_instruction_and_what_is_known_about_it() -> None:
    insn = one("4801d8")
    assert (insn.text, insn.mnemonic, insn.kind, insn.length) == ("add rax, rbx", "add", "ordinary", 3)
    assert flag_names(insn.flags_written) == ("CF", "PF", "AF", "ZF", "SF", "OF")
    assert insn.flags_read == insn.flags_undefined == 0
    assert set(insn.registers_read) == {"rax", "rbx"}
    assert insn.registers_written == ("rax",)
    assert (insn.full.action, insn.para.action, insn.hardware.action) == ("copied", "copied", "native")
    assert str(insn).split() == ["0:", "48", "01", "d8", "add", "rax,", "rbx"]


@pytest.mark.parametrize(
    ("code", "kind", "full", "para", "hardware"),
    [
        ("0f0100", "sensitive", "rewritten", "rewritten", "native"),
        ("9d", "sensitive", "rewritten", "rewritten", "native"),
        ("f4", "privileged", "rewritten", "faults", "exits"),
        ("0fa2", "sensitive", "rewritten", "rewritten", "exits"),
        ("8b00", "memory", "rewritten", "rewritten", "native"),
        ("75fe", "control", "rewritten", "rewritten", "native"),
    ],
)
def test_classes_and_treatments(code: str, kind: str, full: str, para: str, hardware: str) -> None:
    insn = one(code)
    assert (insn.kind, insn.full.action, insn.para.action, insn.hardware.action) == (
        kind,
        full,
        para,
        hardware,
    )


def test_the_same_bytes_in_three_modes() -> None:
    assert one("40", 16).text == "inc ax"
    assert one("40", 32).text == "inc eax"
    assert [insn.kind for insn in trapgate.decode(b"\x40")] == ["invalid"]
    assert one("b81234", 16).text == "mov ax, 0x3412"


def test_the_processor_decides_what_an_encoding_means() -> None:
    assert one("f30fbcc1").text == "bsf eax, ecx"
    assert one("f30fbcc1", cpu="any").text == "tzcnt eax, ecx"
    assert trapgate.decode(bytes.fromhex("c5f877"))[0].kind == "invalid"
    assert one("c5f877", cpu="any").text == "vzeroupper"


def test_addresses_are_counted_from_the_first_byte() -> None:
    found = trapgate.decode(bytes.fromhex("90ebfd"), address=0x1000)
    assert [insn.address for insn in found] == [0x1000, 0x1001]
    assert found[1].text == "jmp 0x1000"


def test_bytes_that_are_no_instruction_are_rows_of_one() -> None:
    code = bytes.fromhex("06 90 e80000")
    assert [(i.length, i.kind) for i in trapgate.decode(code)] == [
        (1, "invalid"),
        (1, "ordinary"),
        (1, "invalid"),
        (2, "memory"),
    ]
    columns = trapgate.decode_columns(code)
    assert columns["mnemonic"][[0, 2]].tolist() == [INVALID, TRUNCATED]
    assert columns["class"][0] == 255


@pytest.mark.parametrize("bits", [0, 8, 63, 128])
def test_other_sizes_of_code_are_refused(bits: int) -> None:
    for call in (trapgate.decode, trapgate.decode_columns):
        with pytest.raises(errors.ConfigError, match=f"16, 32 or 64 bits, not {bits}"):
            call(b"\x90", bits)


def test_an_unknown_processor_is_refused() -> None:
    with pytest.raises(errors.ConfigError, match="no CPU model z80"):
        trapgate.decode(b"\x90", cpu="z80")


CODE = bytes.fromhex("4889d8 4801c8 7402 c3 f4 0fa2 66f20f6fc0") * 50


def test_columns_agree_with_objects() -> None:
    objects = trapgate.decode(CODE)
    columns = trapgate.decode_columns(CODE)
    assert columns.dtype.names == ("offset", "mnemonic", "length", "class", "flags_read", "flags_written")
    assert columns["offset"].tolist() == [insn.address for insn in objects]
    assert columns["length"].tolist() == [insn.length for insn in objects]
    names = mnemonics()
    for row, insn in zip(columns, objects, strict=True):
        if insn.kind == "invalid":
            continue
        assert names[row["mnemonic"]] == insn.mnemonic
        assert CLASSES[row["class"]] == insn.kind
        assert (row["flags_read"], row["flags_written"]) == (insn.flags_read, insn.flags_written)


def test_any_buffer_will_do(tmp_path: Path) -> None:
    expected = trapgate.decode_columns(CODE).tobytes()
    file = tmp_path / "code"
    file.write_bytes(CODE)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert trapgate.decode_columns(mapped).tobytes() == expected
    for buffer in (bytearray(CODE), memoryview(CODE), array("B", CODE), np.frombuffer(CODE, dtype=np.uint8)):
        assert trapgate.decode_columns(buffer).tobytes() == expected  # type: ignore[arg-type]
        assert len(trapgate.decode(buffer)) == len(expected) // 24  # type: ignore[arg-type]
    words = np.frombuffer(CODE[: len(CODE) // 4 * 4], dtype=np.uint32)
    assert trapgate.decode_columns(words)["length"].sum() == words.nbytes  # type: ignore[arg-type]
    assert len(trapgate.decode_columns(b"")) == 0


def test_what_is_no_buffer_is_refused() -> None:
    for wrong in ("text", 5, None):
        with pytest.raises(TypeError):
            trapgate.decode(wrong)  # type: ignore[arg-type]


@given(st.integers(min_value=0, max_value=40), st.binary(min_size=1, max_size=60))
def test_windows_do_not_show(shift: int, code: bytes) -> None:
    """Bulk decode works in windows of 64 KiB: an instruction across their border is one all the same."""
    data = b"\x90" * (65536 - shift) + code
    columns = trapgate.decode_columns(data)
    tail = columns[65536 - shift :]
    alone = trapgate.decode_columns(code)
    assert (tail["offset"] - (65536 - shift)).tolist() == alone["offset"].tolist()
    for name in ("length", "mnemonic", "class", "flags_read", "flags_written"):
        assert tail[name].tolist() == alone[name].tolist()


@given(st.binary(max_size=200), st.sampled_from([16, 32, 64]))
def test_rows_cover_the_code_without_gaps(code: bytes, bits: int) -> None:
    columns = trapgate.decode_columns(code, bits)
    ends = np.cumsum(columns["length"], dtype=np.int64)
    assert columns["offset"].tolist() == [0, *ends.tolist()[:-1]][: len(columns)]
    assert (ends[-1] if len(ends) else 0) == len(code)
    assert len(trapgate.decode(code, bits)) == len(columns)


def test_bulk_decode_leaves_the_interpreter_lock_to_others() -> None:
    code = np.frombuffer(CODE * 20_000, dtype=np.uint8)
    thread = threading.Thread(target=lambda: trapgate.decode_columns(code))  # type: ignore[arg-type]
    thread.start()
    turns = 0
    while thread.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 3


def test_the_command() -> None:
    def run(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "trapgate", "decode", *arguments]
        return subprocess.run(command, input=data, capture_output=True, timeout=60, check=False)

    assert run("90 f4").stdout.decode().splitlines() == [
        "0\t90\tnop\tordinary\tcopied\tcopied\tnative",
        "1\tf4\thlt\tprivileged\trewritten\tfaults\texits",
    ]
    result = run(
        "--file",
        "-",
        "--json",
        "--address",
        "0x10",
        "--offset",
        "1",
        "--length",
        "2",
        data=b"\xcc\x0f\xa2\xcc",
    )
    (row,) = json.loads(result.stdout)
    assert (row["address"], row["bytes"], row["text"], row["length"]) == (0x11, "0fa2", "cpuid", 2)
    for wrong in (
        ("9",),
        ("xyz",),
        (),
        ("90", "--file", "-"),
        ("90", "--address", "-1"),
        ("--file", "/nowhere"),
    ):
        result = run(*wrong)
        assert result.returncode in {1, 2}
        assert result.stderr.startswith(b"trapgate: error: ")
        assert len(result.stderr.splitlines()) == 1


def test_flag_names() -> None:
    assert flag_names(0) == ()
    assert flag_names(0x3000 | 1) == ("CF", "IOPL")
    assert instructions.column_type().itemsize == 24
