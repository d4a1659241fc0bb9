"""The `trapgate` command. What a user did wrong ends in one sentence and a status, never in a traceback."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

#: Exit statuses, beside a debug exit's own.
OK = 0
ERROR = 1
USAGE = 2
CRASHED = 3
RESET = 4
HALTED = 5
TIMED_OUT = 124
INTERRUPTED = 130


def main() -> None:
    """Run the command and exit with its status."""
    status = _main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has enough; Python must not complain of it while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _main(arguments: list[str]) -> int:
    import click

    from trapgate.cli.app import cli
    from trapgate.errors import TrapgateError

    try:
        status = cli.main(args=arguments, prog_name="trapgate", standalone_mode=False)
        return status if isinstance(status, int) else OK
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.UsageError as error:
        where = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        return _fail(f"{error.format_message().rstrip('.')}{where}", USAGE)
    except click.ClickException as error:
        return _fail(error.format_message(), ERROR)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return OK
    except TrapgateError as error:
        return _fail(str(error), ERROR)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}", ERROR)
    except Exception as error:
        if os.environ.get("TRAPGATE_TRACEBACK"):
            raise
        what = f"{type(error).__name__}: {error}"
        return _fail(f"internal error, please report it ({what}; TRAPGATE_TRACEBACK=1 shows where)", ERROR)


def _fail(sentence: str, status: int) -> int:
    print(f"trapgate: error: {sentence}", file=sys.stderr)
    return status
