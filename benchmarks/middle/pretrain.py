"""Pre-trains the middle tier's base model: ``python benchmarks/middle/pretrain.py OUT --seed 0``.

A Llama of 3 layers and width 288 (3.2 million parameters) learns the documents of tasks.py by plain
next-token prediction, with a loss on the trace and the answer alone. Given the number of threads
(one here) the weights depend on the seed and on nothing else. What it learns: README.md beside.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from tasks import FIRST, SECOND, THIRD, Document, Mixture, documents
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup
from vocabulary import build_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab.pretrain import IGNORED, Shape, new_model
from lab.tasks import OPEN


@dataclass(frozen=True)
class Stage:
    """One pass over ``mixture``, with an optimiser of its own. ``name`` keeps its documents apart.
    The learning rate follows a cosine of ``schedule_steps``, of which ``steps`` are done."""

    name: str
    mixture: Mixture
    steps: int
    schedule_steps: int
    learning_rate: float


STAGES = (
    Stage("", FIRST, 2000, 2600, 1.5e-3),
    Stage("second/", SECOND, 500, 500, 7e-4),
    Stage("third/", THIRD, 800, 800, 1e-3),
)


SHAPE = Shape(layers=3, width=288, mlp=768, heads=6, spread=0.06)


@dataclass(frozen=True)
class Recipe:
    """How large, how long and how fast. ``batch_size`` documents make a step, in ``parts`` of
    like length."""

    stages: tuple[Stage, ...] = STAGES
    batch_size: int = 25
    parts: int = 2
    warmup_steps: int = 100
    weight_decay: float = 0.01
    shape: Shape = SHAPE


def pretrain(
    out: Path, seed: int, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, done: int = 0
) -> list[float]:
    """Trains from random weights, stage by stage, and saves model, tokenizer and
    ``pretraining.json`` in ``out``, with the model after each stage in ``stage-1`` and so on; the
    first ``done`` stages are taken from there.

    Returns the loss of every step, in nats per token of traces and answers.
    """
    torch.manual_seed(seed)
    began, losses = time.perf_counter(), []
    model = new_model(tokenizer, recipe.shape)
    if done:
        model = LlamaForCausalLM.from_pretrained(out / f"stage-{done}", dtype=torch.float32).train()
    for i, stage in enumerate(recipe.stages[done:], start=done + 1):
        losses += train(model, tokenizer, stage, seed, recipe)
        model.save_pretrained(out / f"stage-{i}")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _note(out, seed, recipe, losses, time.perf_counter() - began)
    return losses


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    stage: Stage,
    seed: int,
    recipe: Recipe,
) -> list[float]:
    """One stage. Returns the loss of every step."""
    began, losses = time.perf_counter(), []
    optimizer = torch.optim.AdamW(
        model.parameters(), stage.learning_rate, (0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(
        optimizer, min(recipe.warmup_steps, stage.steps // 10), stage.schedule_steps
    )
    for step in range(stage.steps):
        texts = documents(recipe.batch_size, f"{stage.name}{seed}/{step}", stage.mixture)
        losses.append(update(model, optimizer, encoded(tokenizer, texts, recipe)))
        schedule.step()
        if (step + 1) % 100 == 0:
            recent, seconds = sum(losses[-100:]) / 100, time.perf_counter() - began
            print(f"step {step + 1}  loss {recent:.4f}  {seconds:.0f} s", file=sys.stderr)
    return losses


def update(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    batches: list[dict[str, torch.Tensor]],
) -> float:
    """One optimiser step on the mean over all tokens that have a loss. Returns that mean."""
    count = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=torch.tensor(count)).loss
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total


def encoded(
    tokenizer: PreTrainedTokenizerFast, texts: list[Document], recipe: Recipe
) -> list[dict[str, torch.Tensor]]:
    """Ids, mask and labels, each (documents, longest document), in ``parts`` of like length.

    Padding has no loss, and neither has the question up to ``<think>``.
    """
    ids = sorted(tokenizer([d.text for d in texts])["input_ids"], key=len)
    size = -(-len(ids) // recipe.parts)
    opening = tokenizer.convert_tokens_to_ids(OPEN)
    found = []
    for part in (ids[i : i + size] for i in range(0, len(ids), size)):
        batch = tokenizer.pad({"input_ids": part}, padding_side="right", return_tensors="pt")
        rows, mask = batch["input_ids"], batch["attention_mask"]
        opened = (rows == opening).cumsum(1) - (rows == opening).int()
        labels = rows.masked_fill((mask == 0) | (opened == 0), IGNORED)
        found.append({"input_ids": rows, "attention_mask": mask, "labels": labels})
    return found


def _note(out: Path, seed: int, recipe: Recipe, losses: list[float], seconds: float) -> None:
    """What made the model; ``loss`` has the mean of every hundred steps that were done here."""
    said = {
        "seed": seed,
        "recipe": asdict(recipe),
        "loss": [round(fmean(losses[i : i + 100]), 4) for i in range(0, len(losses), 100)],
        "seconds": round(seconds),
        "torch": torch.__version__,
    }
    (out / "pretraining.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``OUT --seed 0``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the model and its tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--done", type=int, default=0, help="stages that are in OUT already")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pretrain(options.out, options.seed, Recipe(), build_tokenizer(), options.done)


if __name__ == "__main__":
    main()
