"""Files and objects in memory -> raw rows; what cannot be read says why."""

import csv
import json

import datasets
import pytest

from native_reasoning.config.errors import DataError
from native_reasoning.data import load_rows
from native_reasoning.data.sources import READERS

ROWS = [
    {"question": "2 + 2?", "answer": "4"},
    {"question": 'a, "b"\nand\u2028c 😀?', "answer": "007"},
    {"question": "long " * 40_000, "answer": "51.0"},
]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_csv(path, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["question", "answer"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_all(folder):
    """The same rows in every kind of file."""
    write(folder / "a.jsonl", JSONL)
    write(folder / "b.ndjson", "\ufeff" + JSONL.replace("\n", "\r\n\r\n"))
    write(folder / "c.json", json.dumps(ROWS, indent=1))
    write(folder / "d.json", "\ufeff" + json.dumps({"version": 1, "data": ROWS}))
    write(folder / "e.json", JSONL)
    write(folder / "f.jsonl", json.dumps(ROWS, indent=1))
    write_csv(folder / "g.csv")
    write_csv(folder / "h.TSV", delimiter="\t")
    write(folder / "i.csv", "\ufeff".encode() + (folder / "g.csv").read_bytes())
    datasets.Dataset.from_list(ROWS).to_parquet(str(folder / "j.parquet"))
    return sorted(folder.iterdir())


def values(source, **options):
    return [row.value for row in load_rows(source, **options).rows]


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    for path in write_all(tmp_path):
        assert values(path) == ROWS, path.name
        assert values(str(path)) == ROWS, path.name


def test_objects_in_memory_give_the_same_rows():
    data = datasets.Dataset.from_list(ROWS)
    assert values(ROWS) == values(data) == values(data.with_format("numpy")) == ROWS
    assert values(datasets.DatasetDict(test=data)) == ROWS
    both = datasets.DatasetDict(test=data.select([0]), train=data)
    assert values(both) == ROWS
    assert values(both, split="test") == ROWS[:1]


def test_lines_and_rows_are_numbered_for_people(tmp_path):
    path = write(tmp_path / "a.jsonl", '\n{"a": 1}\n\n{broken}\n[2]\n')
    rows = load_rows(path)
    assert rows.unit == "line"
    assert [(row.number, row.place, row.value) for row in rows.rows] == [
        (2, "line 2", {"a": 1}),
        (4, "line 4", None),
        (5, "line 5", [2]),
    ]
    csv_path = write(tmp_path / "a.csv", "question,answer\n\n1,2\n3,4,5\n6\n7,8,,\n")
    rows = load_rows(csv_path)
    assert rows.unit == "line"
    assert [(row.number, row.value) for row in rows.rows] == [
        (3, {"question": "1", "answer": "2"}),
        (4, None),
        (5, {"question": "6"}),
        (6, {"question": "7", "answer": "8"}),
    ]


def test_one_object_alone_is_one_row(tmp_path):
    assert values(write(tmp_path / "a.json", json.dumps(ROWS[0], indent=1))) == ROWS[:1]
    assert values(write(tmp_path / "b.json", json.dumps({"data": "x"}))) == [{"data": "x"}]


@pytest.mark.parametrize(
    "line", ["{", "[1", '{"a": 1,}', "nonsense", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", "\x00"]
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_one_broken_line_does_not_lose_the_others(tmp_path, line, suffix):
    for place in (0, 1):
        lines = [json.dumps(row) for row in ROWS[:2]]
        lines.insert(place, line)
        rows = list(load_rows(write(tmp_path / f"a{suffix}", "\n".join(lines))).rows)
        assert [row.value for row in rows if row.problem is None] == ROWS[:2]
        assert [row.number for row in rows if row.problem] == [place + 1]
        assert rows[place].problem[0] == "broken_json"


def test_a_broken_json_document_is_named_with_line_and_column(tmp_path):
    path = write(tmp_path / "a.json", '[\n  {"question": "q",\n   "answer" "a"}\n]')
    with pytest.raises(DataError, match=r"a\.json is not valid JSON: line 3 column 13: Expecting"):
        values(path)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_csv_file_may_be_parted_by_semicolons_or_tabs(tmp_path, delimiter):
    write_csv(tmp_path / "a.csv", delimiter)
    assert values(tmp_path / "a.csv") == ROWS
    text = '\r\n"Frage";"Antwort, Zahl"\r\n"a;b";1,5\r\n'.replace(";", delimiter)
    rows = values(write(tmp_path / "b.csv", "\ufeff" + text))
    assert rows == [{"Frage": f"a{delimiter}b", "Antwort, Zahl": "1,5"}]


def test_a_delimiter_inside_a_quoted_name_parts_nothing(tmp_path):
    path = write(tmp_path / "a.csv", '"messages; all",b\n1;2,3\n')
    assert values(path) == [{"messages; all": "1;2", "b": "3"}]
    assert values(write(tmp_path / "b.csv", '"a; b"\n1;2\n')) == [{"a; b": "1;2"}]


def test_a_broken_csv_row_does_not_lose_the_others(tmp_path):
    path = write(tmp_path / "a.csv", 'question,answer\n1,"2"x\n3,4\n5,"open\n6,7\n')
    rows = list(load_rows(path).rows)
    good = [{"question": "3", "answer": "4"}, {"question": "6", "answer": "7"}]
    assert [row.value for row in rows] == [None, good[0], None, good[1]]
    assert rows[0].problem[0] == "broken_csv"
    assert (rows[2].place, rows[2].problem) == (
        "line 4",
        ("broken_csv", "a quote is opened and never closed"),
    )


@pytest.mark.parametrize(
    ("header", "problem"),
    [('question,"answer"x', "expected after"), ("question,answer,answer", "names answer twice")],
)
def test_a_bad_csv_header_is_an_error(tmp_path, header, problem):
    with pytest.raises(DataError, match=problem):
        values(write(tmp_path / "a.csv", header + "\n1,2\n"))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_other_encodings_are_refused_with_the_place(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", b'question,answer\n{"a": "caf\xe9"}\n')
    with pytest.raises(DataError, match="not UTF-8: line 2, byte 26 of the file") as caught:
        values(path)
    assert "iconv -f WINDOWS-1252" in caught.value.fix
    with pytest.raises(DataError, match="is not UTF-8: line 1") as caught:
        values(write(path, JSONL.encode("utf-16-le")))
    assert "iconv -f UTF-16LE" in caught.value.fix


def test_a_broken_parquet_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        values(write(tmp_path / "a.parquet", "no parquet"))


def test_a_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path / "gsm8k_train.jsonl", JSONL)
    with pytest.raises(DataError, match="did you mean .*gsm8k_train.jsonl") as caught:
        load_rows(tmp_path / "gsm8k-train.jsonl")
    assert "does not exist" in caught.value.what
    with pytest.raises(DataError, match="named owner/name"):
        load_rows(tmp_path / "zzz")
    with pytest.raises(DataError, match="there is no folder"):
        load_rows(tmp_path / "no" / "qa.jsonl")


def test_an_unknown_kind_of_file_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"of no known kind \(\.docx\)") as caught:
        load_rows(write(tmp_path / "a.docx", "x"))
    assert all(suffix in caught.value.fix for suffix in READERS)
    with pytest.raises(DataError, match="no suffix"):
        load_rows(write(tmp_path / "a", "x"))


def test_a_file_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", JSONL)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        values(path)


@pytest.mark.parametrize("source", [7, None, {"question": "q"}, (row for row in ROWS)])
def test_other_objects_are_refused(source):
    with pytest.raises(DataError, match="cannot be read as rows"):
        load_rows(source)


def test_a_stream_is_refused():
    with pytest.raises(DataError, match="IterableDataset cannot be read as rows"):
        load_rows(datasets.Dataset.from_list(ROWS).to_iterable_dataset())


@pytest.mark.parametrize("kind", ["file", "list", "dataset"])
def test_a_split_is_refused_where_there_is_none(tmp_path, kind):
    source = {
        "file": write(tmp_path / "a.jsonl", JSONL),
        "list": ROWS,
        "dataset": datasets.Dataset.from_list(ROWS),
    }[kind]
    with pytest.raises(DataError, match="no named splits"):
        load_rows(source, split="train")
