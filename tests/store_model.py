"""A store that is as simple as can be, to compare XenStore's with: every transaction has a copy of everything."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

__all__ = ["Refused", "Tree"]

NodePermissions = list[tuple[int, str]]


class Refused(Exception):
    """A request fails; the argument is the error's name."""


@dataclass
class _Node:
    value: bytes
    permissions: NodePermissions
    #: In the order in which they came.
    children: list[str] = field(default_factory=list)


class Tree:
    """Nodes by path; domain 0 may do everything, for 1 and 2 the permissions hold."""

    def __init__(self) -> None:
        self.nodes: dict[str, _Node] = {"": _Node(b"", [(0, "n")])}

    def copy(self) -> Tree:
        return copy.deepcopy(self)

    def _may(self, domid: int, path: str, letters: str) -> bool:
        permissions = self.nodes[path].permissions
        if domid in (0, permissions[0][0]):
            return True
        named = [letter for owner, letter in permissions[1:] if owner == domid]
        letter = named[0] if named else permissions[0][1]
        return letter in letters

    def _find(self, domid: int, path: str, letters: str) -> bool:
        """Whether the node is there, if the domain may know."""
        there = path
        while there not in self.nodes:
            there = there.rpartition("/")[0]
        if not self._may(domid, there, letters):
            raise Refused("EACCES")
        return there == path

    def read(self, domid: int, path: str) -> bytes:
        if not self._find(domid, path, "rb"):
            raise Refused("ENOENT")
        return self.nodes[path].value

    def directory(self, domid: int, path: str) -> list[str]:
        self.read(domid, path)
        return list(self.nodes[path].children)

    def permissions(self, domid: int, path: str) -> str:
        self.read(domid, path)
        return ",".join(f"{letter}{owner}" for owner, letter in self.nodes[path].permissions)

    def mkdir(self, domid: int, path: str) -> None:
        if not self._find(domid, path, "wb"):
            self._make(domid, path)

    def write(self, domid: int, path: str, value: bytes) -> None:
        self.mkdir(domid, path)
        self.nodes[path].value = value

    def _make(self, domid: int, path: str) -> None:
        above, _, name = path.rpartition("/")
        if above not in self.nodes:
            self._make(domid, above)
        permissions = list(self.nodes[above].permissions)
        if domid:
            permissions[0] = (domid, permissions[0][1])
        self.nodes[path] = _Node(b"", permissions)
        self.nodes[above].children.append(name)

    def rm(self, domid: int, path: str) -> None:
        if path == "":
            raise Refused("EINVAL")
        above, _, name = path.rpartition("/")
        if not self._find(domid, path, "wb"):
            if above not in self.nodes:
                raise Refused("ENOENT")
            return
        self.nodes[above].children.remove(name)
        for gone in [p for p in self.nodes if p == path or p.startswith(f"{path}/")]:
            del self.nodes[gone]

    def set_permissions(self, domid: int, path: str, permissions: NodePermissions) -> None:
        if path in self.nodes:
            if not self._may(domid, path, "") or not self._may(domid, path, "wb"):
                raise Refused("EACCES")
        elif not self._find(domid, path, "wb"):
            raise Refused("ENOENT")
        if domid and permissions[0][0] != self.nodes[path].permissions[0][0]:
            raise Refused("EPERM")
        self.nodes[path].permissions = list(permissions)
