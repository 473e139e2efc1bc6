"""A newcomer's mistakes: each ends with exit code 2 and three lines: what, why, fix.

Runs in an empty folder, in an environment with the runtime dependencies alone: a package that only
the tests bring is missed here.
"""

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

from native_reasoning.cli import main
from native_reasoning.demo import base_path

TOLD = re.compile(r"error: .*\n  why: .*\n  fix: .*\n\Z")


def refused(*command: str) -> str:
    """What the command says; torchrun would read the error of a rank from error.json."""
    Path("error.json").unlink(missing_ok=True)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main([*command])
    text = said.getvalue()
    if code != 2 or TOLD.search(text) is None or "Traceback" in text:
        sys.exit(f"nrt {' '.join(command)}: exit code {code}, and on stderr:\n{text}")
    return text


os.environ |= {"TORCHELASTIC_ERROR_FILE": "error.json", "HF_HUB_OFFLINE": "1", "HF_HOME": "hf"}
ROWS = [{"question": question, "answer": "4"} for question in ("2 + 2?", "1 + 3?")]
Path("qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
Path("misspelt.jsonl").write_text(Path("qa.jsonl").read_text().replace("answer", "reply"))
MODEL = str(base_path())

refused("trian")
refused("presets", "nrt-sw")
refused("check", "misspelt.jsonl")
assert "'answer' not found" in Path("error.json").read_text()
refused("check", "nowhere.jsonl")
refused("report", "nowhere")
refused("chat", "nowhere", "--question", "2 + 2?")
refused("eval", MODEL, "--suite", "nrt9")
refused("train", "--modle", MODEL)
refused("train", "--model", MODEL, "--data", "qa.jsonl", "--report-to", "wandb")
refused("train", "--model", MODEL, "--data", "qa.jsonl", "--use-peft")
refused("train", "--model", "owner/nowhere", "--data", "qa.jsonl")
refused("train", "--out", "nowhere", "--resume")
print("twelve mistakes, each told in three lines")
