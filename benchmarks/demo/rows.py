"""The demo's rows as JSON lines, for ``nrt compare``: ``python benchmarks/demo/rows.py FOLDER``."""

import json
import sys
from pathlib import Path

from native_reasoning.demo import make_rows
from native_reasoning.demo.race import FAMILY, HELD_OUT_SEED


def main(folder: Path) -> None:
    """1,920 training rows and 200 held-out ones."""
    for name, split, count, seed in (
        ("train", "train", 1920, 0),
        ("test", "heldout", 200, HELD_OUT_SEED),
    ):
        lines = [json.dumps(row) + "\n" for row in make_rows(FAMILY, split, count, seed)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
