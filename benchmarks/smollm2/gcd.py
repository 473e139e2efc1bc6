"""Greatest common divisors as JSON lines: ``python benchmarks/smollm2/gcd.py FOLDER``.

The first 400 pairs of reasoning-gym's ``gcd`` of two numbers from 2 to 40 (seed 0), each pair once
whatever its order, shuffled: reasoning-gym prefers pairs with a divisor, so that late pairs, drawn
without repetition, have more ones. The last 80 are test.jsonl, the others train.jsonl. Needs an
environment of its own: ``pip install reasoning-gym==0.1.25``.
"""

import json
import random
import re
import sys
from pathlib import Path

import reasoning_gym

PAIRS, DRAWN, HELD_OUT = 400, 3000, 80


def main(folder: Path) -> None:
    """One line for each pair."""
    made = reasoning_gym.create_dataset("gcd", size=DRAWN, seed=0, min_value=2, max_value=40)
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for item in made:
        pair = tuple(sorted(re.findall(r"\d+", item["question"])))
        rows.setdefault(pair, {"question": item["question"], "answer": str(item["answer"])})
    first = list(rows.values())[:PAIRS]
    random.Random(0).shuffle(first)
    lines = [json.dumps(row) + "\n" for row in first]
    (folder / "train.jsonl").write_text("".join(lines[:-HELD_OUT]), encoding="utf-8")
    (folder / "test.jsonl").write_text("".join(lines[-HELD_OUT:]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
