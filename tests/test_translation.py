"""What the translator makes of code, as it is shown: `translate`, `vm.trace` and `trapgate decode --mode`."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import trapgate
from guests import ORIGIN, machine, needs_assembler
from trapgate import VM, build_info, errors
from trapgate.translation import Translated, Unit

pytestmark = pytest.mark.skipif(
    "translate" not in build_info()["engines"].split(), reason="this build has no translator"
)


def unit(code: str, cpl: int = 0) -> Unit:
    (found,) = trapgate.translate(bytes.fromhex(code), 0x1000, cpl=cpl)
    return found


def first(code: str, cpl: int = 0) -> Translated:
    return unit(code, cpl).instructions[0]


@pytest.mark.parametrize(
    ("code", "kind", "action", "reason"),
    [
        ("4801d8", "ordinary", "copied", "the same on the host"),
        ("4801c8", "ordinary", "renamed", "rcx is r8"),
        ("4d01c8", "ordinary", "renamed", "r8 is in memory, r9 is in memory"),
        ("488b07", "memory", "rewritten", "its address is translated and checked"),
        ("50", "memory", "rewritten", "the stack's address is translated and checked"),
        ("7510", "control", "rewritten", "its target is looked up in translated code"),
        ("fa", "privileged", "rewritten", "it is privileged: the guest's IF is a place in memory"),
        ("f4", "privileged", "interpreted", "it acts on the guest's system state"),
        ("0fa2", "sensitive", "interpreted", "it would show the host's state"),
        ("9c", "sensitive", "rewritten", "it would show the host's IF and IOPL"),
        ("90", "ordinary", "dropped", "nothing"),
        ("d9c0", "ordinary", "copied", "the same on the host"),
        ("d9f8", "ordinary", "interpreted", "no form"),
    ],
)
def test_what_becomes_of_an_instruction(code: str, kind: str, action: str, reason: str) -> None:
    found = first(code)
    assert (found.instruction.kind, found.action) == (kind, action)
    assert reason in found.reason
    assert bool(found.host) == (action != "dropped")


def test_the_privilege_level_decides() -> None:
    assert first("fa", 0).action == "rewritten"
    assert first("fa", 3).action == "interpreted"
    with pytest.raises(errors.ConfigError, match="CPL 0 or 3, not 1"):
        trapgate.translate(b"\x90", cpl=1)
    with pytest.raises(errors.ConfigError, match="no CPU model z80"):
        trapgate.translate(b"\x90", cpu="z80")


def test_a_unit_is_all_of_its_code() -> None:
    made = unit("480306 4883c608 ffc9 75f5")
    names = [part.name for part in made.parts]
    assert names[0] == "arrival"
    assert {"loop head", "loop without checks", "charge", "miss stub", "round the loop"} <= set(names)
    at = made.parts[0].code[0].address
    for line in (line for part in made.parts for line in part.code):
        assert line.address == at
        at += len(line.bytes)
    assert len(made.code) == at - 0x10000
    assert made.length == 11
    assert len(made.rows()) == sum(len(part.code) for part in made.parts)
    assert pickle.loads(pickle.dumps(made)) == made


def test_code_is_covered_unit_by_unit() -> None:
    code = bytes.fromhex("4801d8 0fa2 4801d8 06 90 e80000")
    units = trapgate.translate(code, 0x1000)
    assert [made.address for made in units] == [0x1000, 0x1005, 0x1008, 0x1009, 0x100A, 0x100B]
    assert sum(made.length for made in units) == len(code)
    assert [one.action for one in units[0].instructions] == ["copied", "interpreted"]
    assert units[2].parts == ()
    assert units[2].instructions[0].instruction.kind == "invalid"
    assert trapgate.translate(b"") == []
    (across, _) = trapgate.translate(bytes.fromhex("4801d8 90"), 0x1FFE)
    assert "next page" in across.instructions[0].reason


def test_units_are_json() -> None:
    made = unit("4801d8 c3")
    data = json.loads(json.dumps(made.as_dict()))
    one = data["instructions"][0]
    assert (one["instruction"]["text"], one["instruction"]["bytes"]) == ("add rax, rbx", "4801d8")
    assert (one["action"], one["host"][0]["bytes"]) == ("copied", "4801d8")
    assert {part["name"] for part in data["parts"]} >= {"arrival", "charge"}


@needs_assembler
def test_a_machine_shows_the_unit_at_an_address() -> None:
    with VM(machine("cli\n mov rax, [rsp]\n cpuid\n hlt")) as vm:
        vm.run(max_instructions=1)
        before = vm.digest()
        made = vm.trace.unit()
        assert made.address == vm.regs.rip
        assert [one.action for one in made.instructions] == ["rewritten", "rewritten", "interpreted"]
        assert vm.trace.unit(ORIGIN).instructions[0].instruction.text == "mov rsp, 0x200000"
        assert vm.digest() == before
        with pytest.raises(errors.MemoryAccessError):
            vm.trace.unit(1 << 46)


@needs_assembler
def test_a_machine_shows_what_it_runs() -> None:
    source = "mov ecx, 3\n1: push rcx\n pop rax\n dec ecx\n jnz 1b\n cpuid\n exit 1"
    with VM(machine(source)) as vm, VM(machine(source)) as plain:
        steps = list(vm.trace(8))
        assert [step.instruction.mnemonic for step in steps] == [
            "mov", "mov", "push", "pop", "dec", "jcc", "push", "pop",
        ]  # fmt: skip
        assert vm.icount == 8
        plain.run(max_instructions=8)
        assert vm.digest() == plain.digest()
        rest = list(vm.trace(1000))
        assert [step.instruction.mnemonic for step in rest[-3:]] == ["cpuid", "mov", "out"]
        assert rest[-3].action == "interpreted"
        assert rest[0].as_dict()["instruction"]["mnemonic"] == "dec"
        with pytest.raises(errors.ConfigError, match="0 or more"):
            vm.trace(-1)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trapgate", "decode", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_shows_guest_beside_host_code() -> None:
    lines = run("--mode", "full", "4801d8 488b07 0fa2").stdout.splitlines()
    assert lines[0].split() == ["Guest", "Instruction", "Class", "Action", "Host", "Code", "Reason"]
    (add,) = (line for line in lines if line.startswith("0 "))
    assert add.split()[1:6] == ["add", "rax,", "rbx", "ordinary", "copied"]
    assert add.endswith("it does the same on the host")
    columns = [lines[0].index(name) for name in ("Instruction", "Class", "Action", "Host", "Code", "Reason")]
    assert all(line[at - 1 : at] in {" ", ""} for line in lines for at in columns)
    assert any(line.split()[0] == "(arrival)" for line in lines)
    assert "interpreted" in run("--mode", "full", "--cpl", "3", "fa").stdout
    (made,) = json.loads(run("--mode", "full", "--json", "--address", "0x10", "4801d8").stdout)
    assert (made["address"], made["cpl"], made["instructions"][0]["action"]) == (0x10, 0, "copied")
    wrong = run("--mode", "full", "--bits", "32", "90")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize(("mode", "action"), [("para", "faults"), ("hardware", "exits")])
def test_the_command_shows_one_mode(mode: str, action: str) -> None:
    heading, line = run("--mode", mode, "f4").stdout.splitlines()
    assert heading.split() == ["Address", "Bytes", "Instruction", "Class", "Action", "Reason"]
    assert line.split()[:5] == ["0", "f4", "hlt", "privileged", action]
    assert len(line.split()) > 6


def test_the_documentation_shows_what_is_printed() -> None:
    text = (Path(__file__).parent.parent / "docs/translation.md").read_text(encoding="utf-8")
    example = re.search(
        r"^```sh\n(trapgate decode [^\n]+)\n```\n\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    )
    assert example is not None
    assert run(*shlex.split(example[1])[2:]).stdout == example[2]
