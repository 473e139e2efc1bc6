"""What each base model can do: ``python benchmarks/lab/bases.py``, writes bases.json beside it.

For every family, the share of 500 held-out problems in which the hard digits are ranked first,
teacher-forced: after the true running sums, after an empty trace, and how often sampled traces are
the running sums. A base is admitted by the first (docs/results.md, Method).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from first_step import answer_logits
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab.experiments import EXPERIMENTS
from lab.families import KINDS
from lab.tasks import CLOSE, OPEN, Family, digit_strings, make_rows, running_sums
from lab.trial import base_folder, base_of

HERE = Path(__file__).parent
N, SEED, ADMITTED = 500, 2_000_003, 0.95


def main() -> None:
    """Every base that the experiments use."""
    path = HERE / "bases.json"
    # a base that was not admitted stays in the file
    found = json.loads(path.read_text()) if path.exists() else {}
    runs = [run for experiment in EXPERIMENTS.values() for run in experiment.runs()]
    for kind, seed in sorted({base_of(run) for run in runs}):
        families, _ = KINDS[kind]
        shares = tell(base_folder(HERE, (kind, seed)), list(families.values()))
        found[f"{kind}-{seed}"] = shares
        print(f"{kind}-{seed}: {told(shares)}")
    path.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


@torch.no_grad()
def tell(folder: Path, families: Sequence[Family]) -> dict[str, dict[str, float]]:
    """Shares by family."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    told = {}
    for family in families:
        rows = make_rows(family, "heldout", N, SEED)
        sums = [" ".join(running_sums(digit_strings(row["question"]))) for row in rows]
        opened = [f"{row['question']} {OPEN}" for row in rows]
        torch.manual_seed(SEED)
        ids = tokenizer(opened, return_tensors="pt", padding=True)
        length = len(sums[0].split())
        sampled = model.generate(**ids, do_sample=True, max_new_tokens=length + 1)
        texts = tokenizer.batch_decode(sampled[:, ids["input_ids"].shape[1] :])
        told[family.name] = {
            "after_running_sum": _right(model, tokenizer, rows, sums, family),
            "after_empty": _right(model, tokenizer, rows, [""] * N, family),
            "useful": sum(t == f"{s} {CLOSE}" for t, s in zip(texts, sums, strict=True)) / N,
        }
    return told


def _right(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, str]],
    traces: Sequence[str],
    family: Family,
) -> float:
    """The share of hard digits ranked first."""
    logits, ids = answer_logits(model, tokenizer, rows, traces)
    right = (logits.argmax(-1) == ids)[:, list(family.hard)]
    return round(right.float().mean().item(), 4)


def told(shares: dict[str, dict[str, float]]) -> str:
    """The families in which the base fails, or that it is admitted."""
    failed = {
        name: one["after_running_sum"]
        for name, one in shares.items()
        if name != "by_chance" and one["after_running_sum"] < ADMITTED
    }
    lowest = min(one["after_running_sum"] for name, one in shares.items() if name != "by_chance")
    return f"not admitted: {failed}" if failed else f"admitted, lowest {lowest:.3f}"


if __name__ == "__main__":
    main()
