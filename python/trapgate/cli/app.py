"""The command's tree of subcommands. Each is imported when it is called for."""

from __future__ import annotations

import importlib

import click

__all__ = ["cli"]

_COMMANDS = {
    "bench": ("trapgate.cli.bench", "Measure how fast guests run."),
    "boot": ("trapgate.cli.boot", "Boot an operating system in this terminal."),
    "decode": ("trapgate.cli.decode", "Show machine code as instructions."),
    "top": ("trapgate.cli.top", "Run several guests and show what they do."),
    "demo": ("trapgate.cli.demo", "Run one guest unmodified and para-virtual, side by side."),
    "images": ("trapgate.cli.images", "Fetch guests by name."),
}


class _Lazy(click.Group):
    """A group that lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry[0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        import trapgate

        click.echo(f"trapgate {trapgate.__version__}")
        ctx.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """An x86 virtual machine monitor: boots unmodified operating systems, without root or KVM."""
