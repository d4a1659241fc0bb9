"""`trapgate demo`: one guest unmodified and para-virtual, and how often each needed its monitor, and why."""

from __future__ import annotations

from collections.abc import Iterator

import click

from trapgate import demo as showing
from trapgate.cli.output import show_log, write_json

__all__ = ["demo"]

_WIDTH = 100
# What is counted of the work, by the names of `demo.Work`.
_WORK = (
    ("system_calls", "system calls by user code"),
    ("page_faults", "page faults answered with a page"),
    ("space_switches", "switches of address space"),
    ("ticks", "timer interrupts"),
)
# What needs the monitor, by the names of `vm.Departures`, in the order in which it is shown.
_REASONS = (
    ("system_calls", "system calls"),
    ("page_faults", "page faults"),
    ("interrupts", "interrupts, event upcalls"),
    ("exceptions", "other exceptions"),
    ("returns", "SYSRET and IRET"),
    ("privileged", "other privileged instructions"),
    ("ports", "port accesses"),
    ("device_memory", "accesses to device memory"),
    ("trapped_stores", "stores to its own page tables"),
    ("hidden_faults", "entries of shadow page tables filled in"),
    ("hypercalls", "hypercalls"),
)

#: A line of the table: what, and the figures of both builds; None where the build has nothing of the kind.
_Row = tuple[str, "float | None", "float | None"]


@click.command()
@click.option(
    "--rounds", default=showing.DEFAULT_ROUNDS, show_default=True, metavar="N", help="How much work."
)
@click.option(
    "--engine", default="auto", show_default=True, help="What runs guest code: translate, interpret."
)
@click.option(
    "--paging",
    default="walk",
    show_default=True,
    help="Memory of the unmodified build: walk, shadow: with shadow page tables, as in the textbook.",
)
@click.option(
    "--clock", default="virtual", show_default=True, help="Virtual: all counts are the same each time."
)
@click.option(
    "--json", "json_file", metavar="FILE", help="Write the figures to FILE (- for standard output)."
)
def demo(rounds: int, engine: str, paging: str, clock: str, json_file: str | None) -> int:
    """Run one small guest in two builds, and show what each did and what it needed its monitor for.

    The first is unmodified and touches the hardware; the second calls the monitor instead. Both check their own work,
    and the exit status is 0 only if both found it right.
    """
    show_log()
    # Wrong names are refused by the machine's own check.
    found = showing.run(rounds, engine=engine, paging=paging, clock=clock)  # type: ignore[arg-type]
    if json_file is not None:
        write_json(found.as_dict(), json_file)
    if json_file != "-":
        _show(found)
    return 0 if found.success else 1


def _show(found: showing.Demo) -> None:
    """Print the table and how it ended."""
    click.echo(f"{'':42}{'unmodified':>16}{'para-virtual':>16}{'ratio':>10}")
    for title, rows in (
        ("What the guest did", list(_work(found))),
        ("What it needed its monitor for, and how often", list(_reasons(found))),
        ("Hypercalls by name", list(_hypercalls(found))),
        ("What it took", list(_costs(found))),
    ):
        click.echo(f"\n{title}")
        for name, full, para in rows:
            click.echo(f"  {name:40}{_figure(full):>16}{_figure(para):>16}{_ratio(full, para):>10}".rstrip())
    click.echo("\nratio: para-virtual by unmodified")
    for which in (found.full, found.para):
        if not which.success:
            click.echo(f"The guest for {which.mode} mode found something wrong. It said:\n{which.output}")


def _work(found: showing.Demo) -> Iterator[_Row]:
    for name, text in _WORK:
        yield text, getattr(found.full.work, name), getattr(found.para.work, name)


def _reasons(found: showing.Demo) -> Iterator[_Row]:
    for name, text in _REASONS:
        full, para = (getattr(run.departures, name) for run in (found.full, found.para))
        if full or para:
            yield text, full or None, para or None
    yield "all together", found.full.needed, found.para.needed
    yield "of these done within translated code", found.full.in_place or None, found.para.in_place or None
    yield "guest code was left", found.full.left, found.para.left


def _hypercalls(found: showing.Demo) -> Iterator[_Row]:
    calls = found.para.hypercalls
    for name in sorted(calls, key=lambda name: (-calls[name], name)):
        yield name, None, calls[name]
    # A multicall leaves guest code once, whatever it holds.
    yield (
        "made inside a multicall, not counted above",
        None,
        sum(calls.values()) - found.para.departures.hypercalls,
    )


def _costs(found: showing.Demo) -> Iterator[_Row]:
    yield "instructions", found.full.instructions, found.para.instructions
    yield (
        "instructions between leaving and leaving",
        found.full.instructions // found.full.left,
        found.para.instructions // found.para.left,
    )
    yield "milliseconds of this host", found.full.seconds * 1000, found.para.seconds * 1000


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def _ratio(full: float | None, para: float | None) -> str:
    return f"{para / full:.2f}" if full and para else ""
