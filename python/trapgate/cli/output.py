"""What the command prints: tables and progress for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["progress", "show_log", "table", "write_json"]


def write_json(value: Any, target: str | Path = "-") -> None:
    """Write `value` as JSON to a file, or to standard output for "-"."""
    text = json.dumps(value, indent=2, default=str) + "\n"
    if str(target) == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, headed: bool = False) -> None:
    """Print a table: with rich's layout on a terminal, with tabs into a pipe, and there `headed` if asked for."""
    if not sys.stdout.isatty():
        for row in (headings, *rows) if headed else rows:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        shown.add_column(heading, no_wrap=True, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console = Console(markup=False, highlight=False)
    # What is too wide goes on in the next line; nothing is left out.
    wide = console.options.update(max_width=1000)
    console.width = max(console.width, console.measure(shown, options=wide).maximum)
    console.print(shown)


def show_log() -> None:
    """Print what the library has to say about this host as lines on standard error."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("trapgate: %(message)s"))
    logger = logging.getLogger("trapgate")
    logger.addHandler(handler)
    logger.propagate = False


@contextmanager
def progress() -> Iterator[Callable[[str, float | None], None]]:
    """Give a function that shows what is being done and how far it is, on standard error."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda text, part: bar.update(
            task, description=text, total=None if part is None else 1.0, completed=part or 0.0
        )


class _Lines:
    """Progress where there is no terminal: one line for each new thing that is done."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, text: str, _part: float | None) -> None:
        if text != self._last:
            self._last = text
            print(f"{text}...", file=sys.stderr, flush=True)
