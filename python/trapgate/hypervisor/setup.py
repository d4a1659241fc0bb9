"""A hypervisor and its guests as plain values, from TOML files and from words such as debian-12:para.

A file has what `Hypervisor` takes and a table for each guest, with what `create` takes and what `Machine` takes:

    memory = "1G"
    cpus = 2

    [[guest]]
    name = "web"
    image = "debian-12"
    mode = "para"
    memory = "256M"
    weight = 512
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from trapgate.config import Machine, parse_size, read_toml
from trapgate.errors import ConfigError
from trapgate.hypervisor.hypervisor import Hypervisor
from trapgate.hypervisor.permissions import Permissions
from trapgate.hypervisor.scheduler import DEFAULT_WEIGHT, VCpu

__all__ = ["GuestSetup", "Setup"]

_PERMISSIONS = ("hypercalls", "forbidden", "events")


@dataclass(frozen=True, kw_only=True)
class GuestSetup:
    """A guest that is to be made; see `Hypervisor.create`. Either `image` or `machine` is given."""

    #: An image's name and changes to its config, or a whole config.
    image: str | None = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    machine: Machine | None = None
    name: str | None = None
    weight: int = DEFAULT_WEIGHT
    cap: int = 0
    memory_target: int | str | None = None
    permissions: Permissions = dataclasses.field(default_factory=Permissions)
    restart: bool = False
    paused: bool = False

    def __post_init__(self) -> None:
        VCpu("", 0, self.weight, self.cap)
        if self.image is not None and self.machine is None:
            # Wrong values are to be told before anything is fetched.
            Machine(**{"kernel": b"", **self.changes})

    @classmethod
    def from_word(cls, word: str, **changes: Any) -> Self:
        """Read IMAGE or IMAGE:MODE, as debian-12:para; raises `ConfigError`."""
        image, _, mode = word.partition(":")
        if not image:
            raise ConfigError(f"{word!r} is no guest; write IMAGE or IMAGE:MODE, such as debian-12:para")
        return cls(image=image, changes={**changes, **({"mode": mode} if mode else {})})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], folder: Path = Path()) -> Self:
        """Read a guest's table; file names in it are relative to a folder. Raises `ConfigError`."""
        own = {field.name for field in dataclasses.fields(cls)} - {"changes", "machine", "permissions"}
        mine = {key: value for key, value in values.items() if key in own}
        allowed = {key: frozenset(values[key]) for key in _PERMISSIONS if key in values}
        rest = {k: v for k, v in values.items() if k not in own and k not in _PERMISSIONS}
        for name in ("kernel", "initrd"):
            if isinstance(rest.get(name), str):
                rest[name] = folder / rest[name]
        permissions = Permissions(**allowed)
        known = {field.name for field in dataclasses.fields(Machine)}
        if "image" in mine and (unknown := sorted(set(rest) - known)):
            raise ConfigError(f"a guest has no {unknown[0]!r}; it has: {', '.join(sorted(known | own))}")
        # An image has its kernel; the rest is checked with any.
        machine = Machine.from_dict({"kernel": b"", **rest} if "image" in mine else rest)
        disks = tuple(dataclasses.replace(disk, path=folder / disk.path) for disk in machine.disks)
        if "image" not in mine:
            return cls(machine=machine.replace(disks=disks), permissions=permissions, **mine)
        devices = {"disks": disks, "nics": machine.nics}
        rest |= {name: value for name, value in devices.items() if name in rest}
        return cls(changes=rest, permissions=permissions, **mine)

    def config(self) -> Machine:
        """Give the machine's config; an image is fetched if need be."""
        if self.machine is not None:
            return self.machine
        if self.image is None:
            raise ConfigError("a guest needs an image or a kernel")
        return Machine.from_image(self.image, **self.changes)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A hypervisor and the guests that it starts with."""

    guests: tuple[GuestSetup, ...]
    cpus: int | None = None
    memory: int | str | None = None

    def __post_init__(self) -> None:
        if not self.guests:
            raise ConfigError("there is no guest to run")
        if self.memory is not None:
            parse_size(self.memory, "memory")

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file; raises `ConfigError` for what is wrong in it."""
        values = read_toml(path)
        if unknown := sorted(set(values) - {"guest", "cpus", "memory"}):
            raise ConfigError(f"a hypervisor has no {unknown[0]!r}; it has: cpus, guest, memory")
        tables = values.pop("guest", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise ConfigError("guests are tables, each under a line [[guest]]")
        try:
            guests = tuple(GuestSetup.from_dict(table, Path(path).parent) for table in tables)
        except TypeError as error:
            raise ConfigError(f"{os.fspath(path)}: a value has the wrong type: {error}") from error
        return cls(guests=guests, **values)

    @classmethod
    def from_words(cls, words: Iterable[str], **changes: Any) -> Self:
        """Read guests as IMAGE or IMAGE:MODE."""
        return cls(guests=tuple(GuestSetup.from_word(word, **changes) for word in words))

    def make(self, hypervisor: Hypervisor) -> None:
        """Make the guests."""
        for guest in self.guests:
            hypervisor.create(
                guest.config(),
                name=guest.name,
                weight=guest.weight,
                cap=guest.cap,
                memory_target=guest.memory_target,
                permissions=guest.permissions,
                restart=guest.restart,
                paused=guest.paused,
            )

    def open(self) -> Hypervisor:
        """Make the hypervisor with its guests; they run when it is started."""
        hypervisor = Hypervisor(cpus=self.cpus, memory=self.memory)
        try:
            self.make(hypervisor)
        except BaseException:
            hypervisor.close()
            raise
        return hypervisor
