"""Every command and program in the README and in docs/ is run, or says above itself why it is not.

A fenced block of `sh` or `python` is run unless the line before it is `<!-- not run: reason -->`. Shell blocks run
in a new folder with the examples beside it; Python blocks of one file run one after the other in one namespace.
Blocks of `c` and `asm` are taken from the source of the guest of our own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>[a-z]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    file: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def name(self) -> str:
        return f"{self.file.name}:{self.line}"


def blocks(file: Path) -> list[Block]:
    text = file.read_text(encoding="utf-8")
    return [
        Block(
            file,
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["text"],
            found["reason"],
        )
        for found in _FENCE.finditer(text)
    ]


# Languages that are only quoted, and the files that they are quoted from.
EXCERPTS = {"c": (".c", ".h"), "asm": (".S",)}

ALL = [block for file in FILES for block in blocks(file)]
SHELL = [block for block in ALL if block.language == "sh" and block.reason is None]
QUOTED = [block for block in ALL if block.language in EXCERPTS]
PYTHON = [file for file in FILES if any(b.language == "python" and b.reason is None for b in blocks(file))]


def test_every_block_says_what_it_is() -> None:
    """A fence without a language would be passed over; output is marked as text."""
    known = {"sh", "python", "text", "toml", "rust", "json", *EXCERPTS}
    assert [block.name for block in ALL if block.language not in known] == []
    fences = sum(file.read_text(encoding="utf-8").count("\n```") for file in FILES)
    assert fences == 2 * len(ALL), "a fence that the expression above does not understand"


@pytest.mark.parametrize("block", QUOTED, ids=[block.name for block in QUOTED])
def test_excerpts_are_in_the_source(block: Block) -> None:
    sources = (ROOT / "rust/guest/source").rglob("*.*")
    assert any(
        block.text in path.read_text(encoding="utf-8")
        for path in sources
        if path.suffix in EXCERPTS[block.language]
    )


def environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "TRAPGATE_CHECKOUT": str(ROOT), "TMPDIR": str(folder)}


@pytest.mark.boot
@pytest.mark.network
@pytest.mark.parametrize("block", SHELL, ids=[block.name for block in SHELL])
def test_commands_of_the_documentation(block: Block, tmp_path: Path) -> None:
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


@pytest.mark.boot
@pytest.mark.network
@pytest.mark.parametrize("file", PYTHON, ids=[file.name for file in PYTHON])
def test_programs_of_the_documentation(file: Path, tmp_path: Path) -> None:
    # Blank lines keep each block at its line, so that a traceback points into the document.
    program = ""
    for block in blocks(file):
        if block.language == "python" and block.reason is None:
            program += "\n" * (block.line - program.count("\n")) + block.text
    script = tmp_path / f"{file.stem}.py"
    script.write_text(program, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.boot
@pytest.mark.network
@pytest.mark.parametrize("example", EXAMPLES, ids=[example.stem for example in EXAMPLES])
def test_examples(example: Path) -> None:
    result = subprocess.run(
        [sys.executable, example], capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert result.stdout
