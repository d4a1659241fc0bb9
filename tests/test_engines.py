"""Which engine runs guest code, what is said where the translator cannot, and that both come to the same."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from guests import assemble, machine, needs_assembler
from trapgate import VM, build_info, exits

pytestmark = needs_assembler

can_translate = pytest.mark.skipif(
    "translate" not in build_info()["engines"].split(), reason="this build has no translator"
)

# A loop that is hot enough for any translator, ended with 42.
HOT = """
    mov ecx, 100000
1:  lea rax, [rax + rcx * 2]
    xor rax, rcx
    dec ecx
    jnz 1b
    exit 42
"""

# Files of more than 4 MiB are forbidden: room for the RAM of a small machine and not for the translator's code.
NO_ROOM = """
import resource, sys
from trapgate.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
sys.argv = ["trapgate", *sys.argv[1:]]
main()
"""


def without_translator(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Boot the guest where the translator cannot have its memory."""
    kernel = folder / "kernel"
    kernel.write_bytes(assemble(HOT))
    command = ["boot", "--kernel", str(kernel), "--memory", "3M", "--debug-exit", *options]
    return subprocess.run(
        [sys.executable, "-c", NO_ROOM, *command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


@can_translate
def test_the_engine_in_use_is_told() -> None:
    with VM(machine(HOT, engine="interpret")) as vm:
        assert (vm.stats.engine, vm.stats.translator) == ("interpret", None)
    for engine in ("auto", "translate"):
        with VM(machine(HOT, engine=engine)) as vm:
            assert vm.stats.engine == "translate"
            before = vm.stats.translator
            assert before is not None
            assert set(dataclasses.asdict(before).values()) == {0}
            assert isinstance(vm.run(), exits.DebugExit)
            after = vm.stats.translator
            assert after is not None
            assert after.units > 0
            assert after.code_bytes > after.units
            assert after.entries > 0


@can_translate
def test_engines_end_in_the_same_state() -> None:
    states = []
    for engine in ("interpret", "translate"):
        with VM(machine(HOT, engine=engine)) as vm:
            result = vm.run()
            states.append((result, vm.icount, vm.digest()))
    assert states[0] == states[1]


@can_translate
def test_auto_falls_back_and_says_so_once(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = without_translator(tmp_path, "--json", str(report))
    assert result.returncode == 42 << 1 | 1, result.stderr
    assert result.stderr.split("\n")[0] == (
        "trapgate: this host cannot run translated code; the interpreter runs the guest, which takes longer"
    )
    assert result.stderr.strip().count("\n") == 0
    stats = json.loads(report.read_text())["stats"]
    assert (stats["engine"], stats["translator"]) == ("interpret", None)


@can_translate
def test_translate_where_it_cannot_is_one_sentence(tmp_path: Path) -> None:
    result = without_translator(tmp_path, "--engine", "translate")
    assert result.returncode == 1
    assert result.stderr.startswith("trapgate: error: this host cannot run translated code: ")
    assert result.stderr.count("\n") == 1


def test_interpret_says_nothing(tmp_path: Path) -> None:
    result = without_translator(tmp_path, "--engine", "interpret")
    assert result.returncode == 42 << 1 | 1
    assert result.stderr.strip() == ""
