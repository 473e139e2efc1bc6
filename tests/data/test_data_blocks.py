"""A file that is read in blocks gives what it gives read row by row, and is read once."""

import json
import os

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.data import blocks, content_hash, load_examples, store, stored, workers
from native_reasoning.data.blocks import Blocks
from native_reasoning.data.rows import Example
from native_reasoning.data.stored import StoredExamples, digests_of, line_of

SMALL_BLOCK = 256


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Small blocks in a cache of the test's own, without processes."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", SMALL_BLOCK)
    monkeypatch.setattr(workers, "cores", lambda: 1)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


@pytest.fixture
def reads(monkeypatch):
    """The first byte of each block that is read."""
    read, plain = [], Blocks._read

    def noted(self, start):
        read.append(start)
        return plain(self, start)

    monkeypatch.setattr(Blocks, "_read", noted)
    return read


def qa(number, **more):
    return {"question": f"What is {number} + 1? {'x' * 30}", "answer": str(number + 1), **more}


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


def both(path, **options):
    """The same read in blocks and row by row."""
    in_blocks = found(path, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", 1 << 30)
        return in_blocks, found(path, **options)


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
    max_examples=200,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    lines=sources,
    options=st.fixed_dictionaries(
        {},
        optional={
            "strict": st.just(True),
            "keep_columns": st.just(True),
            "prompt_column": st.sampled_from(["prompt", "question", "nothing"]),
            "answer_column": st.sampled_from(["completion", "answer", "nothing"]),
            "answer_regex": st.sampled_from([r"\d+", "(", "l(o)ng"]),
        },
    ),
)
def test_blocks_give_what_rows_give(tmp_path, lines, options):
    in_blocks, by_rows = both(write(tmp_path / "qa.jsonl", *lines), **options)
    assert repr(in_blocks) == repr(by_rows)  # NaN is not equal to itself


def test_lines_are_counted_across_blocks_and_repeats_found(tmp_path):
    rows = [qa(number) for number in range(40)]
    rows[30], rows[35] = rows[2], {"question": rows[1]["question"], "answer": "another"}
    path = write(tmp_path / "qa.jsonl", *rows[:20], b"", b"{", *rows[20:])
    data = load_examples(path)
    assert isinstance(data.examples, StoredExamples)
    assert len(data.examples.paths) > 10
    assert [e.line for e in data.examples] == [*range(1, 21), *range(23, 33), *range(34, 43)]
    assert [e.row_id for e in data.examples] == list(range(39))
    places = {entry.reason: entry.places for entry in data.report.dropped}
    assert places == {"broken_json": ("line 22",), "duplicate": ("line 33",)}
    assert data.report.repeated_prompts == 1
    with pytest.raises(DataError, match=r"line 22 of .* is not valid JSON: column 2"):
        load_examples(path, strict=True)


def test_only_the_first_places_are_kept_with_all_counted(tmp_path):
    rows = [b"{" if number % 2 else qa(number) for number in range(60)]
    in_blocks, by_rows = both(write(tmp_path / "qa.jsonl", *rows))
    assert in_blocks == by_rows
    (entry,) = in_blocks[1].dropped
    assert (entry.count, entry.places) == (30, tuple(f"line {n}" for n in (2, 4, 6, 8, 10)))


def test_lines_that_are_not_utf8_are_named_by_their_place_in_the_file(tmp_path):
    rows = [qa(number) for number in range(20)]
    path = write(tmp_path / "qa.jsonl", *rows, b'{"question": "caf\xe9"}', *rows)
    at = path.read_bytes().index(b"\xe9")
    in_blocks, by_rows = both(path)
    assert in_blocks == by_rows
    assert f"line 21, byte {at} of the file" in in_blocks[1]


# -- Looking at examples on the disk ---------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    return load_examples(write(tmp_path / "qa.jsonl", *map(qa, range(40))), keep_columns=True)


def test_examples_on_the_disk_are_a_sequence(data):
    expected = [
        Example((("user", qa(i)["question"]),), qa(i)["answer"], i, i + 1, qa(i)) for i in range(40)
    ]
    assert list(data.examples) == expected
    assert data.examples[-1] == expected[-1]
    assert list(data.examples[5:30:7]) == expected[5:30:7]
    assert data.examples[5:30][2:4][1] == expected[8]
    assert not data.examples[40:]
    assert list(data.examples[40:]) == []
    assert expected[3] in data.examples
    assert line_of(data.examples[10:], 2) == line_of(expected, 12) == 13
    assert content_hash(data.examples) == content_hash(expected)
    assert digests_of(data.examples[3:7]) == digests_of(expected[3:7])
    with pytest.raises(IndexError):
        data.examples[40]


def test_few_files_are_open_at_a_time(data, monkeypatch):
    assert len(data.examples.paths) > store._OPEN / 2
    list(data.examples)
    assert store._mapped.cache_info().currsize <= store._OPEN


def test_a_cache_that_is_deleted_while_it_is_used_is_our_error(data):
    for path in data.examples.paths:
        path.unlink()
    store._mapped.cache_clear()
    with pytest.raises(DataError, match="can no longer be read"):
        data.examples[0]


@pytest.mark.parametrize("as_set", [list, datasets.Dataset.from_list])
def test_other_large_sources_go_to_the_disk_too(as_set, monkeypatch):
    rows = [qa(number % 30) for number in range(40)]
    expected = load_examples(as_set(rows))
    assert isinstance(expected.examples, tuple)
    monkeypatch.setattr(stored, "SMALL", 7)
    monkeypatch.setattr(stored, "_BLOCK_ROWS", 10)
    data = load_examples(as_set(rows))
    assert isinstance(data.examples, StoredExamples)
    assert len(data.examples.paths) == 3
    assert tuple(data.examples) == expected.examples
    assert data.report == expected.report
    in_memory = load_examples(as_set(rows), keep_columns=True).examples
    assert isinstance(in_memory, tuple)
    assert in_memory[9].columns == rows[9]


# -- The cache -------------------------------------------------------------------------------------


def test_a_file_is_read_once(tmp_path, reads):
    path = write(tmp_path / "qa.jsonl", *map(qa, range(40)))
    first = found(path)
    assert reads == list(range(0, path.stat().st_size, SMALL_BLOCK))
    reads.clear()
    assert found(path) == first
    assert not reads


@pytest.mark.parametrize(
    "option",
    [
        {"prompt_column": "answer"},
        {"answer_column": "question"},
        {"answer_regex": ".*"},
        {"keep_columns": True},
        {"regex_timeout": 2.0},
    ],
    ids=str,
)
def test_other_settings_are_other_blocks(tmp_path, reads, option):
    path = write(tmp_path / "qa.jsonl", *map(qa, range(40)))
    found(path)
    count = len(reads)
    found(path, **option)
    assert len(reads) == 2 * count


def test_a_changed_file_is_read_again(tmp_path, reads):
    path = write(tmp_path / "qa.jsonl", *map(qa, range(40)))
    found(path)
    count = len(reads)
    write(path, *map(qa, range(1, 41)))
    assert found(path)[0][0].answer == "2"
    assert len(reads) >= 2 * count


def test_a_file_that_is_written_to_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    path = write(tmp_path / "qa.jsonl", *map(qa, range(40)))
    plain = Blocks._read

    def and_append(self, start):
        with path.open("ab") as file:
            file.write(b"\n{}")
        return plain(self, start)

    monkeypatch.setattr(Blocks, "_read", and_append)
    with pytest.raises(DataError, match="changed while it was read"):
        load_examples(path)


def test_a_preparation_that_was_killed_goes_on(tmp_path, reads, monkeypatch):
    path = write(tmp_path / "qa.jsonl", *map(qa, range(40)))
    plain = store.write_table

    def killed(path, table):
        if path.name == "000005.arrow":
            raise KeyboardInterrupt
        plain(path, table)

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            load_examples(path)
    assert len(reads) == 6
    in_blocks, by_rows = both(path)
    assert in_blocks == by_rows
    assert reads[6:] == list(range(5 * SMALL_BLOCK, path.stat().st_size, SMALL_BLOCK))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_block_is_made_again(tmp_path, reads, damage):
    path = write(tmp_path / "qa.jsonl", *map(qa, range(40)))
    first = load_examples(path)
    expected = list(first.examples), first.report
    block = first.examples.paths[3]
    content = bytearray(block.read_bytes())
    content[len(content) // 2] ^= damage == "flipped"
    size = {"cut": len(content) - 100, "empty": 0}.get(damage, len(content))
    block.write_bytes(b"\0" * size if damage == "foreign" else content[:size])
    reads.clear()
    assert found(path) == expected
    assert reads == [3 * SMALL_BLOCK]


def test_time_outs_are_tried_again_and_give_up_in_time(tmp_path, reads):
    slow = {"answer_regex": r"((?:a|aa)+$|\d+)", "regex_timeout": 0.02}
    long = "a" * 60 + "!"
    rows = [qa(number) for number in range(30)]
    rows[3]["answer"] = rows[21]["answer"] = long
    path = write(tmp_path / "qa.jsonl", *rows)
    in_blocks, by_rows = both(path, **slow)
    assert in_blocks == by_rows
    assert in_blocks[1].dropped[0].places == ("line 4", "line 22")
    reads.clear()
    assert found(path, **slow) == by_rows
    assert len(reads) == 2  # the blocks of the two rows
    rows = [qa(number, answer=long) for number in range(12)]
    in_blocks, by_rows = both(write(path, *rows), **slow)
    assert in_blocks == by_rows
    assert "on 10 rows" in in_blocks[1]


def test_nothing_beside_the_blocks_is_left_behind(data):
    folder = data.examples.paths[0].parent
    assert sorted(folder.iterdir()) == sorted(data.examples.paths)


def test_a_home_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    data = load_examples(write(tmp_path / "qa.jsonl", *map(qa, range(40))))
    assert len(list(data.examples)) == 40
    assert "native_reasoning-" in str(data.examples.paths[0])


def test_the_cache_is_where_hugging_faces_are(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.cache_folder() == tmp_path / "huggingface" / "native_reasoning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.cache_folder() == tmp_path / ".cache" / "huggingface" / "native_reasoning"


def test_a_full_disk_is_our_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        load_examples(write(tmp_path / "qa.jsonl", *map(qa, range(40))))
    assert not list((tmp_path / "home").rglob("*.arrow*"))


# -- Processes -------------------------------------------------------------------------------------


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 2)


def test_processes_give_what_one_gives(tmp_path, two):
    rows = [qa(number % 50) for number in range(80)]
    in_blocks, by_rows = both(write(tmp_path / "qa.jsonl", *rows, b"{", *rows))
    assert in_blocks == by_rows
    bad = write(tmp_path / "bad.jsonl", *rows, b'"caf\xe9"', *rows)
    for options in ({}, {"strict": True}):
        in_blocks, by_rows = both(bad, **options)
        assert in_blocks == by_rows


def test_results_come_in_order_and_errors_as_they_are(two):
    assert list(workers.in_order(lambda task: task * 2, range(100))) == list(range(0, 200, 2))
    pids = set(workers.in_order(lambda _: os.getpid(), range(40)))
    assert os.getpid() not in pids

    def refuse(task):
        if task == 3:
            raise DataError(f"task {task}", why="it is bad", fix="mend it")
        return task

    results = workers.in_order(refuse, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError) as caught:
        next(results)
    assert (caught.value.what, caught.value.why, caught.value.fix) == (
        "task 3",
        "it is bad",
        "mend it",
    )


def test_a_killed_process_is_our_error(two):
    with pytest.raises(DataError, match="a process that prepared rows was killed"):
        list(workers.in_order(lambda task: os._exit(9), range(10)))


def test_the_settings_of_a_tokenizer_library_are_left_alone(two, monkeypatch):
    for value in (None, "true"):
        if value is None:
            monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        else:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", value)
        seen = set(workers.in_order(lambda _: os.environ["TOKENIZERS_PARALLELISM"], range(4)))
        assert seen == {"false"}
        assert os.environ.get("TOKENIZERS_PARALLELISM") == value


def test_one_core_or_one_task_needs_no_process(monkeypatch):
    assert list(workers.in_order(lambda _: os.getpid(), range(3))) == [os.getpid()] * 3
    monkeypatch.setattr(workers, "cores", lambda: 2)
    assert list(workers.in_order(lambda _: os.getpid(), [1])) == [os.getpid()]
