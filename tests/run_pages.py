"""Runs what a page of the documentation tells to run.

Models of the hub become the embedded one, runs become two steps long.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import native_reasoning
from cli_helpers import write_rows
from doc_blocks import ROOT, SHELL, Block, blocks_of
from native_reasoning.cli import main
from native_reasoning.cli.flags import parse
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
ELSEWHERE = {("nrt", "demo"): "slow/test_demo.py", ("nrt", "compare"): "slow/test_compare.py"}


def make_place(folder: Path) -> Path:
    """A folder with the files that pages name, and three runs of two steps."""
    folder.mkdir(exist_ok=True)
    rows, held_out = (make_rows("style_shift", split, 120, 0) for split in ("train", "heldout"))
    write_rows(folder / "qa.jsonl", rows)
    write_rows(folder / "held_out.jsonl", held_out[:4])
    lines = ["Body,Question,Answer", *(f"{r['question']},what is it?,{r['answer']}" for r in rows)]
    (folder / "qa.csv").write_text("\n".join(lines), "utf-8")
    nested = [{"title": r["question"], "answer": {"value": r["answer"]}} for r in rows]
    write_rows(folder / "nested.jsonl", nested)
    (folder / "nested.json").write_text((folder / "nested.jsonl").read_text("utf-8"), "utf-8")
    options = {"label": ["A", "B"], "text": ["a sum", "a number"]}
    arc = [{"question": r["question"], "choices": options, "answerKey": "A"} for r in rows]
    write_rows(folder / "arc.jsonl", arc)
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


def run_page(page: Path, place: Path, tmp_path: Path, monkeypatch) -> None:
    """Runs the blocks of a page in ``tmp_path``, with the files of ``make_place``."""
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
        assert (ROOT / "tests" / by).exists()
        assert parse(VERBS[words[1]], words[2:]) is not None
    elif words[0] == "make":  # what its targets do, continuous integration does
        subprocess.run(["make", "--dry-run", *words[1:]], check=True, capture_output=True, cwd=ROOT)
    elif words[0] == "nrt":
        arguments = [HUB.sub(str(base_path()), word) for word in words[1:] if word != "--watch"]
        assert (
            main(
                [
                    *arguments,
                    *(small() if arguments[0] == "train" or "--sample" in arguments else []),
                ]
            )
            == 0
        ), f"{block.name}: {words}"
    else:
        pytest.fail(f"{block.name}: {words[0]} is not run by this test; say why above the block")
