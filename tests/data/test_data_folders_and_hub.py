"""Folders and the hub -> raw rows of the right split."""

import json

import datasets
import pytest

from native_reasoning.config.errors import DataError
from native_reasoning.data import load_examples, load_rows

ROWS = [{"question": f"{i} + {i}?", "answer": str(2 * i)} for i in range(3)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def values(source, **options):
    return [row.value for row in load_rows(source, **options).rows]


def test_a_folder_is_read_file_by_file(tmp_path):
    write(tmp_path / "b.jsonl", JSONL)
    write(tmp_path / "a.jsonl", "{broken\n" + JSONL)
    write(tmp_path / "sub" / "c.jsonl", JSONL)
    write(tmp_path / "README.md", "no data")
    write(tmp_path / ".cache" / "d.jsonl", JSONL)
    write(tmp_path / "dataset_info.json", "{}")
    rows = list(load_rows(tmp_path).rows)
    assert [row.value for row in rows if row.problem is None] == ROWS * 3
    assert [row.number for row in rows] == list(range(1, 11))
    assert (rows[0].place, rows[9].place) == ("a.jsonl line 1", "sub/c.jsonl line 3")


def test_a_folder_with_splits_gives_one_of_them(tmp_path):
    write(tmp_path / "train-00000-of-00002.jsonl", JSONL)
    write(tmp_path / "train-00001-of-00002.jsonl", JSONL)
    write(tmp_path / "test.jsonl", json.dumps(ROWS[0]))
    write(tmp_path / "validation" / "part.jsonl", json.dumps(ROWS[1]))
    assert values(tmp_path) == ROWS * 2
    assert load_rows(tmp_path).source == f"{tmp_path} [train]"
    assert values(tmp_path, split="test") == ROWS[:1]
    assert values(tmp_path, split="dev") == ROWS[1:2]
    with pytest.raises(DataError, match="it has: test, train, validation"):
        load_rows(tmp_path, split="other")


def test_a_folder_without_train_must_be_told_the_split(tmp_path):
    write(tmp_path / "test.jsonl", JSONL)
    assert values(tmp_path) == ROWS
    write(tmp_path / "dev.jsonl", JSONL)
    with pytest.raises(DataError, match="several splits and none is train: test, validation"):
        load_rows(tmp_path)


def test_a_folder_without_named_splits_refuses_one(tmp_path):
    write(tmp_path / "qa.jsonl", JSONL)
    with pytest.raises(DataError, match="no named splits"):
        load_rows(tmp_path, split="train")


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no data file"):
        load_rows(tmp_path)


def test_what_save_to_disk_wrote_is_read(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(str(tmp_path / "two"))
    assert values(tmp_path / "one") == values(tmp_path / "two") == ROWS
    assert values(tmp_path / "two", split="test") == ROWS[:1]


@pytest.fixture
def hub(monkeypatch):
    """A hub that has one data set; the calls that reach it."""
    calls = []

    def split_names(name, config):
        assert (name, config) == ("owner/name", "main")
        return ["test", "train"]

    def load_dataset(name, config, split):
        calls.append((name, config, split))
        if name != "owner/name":
            raise FileNotFoundError("Dataset 'owner/nome' doesn't exist on the Hub\nmore")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "get_dataset_split_names", split_names)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_hub_id_goes_through_datasets(hub):
    rows = load_rows("owner/name:main")
    assert rows.source == "owner/name:main [train]"
    assert [row.value for row in rows.rows] == ROWS
    assert values("owner/name", split="train[:10]") == ROWS
    assert hub == [("owner/name", "main", "train"), ("owner/name", None, "train[:10]")]


def test_what_the_hub_refuses_is_a_data_error(hub):
    with pytest.raises(DataError, match="doesn't exist on the Hub\n  why: owner/nome is no file"):
        load_rows("owner/nome", split="train")


def test_a_hub_set_with_no_train_split_names_its_splits(hub, monkeypatch):
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["a", "b"])
    with pytest.raises(DataError, match="several splits and none is train: a, b"):
        load_rows("owner/name")


def test_an_error_without_text_still_says_something(hub, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match="from the hub: ConnectionError"):
        load_rows("owner/name", split="train")


def test_what_is_near_a_file_is_not_asked_of_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data" / "qa.jsonl", JSONL)
    for source in ("data/qa", "data/qb.jsonl", "no/qa.jsonl", "a/b/c"):
        with pytest.raises(DataError, match="does not exist"):
            load_rows(source)
    assert hub == []
    assert len(load_examples("data")) == 3
