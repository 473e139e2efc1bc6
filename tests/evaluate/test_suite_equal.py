"""With thinking off and a plain model, our numbers are those of lm-eval's own ``hf``, exactly."""

import logging
import os
import random
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from native_reasoning.config.errors import ConfigError
from native_reasoning.config.recipe import make_config
from native_reasoning.evaluation.suite.asked import load_asked
from native_reasoning.evaluation.suite.benchmarks import BENCHMARKS, chosen
from native_reasoning.evaluation.suite.needs import sentence_rules
from native_reasoning.evaluation.suite.run import Plan, first_rows, run_suite, subjects_within
from native_reasoning.evaluation.suite.scores import mean_of
from native_reasoning.evaluation.suite.yamls import write_tasks
from suite_data import write_all
from tiny import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def rules():
    folder = sentence_rules(True, lambda text: None)
    yield
    if folder is not None:
        folder.cleanup()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("nine"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def settings(folder, **values):
    return make_config(
        {"num_generations": "2", "use_cpu": True, "max_trace_length": 6, **values},
        output_dir=str(folder),
    )


def by_hf(model: str, plan: Plan, folder: Path):
    """lm-eval's results for the same rows: its model, its loop, its loading of the weights."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    files = write_tasks(folder, plan.benchmarks, data_dir=plan.data_dir, chat=plan.chat)
    files = subjects_within(files, plan.limit)
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load(
        [file.task for file in files]
    )
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(1234)
        if task.get_config("output_type") == "generate_until":
            task.set_config("generation_kwargs", dict(plan.gen_kwargs), update=True)
    random.seed(0)
    np.random.seed(1234)
    torch.manual_seed(1234)
    found = lm_eval.evaluate(
        lm=HFLM(pretrained=model, device="cpu", batch_size=plan.batch_size),
        task_dict=loaded,
        samples=first_rows(files, loaded["tasks"], plan.limit),
        bootstrap_iters=0,
        apply_chat_template=plan.chat,
        fewshot_as_multiturn=plan.chat,
        confirm_run_unsafe_code=True,
    )
    return files, found


def assert_equal(model: str, plan: Plan, tmp_path: Path) -> None:
    """Prompt, answer or log-probability, greedy choice and value of every question."""
    config = settings(tmp_path / "out")
    ran = run_suite(load_asked(model, config, plan.modes), config, plan, lambda text: None)
    (tmp_path / "tasks").mkdir()
    files, found = by_hf(model, plan, tmp_path / "tasks")
    for benchmark in plan.benchmarks:
        ours = ran.items[benchmark.name][plan.modes[0]]
        theirs = [
            sample
            for file in files
            if file.benchmark is benchmark
            for sample in found["samples"][file.task]
            if sample["filter"] == benchmark.filter
        ]
        assert len(ours) == len(theirs) == plan.limit
        for a, b in zip(ours, theirs, strict=True):
            assert a.doc_id == b["doc_id"]
            assert a.prompt_hash == b["prompt_hash"]
            assert ([a.answer] if isinstance(a.answer, str) else a.answer) == b["filtered_resps"]
            assert a.value == float(b[benchmark.metric])
            assert a.trace is None
        by_task = [file for file in files if file.benchmark is benchmark]
        if len(by_task) == 1:
            name = f"{benchmark.metric},{benchmark.filter}"
            result = found["results"][by_task[0].task]
            assert mean_of([i.value for i in ours]).value == pytest.approx(result[name], abs=1e-12)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_off_equals_hf_on_all_nine(tiny, data, rules, tmp_path, batch_size):
    plan = Plan(
        chosen("nrt9", None),
        ("off",),
        data,
        2,
        gen_kwargs={"max_gen_toks": 8},
        batch_size=batch_size,
    )
    assert len(plan.benchmarks) == 9
    assert_equal(tiny, plan, tmp_path)


def test_plain_equals_hf_for_a_model_with_think_tokens_and_off_does_not(data, tmp_path):
    folder = str(tmp_path / "model")
    tiny_model().save_pretrained(folder)
    byte_tokenizer(think=True).save_pretrained(folder)
    some = tuple(BENCHMARKS[name] for name in ("mmlu", "gsm8k"))
    plan = Plan(some, ("plain",), data, 2, chat=True, gen_kwargs={"max_gen_toks": 8})
    assert_equal(folder, plan, tmp_path)
    config = settings(tmp_path / "out")
    off = Plan(some[:1], ("off",), data, 2, chat=True, gen_kwargs={"max_gen_toks": 8})
    both = [
        run_suite(load_asked(folder, config, p.modes), config, p, lambda text: None)
        for p in (Plan(some[:1], ("plain",), data, 2, chat=True), off)
    ]
    plain, spliced = both[0].items["mmlu"]["plain"], both[1].items["mmlu"]["off"]
    assert all(a.answer != b.answer for a, b in zip(plain, spliced, strict=True))


def test_means_over_subjects_are_lm_evals(tiny, data, tmp_path):
    """Two subjects of mmlu: lm-eval's group weighs them by size, which is a mean over questions."""
    plan = Plan((BENCHMARKS["mmlu"],), ("off",), data)
    config = settings(tmp_path / "out")
    ran = run_suite(load_asked(tiny, config, ("off",)), config, plan, lambda text: None)
    items = ran.items["mmlu"]["off"]
    assert [i.subset for i in items] == ["anatomy", "anatomy", "astronomy", "astronomy"]
    assert ran.shots == {"mmlu": 5}


def test_smollm2(rules, tmp_path):
    folder, data = os.environ.get("NRT_SMOLLM2"), Path("/work/shared/data")
    if not folder or not data.is_dir():
        pytest.skip("NRT_SMOLLM2 names no folder with the model, or the data is not there")
    names = ("mmlu", "truthfulqa", "drop", "popqa", "gsm8k", "bbh")
    some = tuple(BENCHMARKS[name] for name in names)
    assert_equal(folder, Plan(some, ("off",), data, 2, gen_kwargs={"max_gen_toks": 8}), tmp_path)


def test_turns_of_a_model_without_a_chat_template_are_refused(tiny, data, tmp_path):
    config = settings(tmp_path)
    asked = load_asked(tiny, config, ("off",))
    asked.tokenizer.chat_template = None
    plan = Plan(chosen("nrt9", "popqa"), ("off",), data_dir=data, chat=True)
    with pytest.raises(ConfigError, match="no chat template"):
        run_suite(asked, config, plan, lambda text: None)
