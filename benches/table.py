"""The table of docs/performance.md from what `trapgate bench --json FILE` wrote: `python benches/table.py FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))


def digits(value: float) -> str:
    """Write about three digits."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def cell(figures: dict[str, Any] | None) -> str:
    """Write median and spread in the median's unit."""
    if figures is None:
        return ""
    scale, unit = next((entry for entry in UNITS if figures["median"] >= entry[0]), UNITS[-1])
    middle, low, high = (digits(figures[key] / scale) for key in ("median", "min", "max"))
    return f"{middle} {unit} ({low} to {high})"


def main(path: str) -> None:
    """Print the table and the means."""
    report = json.loads(Path(path).read_text(encoding="utf-8"))
    peers = list(report["programs"][0]["ratios"])
    columns = ["trapgate", *peers]
    print(f"| program | {' | '.join(columns)} | {' | '.join(f'/ {peer}' for peer in peers)} |")
    print("|---|" + "---|" * (len(columns) + len(peers)))
    for program in report["programs"]:
        times = [cell(program["nanoseconds"].get(column)) for column in columns]
        ratios = [
            "" if program["ratios"][peer] is None else digits(program["ratios"][peer]) for peer in peers
        ]
        print(f"| {program['name']} | {' | '.join(times)} | {' | '.join(ratios)} |")
    for group, means in report["geometric_means"].items():
        ratios = ["" if means[peer] is None else f"**{digits(means[peer])}**" for peer in peers]
        print(f"| **{group}** | {' | '.join('' for _ in columns)} | {' | '.join(ratios)} |")
    if any(program["departures"] for program in report["programs"]):
        print()
        departures(report["programs"])


def departures(programs: list[dict[str, Any]]) -> None:
    """Print how often an operation needs the monitor, and the price of an exit from which para-virtualization pays."""
    guests = list(programs[0]["departures"])
    others = [guest for guest in guests if guest != "para" and "para" in guests]
    print(
        f"| program | {' | '.join(guests)} | {' | '.join(f'para pays against {name}' for name in others)} |"
    )
    print("|---|" + "---|" * (len(guests) + len(others)))
    for program in programs:
        counts = [digits(sum(program["departures"][guest].values())) for guest in guests]
        pays = [price(program["break_even"][f"para/{other}"]) for other in others]
        print(f"| {program['name']} | {' | '.join(counts)} | {' | '.join(pays)} |")


def price(nanoseconds: float | None) -> str:
    """Write from which price of an exit on."""
    if nanoseconds is None:
        return "never"
    return "now" if nanoseconds == 0 else f"from {digits(nanoseconds)} ns"


if __name__ == "__main__":
    main(*sys.argv[1:])
