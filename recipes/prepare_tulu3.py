"""Rows of allenai/tulu-3-sft-mixture for the recipes tulu3-*.yaml, as two files of JSON lines.

    python recipes/prepare_tulu3.py     # tulu3/test.jsonl (1,024 rows), tulu3/train.jsonl (220,000)

The rows are chosen as the released NRT code chooses them: the mixture is shuffled with seed 42,
1,024 rows are set apart, and the first 220,000 of the others are kept. What of them a run leaves
out, and why, is said when they are read: nrt check 'tulu3[train]' --model M --max-prompt-length
4096 --max-trace-length 2048 --max-answer-length 4096.
"""

import argparse
import sys
from pathlib import Path

import datasets


def main(arguments: list[str] | None = None) -> int:
    """Writes the folder, whole or not at all; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="allenai/tulu-3-sft-mixture", help="hub id or folder")
    parser.add_argument("--out", type=Path, default=Path("tulu3"), help="a new folder (tulu3)")
    parser.add_argument("--train", type=int, default=220_000, help="rows for training (220000)")
    parser.add_argument("--test", type=int, default=1024, help="held-out rows (1024)")
    parser.add_argument("--seed", type=int, default=42, help="of the choice (42)")
    asked = parser.parse_args(arguments)
    if asked.out.exists():
        print(f"{asked.out} exists; --out names another folder", file=sys.stderr)
        return 2
    rows = datasets.load_dataset(asked.source, split="train")
    parts = rows.train_test_split(test_size=asked.test, seed=asked.seed)
    train = parts["train"].select(range(min(asked.train, len(parts["train"]))))
    unfinished = asked.out.with_name(f"{asked.out.name}.part")
    for name, part in (("test", parts["test"]), ("train", train)):
        part.to_json(unfinished / f"{name}.jsonl", force_ascii=False)
        print(f"{asked.out / name}.jsonl: {len(part):,} of {len(rows):,} rows")
    unfinished.rename(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
