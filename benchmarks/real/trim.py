"""A model with fewer words: ``python trim.py MODEL OUT FILE...``.

Much of the arithmetic of a small model is its vocabulary: 168 M of Gemma-3-270M's 268 M parameters
are the table of 262,144 tokens. This keeps the tokens of the files (rows of families.py, and chat
templates), special tokens, bytes, ASCII characters, and the most frequent tokens, which are the
first ids of its BPE. Rows of the table are copied and nothing is trained: the new distribution is
the old one, given that a kept token comes. The files have to be the same tokens afterwards, else it
ends. It prints how probable the removed tokens are on the way through the files.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

FREQUENT = 8000


def texts(files: list[Path]) -> list[str]:
    """Question and answer of each row, and whole templates."""
    found = []
    for file in files:
        text = file.read_text("utf-8")
        if file.suffix == ".jinja":
            found.append(text)
            continue
        rows = map(json.loads, text.splitlines())
        found += [f"{row['question']} {row['answer']}" for row in rows]
    return found


def kept(state: dict[str, Any], used: set[str]) -> list[str]:
    """The tokens that stay, in the order of their ids, with the parts that each is merged of."""
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    special = {token["content"] for token in state["added_tokens"] if token["id"] < FREQUENT}
    stay = special | used
    stay |= {token for token, at in vocabulary.items() if at < FREQUENT}
    stay |= {token for token in vocabulary if len(token) == 1 and token.isascii()} | {"▁"}
    for left, right in reversed(merges):
        if left + right in stay:
            stay |= {left, right}
    return sorted(stay, key=vocabulary.__getitem__)


def trim_tokenizer(source: Path, out: Path, data: list[str]) -> torch.Tensor:
    """Writes the smaller tokenizer; returns the old ids of its tokens."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(out)
    state = json.loads((out / "tokenizer.json").read_text("utf-8"))
    vocabulary = state["model"]["vocab"]
    used = {token for text in data for token in tokenizer.tokenize(text)}
    stay = kept(state, used)
    new = {token: i for i, token in enumerate(stay)}
    state["model"]["vocab"] = new
    state["model"]["merges"] = [
        pair for pair in state["model"]["merges"] if {*pair, "".join(pair)} <= new.keys()
    ]
    added = [token for token in state["added_tokens"] if token["content"] in new]
    state["added_tokens"] = [token | {"id": new[token["content"]]} for token in added]
    for about in state["post_processor"]["special_tokens"].values():
        about["ids"] = [new[token] for token in about["tokens"]]
    (out / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), "utf-8")
    old_ids = torch.tensor([vocabulary[token] for token in stay])
    small = Tokenizer.from_file(str(out / "tokenizer.json"))
    for text in data:
        if old_ids[small.encode(text).ids].tolist() != tokenizer(text)["input_ids"]:
            raise SystemExit(f"other tokens than before: {text!r}")
    return old_ids


@torch.no_grad()
def removed_mass(model: Any, tokenizer: Any, old_ids: torch.Tensor, data: list[str]) -> float:
    """Mean probability of all removed tokens, over the positions of the texts."""
    masses = []
    for text in data:
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0].float()
        masses.append(1 - logits.softmax(-1)[:, old_ids].sum(-1))
    return torch.cat(masses).mean().item()


def main() -> None:
    """Writes the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    options = parser.parse_args()
    data = texts(options.data)
    old_ids = trim_tokenizer(options.model, options.out, data)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    before = model.get_input_embeddings().weight.detach()
    print(f"{len(before)} tokens, {len(old_ids)} kept")
    mass = removed_mass(model, tokenizer, old_ids, data[:16])
    print(f"removed tokens have a probability of {mass:.4f} in the mean")
    model.resize_token_embeddings(len(old_ids), mean_resizing=False)
    model.get_input_embeddings().weight.data.copy_(before[old_ids])
    model.save_pretrained(options.out)


if __name__ == "__main__":
    main()
