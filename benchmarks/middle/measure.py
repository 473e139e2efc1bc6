"""What a base model learned: ``python benchmarks/middle/measure.py BASE [--count 40] [--out F]``.

For each family and number of steps, on tuning problems (single steps: of the training split): the
accuracy after the model's own sampled trace, after none, and after the right worked or copied trace
put in by force; and what the sampled traces are.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from families import FAMILIES, Problem
from run import LONGEST_ANSWER, Run, trace_shares, trainer_of
from tasks import EASY, HARD, problems

from native_reasoning import NRTTrainer
from native_reasoning.evaluation.grading import accuracy
from native_reasoning.rollout.engine import NoiseKey, Sampling
from native_reasoning.rollout.noise import EVALUATION


def measure(base: Path, count: int) -> dict[str, dict[int, dict[str, Any]]]:
    """Family → steps → the numbers of one cell, ``count`` problems each."""
    cells = {
        (family, steps): problems(
            [family], [steps], "train" if steps == 1 else "tune", count, "measure"
        )
        for family in FAMILIES
        for steps in (*EASY, *HARD)
    }
    every = [problem for cell in cells.values() for problem in cell]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(Run("base", steps=1), base, Path(folder), every)
        outcomes = trainer.evaluator.outcomes(trainer.eval_groups)
        worked = forced(trainer, every, [p.worked for p in every])
        copied = forced(trainer, every, [p.copied for p in every])
    found: dict[str, dict[int, dict[str, Any]]] = {family: {} for family in FAMILIES}
    for i, ((family, steps), cell) in enumerate(cells.items()):
        at = slice(i * count, i * count + count)
        pairs = list(zip(cell, outcomes[at], strict=True))
        found[family][steps] = {
            "thinking": fmean(accuracy(o.answers[0], p.answer) for p, o in pairs),
            "none": fmean(accuracy(o.answer_no_think, p.answer) for p, o in pairs),
            "none_greedy": fmean(accuracy(o.answer_no_think_greedy, p.answer) for p, o in pairs),
            "worked": fmean(worked[at]),
            "copied": fmean(copied[at]),
            "traces": trace_shares(pairs),
        }
    return found


def forced(trainer: NRTTrainer, chosen: Sequence[Problem], traces: Sequence[str]) -> list[float]:
    """1.0 for each problem that is answered rightly, sampled at temperature 1, after this trace."""
    template = trainer.template
    prompts = []
    for group, text in zip(trainer.eval_groups, traces, strict=True):
        ids = template.tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = (*ids, *template.boundary.close_ids)
        prompts.append(template.answer_prompt(group.prompt_ids, whole, True))
    key, sampling = NoiseKey(0, 0, EVALUATION), Sampling(1, LONGEST_ANSWER, 1.0)
    numbers = list(range(len(prompts)))
    samples = trainer.forwards.engine.sample(prompts, numbers, sampling, key, template.stop_answer)
    answers = [template.text(one.ids).strip() for (one,) in samples]
    return [accuracy(a, p.answer) for a, p in zip(answers, chosen, strict=True)]


def lines(found: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """The table in Markdown, per cent."""
    out = [
        "| family | steps | own trace | none | right trace | copied trace | sampled traces |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, cells in found.items():
        for steps, cell in cells.items():
            numbers = [f"{cell[name]:.0%}" for name in ("thinking", "none", "worked", "copied")]
            kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in cell["traces"].items())
            out.append(f"| {family} | {steps} | {' | '.join(numbers)} | {kinds} |")
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--count", type=int, default=40, help="problems of each cell")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = measure(options.base, options.count)
    print("\n".join(lines(found)))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
