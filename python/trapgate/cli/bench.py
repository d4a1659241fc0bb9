"""`trapgate bench`: how fast guests run, beside the host itself and QEMU's TCG."""

from __future__ import annotations

from pathlib import Path

import click

from trapgate import bench as measuring
from trapgate.bench.report import SUBJECT
from trapgate.cli.output import progress, show_log, table, write_json

__all__ = ["bench"]

_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--list", "listed", is_flag=True, help="List the programs and measure nothing.")
@click.option(
    "--peers",
    default="native,tcg",
    show_default=True,
    metavar="NAMES",
    help=f"What to compare with, of {', '.join(measuring.PEERS)}; empty for nothing.",
)
@click.option("--runs", default=5, show_default=True, help="Measure everything this many times.")
@click.option(
    "--departures",
    is_flag=True,
    help="Count what an operation needs the monitor for, and from which price of an exit on para-virtualization pays.",
)
@click.option("--operations", type=int, metavar="N", help="Do N operations of each program, for a trial.")
@click.option(
    "--sources", type=click.Path(path_type=Path), metavar="DIR", help="Where the programs' sources are."
)
@click.option("--json", "json_file", metavar="FILE", help="Write what was measured to FILE.")
def bench(
    names: tuple[str, ...],
    listed: bool,
    peers: str,
    runs: int,
    operations: int | None,
    departures: bool,
    sources: Path | None,
    json_file: str | None,
) -> None:
    """Measure programs and groups by NAME (all if nothing is said) in trapgate and in its peers.

    A ratio is trapgate's time by the peer's: 2.0 is twice as slow, 0.5 twice as fast.
    """
    if listed:
        _list(names, json_file)
        return
    show_log()
    with progress() as report:
        found = measuring.run(
            names,
            peers=[peer.strip() for peer in peers.split(",") if peer.strip()],
            runs=runs,
            operations=operations,
            departures=departures,
            sources=sources,
            progress=report,
        )
    if json_file is not None:
        write_json(found.as_dict(), json_file)
    if json_file != "-":
        _show(found)
        if departures:
            _show_departures(found)


def _list(names: tuple[str, ...], json_file: str | None) -> None:
    chosen = measuring.select(names)
    if json_file is not None:
        write_json([vars(program) for program in chosen], json_file)
    if json_file != "-":
        table(("Name", "Group", "Operation"), [(each.name, each.group, each.operation) for each in chosen])


def _show(report: measuring.Report) -> None:
    """Print a row for each program, and one for each group's geometric means."""
    columns = (SUBJECT, *report.peers)
    headings = ("Program", *columns, *(f"/{peer}" for peer in report.peers))
    rows = [
        (
            row.name,
            *(_figures(row.figures.get(column)) for column in columns),
            *(_ratio(row.ratio(peer)) for peer in report.peers),
        )
        for row in report.rows
    ]
    for group in report.groups if report.peers else ():
        means = (_ratio(report.mean(group, peer)) for peer in report.peers)
        rows.append((f"mean of {group}", *("" for _ in columns), *means))
    table(headings, rows, headed=True)


def _show_departures(report: measuring.Report) -> None:
    """Print how often an operation needs the monitor, and what an exit must cost for `para` to be the quicker one."""
    guests = [peer for peer in (SUBJECT, *report.peers) if any(peer in row.departures for row in report.rows)]
    others = [peer for peer in guests if peer != "para" and "para" in guests]
    headings = ("Departures", *guests, *(f"para pays against {other} from" for other in others))
    rows = [
        (
            row.name,
            *("-" if (left := row.left(guest)) is None else _digits(left) for guest in guests),
            *(_break_even(row, other) for other in others),
        )
        for row in report.rows
    ]
    click.echo()
    table(headings, rows, headed=True)


def _break_even(row: measuring.Row, other: str) -> str:
    found = row.break_even("para", other)
    if found is None:
        return "never"
    return "now" if found == 0 else f"{found:.0f} ns an exit"


def _figures(figures: measuring.Figures | None) -> str:
    """Write the median with its unit, and the smallest and the largest in the same."""
    if figures is None:
        return "-"
    low, middle, high = min(figures.values), figures.median, max(figures.values)
    scale, unit = next((entry for entry in _UNITS if middle >= entry[0]), _UNITS[-1])
    return f"{_digits(middle / scale)} {unit} ({_digits(low / scale)}-{_digits(high / scale)})"


def _digits(value: float) -> str:
    """Write about three digits."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else _digits(ratio)
