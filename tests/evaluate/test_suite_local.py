"""Local files of the benchmarks, and what is said where they are missing or wrong."""

import json
import math
from dataclasses import replace

import pytest

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.evaluation.suite import needs
from native_reasoning.evaluation.suite.benchmarks import BENCHMARKS, chosen
from native_reasoning.evaluation.suite.local import read, subsets
from native_reasoning.evaluation.suite.needs import require_packages, with_files, without_code
from native_reasoning.evaluation.suite.scores import Item, Mean, gain_of, mean_of, mean_over
from native_reasoning.evaluation.suite.yamls import write_tasks
from suite_data import write, write_all


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("nine"))


def test_every_benchmark_reads_its_files(data):
    for name in BENCHMARKS:
        subset = {"bbh": "word_sorting", "mmlu": "anatomy"}.get(name, "")
        splits = read(benchmark=name, folder=str(data), subset=subset, version=1.0)
        assert all(len(rows) for rows in splits.values()), name
    assert subsets("mmlu", data) == {"anatomy", "astronomy"}


def test_drop_has_the_columns_of_the_hub(data):
    (row, *_) = read(benchmark="drop", folder=str(data))["validation"]
    assert row["passage"] == "Here are 3 cats, 2 dogs."
    assert row["question"] == "How many cats?"
    assert row["answer"]["spans"] == ["3"]
    assert row["validated_answers"]["spans"] == [["3 cats"]]


def test_mmlu_rows_of_one_subject(data):
    splits = read(benchmark="mmlu", folder=str(data), subset="anatomy")
    assert (len(splits["test"]), len(splits["dev"])) == (2, 5)
    assert splits["test"][1]["choices"] == ["letter 1", "letter 2", "letter 3", "letter 4"]
    assert splits["test"][1]["answer"] == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "has no rows"),
        ("{", "line 1 is not JSON"),
        ('{"question": "a"}\n\n[1]', "line 1 has no possible_answers"),
        ('"text"', "line 1 has no question"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path, text, what):
    (tmp_path / "popqa").mkdir()
    (tmp_path / "popqa" / "test.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=what):
        read(benchmark="popqa", folder=str(tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        read(benchmark="gsm8k", folder=str(tmp_path))


def test_a_drop_row_without_a_question_is_an_error(tmp_path):
    write(tmp_path, "drop/dev.jsonl", [{"context": "Passage: x", "ref_text": "1"}])
    with pytest.raises(DataError, match="line 1: context is not text with a line"):
        read(benchmark="drop", folder=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "file", "column", "value", "what"),
    [
        ("mmlu", "test", "answer", "B", "answer is not 0, 1, 2 or 3"),
        ("mmlu", "test", "answer", True, "answer is not 0, 1, 2 or 3"),
        ("mmlu", "dev", "choice2", None, "choice2 is not text"),
        ("drop", "dev", "ref_text", 3, "ref_text is not answers"),
        ("drop", "dev", "ref_text", " | ", "ref_text is not answers"),
        ("popqa", "test", "possible_answers", "[]", "possible_answers is not a list"),
        ("popqa", "test", "possible_answers", "[oops", "possible_answers is not a list"),
        ("popqa", "test", "possible_answers", ["a", ""], "possible_answers is not a list"),
        ("popqa", "test", "possible_answers", 1, "possible_answers is not a list"),
        ("popqa", "test", "question", 5, "question is not text"),
        ("gsm8k", "train", "answer", 5, "answer is not text"),
        ("truthfulqa", "mc", "mc2_targets", {"choices": ["a"], "labels": []}, "as many labels"),
        ("truthfulqa", "mc", "mc1_targets", {"choices": ["a"], "labels": [0]}, "a 1 among them"),
        ("math", "math500_test", "solution", "1", "solution is not text with .boxed"),
        ("ifeval", "test", "key", "x", "key is not a whole number"),
        ("ifeval", "test", "instruction_id_list", [], "is not a list of names"),
        ("ifeval", "test", "kwargs", [1], "kwargs is not a list of objects"),
    ],
)
def test_a_wrong_value_is_told_with_its_line(tmp_path, name, file, column, value, what):
    path = write_all(tmp_path) / name / f"{file}.jsonl"
    first, second, *rest = path.read_text(encoding="utf-8").splitlines()
    second = json.dumps({**json.loads(second), column: value})
    path.write_text("\n".join([first, second, *rest]), encoding="utf-8")
    with pytest.raises(DataError, match=f"{file}.jsonl line 2: .*{what}"):
        read(benchmark=name, folder=str(tmp_path), subset="anatomy")


def test_what_only_several_rows_show(tmp_path):
    row = {"key": 1, "prompt": "a", "instruction_id_list": ["x"]}
    mixed = [{**row, "kwargs": [{"n": 1}]}, {**row, "kwargs": [{"n": "b"}]}]
    write(tmp_path, "ifeval/test.jsonl", mixed)
    with pytest.raises(DataError, match="values of several types"):
        read(benchmark="ifeval", folder=str(tmp_path))
    write(tmp_path, "ifeval/test.jsonl", [{**row, "kwargs": []}])
    with pytest.raises(DataError, match="other numbers of kwargs"):
        read(benchmark="ifeval", folder=str(tmp_path))
    write_all(tmp_path)
    with pytest.raises(DataError, match="no rows of virology in its split test"):
        read(benchmark="mmlu", folder=str(tmp_path), subset="virology")


def test_popqa_answers_may_be_lists_or_json(tmp_path):
    rows = [{"question": "a", "possible_answers": v} for v in ('["b", 2]', ["c"])]
    write(tmp_path, "popqa/test.jsonl", rows)
    found = read(benchmark="popqa", folder=str(tmp_path))["test"]
    assert found["possible_answers"][:] == [["b", "2"], ["c"]]


def test_missing_files_leave_benchmarks_out(data, tmp_path):
    said = []
    write(tmp_path, "popqa/test.jsonl", [{"question": "a", "possible_answers": "[]"}])
    kept = with_files(chosen("nrt9", "popqa,gsm8k"), tmp_path, said.append)
    assert [b.name for b in kept] == ["popqa"]
    assert said == [f"gsm8k is left out: {tmp_path / 'gsm8k/test.jsonl'} is not there"]
    assert len(with_files(chosen("nrt9", None), data, said.append)) == 9
    with pytest.raises(DataError, match="none of the benchmarks"):
        with_files(chosen("nrt9", None), tmp_path / "nowhere", said.append)


def test_code_is_run_only_if_asked_for():
    said = []
    assert len(without_code(chosen("nrt9", None), False, said.append)) == 8
    assert said == ["humaneval is left out: it runs code that the model wrote (--run-code)"]
    assert len(without_code(chosen("nrt9", None), True, said.append)) == 9
    with pytest.raises(ConfigError, match="runs code"):
        without_code(chosen("nrt9", "humaneval"), False, said.append)


def test_missing_packages_are_named(monkeypatch):
    require_packages(chosen("nrt9", None))
    gone = {"langdetect"}
    monkeypatch.setattr(needs, "find_spec", lambda name: None if name in gone else object())
    require_packages(chosen("nrt9", "gsm8k"))
    with pytest.raises(ConfigError, match=r"langdetect is not installed"):
        require_packages(chosen("nrt9", "gsm8k,ifeval"))


def test_task_files_include_lm_evals(data, tmp_path):
    files = write_tasks(tmp_path, chosen("nrt9", None), data_dir=data, num_fewshot=2)
    assert len(files) == 11  # two subjects of bbh and of mmlu
    text = (tmp_path / "nrt9_gsm8k.yaml").read_text(encoding="utf-8")
    assert "lm_eval/tasks/gsm8k/gsm8k.yaml" in text
    assert "num_fewshot: 2" in text
    assert "custom_dataset: !function native_reasoning.evaluation.suite.local.read" in text
    assert "num_fewshot: 0" in (tmp_path / "nrt9_truthfulqa.yaml").read_text(encoding="utf-8")
    hub = tmp_path / "hub"
    hub.mkdir()
    names = {file.task for file in write_tasks(hub, chosen("nrt9", None), data_dir=None)}
    assert sum(name.startswith("nrt9_mmlu_") for name in names) == 57
    assert sum(name.startswith("nrt9_bbh_") for name in names) == 27
    assert not any("custom_dataset" in path.read_text("utf-8") for path in hub.iterdir())


# -- scores ----------------------------------------------------------------------------------------


def item(mode, doc_id, value):
    return Item("gsm8k", "", doc_id, mode, value, "", "")


def test_means_and_their_errors():
    assert mean_of([1.0]) == Mean(1, 1.0, None)
    mean = mean_of([1.0, 0.0, 1.0, 1.0])
    assert (mean.n, mean.value) == (4, 0.75)
    assert mean.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    over = mean_over([Mean(4, 0.75, 0.3), Mean(2, 0.25, 0.4)])
    assert (over.value, over.stderr) == (0.5, pytest.approx(0.25))
    assert mean_over([Mean(4, 0.75, 0.3), Mean(1, 0.25, None)]).stderr is None


def test_the_gain_is_paired():
    off = [item("off", 0, 0.0), item("off", 1, 1.0)]
    on = [item("on", 0, 1.0), item("on", 1, 1.0)]
    assert gain_of(off, on) == mean_of([1.0, 0.0])
    with pytest.raises(AssertionError):
        gain_of(off, on[::-1])
    with pytest.raises(AssertionError):
        gain_of(off, [on[0], replace(on[1], prompt_hash="another prompt")])
