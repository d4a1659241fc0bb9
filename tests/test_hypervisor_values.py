"""A hypervisor's values: permissions, who is let in, snapshots, and set-ups read from files."""

from __future__ import annotations

from pathlib import Path

import pytest

import guests
from guests import needs_assembler
from trapgate import Hypervisor, Machine
from trapgate.errors import ConfigError, NotPermitted, StateError
from trapgate.hypervisor import Outcome, Permissions, Setup

pytestmark = needs_assembler

SPIN = "s: jmp s"


def machine(source: str, **changes: object) -> Machine:
    return guests.machine(source, **{"clock": "real", **changes})


# What guests may do.


def test_permissions_are_values() -> None:
    allowed = Permissions(hypercalls={"iret", "sched_op"}, forbidden={"iret"}, events={2})  # type: ignore[arg-type]
    assert allowed == Permissions(
        hypercalls=frozenset({"sched_op", "iret"}), forbidden=frozenset({"iret"}), events=frozenset({2})
    )
    assert (allowed.allows("sched_op"), allowed.allows("iret"), allowed.allows("xen_version")) == (
        True,
        False,
        False,
    )
    assert Permissions().unlimited
    for wrong in ({"hypercalls": "iret"}, {"forbidden": {1}}, {"events": {70000}}, {"forbidden": None}):
        with pytest.raises(ConfigError):
            Permissions(**wrong)


def test_a_full_guest_has_no_hypercalls_and_no_balloon() -> None:
    with Hypervisor(memory="1G") as hypervisor:
        with pytest.raises(ConfigError, match="only a para-virtual guest"):
            hypervisor.create(machine(SPIN), permissions=Permissions(forbidden=frozenset({"iret"})))
        with pytest.raises(StateError, match="its balloon is a virtio device"):
            hypervisor.create(machine(SPIN), memory_target="8M")
        guest = hypervisor.create(machine(SPIN))
        with pytest.raises(StateError, match="its balloon is a virtio device"):
            guest.memory_target = "16M"
        assert hypervisor.memory.reserved == 16 << 20


def test_a_policy_decides_who_is_let_in() -> None:
    class OnlySmall:
        def admit(self, name: str, config: Machine, asked: Permissions) -> Permissions:
            if config.memory_bytes > 8 << 20:
                raise NotPermitted(f"{name} is too large")
            return asked

    with Hypervisor(admission=OnlySmall(), memory="16M") as hypervisor:
        with pytest.raises(NotPermitted, match="big is too large"):
            hypervisor.create(machine(SPIN), name="big")
        assert hypervisor.memory.reserved == 0
        assert hypervisor.create(machine(SPIN, memory="8M"), name="small").alive


@pytest.mark.parametrize("wrong", [{"cpus": 0}, {"cpus": 2.5}, {"memory": "much"}], ids=str)
def test_wrong_hypervisors_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Hypervisor(**wrong)  # type: ignore[arg-type]


# Looking.


def test_snapshots_are_values_with_rates() -> None:
    with Hypervisor(memory="64M", cpus=1) as hypervisor:
        guest = hypervisor.create(machine("putc 'h'\n putc 10\n putc 'i'\n s: in al, 0x61\n jmp s"), name="a")
        first = hypervisor.snapshot()
        hypervisor.run(timeout=0.3)
        second = hypervisor.snapshot(first)
        one = second.guest("a")
        assert one is not None
        assert (one.last_line, one.mode, one.memory, one.ended) == ("i", "full", 16 << 20, None)
        seconds = second.time - first.time
        assert one.instructions_per_second == pytest.approx(one.instructions / seconds)
        assert one.cpu_percent == pytest.approx(guest.cpu_time / seconds * 100)
        assert one.calls > 100
        third = hypervisor.snapshot(second)
        assert third.guests[0].cpu_percent == 0
        assert (third.memory_total, third.memory_reserved) == (64 << 20, 16 << 20)
        assert third.as_dict()["guests"][0]["name"] == "a"


def test_setups_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(guests.assemble("exit 5"))
    file = tmp_path / "lab.toml"
    file.write_text(
        'memory = "64M"\ncpus = 1\n[[guest]]\nname = "a"\nkernel = "kernel"\nmemory = "16M"\n'
        'debug_exit = true\nweight = 512\ncap = 50\nrestart = true\n[[guest]]\nimage = "debian-12"\nmode = "para"\n'
        'forbidden = ["grant_table_op"]\nmaximum_memory = "512M"\nmemory_target = "256M"\n'
    )
    setup = Setup.from_toml(file)
    assert (setup.cpus, setup.memory, len(setup.guests)) == (1, "64M", 2)
    assert setup.guests[1].permissions.forbidden == {"grant_table_op"}
    assert setup.guests[1].changes == {"mode": "para", "maximum_memory": "512M"}
    with Setup(guests=setup.guests[:1], cpus=1, memory="64M").open() as hypervisor:
        (guest,) = hypervisor.list()
        assert (guest.name, guest.weight, guest.cap, guest.restart) == ("a", 512, 50, True)
        assert hypervisor.run(timeout=30) is Outcome.ENDED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no guest to run"),
        ("[[guest]]\n", "needs a kernel"),
        ("gest = 1", "has no 'gest'"),
        ("guest = 1", "under a line \\[\\[guest\\]\\]"),
        ('[[guest]]\nimage = "x"\nmemry = "1M"', "has no 'memry'"),
        ('[[guest]]\nimage = "x"\nmode = "hardwar"', "mode is 'hardwar'"),
        ('[[guest]]\nimage = "x"\nweight = 0', "weight is 0"),
        ('[[guest]]\nimage = "x"\nforbidden = 3', "wrong type|must be a set"),
        ("[[guest", "is not TOML"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Setup.from_toml(file)
