"""The hypervisor's interface as a guest finds it: the para-virtual build of the guest of our own tries all of it.

What the answers must be stands in rust/guest/source/xen/abi*.c, call by call.
"""

from __future__ import annotations

import pytest

from trapgate import VM, build_info, demo, exits
from trapgate.config import Clock, CpuModel, Engine

ENGINES: list[Engine] = (
    ["interpret", "translate"] if "translate" in build_info()["engines"] else ["interpret"]
)
CLOCKS: list[Clock] = ["virtual", "real"]
#: Without AVX and with it.
CPUS: list[CpuModel] = ["x86-64-v2", "x86-64-v3"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("cpu", CPUS)
def test_every_answer_is_xens(engine: Engine, clock: Clock, cpu: CpuModel) -> None:
    found = demo.check_interface(cpu=cpu, engine=engine, clock=clock)
    assert found.mismatches == ()
    assert found.success, found.output
    # A part of it that was left out would be no mismatch.
    assert found.checks > 350


def test_every_call_is_tried() -> None:
    with VM(demo.machine("para", append="abi")) as vm:
        assert isinstance(vm.run(host_timeout=60), exits.Shutdown)
        assert [row.name for row in vm.hypercalls.stats().values() if not row.calls] == []
        assert vm.hypercalls.unknown > 15


CRASHES = [
    "exception 6 (error code 0x0, address 0x0) has no handler in the trap table",
    "the frame of an iret cannot be read",
    "iret to user mode without page tables for it",
    "no frame can be written at 0xffffffffbfefff",
    "no frame can be written at 0xffff800000000f",
    "no frame can be written at",
    "an event is unmasked, but no event callback is registered",
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", range(len(CRASHES)), ids=CRASHES)
def test_what_no_kernel_can_carry_on_from_ends_the_domain(way: int, engine: Engine) -> None:
    with VM(demo.machine("para", append=f"abi crash={way}", engine=engine)) as vm:
        match vm.run(host_timeout=60):
            case exits.Crashed(message=str(message)):
                assert message.startswith(CRASHES[way])
                assert "in kernel mode at 0xffffffff801" in message
            case other:
                raise AssertionError(f"{other}\n{vm.console.transcript}")


def test_wrong_answers_are_found() -> None:
    with VM(demo.machine("para", append="abi")) as vm:
        vm.hypercalls["nmi_op"].forbid(95)
        vm.hypercalls["xen_version"].wrap(lambda call, before: before(call) if call.command != 7 else 8192)
        assert isinstance(vm.run(host_timeout=60), exits.Crashed)
        output = vm.console.transcript
    assert "mismatch: nmi_op register gives -95, not 0\n" in output
    assert "mismatch: xen_version pagesize gives 8192, not 4096\n" in output
    assert output.endswith("result: failure\n")
