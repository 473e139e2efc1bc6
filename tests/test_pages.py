"""What the documentation tells to run is run: every block of Python and of commands in it.

Models of the hub become the embedded one, runs become two steps long. What cannot be run here is
marked in its page, ``<!-- not run: why -->`` above the block; its commands are parsed all the same,
and a training is planned (``--plan``), so that flags, settings and recipes exist.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import native_reasoning
from cli_helpers import write_rows
from doc_blocks import COMMAND, PAGES, ROOT, SHELL, Block, blocks_of, nrt_words
from native_reasoning.cli import main
from native_reasoning.cli.flags import groups_of, parse
from native_reasoning.cli.verbs import VERBS
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.demo import base_path, make_rows

HUB = re.compile(r"(Qwen/Qwen3-0\.6B-Base|HuggingFaceTB/SmolLM2-135M)\b")
SMALL = {
    "use_cpu": True,
    "max_steps": 2,
    "num_generations": 2,
    "max_trace_length": 8,
    "max_answer_length": 24,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "eval_samples": 2,
}
#: Commands that another test runs as they are.
ELSEWHERE = {("nrt", "demo"): "test_demo.py"}
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = [
    page
    for page in PAGES
    if any(b.why is None and b.language in (*SHELL, "python") for b in blocks_of(page))
]


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
def test_commands_that_are_not_run_could_be(block: Block, tmp_path, monkeypatch, capsys):
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
        verb = VERBS[arguments[0]]
        if verb.name == "train" and "--resume" not in arguments:
            assert main([*arguments, *([] if "--plan" in arguments else ["--plan", "8"])]) == 0
        else:
            assert parse(verb, arguments[1:]) is not None


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
        flags = {*own, "--help", *(known if VERBS[verb].takes_settings else ())}
        for word in words:
            flag = word.split("=")[0].replace("_", "-")
            assert not flag.startswith("--") or flag in flags, f"{page.name}: {span}"


# -- What is run -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with the files that pages name, and three runs of two steps."""
    folder = tmp_path_factory.mktemp("pages")
    rows, held_out = (make_rows("style_shift", split, 120, 0) for split in ("train", "heldout"))
    write_rows(folder / "qa.jsonl", rows)
    write_rows(folder / "held_out.jsonl", held_out[:4])
    lines = ["Body,Question,Answer", *(f"{r['question']},what is it?,{r['answer']}" for r in rows)]
    (folder / "qa.csv").write_text("\n".join(lines), "utf-8")
    nested = [{"title": r["question"], "answers": {"text": [r["answer"]]}} for r in rows]
    write_rows(folder / "nested.jsonl", nested)
    (folder / "nested.json").write_text((folder / "nested.jsonl").read_text("utf-8"), "utf-8")
    write_rows(
        folder / "gsm8k.jsonl",
        [{"question": r["question"], "answer": f"steps #### {r['answer']}"} for r in rows],
    )
    for name in ("recipes", "examples", "constraints.txt", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    words = f"train --model {base_path()} --data {folder / 'qa.jsonl'} --out {folder / 'made'}"
    assert main([*words.split(), "--eval-data", str(folder / "held_out.jsonl"), *small()]) == 0
    return folder


def small() -> list[str]:
    """``SMALL`` as flags."""
    return [
        word
        for name, value in SMALL.items()
        for word in (f"--{name.replace('_', '-')}", str(value).lower())
    ]


@pytest.mark.parametrize("page", RUN, ids=identity)
def test_what_a_page_says_runs(page: Path, place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(native_reasoning, "NRTConfig", lambda **given: NRTConfig(**given | SMALL))
    blocks = [block for block in blocks_of(page) if block.why is None]
    text = "".join(block.text for block in blocks if "--resume" not in block.text)
    for name in ("runs/first", "runs/second", "runs/demo/nrt-ws"):
        if not re.search(f'train .*--out {name}|output_dir="{name}"', text):
            shutil.copytree(tmp_path / "made", tmp_path / name)
    names = {"__name__": "page"}
    for block in blocks:
        if block.language == "python":
            code = HUB.sub(str(base_path()), block.text)
            exec(compile(code, block.name, "exec"), names)
        elif block.language in SHELL:
            for words in block.commands:
                run(words, block)


def run(words: list[str], block: Block) -> None:
    """Runs one command, a training for two steps."""
    if (by := ELSEWHERE.get(tuple(words[:2]))) is not None:
        assert (Path(__file__).parent / by).exists()
    elif words[0] == "make":  # what its targets do, continuous integration does
        subprocess.run(["make", "--dry-run", *words[1:]], check=True, capture_output=True, cwd=ROOT)
    elif words[0] == "nrt":
        arguments = [HUB.sub(str(base_path()), word) for word in words[1:] if word != "--watch"]
        trains = arguments[0] == "train" and "--plan" not in arguments
        assert main([*arguments, *(small() if trains else [])]) == 0, f"{block.name}: {words}"
    else:
        pytest.fail(f"{block.name}: {words[0]} is not run by this test; say why above the block")
