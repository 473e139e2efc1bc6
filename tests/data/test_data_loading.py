"""Rows -> examples: nothing good is lost, nothing bad gets through, nothing is silent."""

import json

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.data import load_examples, loading
from native_reasoning.data.rows import Example
from native_reasoning.data.values import REASONS

GOOD = {"question": "2 + 2?", "answer": "4"}
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def jsonl(path, *lines):
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines),
        encoding="utf-8",
    )
    return path


def test_examples_are_numbered_and_know_their_line(tmp_path):
    path = jsonl(tmp_path / "qa.jsonl", "", GOOD, "{", {"question": "3 + 3?", "answer": 6.0})
    data = load_examples(path)
    assert data.examples == (
        Example((("user", "2 + 2?"),), "4", row_id=0, line=2),
        Example((("user", "3 + 3?"),), "6", row_id=1, line=4),
    )
    assert (data.report.read, data.report.kept, data.report.count("broken_json")) == (3, 2, 1)
    assert data.report.dropped[0].places[0].startswith("line 3: column 2: Expecting property name")


def test_a_data_set_in_memory_is_the_same_as_its_file(tmp_path):
    rows = [GOOD, {"question": "q", "answer": None}, {"question": "3 + 3?", "answer": "6"}]
    from_file = load_examples(jsonl(tmp_path / "qa.jsonl", *rows))
    assert load_examples(rows).examples == from_file.examples
    assert load_examples(datasets.Dataset.from_list(rows)).examples == from_file.examples


def test_repeats_are_dropped_and_other_answers_kept():
    rows = [
        GOOD,
        {"question": " 2 + 2?\n", "answer": " 4 "},
        {"question": "2 + 2?", "answer": "four"},
    ]
    report = load_examples(rows).report
    assert [report.kept, *map(report.count, ("duplicate", "repeated_prompt"))] == [2, 1, 1]


# ------------------------------------------------------------------------------- missing columns


def test_a_missing_column_is_the_message_of_the_design(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "qa.jsonl", {"question": "q", "solution": "s", "level": 1})
    with pytest.raises(DataError) as caught:
        load_examples("qa.jsonl")
    assert str(caught.value) == (
        "column 'answer' not found in qa.jsonl (line 1 has: question, solution, level)\n"
        "  why: training scores the reference answer, so every row needs one\n"
        "  fix: --answer-column solution"
    )


@pytest.mark.parametrize(
    ("row", "options", "fix"),
    [
        ({"input": "q", "target": "a"}, {}, "--prompt-column input --answer-column target"),
        ({"problem": "q", "answer": "a"}, {}, "--prompt-column problem"),
        ({"context": "q", "completion": "a"}, {}, "--prompt-column context"),
        ({"question": "q", "LONG_ANSWER": "a"}, {}, "--answer-column LONG_ANSWER"),
        ({"instruction": "q", "all": [{"output": "a"}]}, {}, "--answer-column all.0.output"),
        ({"question": "q", "refs": {"text": ["a"]}, "answr": 1}, {}, "--answer-column answr"),
        ({"question": "q", "refs": {"answer": ["a", "b"]}}, {}, "--answer-column refs.answer"),
        ({"question": "q", "wrong_answer": "b", "right": "a"}, {}, "--answer-column NAME"),
        ({"question": "q", "type": "answer", "answer_idx": 1}, {}, "--answer-column NAME"),
        ({"question": "q", "x": {"y": {"z": {"answer": 1}}}}, {}, "--answer-column NAME"),
        ({"question": "q", "all": []}, {}, "--answer-column NAME"),
        ({"question": "q", "zzz": "a"}, {}, "--answer-column NAME"),
        ({"question": "q", "mc": {"labels": [1, 0]}, "gold": {}}, {}, "--answer-column NAME"),
        ({"question": "q", "output": [{"a": "b"}], "gold": 0}, {}, "--answer-column gold"),
        ({"question": "q", "chosen": TURNS}, {}, "--answer-column chosen"),
        ({"question": "q", "Answer (text)": "a"}, {}, "--answer-column 'Answer (text)'"),
        ({"q": "q", "final": "a"}, {"answer_column": "fnal"}, "--prompt-column NAME"),
        (GOOD, {"answer_column": "anwser"}, "--answer-column answer"),
        (GOOD, {"prompt_column": "qestion"}, "--prompt-column question"),
        (
            {"Body": "q", "Question": "r", "Answer": "a"},
            {"prompt_column": "Body+Qestion"},
            "--prompt-column Body+Question",
        ),
        ({}, {}, "--prompt-column NAME --answer-column NAME"),
    ],
)
def test_the_likeliest_column_is_named(row, options, fix):
    with pytest.raises(DataError, match="not found") as caught:
        load_examples([row], **options)
    assert caught.value.fix == fix


def test_many_columns_are_cut_short():
    with pytest.raises(DataError, match=r"has: c0, .*, c11, \.\.\.\)"):
        load_examples([{f"c{i}": i for i in range(40)}])


# ------------------------------------------------------------------------------- whole sources


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_an_empty_file_is_an_error(tmp_path, name, text):
    if name == "a.csv" and text.strip():
        text = "question,answer\n"
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="is empty"):
        load_examples(path)


@pytest.mark.parametrize("rows", [[], datasets.Dataset.from_dict({"question": [], "answer": []})])
def test_an_empty_list_is_an_error(rows):
    with pytest.raises(DataError, match="is empty"):
        load_examples(rows)


def test_a_file_of_broken_lines_names_line_and_column(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", '{"question": "q" "answer"}', "{", "}")
    with pytest.raises(DataError) as caught:
        load_examples(path)
    assert "in 3 of 3 the row is not valid JSON (first: line 1: column 18: Exp" in caught.value.what


def test_when_all_rows_are_bad_the_commonest_reason_is_named():
    empty = {"question": "q", "answer": ""}
    with pytest.raises(DataError, match=r"in 2 of 3 the row has an empty answer \(first: row 2\)"):
        load_examples([{"question": "", "answer": "a"}, empty, empty])


# ---------------------------------------------------------------------------------- answer_regex


@pytest.mark.parametrize(
    ("pattern", "answer", "part"),
    [
        (r"####\s*(.*)", "3 + 1\n#### 4 ", "4"),
        (r"####\s*(.*)", "#### 3\n#### 4", "4"),
        (r"\d+", "from 3 to 4", "4"),
        (r"(?:is|=) (\d+) (.*)", "is 3 = 4 x", "3"),
    ],
)
def test_the_last_match_is_the_answer(pattern, answer, part):
    data = load_examples([{"question": "q", "answer": answer}], answer_regex=pattern)
    assert data.examples[0].answer == part


def test_answers_without_a_match_are_bad_rows():
    rows = [{"question": "q", "answer": answer} for answer in ("#### 4", "4", "####", "#### b")]
    report = load_examples(rows, answer_regex=r"####(?: (\d)| b|\Z|())").report
    assert (report.kept, report.count("no_regex_match")) == (1, 3)
    with pytest.raises(DataError, match="--answer-regex does not match"):
        load_examples(rows, answer_regex="nothing")
    with pytest.raises(DataError, match="what --answer-regex takes is empty"):
        load_examples(rows[2:3], answer_regex="####(.*)")


@pytest.mark.parametrize("pattern", ["(", "[", "*", "a{2,1}"])
def test_a_bad_pattern_is_a_config_error(pattern):
    with pytest.raises(ConfigError, match=r"is not a regular expression: .* at position"):
        load_examples([GOOD], answer_regex=pattern)


def test_a_slow_pattern_is_given_up_at_the_first_row(monkeypatch):
    monkeypatch.setattr(loading, "_PATIENCE", 0.05)
    slow = {"question": "q", "answer": "a" * 60 + "!"}
    for pattern, answer in [(r"((?:a|aa)+$|4)", "a" * 60 + "!"), ("a", "a" * 10_000_000)]:
        slow = {"question": "q", "answer": answer}
        with pytest.raises(ConfigError, match=r"ran out of time \(0.05 s\) on row 2"):
            load_examples([GOOD | {"answer": "a4"}, slow], answer_regex=pattern)


# ------------------------------------------------------------------------------------ properties

BAD_LINES = [
    "{",
    '{"question": "q", "answer": "a"',
    "[1, 2]",
    "7",
    "null",
    "{}",
    '{"question": "q"}',
    '{"question": null, "answer": "a"}',
    '{"question": "q", "answer": [{"a": "b"}]}',
    '{"question": "q", "answer": "  "}',
    '{"question": "", "answer": "a"}',
    '{"question": "\\ud800", "answer": "a"}',
    '{"messages": [{"role": "user", "content": "q"}]}',
]


@given(mixture=st.lists(st.none() | st.sampled_from(BAD_LINES), min_size=1, max_size=30))
def test_no_good_row_is_lost_among_bad_ones(tmp_path_factory, mixture):
    path = tmp_path_factory.getbasetemp() / "mixture.jsonl"
    good = [number for number, line in enumerate(mixture, start=1) if line is None]
    jsonl(
        path,
        *(
            {"question": f"question {number}", "answer": number} if line is None else line
            for number, line in enumerate(mixture, start=1)
        ),
    )
    if not good:
        with pytest.raises(DataError):
            load_examples(path)
        return
    data = load_examples(path)
    assert [example.line for example in data.examples] == good
    assert [example.answer for example in data.examples] == [str(number) for number in good]
    assert [example.row_id for example in data.examples] == list(range(len(good)))
    report = data.report
    assert report.read == len(mixture) == report.kept + sum(e.count for e in report.dropped)
    assert {entry.reason for entry in report.dropped} <= set(REASONS)
    assert len(report.lines()) == 1 + len(report.dropped)
