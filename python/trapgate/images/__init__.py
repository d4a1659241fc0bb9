"""Guests by name: fetched or built on first use, then kept in the user's cache.

An image is a folder that appears whole or not at all; any number of processes may ask for it at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trapgate.errors import ConfigError, HostUnavailable, ImageError

__all__ = ["Description", "Image", "Progress", "available", "cache_folder", "path", "pull"]

#: Told what is being done and, where that can be known, how far it is, from 0 to 1.
Progress = Callable[[str, float | None], None]

_NAMES = ("debian-12",)
_RECORD = "image.json"


@dataclass(frozen=True, kw_only=True)
class Image:
    """A guest that can be booted directly: kernel, initial RAM file system and command line."""

    name: str
    kernel: Path
    initrd: Path
    append: str
    #: The packages that it was made of, name to version.
    packages: dict[str, str]

    def command_line(self, mode: str = "full") -> str:
        """Give its command line for a mode: the console of a para-virtual guest is hvc0."""
        return self.append.replace("console=ttyS0", "console=hvc0") if mode == "para" else self.append


@dataclass(frozen=True, kw_only=True)
class Description:
    """One line of the list of images that can be had."""

    name: str
    text: str
    #: Where it is, if it has been fetched.
    path: Path | None


def cache_folder() -> Path:
    """Give the folder that images are kept in: below $XDG_CACHE_HOME or the platform's place for caches."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        root = Path(base)
    elif sys.platform == "darwin":
        root = Path.home() / "Library/Caches"
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    else:
        root = Path.home() / ".cache"
    return root.absolute() / "trapgate"


def available() -> list[Description]:
    """List the images that can be pulled."""
    from trapgate.images import debian

    return [
        Description(name=name, text=debian.DESCRIPTION, path=image.kernel.parent if image else None)
        for name in _NAMES
        for image in [_cached(name)]
    ]


def path(name: str) -> Path:
    """Give the folder of an image that has been pulled."""
    image = _cached(_known(name))
    if image is None:
        raise ImageError(f"image {name} has not been pulled; run: trapgate images pull {name}")
    return image.kernel.parent


def pull(
    name: str, *, progress: Progress | None = None, refresh: bool = False, source: str | None = None
) -> Image:
    """Give an image, fetching and building it unless it is in the cache.

    `refresh` builds it anew from the newest packages; `source` is a line as in sources.list(5), used in
    place of the host's own apt sources.
    """
    if not refresh and (image := _cached(_known(name))):
        return image
    report = progress or (lambda _text, _part: None)
    try:
        with _locked(_known(name), report):
            # Another process may have built it while this one waited.
            if not refresh and (image := _cached(name)):
                return image
            _build(name, report, source)
    except OSError as error:
        if isinstance(error, (ImageError, HostUnavailable)):
            raise
        raise ImageError(f"image {name} could not be written: {error}") from error
    image = _cached(name)
    if image is None:
        raise ImageError(f"image {name} was built but cannot be read back from {cache_folder()}")
    return image


def _known(name: str) -> str:
    if name not in _NAMES:
        raise ConfigError(f"there is no image {name!r}; there is: {', '.join(_NAMES)}")
    return name


def _folder(name: str) -> Path:
    return cache_folder() / "images" / name


def _cached(name: str) -> Image | None:
    """Give the image in the cache, unless it is absent, incomplete or of an older recipe."""
    from trapgate.images import debian

    folder = _folder(name)
    try:
        record = json.loads((folder / _RECORD).read_text())
        image = Image(
            name=name,
            kernel=folder / "vmlinuz",
            initrd=folder / "initrd",
            append=record["append"],
            packages=record["packages"],
        )
        whole = image.kernel.stat().st_size > 0 and image.initrd.stat().st_size > 0
        return image if whole and record["recipe"] == debian.RECIPE else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _build(name: str, progress: Progress, source: str | None) -> None:
    """Build the image beside its place and rename it into it."""
    from trapgate.images import debian

    folder = _folder(name)
    # Kept when fetching fails, so that the next attempt goes on from there.
    downloads = cache_folder() / f"apt-{name}"
    downloads.mkdir(parents=True, exist_ok=True)
    built = debian.build(downloads, progress, source)
    record = {"recipe": debian.RECIPE, "append": debian.APPEND, "packages": built.packages}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        (new / "vmlinuz").write_bytes(built.kernel)
        (new / "initrd").write_bytes(built.initrd)
        (new / _RECORD).write_text(json.dumps(record, indent=2) + "\n")
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        new.rename(folder)
    shutil.rmtree(downloads, ignore_errors=True)


@contextmanager
def _locked(name: str, progress: Progress) -> Iterator[None]:
    """Hold the image's lock; the kernel drops it if this process ends, however it ends."""
    if sys.platform == "win32":
        raise HostUnavailable(
            "images are fetched with apt, which Windows does not have; give a kernel and an initrd"
        )
    import fcntl

    folder = _folder(name).parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"Waiting for another process that fetches {name}", None)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
