"""Files as people have them: those of ../shared/cases, and more of each kind."""

import gzip
import json
import shlex
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.data import load_examples

CASES = Path(__file__).parents[3] / "shared" / "cases"
EXPECTED = CASES / "expected.json"
KNOWN = json.loads(EXPECTED.read_text("utf-8")) if EXPECTED.exists() else {}
FILES = [name for name in KNOWN if name != "about"]


def options(flags):
    """What a command line hands to ``load_examples``."""
    words = shlex.split(flags)
    return {
        flag.strip("-").replace("-", "_"): value
        for flag, value in zip(words[::2], words[1::2], strict=True)
    }


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def pairs(source, **columns):
    return [(e.question, e.answer) for e in load_examples(source, **columns).examples]


needs_cases = pytest.mark.skipif(not FILES, reason=f"{EXPECTED} is not there")


@needs_cases
@pytest.mark.parametrize("name", [n for n in FILES if {"rows", "first", "answers"} & {*KNOWN[n]}])
def test_a_file_gives_what_a_person_expects(name):
    data, wanted = load_examples(CASES / name), KNOWN[name]
    first = data.examples[0]
    assert data.report.kept == wanted.get("rows", data.report.kept)
    assert [first.question, first.answer] == wanted.get("first", [first.question, first.answer])
    for example, references in zip(data.examples, wanted.get("answers", ()), strict=False):
        assert list(example.references) == references


@needs_cases
@pytest.mark.parametrize("name", [n for n in FILES if "advise" in KNOWN[n]])
def test_advice_is_what_a_person_would_give_and_works(name):
    wanted, flags = KNOWN[name], {}
    while True:
        try:
            report = load_examples(CASES / name, **flags).report
            break
        except DataError as error:
            flags |= options(error.fix)
    asked = [options(advice).items() for advice in wanted["advise"]]
    assert any(flags.items() <= advice for advice in asked)
    assert flags["answer_column"] not in {never.split()[0] for never in wanted.get("never", ())}
    assert report.kept == wanted.get("rows_after", report.read)
    for advice in wanted["advise"]:
        load_examples(CASES / name, **options(advice))


@needs_cases
@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        ("d40d_csv_backslash_multiline.csv", {}, "100 of 100 rows kept"),
        ("d03_squad_orig.json", {}, "context is not used"),
        ("d20b_completion_with_prompt.jsonl", {}, "8 prompt_in_answer"),
        ("d01_squad.jsonl", {}, "context is not used"),
        ("d01_squad.jsonl", {}, "4 several_answers"),
        ("d11_popqa.jsonl", {}, "8 parsed_text"),
        ("d25_messages_string.jsonl", {}, "8 parsed_text"),
        ("d05_arc.jsonl", {"answer_column": "answerKey"}, r"'{question}\n{choices}'"),
        ("d21_alpaca_history.jsonl", {}, "instruction+input+history+system"),
        ("d43q_think_in_answer.jsonl", {}, "4 reasoning_in_answer"),
        ("d27_uauu.jsonl", {}, "8 turns_after_answer"),
        ("d31c_ts_overflow.parquet", {}, "6 of 6 rows kept"),
        ("d42b_gz_shards", {}, "4 of 4 rows kept"),
    ],
)
def test_what_is_done_with_a_file_is_said(name, columns, said):
    report = load_examples(CASES / name, **columns).report
    assert said in "\n".join((*report.lines(), *report.warnings()))


@needs_cases
def test_a_file_with_a_column_twice_is_refused():
    with pytest.raises(DataError, match="more than one column"):
        load_examples(CASES / "d31i_dupcols.parquet")


# -- CSV -------------------------------------------------------------------------------------------

HEADER = "question,answer\n"


@pytest.mark.parametrize(
    ("text", "kept", "said"),
    [
        ('1,"2 inches\n3,4\n5,6\n', 2, "line 2: a quote is opened and never closed"),
        ('1,2\n"3,4\n5,"6"\n7,8\n', 3, "line 3"),  # a stray quote that a good one seems to close
        ('1,"two\nlines, and more"\n3,4\n', 2, ""),
        ('"say \\"hi, you\\"",2\n3,4\n', 2, ""),
        ('1,"ends in \\""\n3,4\n5,"6"\n', 3, ""),
        ("1,2,\n3,4,,\n", 2, ""),
        ("1,2,3\n3,4\n", 1, "line 2: 3 cells under 2 columns"),
    ],
)
def test_a_quote_costs_one_row(tmp_path, text, kept, said):
    report = load_examples(write(tmp_path / "a.csv", HEADER + text)).report
    assert report.kept == kept
    assert said in "\n".join(report.lines())
    assert report.kept + report.count("broken_csv") == report.read


def test_many_rows_inside_a_cell_are_named(tmp_path):
    text = '1,"2\n' + "".join(f"{i},{i}\n" for i in range(10, 30)) + '3,4"\n5,6\n'
    report = load_examples(write(tmp_path / "a.csv", HEADER + text)).report
    assert (report.kept, report.count("long_record")) == (2, 1)
    assert "is a quote missing? (line 2 to 23)" in "\n".join(report.lines())


@pytest.mark.parametrize(
    "content",
    [
        "sep=;\r\nquestion;answer\r\nq;a\r\n",
        "question,answer\rq,a\r",
        "\ufeffquestion,answer\r\nq,a\r\n",
        "question|answer\nq|a\n",
        "question,answer,\nq,a,\n",
        "question,answer\nq,a\n".encode("utf-16"),
    ],
)
def test_csv_of_other_programs_is_read(tmp_path, content):
    assert pairs(write(tmp_path / "a.csv", content)) == [("q", "a")]


def test_a_command_for_another_encoding_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a b.csv", "question,answer\nwho?,René\n".encode("windows-1252"))
    with pytest.raises(DataError, match="is not UTF-8: line 2") as caught:
        load_examples("a b.csv")
    command = caught.value.fix.partition(": ")[2]
    subprocess.run(command, shell=True, check=True)
    assert pairs(command.rpartition("> ")[2].strip("'")) == [("who?", "René")]


@pytest.mark.parametrize(
    ("line", "question"),
    [('"Who?\tme', '"Who?'), ('Say "x"?\tme', 'Say "x"?'), ('"a\tb"\tme', "a\tb")],
)
def test_a_quote_in_a_tab_separated_file_is_a_letter(tmp_path, line, question):
    path = write(tmp_path / "a.tsv", f"question\tanswer\nq\ta\n{line}\nr\tb\n")
    assert pairs(path) == [("q", "a"), (question, "me"), ("r", "b")]


def test_a_file_without_a_header_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", "What is 2 + 2?,4\nWhat is 3 + 3?,6\n")
    with pytest.raises(DataError, match="not found") as caught:
        load_examples("a.csv")
    command = caught.value.fix.partition(": ")[2]
    subprocess.run(command, shell=True, check=True)
    assert pairs(command.rpartition("> ")[2]) == [("What is 2 + 2?", "4"), ("What is 3 + 3?", "6")]


# -- JSON ------------------------------------------------------------------------------------------

ROWS = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(3)]
FRAME = pd.DataFrame(ROWS)


@pytest.mark.parametrize(
    "document",
    [
        ROWS,
        {"version": 1, "items": ROWS},
        {"train": ROWS, "test": ROWS[:1]},
        {str(40 + i): row for i, row in enumerate(ROWS)},
        {"question": ["q0", "q1", "q2"], "answer": ["a0", "a1", "a2"]},
        *(json.loads(FRAME.to_json(orient=o)) for o in ("columns", "index", "split", "records")),
        json.loads(FRAME.to_json(orient="table")),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_rows_are_found_in_a_document(tmp_path, document, suffix):
    path = write(tmp_path / f"a{suffix}", json.dumps(document))
    assert pairs(path) == [("q0", "a0"), ("q1", "a1"), ("q2", "a2")]


def test_several_lists_are_named_and_one_is_chosen(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"easy": ROWS, "hard": ROWS[:1]}))
    with pytest.raises(DataError, match="holds the lists easy, hard") as caught:
        load_examples(path)
    assert f"{path}[easy]" in caught.value.fix
    assert load_examples(path, split="hard").report.kept == 1
    for text in (json.dumps(ROWS), "\n".join(map(json.dumps, ROWS))):
        with pytest.raises(DataError, match="none is 'train'"):
            load_examples(write(tmp_path / "b.json", text), split="train")


def test_one_conversation_alone_is_one_row(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for name in ("messages", "dialog"):
        path = write(tmp_path / "a.json", json.dumps({name: turns}))
        assert pairs(path, prompt_column=name) == [("q", "a")]


# -- References ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "references"),
    [
        ("answer", ["a", "b", "a", " "], ("a", "b")),
        ("answer", {"value": "a", "aliases": ["b", "c"], "type": "x"}, ("a", "b", "c")),
        ("answers", {"text": ["a", "b"], "answer_start": [1, 2]}, ("a", "b")),
        ("answers", [{"text": "a", "answer_start": 3}, {"text": "b"}], ("a", "b")),
        ("answers", np.array(["a", "b"], dtype=object), ("a", "b")),
        ("answers", '["a", "b"]', ("a", "b")),
        ("answer", "['a', 'b']", ("a", "b")),
        ("answers", "a|b", ("a", "b")),
        ("answer", "|a|", ("|a|",)),
        ("answer", "[1, 2]", ("[1, 2]",)),
        ("answer", "['a'", ("['a'",)),
        ("completion", "['a', 'b']", ("['a', 'b']",)),
        ("answer", '{"value": 3}', ('{"value": 3}',)),
        ("answer", '[{"text": "a"}]', ('[{"text": "a"}]',)),
        ("answer", "{'text': ['a', 'b']}", ("a", "b")),
        ("answers", "P(a|b)", ("P(a|b)",)),
    ],
)
def test_several_references_are_answers_of_one_question(column, value, references):
    question = "prompt" if column == "completion" else "question"
    data = load_examples([{question: "q", column: value}])
    assert data.examples[0].references == references
    assert data.report.count("several_answers") == (len(references) > 1)


@pytest.mark.parametrize("question", ['["a", "b"]', '{"text": "a"}', '[{"text": "a"}]'])
def test_a_question_may_be_json(question):
    assert pairs([{"question": question, "answer": "a"}]) == [(question, "a")]


def test_overlap_is_counted_and_said():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [
        {"prompt": "A question of many words?", "completion": "A question of many words? Yes."},
        {"messages": [*turns, {"role": "user", "content": "thanks"}]},
        {"messages": json.dumps([{**turns[0], "content": "r"}, turns[1]])},
        {"question": "s", "answer": "<think>\nwhy\n</think>\n\nA"},
    ]
    data = load_examples(rows)
    assert [e.answer for e in data.examples[:3]] == ["Yes.", "a", "a"]
    told = ("prompt_in_answer", "turns_after_answer", "parsed_text", "reasoning_in_answer")
    assert [*map(data.report.count, told)] == [1, 1, 1, 1]
    line = next(line for line in data.report.lines() if "reasoning_in_answer" in line)
    pattern = line.partition("--answer-regex ")[2].split("'")[1]
    assert load_examples(rows[3:], answer_regex=pattern).examples[0].answer == "A"


# -- What a question is made of --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"choices": {"text": ["x", "y"], "label": ["A", "B"]}}, "q\nA. x\nB. y"),
        ({"options": {"A": "x", "B": "y"}}, "q\nA. x\nB. y"),
        ({"choices": ["x", "y"]}, "q\nA. x\nB. y"),
        ({"options": [{"key": "A", "value": "x"}, {"key": "B", "value": "y"}]}, "q\nA. x\nB. y"),
        ({"A": "x", "B": "y"}, "q\nx\ny"),
        ({"opa": "x", "opb": "y"}, "q\nx\ny"),
        ({"context": {"contexts": ["x", "y"], "labels": ["z"]}}, "x\ny\nq"),
        ({"context": ["x", "y"]}, "x\ny\nq"),
        ({"passage": "x"}, "x\nq"),
    ],
)
def test_what_is_left_out_of_a_question_is_said_with_a_template_that_works(row, prompt):
    rows = [{**row, "question": f"q{i or ''}", "answer": "B"} for i in range(4)]
    (warning,) = load_examples(rows).report.warnings()
    assert "not used, though the question may need it" in warning
    flags = options(warning[warning.index("--prompt-template") :])
    assert load_examples(rows, **flags).examples[0].question == prompt
    assert not load_examples(rows, **flags).report.warnings()


def test_named_columns_do_not_hide_what_is_left_out():
    rows = [{"q": f"q{i}", "options": {"A": "x"}, "key": "A", "zip": 1} for i in range(3)]
    data = load_examples(rows, prompt_column="q", answer_column="key")
    assert "options is not used" in data.report.warnings()[0]


def test_what_a_template_cannot_hold_is_said_without_one():
    turns = [{"role": "user", "content": "q"}]
    rows = [{"prompt": turns, "context": "c", "answer": "a"}]
    (warning,) = load_examples(rows).report.warnings()
    assert warning == "context is not used, though the question may need it"
    rows = [{"q": "q", "history": [["a", "b"]], "answer": "a"}]
    (warning,) = load_examples(rows, prompt_column="q").report.warnings()
    assert warning == "history is not used, though the question may need it"


def test_system_and_history_are_part_of_the_prompt():
    row = {"instruction": "r", "input": "", "output": "b", "system": "s", "history": [["q", "a"]]}
    turns = (("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"))
    assert load_examples([row]).examples[0].prompt == turns


@pytest.mark.parametrize("columns", [{"prompt_template": "q"}, {"prompt_column": "question"}])
def test_a_template_without_columns_or_beside_a_column_is_refused(columns):
    with pytest.raises(ConfigError, match="prompt_template"):
        load_examples(ROWS, **{"prompt_template": "{question}", **columns})


def test_a_template_with_a_column_that_is_not_there_is_told_which():
    with pytest.raises(DataError, match="'qestion' not found") as caught:
        load_examples(ROWS, prompt_template="Q: {qestion}")
    assert load_examples(ROWS, **options(caught.value.fix)).examples[0].question == "Q: q0"


# -- Types and folders -----------------------------------------------------------------------------


def test_numbers_and_labels_are_as_they_are_written(tmp_path):
    single = pa.table({"question": ["q"], "answer": pa.array([3.8], pa.float32())})
    pa.parquet.write_table(single, tmp_path / "a.parquet")
    assert pairs(tmp_path / "a.parquet") == [("q", "3.8")]
    frame = pd.DataFrame({"question": ["q"], "answer": np.array([0.1], np.float32)})
    assert pairs(frame) == [("q", "0.1")]
    features = datasets.Features(
        question=datasets.Value("string"), answer=datasets.ClassLabel(names=["no", "yes"])
    )
    data = datasets.Dataset.from_dict({"question": ["q"], "answer": [1]}, features=features)
    data.to_parquet(tmp_path / "b.parquet")
    assert pairs(data) == pairs(tmp_path / "b.parquet") == [("q", "yes")]


def test_columns_that_nobody_reads_are_not_decoded(tmp_path):
    when = pa.array([2**62], pa.timestamp("us"))
    pa.parquet.write_table(
        pa.table({"question": ["q"], "answer": ["a"], "when": when}), tmp_path / "a.parquet"
    )
    assert pairs(tmp_path / "a.parquet") == [("q", "a")]
    table = pa.table(
        {"question": ["q"], "answer": ["a"], "image": [{"bytes": b"no image", "path": None}]}
    )
    features = datasets.Features(
        question=datasets.Value("string"), answer=datasets.Value("string"), image=datasets.Image()
    )
    assert pairs(datasets.Dataset(table).cast(features)) == [("q", "a")]


def test_a_column_that_stands_twice_is_refused(tmp_path):
    table = pa.table([["q"], ["a"], ["b"]], names=["question", "answer", "answer"])
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="more than one column answer"):
        load_examples(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="more than one column answer"):
        load_examples(pd.DataFrame([["q", "a", "b"]], columns=["question", "answer", "answer"]))


def test_files_of_a_folder_that_are_not_read_are_named(tmp_path):
    lines = [json.dumps(row) + "\n" for row in ROWS]
    write(tmp_path / "train-0.jsonl", lines[0])
    write(tmp_path / "train-1.jsonl.gz", gzip.compress(lines[1].encode()))
    for name in ("train-2.jsonl.zst", "notes.xlsx", "README.md"):
        write(tmp_path / name, "x")
    report = load_examples(tmp_path).report
    assert (report.kept, len(report.warnings())) == (2, 1)
    assert "not read: notes.xlsx, train-2.jsonl.zst" in report.warnings()[0]
    write(tmp_path / "test.jsonl", lines[2])
    write(tmp_path / "more.jsonl", lines[2])
    assert "more.jsonl" in load_examples(tmp_path).report.warnings()[0]
    with pytest.raises(DataError, match="no known kind") as caught:
        load_examples(tmp_path / "train-2.jsonl.zst")
    assert "zstd -d" in caught.value.fix


def test_a_damaged_archive_is_named(tmp_path):
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS * 50).encode())
    with pytest.raises(DataError, match="cannot be unpacked"):
        load_examples(write(tmp_path / "a.jsonl.gz", packed[: len(packed) // 2]))
