"""An x86 virtual machine monitor as a library.

Machines are described by frozen configs, run by `VM`, and end in typed exits. Submodules are loaded when one
of their names is first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapgate import bench as bench
    from trapgate import demo as demo
    from trapgate import errors as errors
    from trapgate import exits as exits
    from trapgate import images as images
    from trapgate._core import __version__ as __version__
    from trapgate._core import build_info as build_info
    from trapgate.config import Disk as Disk
    from trapgate.config import Machine as Machine
    from trapgate.config import Nic as Nic
    from trapgate.hypervisor import Hypervisor as Hypervisor
    from trapgate.instructions import Instruction as Instruction
    from trapgate.instructions import decode as decode
    from trapgate.instructions import decode_columns as decode_columns
    from trapgate.network import Switch as Switch
    from trapgate.translation import translate as translate
    from trapgate.vm import VM as VM

__all__ = [
    "VM",
    "Disk",
    "Hypervisor",
    "Instruction",
    "Machine",
    "Nic",
    "Switch",
    "__version__",
    "bench",
    "build_info",
    "decode",
    "decode_columns",
    "demo",
    "errors",
    "exits",
    "images",
    "translate",
]

# Public name -> the module it is taken from; a module listed under its own name is exported itself.
_HOME = {
    "VM": "trapgate.vm",
    "Hypervisor": "trapgate.hypervisor",
    "Instruction": "trapgate.instructions",
    "Disk": "trapgate.config",
    "Machine": "trapgate.config",
    "Nic": "trapgate.config",
    "Switch": "trapgate.network",
    "__version__": "trapgate._core",
    "build_info": "trapgate._core",
    "decode": "trapgate.instructions",
    "decode_columns": "trapgate.instructions",
    "bench": "trapgate.bench",
    "demo": "trapgate.demo",
    "errors": "trapgate.errors",
    "exits": "trapgate.exits",
    "images": "trapgate.images",
    "translate": "trapgate.translation",
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
