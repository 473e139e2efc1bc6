"""How long a large file takes from its lines to token ids: ``python benchmarks/data/run.py``.

Rows of the shape of tulu-3-sft-mixture are made from ``../shared/data/oasst`` (50 conversations,
repeated): in every row some words are put in the place of others and some are misspelt, so that no
two rows are equal and the vocabulary grows as that of real text does. A fresh process reads them
and encodes them with the tokenizer of ``--model``, a folder; a second one finds them in the cache.
Both check rows against the template's own encoding. Memory is the sum over all their processes,
looked at four times a second: PSS (pages that processes share are counted once) and RSS.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = ROOT.parent / "shared" / "data" / "oasst" / "messages_train.jsonl"
CHANGED = 0.05  # of the words of a row, half of them misspelt
CHECKED = 200


def perturbed(text: str, words: list[str], draw: random.Random) -> str:
    """The text with other words in a few places."""
    parts = text.split(" ")
    for i in draw.sample(range(len(parts)), max(1, round(CHANGED * len(parts)))):
        part = parts[i]
        if draw.random() < 0.5:
            parts[i] = draw.choice(words)
        elif len(part) > 3:
            at = draw.randrange(1, len(part) - 1)
            parts[i] = part[:at] + draw.choice("abcdefghijklmnoprstuvwy") + part[at + 1 :]
    return " ".join(parts)


def write_rows(path: Path, rows: int) -> int:
    """Writes that many rows; the same ones every time. Returns the bytes written."""
    base = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    texts = (turn["content"] for row in base for turn in row["messages"])
    words = sorted({word for text in texts for word in text.split()})
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = base[number % len(base)]
            turns = [
                {"role": t["role"], "content": perturbed(t["content"], words, draw)}
                for t in row["messages"]
            ]
            turns[-1]["content"] += f" ({number})"
            file.write(json.dumps({**row, "id": f"row_{number}", "messages": turns}) + "\n")
    return path.stat().st_size


# -- The process that is measured -----------------------------------------------------------------


def prepare(path: str, model: str, out: str) -> None:
    """Reads and encodes the file, and writes what it took and what was found."""
    began = time.perf_counter()
    from transformers import AutoTokenizer

    from native_reasoning.config.nrt_config import NRTConfig
    from native_reasoning.data import load_examples
    from native_reasoning.data.template import make_template
    from native_reasoning.rollout.schedule import make_groups

    config = NRTConfig(output_dir=out, use_cpu=True, max_prompt_length=4096, max_answer_length=4096)
    template = make_template(AutoTokenizer.from_pretrained(model))
    loaded = time.perf_counter()
    data = load_examples(path)
    read = time.perf_counter()
    groups, report = make_groups(data, template, config)
    done = time.perf_counter()
    tokens = sum(len(group.prompt_ids) + len(group.answer_ids) for group in groups)
    found = {
        "seconds": round(done - loaded, 2),
        "seconds_reading": round(read - loaded, 2),
        "seconds_encoding": round(done - read, 2),
        "seconds_imports": round(loaded - began, 2),
        "rows": report.read,
        "kept": len(groups),
        "tokens": tokens,
    }
    for i in random.Random(1).sample(range(len(groups)), min(CHECKED, len(groups))):
        group = groups[i]
        assert template.group(group.example) == group, i
    Path(out, "found.json").write_text(json.dumps(found), encoding="utf-8")


# -- Measuring it ---------------------------------------------------------------------------------


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += tree(int(child))
    return found


def memory(pid: int) -> dict[str, int]:
    """Bytes of a process and all below it, now."""
    total = {"Pss": 0, "Rss": 0}
    try:
        for one in tree(pid):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in total:
                    total[name] += 1024 * int(value.split()[0])
    except (OSError, ValueError):
        pass  # one of them has just ended
    return total


def measured(path: Path, model: str, folder: Path) -> dict[str, float]:
    """One fresh process over the file, with its peak of memory."""
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "hf_home"),
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, "--measure", str(path), "--model", model]
    process = subprocess.Popen([*command, "--out", str(folder)], env=environment)
    peak, ended = {"Pss": 0, "Rss": 0}, threading.Event()

    def watch() -> None:
        while not ended.wait(0.25):
            for name, value in memory(process.pid).items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    if code:
        sys.exit(code)
    found = json.loads((folder / "found.json").read_text())
    peaks = {f"peak_{name.lower()}_gb": round(value / 1e9, 3) for name, value in peak.items()}
    return {**found, **peaks}


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--model", required=True, help="a folder with a tokenizer")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        prepare(given.measure, given.model, given.out)
        return
    if not ROWS.exists():
        print(f"skipped: {ROWS} is not there, and rows are made from it")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_rows(folder / "rows.jsonl", given.rows)
        first = measured(folder / "rows.jsonl", given.model, folder)
        again = measured(folder / "rows.jsonl", given.model, folder)
        files = (folder / "hf_home").rglob("*.arrow")
        kept = sum(file.stat().st_size for file in files)
    sys.path.insert(0, str(ROOT / "src"))
    from native_reasoning.training.resume import machine

    result = {
        "file_bytes": size,
        "cache_bytes": kept,
        "first": first,
        "from_cache": again,
        "machine": {**machine(1), "cores": len(os.sched_getaffinity(0))},
    }
    print(json.dumps(result, indent=2))
    out = Path(__file__).with_name("results.json")
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
