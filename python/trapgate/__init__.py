"""An x86 virtual machine monitor as a library.

Machines are described by frozen configs, run by `VM`, and end in typed exits. Submodules are loaded when one
of their names is first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapgate import errors as errors
    from trapgate._core import __version__ as __version__

__all__ = ["__version__", "errors"]

# Public name -> the module it is taken from; a module listed under its own name is exported itself.
_HOME = {
    "__version__": "trapgate._core",
    "errors": "trapgate.errors",
}


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'trapgate' has no attribute {name!r}")
    module = importlib.import_module(home)
    value = module if home == f"trapgate.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
