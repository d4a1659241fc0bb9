"""The host's own apt client with folders of our own: no root, and no change to the host's package state.

apt checks signatures and hashes as it does for the system; it only keeps its lists and downloads in a private
folder and believes that nothing is installed. Its configuration is the host's `Acquire` settings (proxies,
certificates), without the hooks that distributions add.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trapgate.errors import HostUnavailable, ImageError
from trapgate.images import sources

__all__ = ["PrivateApt", "unpack"]

#: Told how far a download is, from 0 to 1.
Fraction = Callable[[float], None]

_TOOLS = ("apt-get", "apt-cache", "apt-config", "dpkg-deb")


class PrivateApt:
    """An apt whose state is all in `folder`, looking at one Debian release for one architecture."""

    def __init__(self, folder: Path, *, release: str, architecture: str, source: str | None = None) -> None:
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        if missing:
            raise HostUnavailable(
                f"guest images are fetched with the host's apt, and this host has no {missing[0]};"
                " give a kernel and an initrd of your own instead"
            )
        self.folder = folder
        for name in ("lists/partial", "archives/partial", "sources.list.d", "downloads"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._write_sources(release, source)
        self._write_config(architecture)

    def update(self, progress: Fraction) -> None:
        """Fetch the package lists."""
        self._get("update", progress=progress)

    def show(self, package: str) -> dict[str, str]:
        """Give the fields of the newest version of `package`."""
        command = ["apt-cache", "show", "--no-all-versions", package]
        result = subprocess.run(command, env=self._env(), capture_output=True, text=True, check=False)
        for fields in sources.stanzas(result.stdout):
            if fields.get("package") == package:
                return fields
        raise ImageError(f"the configured apt sources have no package {package}")

    def needed(self, packages: Sequence[str]) -> list[str]:
        """Give the names of packages and of all that they depend on, sorted; recommended ones are not among them."""
        command = ["apt-get", "-q", "--simulate", "--no-install-recommends", "install", *packages]
        result = subprocess.run(command, env=self._env(), capture_output=True, text=True, check=False)
        if result.returncode:
            lines = [line[2:].strip() for line in result.stderr.splitlines() if line.startswith("E:")]
            raise ImageError(
                f"apt cannot tell what {', '.join(packages)} need: {(lines or ['no reason'])[0]}"
            )
        return sorted(re.findall(r"^Inst (\S+)", result.stdout, re.MULTILINE))

    def download(self, packages: Sequence[str], progress: Fraction) -> list[Path]:
        """Fetch packages, continuing what an earlier attempt left; give their files in the same order."""
        downloads = self.folder / "downloads"
        self._get("download", *packages, cwd=downloads, progress=progress)
        files = []
        for package in packages:
            found = sorted(downloads.glob(f"{package}_*.deb"))
            if len(found) != 1:
                raise ImageError(f"apt-get download gave {len(found)} files for {package}, not one")
            files += found
        return files

    def _write_sources(self, release: str, source: str | None) -> None:
        lines, blocks = ([source], []) if source else sources.read(_host_source_files(), release)
        if not lines and not blocks:
            raise HostUnavailable(
                f"none of this host's apt sources serves Debian {release}; name one with --source"
                f" 'deb [signed-by=KEYRING] URI {release} main', or give a kernel and an initrd of your own"
            )
        (self.folder / "sources.list").write_text("".join(f"{line}\n" for line in lines))
        (self.folder / "sources.list.d/host.sources").write_text("\n".join(blocks))

    def _write_config(self, architecture: str) -> None:
        folder = self.folder
        (folder / "status").touch()
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            # The unprivileged user that root's apt downloads as could not write to this folder.
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Dir::State": f"{folder}/",
            "Dir::State::lists": f"{folder}/lists/",
            "Dir::State::status": f"{folder}/status",
            "Dir::Cache": f"{folder}/",
            "Dir::Cache::archives": f"{folder}/archives/",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::sourcelist": f"{folder}/sources.list",
            "Dir::Etc::sourceparts": f"{folder}/sources.list.d/",
            "Dir::Log": f"{folder}/",
        }
        text = "\n".join(
            [*_host_acquire_settings(), *(f'{key} "{value}";' for key, value in settings.items())]
        )
        (folder / "apt.conf").write_text(f"{text}\n")

    def _env(self) -> dict[str, str]:
        return {**os.environ, "APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C"}

    def _get(self, *arguments: str, progress: Fraction, cwd: Path | None = None) -> None:
        """Run apt-get, reporting the percentages that it writes to its status descriptor."""
        read_end, write_end = os.pipe()
        command = ["apt-get", "-q", "-y", "-o", f"APT::Status-Fd={write_end}", *arguments]
        log = self.folder / "apt.log"
        with open(read_end, encoding="utf-8", errors="replace") as status:
            try:
                with log.open("w") as output:
                    process = subprocess.Popen(
                        command,
                        env=self._env(),
                        cwd=cwd,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        pass_fds=(write_end,),
                    )
            finally:
                os.close(write_end)
            with _ended(process):
                for line in status:
                    _report(line, progress)
        if process.returncode != 0:
            raise ImageError(f"apt-get {arguments[0]} failed: {_reason(log)}")


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Wait for the process at the end of the block, or end it if the block is left early."""
    try:
        yield
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _report(line: str, progress: Fraction) -> None:
    """Pass on a status line: dlstatus:ITEM:PERCENT:TEXT (apt's README.progress-reporting)."""
    kind, _, rest = line.partition(":")
    percent = rest.split(":")[1:2]
    if kind == "dlstatus" and percent:
        try:
            progress(min(float(percent[0]) / 100, 1.0))
        except ValueError:
            return  # a line cut short


def _reason(log: Path) -> str:
    """Give the first error that apt named, or its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line[2:].strip() for line in lines if line.startswith("E:")]
    return (named or lines[-1:] or ["it gave no reason"])[0]


def _host_source_files() -> list[Path]:
    """Give the host's sources.list and the parts beside it, wherever its configuration has them."""
    command = ["apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    places = dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)
    main = Path(places.get("LIST", "/etc/apt/sources.list").strip("'"))
    parts = Path(places.get("PARTS", "/etc/apt/sources.list.d").strip("'"))
    beside = sorted(p for p in parts.glob("*") if p.suffix in {".list", ".sources"}) if parts.is_dir() else []
    return [main, *beside]


def _host_acquire_settings() -> list[str]:
    """Give the host's download settings; index targets are left out, only package lists are wanted."""
    result = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    return [
        line
        for line in result.stdout.splitlines()
        if line.startswith("Acquire::") and not line.startswith("Acquire::IndexTargets")
    ]


def unpack(package: Path, wanted: Callable[[str], bool], count: int) -> dict[str, bytes]:
    """Give the `count` regular files of a Debian package whose names (as /boot/vmlinuz) are `wanted`.

    The package is read as a stream that ends with the last file wanted: a kernel's hundreds of megabytes of modules
    are not kept.
    """
    files: dict[str, bytes] = {}
    process = subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                name = member.name.removeprefix(".")
                if member.isreg() and wanted(name):
                    data = tar.extractfile(member)
                    files[name] = data.read() if data else b""
                    if len(files) == count:
                        return files
    except tarfile.TarError as error:
        raise ImageError(f"{package.name} is damaged: {error}") from error
    finally:
        process.stdout.close()
        process.terminate()
        process.wait()
    raise ImageError(f"{package.name} has {len(files)} of the {count} files expected in it")
