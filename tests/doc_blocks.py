"""Fenced blocks of the documentation, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "middle" / "README.md",
)
PAGES = tuple(page for page in PAGES if "_build" not in page.parts)
SHELL = ("sh", "bash")
#: Beginnings of a line that is a command.
COMMAND = re.compile(r"(\w+=\S+ )*(nrt|pip|python3?|make|accelerate|torchrun|sbatch|vllm|git) ")
_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]*?) -->\n+)?^```(?P<lang>[^\n]*)\n(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, line, language and text, and ``why`` it is not run, if so."""

    page: Path
    line: int
    language: str
    text: str
    why: str | None

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block; comments are left out."""
        text = self.text.replace("\\\n", " ")
        lines = [shlex.split(line, comments=True) for line in text.splitlines()]
        return [words for words in lines if words]


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, but for Sphinx's own."""
    text = page.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        if not match["lang"].startswith("{"):
            line = text.count("\n", 0, match.start("lang")) + 1
            found.append(Block(page, line, match["lang"], match["text"], match["why"]))
    return found


def nrt_words(words: list[str]) -> list[str] | None:
    """What follows ``nrt`` in a command, also behind a launcher; None for any other command."""
    if words[0] == "nrt":
        return words[1:]
    module = "native_reasoning.cli"
    return words[words.index(module) + 1 :] if module in words else None
