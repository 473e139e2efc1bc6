"""A large source that is kept in the cache of ``datasets`` is what it is in memory, read once."""

import json
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.data import content_hash, load_examples, loading
from native_reasoning.data.loading import Stored
from native_reasoning.data.rows import Example


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Few rows are many, in a cache of the test's own."""
    monkeypatch.setattr(loading, "SMALL", 3)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def reads(monkeypatch):
    """The rows that are read one by one, of all sources."""
    read, plain = [], loading.read_row

    def noted(row, *columns):
        read.append(row)
        return plain(row, *columns)

    monkeypatch.setattr(loading, "read_row", noted)
    return read


def qa(number, **more):
    return {"question": f"What is {number} + 1?", "answer": str(number + 1), **more}


def write(path, *rows):
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(b"\n".join(lines))
    return path


def found(path, **options):
    """What loading gives: examples and report, or the error's text."""
    try:
        data = load_examples(path, **options)
    except (DataError, ConfigError) as error:
        return type(error), str(error)
    return list(data.examples), data.report


def all_ways(path, **options):
    """What loading gives in memory, when it is kept, and from the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "SMALL", 10_000)
        in_memory = found(path, **options)
    return in_memory, found(path, **options), found(path, **options)


LINES = [
    *(json.dumps(qa(number)).encode() for number in range(4)),
    *(b"", b"  \r", b"{", b'{"question": "q"', b"[1, 2]", b"null", b"7", b"\xef\xbb\xbf", b"{}"),
    b'{"question": "q", "answer": null}',
    b'{"Question": "other letters", "answer": 5.0, "body": {"a": 1}}',
    b'{"question": "q", "answer": "\\ud800"}',
    b'{"question": "\\ud83d\\ude42", "answer": "' + "Ω🙂".encode() + b'"}',
    b'{"prompt": "p", "completion": " c "}',
    b'{"question": "only", "note": "no answer", "\\ud800": NaN}',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    b'{"messages": [{"role": "user", "content": "a"}]}',
    json.dumps(qa(7, answer="long " * 200)).encode(),
]
sources = st.lists(st.sampled_from([*LINES, b"\xff\xfe", b'{"question": "\xe9"}']), max_size=25)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    lines=sources,
    options=st.fixed_dictionaries(
        {},
        optional={
            "keep_columns": st.just(True),
            "prompt_column": st.sampled_from(["prompt", "question", "nothing"]),
            "answer_column": st.sampled_from(["completion", "answer", "nothing"]),
            "answer_regex": st.sampled_from([r"\d+", "(", "l(o)ng"]),
        },
    ),
)
def test_what_is_kept_is_what_is_in_memory(tmp_path, lines, options):
    in_memory, kept, again = all_ways(write(tmp_path / "qa.jsonl", *lines), **options)
    assert repr(in_memory) == repr(kept) == repr(again)  # NaN is not equal to itself


def test_the_account_is_kept_with_the_rows(tmp_path):
    rows = [qa(number) for number in range(40)]
    rows[30], rows[35] = rows[2], {"question": rows[1]["question"], "answer": "another"}
    path = write(tmp_path / "qa.jsonl", *rows[:20], b"", b"{", *rows[20:])
    in_memory, kept, again = all_ways(path)
    assert in_memory == kept == again
    examples, report = again
    assert [e.line for e in examples] == [*range(1, 21), *range(23, 33), *range(34, 43)]
    assert [e.row_id for e in examples] == list(range(39))
    places = {entry.reason: entry.places for entry in report.dropped}
    assert places == {"broken_json": ("line 22",), "duplicate": ("line 33",)}
    assert report.repeated_prompts == 1


def test_only_the_first_places_are_kept_with_all_counted(tmp_path):
    rows = [b"{" if number % 2 else qa(number) for number in range(60)]
    in_memory, kept, again = all_ways(write(tmp_path / "qa.jsonl", *rows))
    assert in_memory == kept == again
    (entry,) = kept[1].dropped
    assert (entry.count, entry.places) == (30, tuple(f"line {n}" for n in (2, 4, 6, 8, 10)))


def test_an_error_in_the_middle_is_told_as_it_is_and_leaves_nothing(tmp_path, reads):
    rows = [qa(number) for number in range(20)]
    path = write(tmp_path / "qa.jsonl", *rows, b'{"question": "caf\xe9"}', *rows)
    at = path.read_bytes().index(b"\xe9")
    in_memory, kept, again = all_ways(path)
    assert in_memory == kept == again
    assert f"line 21, byte {at} of the file" in kept[1]
    assert not list((tmp_path / "cache").rglob("*.arrow"))


# -- Looking at examples on the disk ---------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    return load_examples(write(tmp_path / "qa.jsonl", *map(qa, range(40))), keep_columns=True)


def test_examples_on_the_disk_are_a_sequence(data):
    expected = [
        Example((("user", qa(i)["question"]),), qa(i)["answer"], i, i + 1, qa(i)) for i in range(40)
    ]
    assert isinstance(data.examples, Stored)
    assert list(data.examples) == expected
    assert data.examples[-1] == expected[-1]
    assert list(data.examples[5:30:7]) == expected[5:30:7]
    assert data.examples[5:30][2:4][1] == expected[8]
    assert not data.examples[40:]
    assert list(data.examples[40:]) == []
    assert expected[3] in data.examples
    assert content_hash(data.examples) == content_hash(expected)
    with pytest.raises(IndexError):
        data.examples[40]


def test_a_data_set_goes_to_the_disk_and_rows_in_memory_stay_there(reads):
    rows = [qa(number % 30) for number in range(40)]
    in_memory = load_examples(rows)
    assert isinstance(in_memory.examples, tuple)
    made = datasets.Dataset.from_list(rows)
    kept = load_examples(made)
    assert isinstance(kept.examples, Stored)
    assert tuple(kept.examples) == in_memory.examples
    assert kept.report.dropped == in_memory.report.dropped
    reads.clear()
    assert list(load_examples(made).examples) == list(kept.examples)
    assert len(reads) == 4
    with_columns = load_examples(made, keep_columns=True).examples  # may be no JSON
    assert isinstance(with_columns, tuple)
    assert with_columns[9].columns == rows[9]


def test_all_files_of_a_folder_are_one_source(tmp_path, reads):
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows" / "a.jsonl", *map(qa, range(10)), b"{")
    write(tmp_path / "rows" / "b.jsonl", *map(qa, range(10, 20)))
    in_memory, kept, again = all_ways(tmp_path / "rows")
    assert in_memory == kept == again
    assert len(reads) == 20 + 20 + 4
    write(tmp_path / "rows" / "b.jsonl", *map(qa, range(20, 30)))
    assert found(tmp_path / "rows")[0][-1].answer == "30"


# -- The cache -------------------------------------------------------------------------------------


def test_a_file_is_read_once_but_for_its_first_rows(tmp_path, reads):
    path = write(tmp_path / "qa.jsonl", *map(qa, range(40)))
    first = found(path)
    assert len(reads) == 40
    assert found(path) == first
    assert len(reads) == 44


@pytest.mark.parametrize(
    "option",
    [
        {"prompt_column": "answer"},
        {"answer_column": "question"},
        {"answer_regex": ".*"},
        {"keep_columns": True},
    ],
    ids=str,
)
def test_other_settings_are_read_anew(tmp_path, reads, option):
    path = write(tmp_path / "qa.jsonl", *map(qa, range(40)))
    found(path)
    found(path, **option)
    assert len(reads) == 80


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "qa.jsonl", *map(qa, range(40)))
    found(path)
    write(path, *map(qa, range(1, 41)))
    assert found(path)[0][0].answer == "2"


def test_a_reading_that_was_interrupted_starts_again(tmp_path, monkeypatch):
    path = write(tmp_path / "qa.jsonl", *map(qa, range(40)))
    plain = loading.read_row

    def killed(row, *columns):
        if row == qa(30):
            raise KeyboardInterrupt
        return plain(row, *columns)

    with monkeypatch.context() as patch:
        patch.setattr(loading, "read_row", killed)
        with pytest.raises(KeyboardInterrupt):
            load_examples(path)
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    in_memory, kept, _ = all_ways(path)
    assert in_memory == kept


def test_nothing_is_written_outside_the_cache_of_datasets(tmp_path, data, capfd):
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "qa.jsonl"]
    assert list((tmp_path / "cache").rglob("*.arrow"))
    assert capfd.readouterr() == ("", "")  # no progress bars


def test_a_cache_that_cannot_be_written_is_our_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="cannot be kept in .*cache: Not a directory") as caught:
        load_examples(write(tmp_path / "qa.jsonl", *map(qa, range(40))))
    assert "HF_DATASETS_CACHE" in caught.value.fix
