"""The benchmark: what it offers, what it prints and that it leaves nothing behind. Never how long something takes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trapgate import bench, errors
from trapgate.bench import files, programs
from trapgate.bench.report import Figures, Report, Row

SOURCES = Path(__file__).parent.parent / "benches/guest"

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="needs QEMU (Debian: qemu-system-x86)"
)


def trapgate(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trapgate", "bench", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return programs.build(tmp_path_factory.mktemp("programs"), SOURCES)


def test_the_list(tmp_path: Path) -> None:
    result = trapgate("--list", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [name for name, _group, _operation in lines] == [each.name for each in bench.PROGRAMS]
    assert {group for _name, group, _operation in lines} == set(bench.GROUPS)
    chosen = json.loads(trapgate("--list", "kernel", "copy", "--json", "-", folder=tmp_path).stdout)
    assert [each["name"] for each in chosen] == [
        *("copy", "syscall", "fork", "exec", "pipe", "fault", "signal"),
    ]


def test_sources_and_list_have_the_same_programs() -> None:
    named = re.findall(
        r'^    \{"([a-z0-9-]+)",', "".join(f.read_text() for f in SOURCES.glob("*.c")), re.MULTILINE
    )
    assert sorted(named) == sorted(each.name for each in bench.PROGRAMS if each.group != "boot")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("juggling",), "there is no benchmark 'juggling'; there are: compute, kernel, boot, integer, "),
        (("--peers", "native,abacus"), "there is no peer 'abacus'; there are: native, tcg, interpret"),
        (("--runs", "0"), "runs and operations are counted from 1"),
        (("--operations", "-1"), "runs and operations are counted from 1"),
        (("--peers", "", "--sources", "nowhere"), "the benchmark's programs are not in nowhere; they are"),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    result = trapgate(*arguments, folder=tmp_path)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"trapgate: error: {sentence}")
    assert "Traceback" not in result.stderr


@needs_compiler
def test_every_program_runs(program: Path) -> None:
    """Each is right by its own check, and does as few operations as it is told."""
    for each in bench.PROGRAMS:
        if each.group != "boot":
            result = subprocess.run([program, "-n", "3", each.name], capture_output=True, text=True)
            assert re.fullmatch(rf"{each.name} \d+\.\d{{3}}\n", result.stdout), result.stderr


@needs_compiler
def test_programs_calibrate(program: Path) -> None:
    result = subprocess.run([program, "-t", "1", "integer", "syscall"], capture_output=True, text=True)
    assert re.fullmatch(r"integer \d+\.\d{3}\nsyscall \d+\.\d{3}\n", result.stdout), result.stderr


@needs_compiler
@pytest.mark.boot
@pytest.mark.network
@pytest.mark.parametrize("peers", ["native", pytest.param("native,tcg", marks=needs_qemu)])
def test_a_measurement_has_its_shape(tmp_path: Path, peers: str) -> None:
    options = ("--runs", "2", "--operations", "1000", "--sources", SOURCES, "--json", "report.json")
    result = trapgate("integer", "--peers", peers, *options, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    header, row, mean = (line.split("\t") for line in result.stdout.splitlines())
    names = ["trapgate", *peers.split(",")]
    assert header == ["Program", *names, *(f"/{name}" for name in names[1:])]
    assert row[0] == "integer"
    assert all(
        re.fullmatch(r"[\d.]+ (ns|µs|ms|s) \([\d.]+-[\d.]+\)", cell) for cell in row[1 : len(names) + 1]
    )
    assert mean[0] == "mean of compute"
    assert mean[len(names) + 1 :] == row[len(names) + 1 :]
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["runs"] == 2
    assert written["engine"] in {"translate", "interpret"}
    (measured,) = written["programs"]
    assert list(measured["nanoseconds"]) == names
    assert all(len(figures["values"]) == 2 for figures in measured["nanoseconds"].values())
    assert set(written["geometric_means"]["compute"]) == set(names[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json"]


def processes_with(*texts: str) -> list[int]:
    """Give the processes whose command lines contain all the texts."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if all(text.encode() in command for text in texts):
                found.append(int(entry.name))
    return found


@needs_compiler
@needs_qemu
@pytest.mark.boot
@pytest.mark.network
def test_an_interrupt_ends_the_children(tmp_path: Path) -> None:
    command = ["bench", "integer", "--peers", "tcg", "--runs", "1000", "--sources", str(SOURCES)]
    process = subprocess.Popen(
        [sys.executable, "-m", "trapgate", *command],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        # The guest's files are in a folder of this test's.
        mark = f"{tmp_path}/trapgate-bench-"
        end = time.monotonic() + 240
        while not processes_with(mark, "qemu-system"):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert processes_with(mark) == []
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.wait()


def test_ratios_and_means() -> None:
    def row(name: str, own: float, **others: float) -> Row:
        figures = {peer: Figures((value,)) for peer, value in {"trapgate": own, **others}.items()}
        return Row(name=name, group="compute", operation="", figures=figures)

    report = Report(
        peers=("native", "tcg"),
        runs=1,
        engine="translate",
        host={},
        rows=(row("a", 8, native=4, tcg=16), row("b", 8, native=1)),
    )
    assert report.rows[0].ratio("tcg") == 0.5
    assert report.rows[1].ratio("tcg") is None
    assert report.mean("compute", "native") == pytest.approx(4)
    assert report.mean("compute", "tcg") == pytest.approx(0.5)
    assert report.mean("boot", "tcg") is None
    assert Figures((3.0, 1.0, 2.0)).as_dict()["median"] == 2


def test_a_kernel_that_is_none_is_refused() -> None:
    with pytest.raises(errors.ImageError, match="no bzImage"):
        files.vmlinux(bytes(4096))
    header = bytearray(4096)
    header[0x202:0x206] = b"HdrS"
    header[0x24C] = 16
    with pytest.raises(errors.ImageError, match="does not unpack"):
        files.vmlinux(bytes(header))
    header[0xA00:0xA06] = b"\xfd7zXZ\0"
    with pytest.raises(errors.ImageError, match="cannot be unpacked"):
        files.vmlinux(bytes(header))
