"""`trapgate images`: guests by name."""

from __future__ import annotations

import dataclasses

import click

from trapgate import images as store
from trapgate.cli.output import progress, table, write_json

__all__ = ["images"]

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def images() -> None:
    """Fetch guests by name, with the host's own apt and without root; they are kept in your cache."""


@images.command("list")
@_json
def list_images(as_json: bool) -> None:
    """List the guests that can be had."""
    found = store.available()
    if as_json:
        write_json([dataclasses.asdict(image) for image in found])
        return
    rows = [(image.name, "fetched" if image.path else "not fetched", image.text) for image in found]
    table(("Name", "State", "What it is"), rows)


@images.command()
@click.argument("name")
@click.option("--refresh", is_flag=True, help="Build it anew from the newest packages.")
@click.option(
    "--source", metavar="LINE", help="Use this line, as in sources.list(5), in place of the host's sources."
)
@_json
def pull(name: str, refresh: bool, source: str | None, as_json: bool) -> None:
    """Fetch a guest unless it is there already, and print its folder."""
    with progress() as report:
        image = store.pull(name, progress=report, refresh=refresh, source=source)
    if as_json:
        write_json(dataclasses.asdict(image))
    else:
        print(image.kernel.parent)


@images.command()
@click.argument("name")
@_json
def path(name: str, as_json: bool) -> None:
    """Print the folder of a guest that has been fetched."""
    folder = store.path(name)
    if as_json:
        write_json({"name": name, "path": folder})
    else:
        print(folder)
