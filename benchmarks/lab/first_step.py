"""What each reward says before any training: ``python benchmarks/lab/first_step.py``.

Two numbers for every base model, family and reward, from 500 held-out problems and three traces
put in by force: the true running sum, copied digits, and the empty trace.

- *share*: how often the reward of the running sum is higher than that of the empty trace;
- *ratio*: (R(running sum) − R(copied)) / (R(empty) − R(copied)), of the mean rewards: what being
  right brings, in units of what having any trace costs. Above 1 the right trace beats none.

Written to first_step.json; printed as means over the three base models of a kind, with the smallest
and the largest.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from native_reasoning.objective import rewards

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab.experiments import BASES
from lab.families import KINDS
from lab.tasks import CLOSE, END, OPEN, Family, digit_strings, make_rows, running_sums
from lab.trial import base_folder

HERE = Path(__file__).parent
N, SEED = 500, 2_000_003
#: A ratio above this, or below 0, is printed as *no cost*: a trace costs next to nothing there.
LARGEST = 20
REWARDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ws": lambda l, b: rewards.log_weighted_mean(l, (-b).log()).exp(),
    "ws-inverse": lambda l, b: rewards.log_weighted_mean(
        l, -b.clamp(min=rewards.SMALLEST_INVERSE)
    ).exp(),
    "logp": rewards.logp,
    "gm": lambda l, b: rewards.avg_logp(l, b).exp(),
    "p": lambda l, b: rewards.logp(l, b).exp(),
    "am": lambda l, b: rewards.log_weighted_mean(l, torch.zeros_like(b)).exp(),
}
Shares = dict[str, dict[str, dict[str, float]]]


def main() -> None:
    """Every base and family."""
    found: dict[str, Shares] = {}
    for kind, (families, _) in KINDS.items():
        for seed in BASES[kind]:
            folder = base_folder(HERE, (kind, seed))
            found[f"{kind}-{seed}"] = told(folder, [*families.values()])
    (HERE / "first_step.json").write_text(json.dumps(found, indent=1) + "\n")
    heads = [f"{name}, {what}" for name in REWARDS for what in ("%", "ratio")]
    print(f"| family | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|")
    for kind, (families, _) in KINDS.items():
        for family in families:
            bases = [found[f"{kind}-{seed}"][family] for seed in BASES[kind]]
            print(f"| {family} ({kind}) | {' | '.join(cells(bases))} |")


def cells(bases: Sequence[dict[str, dict[str, float]]]) -> list[str]:
    """For each reward share and ratio over the bases."""
    shown = []
    for name in REWARDS:
        shares = [100 * base[name]["share"] for base in bases]
        ratios = [base[name]["ratio"] for base in bases]
        shown.append(f"{fmean(shares):.0f} ({min(shares):.0f}–{max(shares):.0f})")
        known = all(0 <= ratio <= LARGEST for ratio in ratios)
        spread = f"{fmean(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        shown.append(spread if known else "no cost")
    return shown


@torch.no_grad()
def told(folder: Path, families: Sequence[Family]) -> Shares:
    """Share and ratio by family and reward."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found: Shares = {}
    for family in families:
        rows = make_rows(family, "heldout", N, SEED)
        strings = [digit_strings(row["question"]) for row in rows]
        right = logps(model, tokenizer, rows, [" ".join(running_sums(s)) for s in strings])
        copied = logps(model, tokenizer, rows, [" ".join("".join(s)) for s in strings])
        b = logps(model, tokenizer, rows, [""] * N)
        found[family.name] = {name: compare(f, right, copied, b) for name, f in REWARDS.items()}
    return found


def compare(
    f: Callable[[Tensor, Tensor], Tensor], right: Tensor, copied: Tensor, b: Tensor
) -> dict[str, float]:
    """Of log-probabilities (rows, tokens) after each trace."""
    clamped = b.clamp(max=rewards.LARGEST_BASELINE)
    of_right, of_copied, of_none = (f(l.double(), clamped.double()) for l in (right, copied, b))
    ratio = (of_right - of_copied).mean() / (of_none - of_copied).mean()
    share = (of_right > of_none).double().mean()
    return {"share": round(share.item(), 4), "ratio": round(ratio.item(), 4)}


def logps(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, str]],
    traces: Sequence[str],
) -> Tensor:
    """Log-probabilities of the answer's tokens and the end after each trace, (rows, tokens)."""
    logits, ids = answer_logits(model, tokenizer, rows, traces)
    return logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)


def answer_logits(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, str]],
    traces: Sequence[str],
) -> tuple[Tensor, Tensor]:
    """What the model says at each token of the answer and its end after these traces, all of one
    length, (rows, tokens, vocabulary); and these tokens, (rows, tokens)."""
    texts = [
        f"{row['question']} {OPEN} {trace} {CLOSE} {row['answer']} {END}"
        for row, trace in zip(rows, traces, strict=True)
    ]
    ids = tokenizer(texts, return_tensors="pt")["input_ids"]
    length = len(rows[0]["answer"].split()) + 1
    return model(input_ids=ids).logits[:, -length - 1 : -1], ids[:, -length:]


if __name__ == "__main__":
    main()
