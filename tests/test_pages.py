"""What the documentation tells to run is run: every block of Python and of commands in it.

This file runs the README, tests/slow/test_pages_run.py all other pages. What cannot be run here is
marked in its page, ``<!-- not run: why -->`` above the block; its commands are parsed all the same,
and the settings of a training are read, so that flags, settings and recipes exist.
"""

import re
from pathlib import Path

import pytest

from doc_blocks import COMMAND, PAGES, ROOT, SHELL, Block, blocks_of, nrt_words
from native_reasoning.cli.flags import groups_of, parse
from native_reasoning.cli.train import make_plan
from native_reasoning.cli.verbs import VERBS
from native_reasoning.config.nrt_config import NRTConfig
from run_pages import make_place, run_page

BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def identity(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else value.name


@pytest.mark.parametrize("block", BLOCKS, ids=identity)
def test_a_block_of_commands_says_that_it_is_one(block: Block):
    """A block without a language is a formula, a file or a picture."""
    if block.language not in (*SHELL, "python"):
        found = [line for line in block.text.splitlines() if COMMAND.match(line)]
        assert not found, f"{block.name}: ```sh, so that it is run"


# -- What is not run -------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.why is not None], ids=identity)
def test_commands_that_are_not_run_could_be(block: Block, tmp_path, monkeypatch):
    assert len(block.why) > 10, "say why"
    if block.language == "python":
        compile(block.text, block.name, "exec")
        return
    assert block.language in SHELL, block.name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for words in block.commands:
        arguments = nrt_words(words)
        for word in words:
            if "/" in word and word.endswith((".py", ".sh", ".yaml")):
                assert (ROOT / word).exists(), word
        if arguments is None or "..." in arguments or arguments[0] == "VERB":
            continue
        parsed = parse(VERBS[arguments[0]], arguments[1:])
        assert parsed is not None
        if arguments[0] == "train" and "--resume" not in arguments:
            make_plan(parsed)


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_commands_within_sentences_have_flags_that_exist(page: Path):
    if page.name == "CHANGELOG.md":  # what was
        return
    known = {f"--{name.replace('_', '-')}" for name in NRTConfig.__dataclass_fields__}
    for span in re.findall(r"`(nrt [^`\n]+)`", page.read_text("utf-8")):
        _, verb, *words = span.split()
        if verb in ("VERB", "--help", "..."):
            continue
        own = {flag.name for flags in groups_of(VERBS[verb]).values() for flag in flags}
        flags = {*own, "--help", *(known if VERBS[verb].groups else ())}
        for word in words:
            flag = word.split("=")[0].replace("_", "-")
            assert not flag.startswith("--") or flag in flags, f"{page.name}: {span}"


# -- What is run -----------------------------------------------------------------------------------


def test_what_the_readme_says_runs(tmp_path, monkeypatch):
    place = make_place(tmp_path / "place")
    run_page(ROOT / "README.md", place, tmp_path / "page", monkeypatch)
