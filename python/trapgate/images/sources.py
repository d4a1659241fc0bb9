"""Reads the host's apt sources and keeps those entries that serve one Debian release.

Both formats of sources.list(5) are understood: one line per entry, and deb822 stanzas. What is kept is
written back with all of its options, so that the host's mirror and its keys go on being used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["one_line_entries", "stanza_entries", "stanzas"]

_ONE_LINE = re.compile(r"^\s*deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>.*)$")


def _serves(suite: str, release: str) -> bool:
    """Say whether `suite` is the release itself or one of its update pockets (bookworm-security)."""
    name = suite.split("/")[0]
    return name == release or name.startswith(f"{release}-")


def one_line_entries(text: str, release: str) -> list[str]:
    """Give the `deb` lines of `text` that serve `release`."""
    kept = []
    for line in text.splitlines():
        entry = line.split("#", 1)[0]
        match = _ONE_LINE.match(entry)
        if match and _serves(match["suite"], release):
            kept.append(entry.strip())
    return kept


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """Give the stanzas of deb822 text, field names in lower case, continuation lines joined as they are."""
    fields: dict[str, str] = {}
    last = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0] in " \t":
            if last:
                fields[last] += f"\n{line}"
        else:
            name, colon, value = line.partition(":")
            last = name.strip().lower() if colon else ""
            if last:
                fields[last] = value.strip()


def stanza_entries(text: str, release: str) -> list[str]:
    """Give the stanzas of deb822 `text` that serve `release`, reduced to its suites."""
    kept = []
    for fields in stanzas(text):
        suites = [suite for suite in fields.get("suites", "").split() if _serves(suite, release)]
        enabled = fields.get("enabled", "yes").lower() not in {"no", "false", "without", "off", "disable"}
        if not suites or not enabled or "deb" not in fields.get("types", "").split():
            continue
        fields = {**fields, "types": "deb", "suites": " ".join(suites)}
        kept.append("".join(f"{name.title()}: {value}\n" for name, value in fields.items()))
    return kept


def read(files: Iterable[Path], release: str) -> tuple[list[str], list[str]]:
    """Give the one-line entries and the stanzas of all `files` that serve `release`."""
    lines: list[str] = []
    blocks: list[str] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # apt itself passes over what it may not read, with a warning
        if file.suffix == ".sources":
            blocks += stanza_entries(text, release)
        else:
            lines += one_line_entries(text, release)
    return lines, blocks
