"""What a run is to reach: text, an address, a kind of exit, a condition."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from trapgate import exits
from trapgate.console import compile_pattern
from trapgate.errors import ConfigError
from trapgate.hooks import Hook

if TYPE_CHECKING:
    from trapgate.vm import VM

__all__ = ["Goal", "Until", "reached"]

#: What `VM.run` can be asked to stop at: text on the console, the address of an instruction, kinds of exits (others
#: are passed over if the machine can go on after them), or a function of the machine, asked between slices.
Until: TypeAlias = (
    "str | re.Pattern[str] | int | type[exits.Exit] | tuple[type[exits.Exit], ...] | Callable[[VM], bool]"
)


class Goal:
    """What a run is to reach."""

    def __init__(
        self,
        *,
        text: re.Pattern[str] | None = None,
        hook: Hook[Any] | None = None,
        kinds: tuple[type[exits.Exit], ...] = (),
        condition: Callable[[VM], bool] | None = None,
    ) -> None:
        self._text = text
        self._hook = hook
        self._kinds = kinds
        self._condition = condition
        self.watches_console = text is not None

    def check(self, vm: VM) -> exits.Exit | None:
        """Give the exit that says that the goal is reached, if it is."""
        if self._text is not None and (found := vm.console._search_new(self._text)):
            return exits.Expected(text=found[0], **vm._when())
        if self._hook is not None and self._hook.hits:
            return exits.Breakpoint(rip=vm.regs.rip, **vm._when())
        if self._condition is not None and self._condition(vm):
            return exits.Satisfied(**vm._when())
        return None

    def accepts(self, result: exits.Exit) -> bool:
        """Say whether the run ends with `result`, which the machine could run on after."""
        limit = (exits.BudgetExhausted, exits.TimedOut, exits.Stopped)
        return not self._kinds or isinstance(result, (*self._kinds, *limit))


@contextmanager
def reached(vm: VM, until: Until | None) -> Iterator[Goal]:
    """Give what `until` asks for; an address is hooked for the time being."""
    if isinstance(until, int) and not isinstance(until, bool):
        with vm.on.exec(until) as hook:
            yield Goal(hook=hook)
    elif isinstance(until, (str, re.Pattern)):
        yield Goal(text=compile_pattern(until))
    elif isinstance(until, (type, tuple)):
        kinds = until if isinstance(until, tuple) else (until,)
        if not all(isinstance(kind, type) and issubclass(kind, exits.Exit) for kind in kinds):
            raise ConfigError(f"a machine cannot run until {until!r}; that is no kind of exit")
        yield Goal(kinds=kinds)
    elif until is None or callable(until):
        yield Goal(condition=until)
    else:
        raise ConfigError(f"a machine cannot run until {until!r}")
