"""What the store is made of: paths, permissions and nodes.

A node never changes; a change puts a new one in its place.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from trapgate.errors import StoreError
from trapgate.xenstore.quota import Actor

__all__ = [
    "DOMAIN_MAX",
    "Access",
    "Node",
    "Permission",
    "absolute",
    "ancestors",
    "base",
    "child",
    "home",
    "is_special",
    "parent",
    "parse_permissions",
]

#: The highest number that a domain can have (below DOMID_FIRST_RESERVED).
DOMAIN_MAX = 0x7FEF

_PATH = re.compile(r"/|(?:/[A-Za-z0-9_@-]+)+")
_SPECIAL = re.compile(r"@[A-Za-z0-9_@-]+")
_PERMISSION = re.compile(r"([nrwb])([0-9]{1,5})")
_HOME = re.compile(r"/local/domain/[0-9]{1,5}/")


class Access(enum.IntFlag):
    """What a domain may do with a node."""

    NONE = 0
    READ = 1
    WRITE = 2
    BOTH = 3
    OWNER = 4


_LETTERS = {"n": Access.NONE, "r": Access.READ, "w": Access.WRITE, "b": Access.BOTH}
_LETTER_OF = {access: letter for letter, access in _LETTERS.items()}


@dataclass(frozen=True, slots=True)
class Permission:
    """One entry of a node's list, in text a letter and a domain's number, such as "r1".

    In a list's first entry the domain is the owner, and the access is that of everybody whom no other entry
    names.
    """

    domid: int
    access: Access

    @classmethod
    def parse(cls, text: str) -> Permission:
        """Read an entry: n, r, w or b, then 0 to 65535; raises `StoreError` (EINVAL)."""
        match = _PERMISSION.fullmatch(text)
        if match is None or int(match[2]) > 0xFFFF:
            raise StoreError(
                f"the permission {text[:20]!r} is not n, r, w or b with a domain's number", "EINVAL"
            )
        return cls(int(match[2]), _LETTERS[match[1]])

    def __str__(self) -> str:
        return f"{_LETTER_OF[self.access]}{self.domid}"


def parse_permissions(texts: str | Iterable[str]) -> tuple[Permission, ...]:
    """Read a list of entries, also one text with commas: "n0,r1"; raises `StoreError` (EINVAL)."""
    items = texts.split(",") if isinstance(texts, str) else texts
    found = tuple(Permission.parse(item) for item in items)
    if not found:
        raise StoreError("a node's permissions need at least the owner", "EINVAL")
    return found


@dataclass(frozen=True, slots=True)
class Node:
    """A node: any bytes as its value, and its children's names in the order in which they came.

    `generation` is the number of the change that stored it; the tree sets it.
    """

    value: bytes
    permissions: tuple[Permission, ...]
    children: tuple[str, ...] = ()
    generation: int = 0

    @property
    def owner(self) -> int:
        """The domain to whose account the node goes."""
        return self.permissions[0].domid

    @property
    def size(self) -> int:
        """Bytes that count for quotas: the value, each child's name with a NUL, 8 for each permission."""
        return len(self.value) + sum(map(len, self.children)) + len(self.children) + 8 * len(self.permissions)

    def cost(self, path: str) -> int:
        """Bytes that the node takes from its owner's memory."""
        return self.size + len(path)

    def access(self, actor: Actor) -> Access:
        """What a domain may do here: the toolstack and the owner all, others what their entry says."""
        return access_of(self.permissions, actor)


def access_of(permissions: Sequence[Permission], actor: Actor) -> Access:
    """As `Node.access`; no permissions at all are those of a node that is not there: nothing may be done."""
    if not permissions:
        return Access.NONE
    if actor.quota is None or permissions[0].domid == actor.domid:
        return Access.BOTH | Access.OWNER
    for entry in permissions[1:]:
        if entry.domid == actor.domid:
            return entry.access
    return permissions[0].access


def home(domid: int) -> str:
    """Give the path to which a domain's relative paths belong."""
    return f"/local/domain/{domid}"


def is_special(path: str) -> bool:
    """Whether this is no path but the name of an event of the store itself, such as @releaseDomain."""
    return path.startswith("@")


def absolute(actor: Actor, given: str, special: bool = False) -> str:
    """Check what a domain gave as a path and make it whole; raises `StoreError` (EINVAL).

    Only where `special` is set may it be the name of a special event. The toolstack's paths must be whole.
    """
    if special and _SPECIAL.fullmatch(given):
        return given
    quota = actor.quota
    path = given if given.startswith("/") or quota is None else f"{home(actor.domid)}/{given}"
    # Lengths first: a pattern's work grows with them.
    if quota is not None:
        below = _HOME.match(path)
        if len(path) > quota.path or (below is not None and len(path) - below.end() > quota.relative_path):
            raise StoreError(f"a path of {len(given)} characters is too long", "EINVAL")
    if given.startswith("@") or not _PATH.fullmatch(path):
        raise StoreError(f"{given[:80]!r} is not a path of the store", "EINVAL")
    return path


def parent(path: str) -> str:
    """Give the path above; that of "/" and of a special name is "/"."""
    return path[: path.rfind("/")] if path.rfind("/") > 0 else "/"


def base(path: str) -> str:
    """Give a path's last name."""
    return path[path.rfind("/") + 1 :]


def child(path: str, name: str) -> str:
    """Give the path of a child."""
    return f"/{name}" if path == "/" else f"{path}/{name}"


def ancestors(path: str) -> Iterator[str]:
    """Give the paths above, from the nearest to "/"."""
    while path != "/":
        path = parent(path)
        yield path
