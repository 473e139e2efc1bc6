"""With thinking off, a plain model's numbers are those of lm-eval's own ``hf``, exactly."""

import lm_eval
import pytest

from native_reasoning.config.recipe import make_config
from native_reasoning.evaluation.benchmarks import BENCHMARKS
from native_reasoning.evaluation.conversation import load_asked
from native_reasoning.evaluation.harness import (
    SuitePlan,
    first_rows,
    load_tasks,
    mean_of,
    run_suite,
)
from tiny import byte_tokenizer, tiny_model

ALL = tuple(BENCHMARKS.values())
LENGTHS = {"max_gen_toks": 8}

pytestmark = pytest.mark.usefixtures("quick")


def run(model, plan, folder):
    config = make_config(
        {"num_generations": "2", "use_cpu": True, "max_trace_length": 6}, output_dir=str(folder)
    )
    return run_suite(load_asked(model, config, plan.modes), config, plan, lambda text: None)


def by_hf(model, plan):
    """lm-eval's results for the same rows: its model, its loop, its loading of the weights."""
    tasks = [load_tasks(b, plan) for b in plan.benchmarks]
    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": model},
        device="cpu",
        batch_size=plan.batch_size,
        tasks=[task for some in tasks for task in some.values()],
        samples=first_rows(tasks, plan.limit),
        gen_kwargs=plan.gen_kwargs,
        bootstrap_iters=0,
        apply_chat_template=plan.chat,
        fewshot_as_multiturn=plan.chat,
        confirm_run_unsafe_code=True,
    )


@pytest.mark.parametrize(("batch_size", "chat"), [(1, False), (3, True)])
def test_off_equals_hf_on_all_nine(tiny, nine, tmp_path, batch_size, chat, monkeypatch):
    """Prompt, answer or log-probability, greedy choice and value of every question."""
    monkeypatch.setattr("native_reasoning.evaluation.marks.passes", lambda text: False)
    monkeypatch.setattr("native_reasoning.evaluation.harness.walls", lambda: ())
    plan = SuitePlan(ALL, ("off",), nine, 3, chat=chat, gen_kwargs=LENGTHS, batch_size=batch_size)
    summary, items = run(tiny, plan, tmp_path)
    found = by_hf(tiny, plan)
    rows = {row["benchmark"]: row for row in summary["benchmarks"]}
    assert list(rows) == list(BENCHMARKS)
    for b in ALL:
        ours = [item for item in items if item.benchmark == b.name]
        pattern = b.tasks.rstrip("*")
        theirs = [
            sample
            for task, samples in found["samples"].items()
            if task.startswith(pattern)
            for sample in samples
            if sample["filter"] == b.filter
        ]
        assert len(ours) == len(theirs) == rows[b.name]["questions"] == 3
        for a, sample in zip(ours, theirs, strict=True):
            assert a.doc_id == sample["doc_id"]
            assert a.prompt_hash == sample["prompt_hash"]
            answer = [a.answer] if isinstance(a.answer, str) else a.answer
            assert answer == sample["filtered_resps"]
            assert a.value == float(sample[b.metric])
            assert a.trace is None
        assert rows[b.name]["off"] == mean_of([item.value for item in ours])
        if not b.tasks.endswith("*"):
            (task,) = [task for task in found["results"] if task.startswith(pattern)]
            result = found["results"][task][f"{b.metric},{b.filter}"]
            assert rows[b.name]["off"]["value"] == pytest.approx(result, abs=1e-12)


def test_off_differs_from_hf_for_a_model_with_think_tokens(nine, tmp_path):
    folder = str(tmp_path / "model")
    tiny_model().save_pretrained(folder)
    byte_tokenizer(think=True).save_pretrained(folder)
    plan = SuitePlan([BENCHMARKS["mmlu"]], ("off",), nine)
    _, items = run(folder, plan, tmp_path)
    plain = by_hf(folder, plan)["samples"]
    assert [i.subset for i in items] == ["anatomy", "anatomy", "astronomy", "astronomy"]
    theirs = [sample for subject in plain.values() for sample in subject]
    for ours, sample in zip(items, theirs, strict=True):
        assert ours.prompt_hash == sample["prompt_hash"]
        assert ours.answer != sample["filtered_resps"]
