"""AVX in a para-virtual Debian: its kernel takes what the processor offers, and keeps what its programs hold in it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import PROMPT
from test_para_boot import COMPLAINTS
from trapgate import VM, Machine
from trapgate.images.cpio import Archive

pytestmark = [
    pytest.mark.boot,
    pytest.mark.network,
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]

SOURCE = Path(__file__).parent / "programs" / "upper_halves.c"


@pytest.fixture(scope="module")
def machine(debian: Machine, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Debian with the program beside its own."""
    program = tmp_path_factory.mktemp("program") / "upper-halves"
    options = ["-std=gnu11", "-O2", "-march=x86-64", "-static", "-s"]
    subprocess.run(["cc", *options, "-o", str(program), str(SOURCE)], check=True)
    archive = Archive()
    archive.file("/upper-halves", program.read_bytes(), mode=0o755)
    config = Machine.from_image("debian-12", mode="para", memory="256M")
    assert isinstance(config.initrd, Path)
    # The kernel unpacks archives one after the other.
    return config.replace(initrd=config.initrd.read_bytes() + archive.to_bytes())


def test_upper_halves_of_registers_live_through_switches_and_signals(machine: Machine) -> None:
    with VM(machine.replace(cpu="x86-64-v3")) as vm:
        vm.console.expect(PROMPT, timeout=240)
        log = vm.console.transcript
        assert [line for line in log.splitlines() if COMPLAINTS.search(line)] == []
        assert "Enabled xstate features 0x7, context size is 832 bytes, using 'compacted' format" in log
        flags = set(vm.console.command("grep -m 1 ^flags /proc/cpuinfo", PROMPT).split())
        assert flags >= {"xsave", "xsaveopt", "xsavec", "xgetbv1", "avx", "avx2", "fma", "f16c"}
        assert not flags & {"xsaves", "pku"}
        assert vm.console.command("/upper-halves", PROMPT) == "XCR0 0x7, XSETBV SIGSEGV\nkept\n"
        assert COMPLAINTS.search(vm.console.command("dmesg", PROMPT)) is None


def test_without_avx_there_is_xsave_for_the_rest(machine: Machine) -> None:
    with VM(machine) as vm:
        vm.console.expect(PROMPT, timeout=240)
        assert "Enabled xstate features 0x3, context size is 576 bytes" in vm.console.transcript
        assert vm.console.command("/upper-halves", PROMPT) == "XCR0 0x3, XSETBV SIGSEGV\nno AVX\n"
