"""What a machine is made of, as plain values that are checked when they are written down.

A config holds no machine: it can be compared, pickled, changed with `replace` and used any number of times.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar, get_args

from trapgate.errors import ConfigError

if TYPE_CHECKING:
    from trapgate.network import Switch

__all__ = [
    "Clock",
    "CpuModel",
    "Disk",
    "Engine",
    "Machine",
    "Mode",
    "Nic",
    "Paging",
    "Protocol",
    "Source",
    "format_size",
    "parse_size",
    "read_toml",
]

Mode: TypeAlias = Literal["full", "para", "hardware"]
Engine: TypeAlias = Literal["auto", "translate", "interpret"]
Paging: TypeAlias = Literal["walk", "shadow"]
Clock: TypeAlias = Literal["real", "virtual"]
CpuModel: TypeAlias = Literal["x86-64-v2", "x86-64-v3", "host"]
Protocol: TypeAlias = Literal["auto", "linux64", "linux32", "pvh", "multiboot"]

#: A file by name, or its contents.
Source: TypeAlias = "str | os.PathLike[str] | bytes"

_MIB = 1 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": _MIB, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"\s*(\d{1,20})\s*([KMGT]?)(?:i?B)?\s*", re.IGNORECASE)

#: Below the first megabyte lies what every PC has there; a kernel needs something above it.
_SMALLEST_MEMORY = 2 * _MIB


def parse_size(value: int | str, what: str = "size") -> int:
    """Give a number of bytes from an int or from text such as "512M" (powers of 1024)."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ConfigError(f"{what} is {value!r}; it must be a number of bytes or text such as 512M")
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ConfigError(f"{what} is {value!r}; it must be a number of bytes or text such as 512M")
    return int(match[1]) * _UNITS[match[2].upper()]


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file; raises `ConfigError` for one that cannot be read or is not TOML."""
    import tomllib

    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{os.fspath(path)} is not TOML: {error}") from error


def format_size(size: int) -> str:
    """Give a number of bytes as text: in the largest unit that divides it, or rounded to a tenth."""
    for unit in ("T", "G", "M", "K"):
        if size >= _UNITS[unit]:
            whole, rest = divmod(size, _UNITS[unit])
            return f"{whole}{unit}" if rest == 0 else f"{size / _UNITS[unit]:.1f}{unit}"
    return f"{size} bytes"


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk of a para-virtual guest, kept in a raw image: a file, or a device of the host, of whole sectors.

    While a machine writes to a file nobody else can use it; those that only read may share it.
    """

    path: str | os.PathLike[str]
    #: What the guest calls it: xvda, xvdb and so on.
    name: str = "xvda"
    read_only: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, os.PathLike)) or not os.fspath(self.path):
            raise ConfigError(f"the disk is {self.path!r}; it must be a file name")
        if not isinstance(self.name, str) or not re.fullmatch(r"xvd[a-z]{1,2}", self.name):
            raise ConfigError(f"the disk's name is {self.name!r}; it must be xvda, xvdb and so on")
        if not isinstance(self.read_only, bool):
            raise ConfigError(f"read_only is {self.read_only!r}; it must be true or false")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nic:
    """A network interface of a para-virtual guest.

    Without an address it gets one from the machine's seed, without a switch it leads nowhere. A config with a
    switch cannot be pickled: the switch is this process's.
    """

    #: Such as 00:16:3e:00:00:01.
    mac: str | None = None
    switch: Switch | None = None

    def __post_init__(self) -> None:
        if self.mac is not None:
            pattern = r"[0-9a-f][02468ace](?::[0-9a-f]{2}){5}"
            if not isinstance(self.mac, str) or not re.fullmatch(pattern, self.mac):
                raise ConfigError(
                    f"mac is {self.mac!r}; it must be an interface's address such as 00:16:3e:00:00:01"
                )
        if self.switch is not None:
            from trapgate.network import Switch

            if not isinstance(self.switch, Switch):
                raise ConfigError(f"switch is {self.switch!r}; it must be a trapgate.Switch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """A PC and what it starts.

    `kernel` is a bzImage, an ELF file or a multiboot image, `initrd` what holds its first files, `append`
    its command line. Files are read when a `VM` is made of the config.
    """

    kernel: Source
    initrd: Source | None = None
    append: str = ""
    #: How the kernel expects to be started; "auto" goes by the file.
    protocol: Protocol = "auto"
    #: RAM, as a number of bytes or text such as "512M".
    memory: int | str = "512M"
    #: What a para-virtual guest may grow to by ballooning; by default what it starts with.
    maximum_memory: int | str | None = None
    mode: Mode = "full"
    #: What executes guest code: "translate" is the binary translator, "interpret" the interpreter, to which the
    #: translator must be equal, and "auto" the translator where the host can run it.
    engine: Engine = "auto"
    #: How the memory of an unmodified guest is virtualised: "walk" fills the TLB by walks of its page tables, as
    #: a processor does; "shadow" keeps shadow page tables and traps stores to the guest's own, as monitors did before
    #: processors had a second level of translation. The guest runs alike, at another price.
    paging: Paging = "walk"
    cpu: CpuModel = "x86-64-v2"
    #: "real" follows the host's time; "virtual" counts instructions, and the same run twice is identical.
    clock: Clock = "real"
    #: What the machine's randomness starts from; by default fresh, and 0 with the virtual clock.
    seed: int | None = None
    #: Bytes written to port E9h come out at the host.
    debug_console: bool = False
    #: A write to port F4h ends the machine, with (value << 1) | 1 as its status.
    debug_exit: bool = False
    #: Disks and network interfaces of a para-virtual guest; the first interface is its eth0.
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"{name} is {value!r}; it must be one of: {', '.join(choices)}")
        for (name, value), instead in _ABSENT.items():
            if getattr(self, name) == value:
                raise ConfigError(f"{name} {value!r} is not in this version of trapgate; use {instead!r}")
        for name in ("kernel", "initrd"):
            _check_source(name, getattr(self, name), optional=name == "initrd")
        if not isinstance(self.append, str) or "\0" in self.append:
            raise ConfigError("append must be text without NUL characters")
        for name in ("debug_console", "debug_exit"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed is {self.seed}; it must fit into 64 bits")
        _check_memory(self.memory_bytes, self.memory)
        if self.maximum_memory is not None:
            _check_memory(self.maximum_memory_bytes, self.maximum_memory)
            if self.maximum_memory_bytes < self.memory_bytes:
                raise ConfigError("maximum_memory is less than memory")
        self._check_devices()
        if self.mode == "para":
            for name in ("debug_console", "debug_exit"):
                if getattr(self, name):
                    raise ConfigError(f"a para-virtual guest has no {name}: it has no ports")
            if self.paging != "walk":
                raise ConfigError(
                    f"paging {self.paging!r} is for mode 'full': a para-virtual guest's own page tables are used"
                )

    def _check_devices(self) -> None:
        for name, kind in (("disks", Disk), ("nics", Nic)):
            # A list is fine to give; what is kept does not change.
            devices = tuple(getattr(self, name))
            object.__setattr__(self, name, devices)
            if not all(isinstance(device, kind) for device in devices):
                raise ConfigError(f"{name} must be trapgate.{kind.__name__} objects")
            if devices and self.mode != "para":
                raise ConfigError(
                    f"{name} are not in mode {self.mode!r} in this version of trapgate; only para-virtual guests"
                    " have them: use mode 'para'"
                )
        names = [disk.name for disk in self.disks]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"two disks have the name {repeated[0]}")

    @property
    def memory_bytes(self) -> int:
        """RAM in bytes."""
        return parse_size(self.memory, "memory")

    @property
    def maximum_memory_bytes(self) -> int:
        """What RAM may grow to, in bytes."""
        if self.maximum_memory is None:
            return self.memory_bytes
        return parse_size(self.maximum_memory, "maximum_memory")

    @classmethod
    def from_image(cls, name: str, **changes: Any) -> Self:
        """Give the machine of a named image, fetched if need be; `append` is added to the image's own."""
        from trapgate import images

        image = images.pull(name)
        command_line = image.command_line(changes.get("mode", "full"))
        append = " ".join(part for part in (command_line, changes.pop("append", "")) if part)
        return cls(**{"kernel": image.kernel, "initrd": image.initrd, "append": append, **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Give the machine that a mapping of field names to values describes."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"a machine has no {unknown[0]!r}; it has: {', '.join(sorted(known))}")
        if "kernel" not in values:
            raise ConfigError("a machine needs a kernel")
        devices = {
            "disks": _devices(Disk, values.get("disks", ())),
            "nics": _devices(Nic, values.get("nics", ())),
        }
        return cls(**{**values, **devices})

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Self:
        """Read a machine from a TOML file; relative file names in it are relative to its folder."""
        values = read_toml(path)
        folder = Path(path).parent
        files = {
            name: folder / values[name] for name in ("kernel", "initrd") if isinstance(values.get(name), str)
        }
        disks = _devices(Disk, values.get("disks", ()))
        disks = tuple(dataclasses.replace(disk, path=folder / disk.path) for disk in disks)
        return cls.from_dict({**values, **files, "disks": disks})

    def replace(self, **changes: Any) -> Self:
        """Give a copy in which some fields differ."""
        return dataclasses.replace(self, **changes)


_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": get_args(Mode),
    "engine": get_args(Engine),
    "paging": get_args(Paging),
    "cpu": get_args(CpuModel),
    "clock": get_args(Clock),
    "protocol": get_args(Protocol),
}

# Names that are reserved for what this version does not have, and what to use instead.
_ABSENT = {("mode", "hardware"): "full"}


_Device = TypeVar("_Device", Disk, Nic)


def _devices(kind: type[_Device], values: Iterable[object]) -> tuple[_Device, ...]:
    """Give the devices that mappings describe."""
    return tuple(_device(kind, value) for value in values)


def _device(kind: type[_Device], value: object) -> _Device:
    if isinstance(value, kind):
        return value
    what = kind.__name__.lower()
    if not isinstance(value, Mapping):
        raise ConfigError(f"a {what} is {value!r}; it must be a table of its fields")
    fields = dataclasses.fields(kind)
    if unknown := sorted(set(value) - {field.name for field in fields}):
        raise ConfigError(
            f"a {what} has no {unknown[0]!r}; it has: {', '.join(field.name for field in fields)}"
        )
    if kind is Disk and "path" not in value:
        raise ConfigError("a disk needs a path")
    return kind(**value)


def _check_source(name: str, value: object, *, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise ConfigError(f"{name} is {value!r}; it must be a file name or the file's bytes")
    if isinstance(value, str) and not value:
        raise ConfigError(f"{name} is an empty file name")


def _check_memory(size: int, given: int | str) -> None:
    if size < _SMALLEST_MEMORY:
        raise ConfigError(f"memory is {given}; a machine needs at least {format_size(_SMALLEST_MEMORY)}")
    if size % 4096:
        raise ConfigError(f"memory is {given}; it must be a whole number of 4 KiB pages")
    host = _host_memory()
    if host is not None and size > host:
        raise ConfigError(f"memory is {given}, more than the {format_size(host)} that this host has")


def _host_memory() -> int | None:
    """Give the host's RAM in bytes, where it can be known without help."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
