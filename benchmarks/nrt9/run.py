"""The nine benchmarks on a real model: equality with lm-eval's own ``hf``, and a small table.

``python benchmarks/nrt9/run.py MODEL DATA [--limit 5] [--write]``, with DATA in the layout of
docs/benchmarks.md. The first ``limit`` questions of each benchmark are asked three times: by
lm-eval's ``hf``, which loads the model by itself, and by ours with thinking off and on. With a
model without think tokens, off has to equal ``hf`` in every answer and in every log-probability.
"""

import argparse
import json
import logging
import platform
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lm_eval
import torch

from native_reasoning.cli.output import quiet_libraries, say
from native_reasoning.config.recipe import make_config
from native_reasoning.evaluation.benchmarks import BENCHMARKS, chosen
from native_reasoning.evaluation.conversation import load_asked
from native_reasoning.evaluation.harness import SuitePlan, first_rows, load_tasks, run_suite

RESULTS = Path(__file__).with_name("results.json")


def main() -> None:
    """Prints the result as JSON; writes it with ``--write``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=5)
    parser.add_argument("--tasks", default=",".join(BENCHMARKS))
    parser.add_argument("--max-gen-toks", type=int, default=48)
    parser.add_argument("--max-trace-length", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    result = measure(args)
    print(json.dumps(result, indent=1))
    if args.write:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The equality by benchmark, the table, and times in seconds."""
    plan = SuitePlan(
        chosen("nrt9", args.tasks),
        ("off", "on"),
        args.data,
        limit=args.limit,
        gen_kwargs={"max_gen_toks": args.max_gen_toks},
        batch_size=args.batch_size,
    )
    with TemporaryDirectory() as nowhere:
        settings = {"num_generations": "2", "max_trace_length": args.max_trace_length}
        config = make_config({**settings, "use_cpu": True}, output_dir=nowhere)
    began = time.perf_counter()
    theirs = by_lm_eval(args.model, plan)
    middle = time.perf_counter()
    asked = load_asked(args.model, config, plan.modes)
    summary, items = run_suite(asked, config, plan, say)
    end = time.perf_counter()
    off = [item for item in items if item.mode == "off"]
    return {
        "model": Path(args.model).name,
        "limit": args.limit,
        "max_gen_toks": args.max_gen_toks,
        "max_trace_length": args.max_trace_length,
        "batch_size": args.batch_size,
        "boundary": asked.template.boundary.mode if asked.template else None,
        "versions": {n: version(n) for n in ("lm-eval", "torch", "transformers", "datasets")},
        "python": platform.python_version(),
        "seconds": {"hf": middle - began, "off and on": end - middle},
        "equal_to_hf": {
            row["benchmark"]: compared(
                theirs[row["benchmark"]],
                [item for item in off if item.benchmark == row["benchmark"]],
            )
            for row in summary["benchmarks"]
        },
        **summary,
    }


def by_lm_eval(model: str, plan: SuitePlan) -> dict[str, list[dict[str, Any]]]:
    """lm-eval's samples by benchmark, of ``lm_eval.simple_evaluate(model="hf")``."""
    tasks = {b: load_tasks(b, plan) for b in plan.benchmarks}
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": model},
        device="cpu",
        batch_size=plan.batch_size,
        tasks=[task for some in tasks.values() for task in some.values()],
        samples=first_rows(tasks.values(), plan.limit),
        gen_kwargs=dict(plan.gen_kwargs),
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
    )
    return {
        b.name: [
            sample
            for task in some.values()
            for sample in found["samples"][task.task_name]
            if sample["filter"] == b.filter
        ]
        for b, some in tasks.items()
    }


def compared(theirs: list[dict[str, Any]], ours: Any) -> dict[str, Any]:
    """How many questions were asked, and in how many prompt and answer (a text, or log-probability
    and greedy choice of each option) are the same to the last bit."""
    same = [
        (
            a["prompt_hash"] == b.prompt_hash,
            a["filtered_resps"] == (b.answer if isinstance(b.answer, list) else [b.answer]),
        )
        for a, b in zip(theirs, ours, strict=True)
    ]
    return {
        "questions": len(same),
        "same_prompt": sum(p for p, _ in same),
        "same_answer": sum(a for _, a in same),
    }


if __name__ == "__main__":
    main()
