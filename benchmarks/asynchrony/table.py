"""Prints the tables of docs/asynchrony.md from results.json."""

import json
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("results.json")
#: What varies in each of the smaller tables.
ALONE = {"ratio": "sampling : training", "spread": "spread of lengths", "limit": "longest trace"}


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def gain(line: dict) -> str:
    """Colocated over overlap, with its range over the seeds."""
    low, high = line["gain_range"]
    return f"{line['gain']:.2f} ({low:.2f}–{high:.2f})"


def tables(found: dict) -> list[str]:
    """By size and load, then one for each thing that is varied."""
    head = ["GPUs", "prompts per GPU", "sampling", "training", "colocated", "split", "overlap"]
    body = [
        [str(line["gpus"]), str(line["prompts_per_gpu"])]
        + [f"{line[name]:.1f}" for name in head[2:]]
        + [f"{line['overlap_samplers'] / line['gpus']:.0%}".replace("%", " %"), gain(line)]
        for line in found["sizes"]
    ]
    out = [rows([*head, "samplers", "gain"], body)]
    for name, told in ALONE.items():
        lines = [
            [value, *(f"{line[n]:.0f}" for n in ("sampling", "training")), gain(line)]
            for value, line in found[name].items()
        ]
        out.append(rows([told, "sampling", "training", "gain"], lines))
    return out


if __name__ == "__main__":
    print("\n\n".join(tables(json.loads(RESULTS.read_text("utf-8")))))
