"""Shadow page tables in mode `full`: another price, and nothing that a guest could tell."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from conftest import PROMPT
from trapgate import VM, Machine, bench, errors
from trapgate.bench.report import Figures, Row
from trapgate.exits import Shutdown


def test_paging_is_for_unmodified_guests() -> None:
    assert Machine(kernel=b"x").paging == "walk"
    with pytest.raises(errors.ConfigError, match="paging 'shadow' is for mode 'full'"):
        Machine(kernel=b"x", mode="para", paging="shadow")
    with pytest.raises(errors.ConfigError, match="paging is 'nested'; it must be one of: walk, shadow"):
        Machine(kernel=b"x", paging="nested")  # type: ignore[arg-type]


@pytest.mark.boot
@pytest.mark.network
def test_debian_runs_with_shadow_page_tables(debian: Machine) -> None:
    with VM(debian.replace(paging="shadow")) as vm:
        vm.console.expect(PROMPT, timeout=240)
        before = vm.stats.departures
        command = "for i in 1 2 3 4 5 6 7 8 9 10; do (cat /proc/uptime >/tmp/$i); done; cat /tmp/* | wc -l"
        assert re.search(r"^10\r*$", vm.console.command(command, PROMPT, timeout=60), re.MULTILINE)
        after = vm.stats.departures
        # Each program has some tens of pages, which come and go.
        assert after.trapped_stores - before.trapped_stores > 500
        assert after.hidden_faults - before.hidden_faults > 100
        log = vm.console.command("dmesg", PROMPT, timeout=60)
        assert not re.search(r"WARNING|BUG:|Bad page|Call Trace|segfault", log)
        vm.console.sendline("poweroff -f")
        assert isinstance(vm.run(host_timeout=60), Shutdown)


@pytest.mark.boot
@pytest.mark.network
def test_guests_are_equal_with_and_without(debian: Machine) -> None:
    def digest(**changes: str) -> tuple[str, dict[str, int]]:
        with VM(debian.replace(clock="virtual", **changes)) as vm:
            vm.run(max_instructions=150_000_000)
            return vm.digest(), dataclasses.asdict(vm.stats.departures)

    walk, shadow = digest(), digest(paging="shadow")
    assert walk[0] == shadow[0]
    # What differs is what the guest knows nothing of.
    differing = {name for name in walk[1] if walk[1][name] != shadow[1][name]}
    assert differing == {"trapped_stores", "hidden_faults"}


def row(times: dict[str, float], left: dict[str, dict[str, float]]) -> Row:
    figures = {peer: Figures((value,)) for peer, value in times.items()}
    return Row(name="fork", group="kernel", operation="fork", figures=figures, departures=left)


def test_break_even() -> None:
    left = {
        "trapgate": {"page_faults": 10.0},
        "shadow": {"trapped_stores": 60.0},
        "para": {"hypercalls": 40.0},
    }
    made = row({"trapgate": 100.0, "shadow": 150.0, "para": 250.0}, left)
    assert made.left("shadow") == 60
    assert made.left("native") is None
    assert made.break_even("para", "shadow") == pytest.approx(5.0)
    assert made.break_even("para", "trapgate") is None
    close = {"shadow": {"interrupts": 100.0}, "para": {"interrupts": 99.5}}
    assert row({"para": 2.0, "shadow": 1.0}, close).break_even("para", "shadow") is None
    assert made.break_even("trapgate", "para") == 0
    assert made.break_even("para", "native") is None
    assert row({"para": 1.0, "shadow": 2.0}, {}).break_even("para", "shadow") is None


@pytest.mark.boot
@pytest.mark.network
def test_departures_are_counted_by_operation(tmp_path: Path) -> None:
    report = bench.run(
        ["fork", "syscall"],
        peers=["shadow", "para"],
        runs=1,
        operations=300,
        departures=True,
        sources=Path(__file__).parent.parent / "benches/guest",
    )
    fork, syscall = sorted(report.rows, key=lambda each: each.name)
    # A system call is a call and a return, by whichever instruction.
    for guest, back in (("trapgate", "returns"), ("shadow", "returns"), ("para", "hypercalls")):
        counts = syscall.departures[guest]
        assert counts["system_calls"] == pytest.approx(1, abs=0.05)
        assert counts[back] == pytest.approx(1, abs=0.05)
    # Only who keeps shadows traps what changes the parent's page tables, and the calls that do it are batched.
    assert fork.departures["trapgate"]["trapped_stores"] == 0
    assert fork.departures["shadow"]["trapped_stores"] > 50
    assert fork.departures["para"]["hypercalls"] > 30
    written = json.loads(json.dumps(report.as_dict()))
    assert set(written["programs"][0]["break_even"]) >= {"para/shadow", "para/trapgate", "shadow/para"}
