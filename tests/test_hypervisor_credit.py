"""The credit scheduler by itself, with a clock that is only counted: shares, caps, precedence, and no idle CPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapgate.errors import ConfigError
from trapgate.hypervisor import CreditScheduler, Scheduler, VCpu

MS = 1_000_000
SECOND = 1000 * MS


@dataclass(eq=False)
class Load:
    """What a vCPU does: runs for so long, then waits for so long; without a wait it always runs."""

    vcpu: VCpu
    work: int = 1 << 62
    wait: int = 0
    used: int = 0
    left: int = 0
    wakes_at: int | None = 0
    woken_at: int = 0
    latencies: list[int] = field(default_factory=list)


class Machine:
    """CPUs that do what a scheduler says. `part` is what each CPU gets of the time: a host is shared."""

    def __init__(self, policy: Scheduler, loads: list[Load], cpus: int = 1, part: float = 1.0) -> None:
        self.policy, self.loads, self.part = policy, loads, part
        self.now = 12345
        self.idle = 0
        self.running: dict[int, tuple[Load, int, int]] = {}
        self.cpus = cpus
        policy.start(cpus, self.now)
        for load in loads:
            policy.add(load.vcpu, self.now)

    def _stop(self, cpu: int) -> None:
        load, since, _ = self.running.pop(cpu)
        used = round((self.now - since) * self.part)
        load.used += used
        load.left -= used
        self.policy.used(load.vcpu, used, self.now)
        if load.left <= 0 and load.wait:
            self.policy.block(load.vcpu, self.now)
            load.wakes_at = self.now + load.wait

    def _wake(self, load: Load) -> None:
        load.wakes_at, load.woken_at, load.left = None, self.now, load.work
        victim = self.policy.wake(load.vcpu, self.now)
        for cpu, (other, _, _) in list(self.running.items()):
            if victim is other.vcpu:
                self._stop(cpu)

    def run(self, time: int) -> None:
        end = self.now + time
        while self.now < end:
            for cpu, (_, _, until) in list(self.running.items()):
                if until <= self.now:
                    self._stop(cpu)
            for load in self.loads:
                if load.wakes_at is not None and load.wakes_at <= self.now:
                    self._wake(load)
            for cpu in range(self.cpus):
                if cpu not in self.running and (turn := self.policy.next(cpu, self.now)) is not None:
                    assert turn.nanoseconds > 0
                    load = next(load for load in self.loads if load.vcpu is turn.vcpu)
                    assert all(other is not load for other, _, _ in self.running.values())
                    load.latencies.append(self.now - load.woken_at)
                    length = min(turn.nanoseconds, max(1, round(load.left / self.part)))
                    self.running[cpu] = (load, self.now, self.now + length)
            times = [until for _, _, until in self.running.values()]
            times += [load.wakes_at for load in self.loads if load.wakes_at is not None]
            if len(self.running) < self.cpus and (due := self.policy.due(self.now)) is not None:
                times.append(due)
            later = min([end, *(time for time in times if time > self.now)])
            self.idle += (later - self.now) * (self.cpus - len(self.running))
            self.now = later


def vcpu(name: str = "v", **values: int) -> VCpu:
    return VCpu(name, 1, **values)


def shares(machine: Machine) -> list[float]:
    total = sum(load.used for load in machine.loads)
    return [load.used / total for load in machine.loads]


@pytest.mark.parametrize("part", [1.0, 0.6, 0.1])
@pytest.mark.parametrize(
    "weights", [(256, 512), (256, 256), (256, 512, 1024), (100, 700), (1, 65535)], ids=str
)
def test_shares_follow_weights(weights: tuple[int, ...], part: float) -> None:
    machine = Machine(CreditScheduler(), [Load(vcpu(weight=w)) for w in weights], part=part)
    machine.run(60 * SECOND)
    for share, weight in zip(shares(machine), weights, strict=True):
        assert share == pytest.approx(weight / sum(weights), abs=0.005)
    assert machine.idle == 0


def test_shares_hold_over_a_second() -> None:
    machine = Machine(CreditScheduler(), [Load(vcpu(weight=256)), Load(vcpu(weight=512))])
    machine.run(SECOND)
    assert shares(machine) == pytest.approx([1 / 3, 2 / 3], abs=0.02)


def test_one_that_waits_costs_nothing_and_takes_nothing_from_the_proportion_of_the_others() -> None:
    loads = [
        Load(vcpu(weight=256)),
        Load(vcpu(weight=512)),
        Load(vcpu(weight=512), work=MS, wait=19 * MS),
        Load(vcpu(weight=65535), work=MS, wait=3600 * SECOND),
    ]
    machine = Machine(CreditScheduler(), loads)
    machine.run(30 * SECOND)
    assert loads[1].used / loads[0].used == pytest.approx(2, rel=0.03)
    assert loads[2].used == pytest.approx(30 * SECOND / 20, rel=0.03)
    assert loads[3].used == MS
    assert machine.idle == 0


def test_who_wakes_runs_at_once() -> None:
    loads = [Load(vcpu()) for _ in range(3)] + [Load(vcpu(), work=MS, wait=37 * MS)]
    machine = Machine(CreditScheduler(), loads)
    machine.run(20 * SECOND)
    late = sorted(loads[3].latencies)
    assert late[len(late) * 9 // 10] == 0
    assert late[-1] <= 40 * MS


@pytest.mark.parametrize("cap", [1, 10, 25, 50, 99])
def test_a_cap_holds_though_the_cpu_is_idle(cap: int) -> None:
    machine = Machine(CreditScheduler(), [Load(vcpu(cap=cap))])
    machine.run(20 * SECOND)
    assert machine.loads[0].used == pytest.approx(20 * SECOND * cap / 100, rel=0.02)


def test_what_a_cap_leaves_goes_to_the_others_by_weight() -> None:
    loads = [Load(vcpu(weight=65535, cap=25)), Load(vcpu(weight=256)), Load(vcpu(weight=512))]
    machine = Machine(CreditScheduler(), loads)
    machine.run(20 * SECOND)
    assert shares(machine) == pytest.approx([0.25, 0.25, 0.5], abs=0.01)
    assert machine.idle == 0


def test_weights_and_caps_change_while_it_runs() -> None:
    loads = [Load(vcpu(weight=256)), Load(vcpu(weight=256))]
    machine = Machine(CreditScheduler(), loads)
    machine.run(10 * SECOND)
    assert shares(machine) == pytest.approx([0.5, 0.5], abs=0.01)
    loads[0].used = loads[1].used = 0
    loads[0].vcpu.weight = 768
    machine.run(10 * SECOND)
    assert shares(machine) == pytest.approx([0.75, 0.25], abs=0.02)
    loads[0].used = loads[1].used = 0
    loads[0].vcpu.cap = 10
    machine.run(10 * SECOND)
    assert shares(machine) == pytest.approx([0.1, 0.9], abs=0.01)
    loads[0].vcpu.cap = 0
    loads[0].used = loads[1].used = 0
    machine.run(10 * SECOND)
    assert shares(machine) == pytest.approx([0.75, 0.25], abs=0.02)


@pytest.mark.parametrize(("weights", "expected"), [((1, 1, 1), (2 / 3,) * 3), ((1000, 1, 1), (1, 0.5, 0.5))])
def test_one_vcpu_uses_one_cpu_at_most(weights: tuple[int, ...], expected: tuple[float, ...]) -> None:
    machine = Machine(CreditScheduler(), [Load(vcpu(weight=w)) for w in weights], cpus=2)
    machine.run(30 * SECOND)
    assert [load.used / (30 * SECOND) for load in machine.loads] == pytest.approx(expected, abs=0.02)


def test_one_that_comes_later_gets_its_share_from_then_on_and_no_more() -> None:
    loads = [Load(vcpu()), Load(vcpu())]
    loads[1].wakes_at = 30 * SECOND
    machine = Machine(CreditScheduler(), loads)
    machine.run(30 * SECOND)
    loads[0].used = 0
    machine.run(10 * SECOND)
    assert shares(machine) == pytest.approx([0.5, 0.5], abs=0.02)


@given(
    st.lists(
        st.tuples(st.integers(1, 65535), st.integers(0, 100), st.integers(1, 50), st.integers(0, 50)),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 4),
)
def test_no_cpu_is_idle_while_somebody_may_run(loads: list[tuple[int, int, int, int]], cpus: int) -> None:
    """Of any load: caps hold, and without caps the CPUs are as busy as the load can make them."""
    made = [
        Load(vcpu(weight=weight, cap=cap), work=work * MS if wait else 1 << 62, wait=wait * MS)
        for weight, cap, work, wait in loads
    ]
    machine = Machine(CreditScheduler(), made, cpus=cpus)
    machine.run(3 * SECOND)
    for load in made:
        limit = load.vcpu.cap or 100
        assert load.used <= 3 * SECOND * limit / 100 + 31 * MS
    if len(made) >= cpus and not any(load.vcpu.cap or load.wait for load in made):
        assert machine.idle == 0


@pytest.mark.parametrize("weight", [0, -1, 65536, 1.5, True, "1"])
def test_wrong_weights_are_refused(weight: object) -> None:
    with pytest.raises(ConfigError, match="weight"):
        VCpu("v", 1, weight=weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("cap", [-1, 101, 2.5, None])
def test_wrong_caps_are_refused(cap: object) -> None:
    with pytest.raises(ConfigError, match="cap"):
        VCpu("v", 1, cap=cap)  # type: ignore[arg-type]


def test_it_is_a_scheduler() -> None:
    assert isinstance(CreditScheduler(), Scheduler)
