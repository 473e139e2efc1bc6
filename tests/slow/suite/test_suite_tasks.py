"""The suite's tasks, their local files, and what is said where these are missing or wrong."""

from dataclasses import replace

import nltk
import pytest
from lm_eval.tasks import TaskManager

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.evaluation import benchmarks, harness
from native_reasoning.evaluation.benchmarks import BENCHMARKS, askable, chosen
from native_reasoning.evaluation.harness import (
    Item,
    SuitePlan,
    first_rows,
    gain_of,
    load_tasks,
    mean_of,
    mean_over,
)
from native_reasoning.evaluation.marks import popqa, popqa_target
from suite_data import write

ALL = tuple(BENCHMARKS.values())


def tasks_of(name, folder, **options):
    return load_tasks(BENCHMARKS[name], SuitePlan(ALL, (), folder, **options))


def test_every_benchmark_reads_its_files(nine):
    sizes = {
        b.name: [len(task.eval_docs) for task in load_tasks(b, SuitePlan(ALL, (), nine)).values()]
        for b in ALL
    }
    assert sizes == {b.name: [2, 2] if b.tasks.endswith("*") else [3] for b in ALL}
    assert list(tasks_of("mmlu", nine)) == ["anatomy", "astronomy"]
    assert list(tasks_of("gsm8k", nine)) == [""]


SAME = ("output_type", "doc_to_text", "description", "filter_list", "generation_kwargs")


def test_tasks_are_lm_evals_but_for_where_rows_come_from(nine):
    for b in ALL:
        if b.folder:
            for task in load_tasks(b, SuitePlan(ALL, (), nine)).values():
                where = harness._THEIRS / b.folder
                manager = TaskManager(include_path=where, include_defaults=False)
                theirs = manager.task_index[task.task_name].cfg
                told = [k for k in SAME if k in theirs and not str(theirs[k]).startswith("/")]
                assert {k: task.dump_config()[k] for k in told} == {k: theirs[k] for k in told}


def test_examples_and_subjects(nine):
    assert tasks_of("mmlu", nine)["anatomy"].get_config("num_fewshot") == 5
    assert tasks_of("mmlu", nine, num_fewshot=2)["anatomy"].get_config("num_fewshot") == 2
    assert tasks_of("bbh", nine, num_fewshot=8)["word_sorting"].get_config("num_fewshot") == 3
    assert tasks_of("truthfulqa", nine, num_fewshot=8)[""].get_config("num_fewshot") == 0
    some = [tasks_of("mmlu", nine), tasks_of("popqa", nine)]
    assert first_rows(some, 3) == {
        "mmlu_anatomy": [0, 1],
        "mmlu_astronomy": [0],
        "popqa": [0, 1, 2],
    }
    assert first_rows(some, None) is None
    assert list(tasks_of("mmlu", nine, limit=1)) == ["anatomy"]


def test_the_hubs_data_is_asked_for_all_subjects(monkeypatch):
    asked = []
    monkeypatch.setattr(TaskManager, "load", lambda self, spec: asked.append(spec) or {"tasks": {}})
    for b in ALL:
        load_tasks(b, SuitePlan(ALL, ()))
    assert [len(spec["task"]) for spec in asked] == [27, 57, 1, 1, 1, 1, 1, 1, 1]
    assert not any("dataset_path" in member for spec in asked for member in spec["task"])


@pytest.mark.parametrize(
    ("text", "what"), [("", "popqa"), ("{", "popqa"), ('{"question": "a"}', "possible_answers")]
)
def test_a_damaged_file_is_an_error(tmp_path, text, what):
    (tmp_path / "popqa").mkdir()
    (tmp_path / "popqa" / "test.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=what):
        tasks_of("popqa", tmp_path)


def test_a_split_without_a_file_is_an_error(nine, tmp_path):
    write(tmp_path, "gsm8k/test.jsonl", [{"question": "a", "answer": "#### 1"}])
    with pytest.raises(DataError, match="gsm8k cannot be read: 'train'"):
        tasks_of("gsm8k", tmp_path)


def test_what_cannot_be_asked_is_left_out(nine, tmp_path):
    said = []
    write(tmp_path, "popqa/test.jsonl", [{"question": "a", "possible_answers": "[]"}])
    kept = askable(chosen("nrt9", "popqa,gsm8k,humaneval"), tmp_path, False, said.append)
    assert [b.name for b in kept] == ["popqa"]
    assert said == [
        f"gsm8k is left out: {tmp_path / 'gsm8k'} is not there",
        "humaneval is left out: it runs code that the model wrote (--run-code)",
    ]
    assert len(askable(ALL, nine, True, said.append)) == 9
    assert len(askable(ALL, None, False, said.append)) == 8
    with pytest.raises(DataError, match="no benchmark is left"):
        askable(ALL, tmp_path / "nowhere", True, said.append)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: None if name == "nltk" else name)
    with pytest.raises(ConfigError, match="nltk is not installed"):
        chosen("nrt9", "gsm8k")


def test_ifeval_without_sentence_rules_is_refused(monkeypatch):
    monkeypatch.setattr(harness, "walls", lambda: ())
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda name, quiet: False)
    harness._require([BENCHMARKS["gsm8k"]])
    with pytest.raises(ConfigError, match="punkt_tab"):
        harness._require(ALL)


def test_popqa_counts_a_possible_answer_in_the_text():
    doc = {"possible_answers": '["journalist", "Journo"]'}
    for text, match in (("A Journalist.", 1.0), ("a journo", 1.0), ("a writer", 0.0)):
        assert popqa(doc, [text]) == {"match": match}
    assert popqa_target(doc) == "journalist"
    assert popqa({"possible_answers": '["x y"]'}, ["it is X y"]) == {"match": 1.0}


# -- scores ----------------------------------------------------------------------------------------


def item(mode, doc_id, value):
    return Item("gsm8k", "", doc_id, mode, value, "", "")


def test_means_and_their_errors():
    assert mean_of([1.0]) == {"value": 1.0, "stderr": None}
    mean = mean_of([1.0, 0.0, 1.0, 1.0])
    assert mean == {"value": 0.75, "stderr": pytest.approx((0.75 * 0.25 / 3) ** 0.5)}
    over = mean_over([{"value": 0.75, "stderr": 0.3}, {"value": 0.25, "stderr": 0.4}])
    assert over == {"value": 0.5, "stderr": pytest.approx(0.25)}
    assert mean_over([mean, mean_of([1.0])])["stderr"] is None


def test_the_gain_is_paired():
    off = [item("off", 0, 0.0), item("off", 1, 1.0)]
    on = [item("on", 0, 1.0), item("on", 1, 1.0)]
    assert gain_of(off, on) == mean_of([1.0, 0.0])
    with pytest.raises(AssertionError):
        gain_of(off, on[::-1])
    with pytest.raises(AssertionError):
        gain_of(off, [on[0], replace(on[1], prompt_hash="another prompt")])
