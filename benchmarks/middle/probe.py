"""What a base does token by token: ``python benchmarks/middle/probe.py BASE [--count 24]``.

Right worked traces and answers are put in (teacher forcing), and the likeliest token at each place
is compared with the next one: the first token of a state (*result*), every other token of a trace
but the first and its end (*walk*), and whole answers after the right trace and after none. Tuning
problems of 4 steps.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from families import FAMILIES
from tasks import problems
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab.tasks import CLOSE, END, OPEN

STEPS = 4
#: Tokens that a state comes after.
BEFORE_A_STATE = (" so", " is")


def likeliest(base: Path, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list:
    """(ids, likeliest next id at each place) of each text."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    batch = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right")
    with torch.no_grad():
        found = model(**batch).logits.argmax(-1)
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = zip(batch["input_ids"].tolist(), found.tolist(), lengths, strict=True)
    return [(ids[:n], best[:n]) for ids, best, n in rows]


def probe(base: Path, family: str, count: int) -> dict[str, float]:
    """The four shares of a family."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    opening, closing = tokenizer.convert_tokens_to_ids([OPEN, CLOSE])
    states = {tokenizer(word)["input_ids"][0] for word in BEFORE_A_STATE}
    chosen = problems([family], [STEPS], "tune", count, "probe")
    shares: dict[str, list[bool]] = {"result": [], "walk": [], "worked": [], "none": []}
    worked = [f"{p.question} {OPEN} {p.worked} {CLOSE} {p.answer} {END}" for p in chosen]
    for ids, best in likeliest(base, tokenizer, worked):
        end = ids.index(closing)
        for i in range(ids.index(opening) + 3, end):
            if ids[i + 1] != closing:
                shares["result" if ids[i] in states else "walk"].append(best[i] == ids[i + 1])
        shares["worked"].append(best[end:-1] == ids[end + 1 :])
    none = [f"{p.question} {OPEN} {CLOSE} {p.answer} {END}" for p in chosen]
    for ids, best in likeliest(base, tokenizer, none):
        end = ids.index(closing)
        shares["none"].append(best[end:-1] == ids[end + 1 :])
    return {name: fmean(right) for name, right in shares.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--count", type=int, default=24, help="problems of each family")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| family | result | walk | answer after the right trace | answer after none |")
    print("|---|---|---|---|---|")
    for family in FAMILIES:
        shares = probe(options.base, family, options.count)
        print(f"| {family} | " + " | ".join(f"{share:.0%}" for share in shares.values()) + " |")


if __name__ == "__main__":
    main()
