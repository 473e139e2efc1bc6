"""The run folder, with real files: nothing lost, half-written, secret or overwritten."""

import dataclasses
import json
import math
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from native_reasoning.config.errors import RunError
from native_reasoning.records import folder as records
from native_reasoning.records.folder import (
    HELD_OUT_SCHEMA,
    TRACE_SCHEMA,
    HeldOutRow,
    RunFolder,
    TraceRow,
    read_config,
    read_held_out,
    read_metrics,
    read_timings,
    read_traces,
    write_atomically,
)

any_text = st.text(st.characters(exclude_categories=()))
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def row(step: int, k: int = 0, **changes) -> TraceRow:
    base = TraceRow(
        step=step,
        row_id=17,
        k=k,
        prompt="2 + 2?",
        trace="two and two",
        answer="4",
        closed=True,
        sampled_answer="",
        ended=False,
        length=4,
        reward=0.25,
        baseline_reward=0.125,
        advantage=-0.5,
        answer_logps=(-1.5, -0.25),
        baseline_logps=(-2.0, -0.5),
        answer_tokens=("4", "<end>"),
    )
    return dataclasses.replace(base, **changes)


def held_out_row(step: int, **changes) -> HeldOutRow:
    base = HeldOutRow(
        step=step,
        row_id=3,
        k=0,
        prompt="2 + 2?",
        trace="two and two",
        answer="4",
        sampled_answer="5",
        answer_no_think="4",
        closed=True,
        length=4,
        correct=0.0,
        correct_no_think=1.0,
        answer_logps=(-1.5, -0.25),
        baseline_logps=(-2.0, -0.5),
        answer_tokens=("4", "<end>"),
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", resume=False)


def steps_of(folder) -> list[int]:
    return read_traces(folder)["step"].to_pylist()


def trace_files(folder, kind: str = "traces") -> list[str]:
    return sorted(path.name for path in (folder / kind).iterdir())


# ---- create -------------------------------------------------------------------------------------


def test_a_new_folder_and_an_empty_one_and_one_with_other_files(tmp_path):
    RunFolder.create(tmp_path / "deep" / "new", resume=False)
    assert (tmp_path / "deep" / "new").is_dir()
    RunFolder.create(str(tmp_path / "deep" / "new"), resume=False)
    (tmp_path / "deep" / "new" / "notes.txt").write_text("mine")
    RunFolder.create(tmp_path / "deep" / "new", resume=False)
    RunFolder.create(tmp_path / "other", resume=True)  # nothing to resume: an ordinary new run
    assert (tmp_path / "other").is_dir()


@pytest.mark.parametrize(
    "mark",
    [
        "config.yaml",
        "metrics.jsonl",
        "timings.jsonl",
        "questions.jsonl",
        "traces/step-1-2.parquet",
        "evaluations/step-1.parquet",
    ],
)
def test_an_existing_run_is_refused(tmp_path, mark):
    run = tmp_path / "first"
    (run / mark).parent.mkdir(parents=True)
    (run / mark).write_text("kept")
    with pytest.raises(RunError) as caught:
        RunFolder.create(run, resume=False)
    assert "--resume" in caught.value.fix
    assert str(tmp_path / "first-2") in caught.value.fix
    assert (run / mark).read_text() == "kept"
    RunFolder.create(run, resume=True)


@pytest.mark.parametrize("mark", ["checkpoint-9", "final"])
def test_a_folder_with_a_model_is_a_run(tmp_path, mark):
    (tmp_path / "first" / mark).mkdir(parents=True)
    with pytest.raises(RunError, match=mark):
        RunFolder.create(tmp_path / "first", resume=False)


def test_the_suggested_name_is_free(tmp_path):
    for name in ("first", "first-2", "first-3", "lr-1e-6", "checkpoint-9"):
        (tmp_path / name / "checkpoint-1").mkdir(parents=True)
    for name, free in (("first", "first-4"), ("lr-1e-6", "lr-1e-6-2")):
        with pytest.raises(RunError) as caught:
            RunFolder.create(tmp_path / name, resume=False)
        assert caught.value.fix.endswith(str(tmp_path / free))


def test_the_folder_one_stands_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(RunError, match="run-2"):
        RunFolder.create(".", resume=False)


@pytest.mark.parametrize("resume", [True, False])
def test_a_file_is_no_folder(tmp_path, resume):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunError, match="is a file"):
        RunFolder.create(tmp_path / "run", resume=resume)
    assert (tmp_path / "run").read_text() == "mine"


def test_other_ranks_write_nothing(tmp_path):
    silent = RunFolder(tmp_path / "run", writes=False)
    assert not (tmp_path / "run").exists()
    RunFolder.create(tmp_path / "run", resume=False).append_metrics(1, {})
    before = sorted(tmp_path.rglob("*"))
    silent.write_config({"a": 1}, data_hash="x", seed=0)
    silent.append_metrics(2, {"loss": 1.0})
    silent.append_timings(2, {"seconds": 1.0})
    silent.write_traces([row(2)], 2)
    silent.write_held_out([held_out_row(2)])
    silent.sync()
    silent.cut_back(0)
    assert sorted(tmp_path.rglob("*")) == before
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1]


# ---- config.yaml --------------------------------------------------------------------------------


def test_config(run):
    run.write_config(
        {"learning_rate": 2e-6, "num_generations": 8, "preset": "nrt-ws", "think_open": "<think>"},
        data_hash="sha256:abc",
        seed=42,
        machine={"threads": 4},
    )
    page = read_config(run.path)
    assert page["config"]["learning_rate"] == 2e-6
    assert page["config"]["think_open"] == "<think>"
    assert (page["data_hash"], page["seed"]) == ("sha256:abc", 42)
    assert page["machine"] == {"threads": 4}
    assert page["versions"]["torch"] == torch.__version__
    text = (run.path / "config.yaml").read_text()
    keys = [line.split(":")[0] for line in text.splitlines() if line[0].isalpha()]
    assert keys == sorted(keys) == sorted(page)


def test_no_planted_secret_anywhere_in_the_folder(run, monkeypatch):
    secret = "hf_PlantedPlantedPlanted123"
    monkeypatch.setattr("sys.argv", ["nrt", "train", "--hub_token", secret])
    run.write_config(
        {
            "hub_token": secret,
            "max_tokens": 5,
            "nested": [{"wandb": {"WANDB_API_KEY": "planted-two"}}],
            "note": f"used {secret}",
            "url": "https://me:planted-three@example.org/x",
            "kwargs": {"token": "planted-four", "dtype": "auto"},
        },
        data_hash=None,
        seed=0,
        env={"password": "planted-five"},
    )
    run.append_metrics(1, {"loss": 0.5})
    run.write_traces([row(1)], 1)
    for path in filter(os.path.isfile, run.path.rglob("*")):
        data = path.read_bytes().lower()
        assert b"planted" not in data, path
        assert b"hub_token:" not in data
    assert read_config(run.path)["config"]["max_tokens"] == 5


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("ab \n:#é-{"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz_1"), inner, max_size=3)
    ),
    max_leaves=10,
)


@same_folder
@given(st.dictionaries(st.text("xyz_1"), yaml_values))
def test_config_comes_back(run, config):
    run.write_config(config, data_hash=None, seed=0)
    assert read_config(run.path)["config"] == config


@same_folder
@given(any_text)
def test_config_of_any_text_is_yaml(run, text):
    run.write_config({"name": text}, data_hash=None, seed=0)
    assert isinstance(read_config(run.path)["config"]["name"], str)
    yaml.safe_load((run.path / "config.yaml").read_bytes())


# ---- lines --------------------------------------------------------------------------------------


def test_metrics_lines(run):
    run.append_metrics(1, {"loss": 0.1, "count": np.int64(3), "reward": np.float32(0.5)})
    run.append_metrics(2, {"loss": float("nan"), "grad": torch.tensor(math.inf), "ok": True})
    run.append_metrics(3, {"loss": None, "note": "é\ud800\n", "half": np.float64(0.5)})
    run.append_timings(3, {"seconds": 2.5})
    lines = (run.path / "metrics.jsonl").read_text("ascii").splitlines()
    assert lines[0] == '{"step": 1, "loss": 0.1, "count": 3, "reward": 0.5}'
    assert (
        lines[1]
        == '{"step": 2, "loss": null, "grad": null, "ok": true, "non_finite": ["loss", "grad"]}'
    )
    assert read_metrics(run.path)[2] == {"step": 3, "loss": None, "note": "é\ud800\n", "half": 0.5}
    assert read_timings(run.path) == [{"step": 3, "seconds": 2.5}]
    run.sync()


@given(st.floats(allow_nan=False, allow_infinity=False))
@same_folder
def test_a_float_comes_back_bit_for_bit(run, value):
    run.append_metrics(7, {"x": value})
    assert repr(read_metrics(run.path)[-1]["x"]) == repr(value)


@pytest.mark.parametrize("name", ["step", "non_finite"])
def test_names_that_are_ours(run, name):
    with pytest.raises(AssertionError):
        run.append_metrics(1, {name: 1})


def test_nothing_yet(run):
    assert read_metrics(run.path) == read_timings(run.path) == []
    assert read_traces(run.path).equals(TRACE_SCHEMA.empty_table())
    assert read_held_out(run.path).equals(HELD_OUT_SCHEMA.empty_table())
    run.write_traces([], 5)
    run.sync()
    run.cut_back(0)
    assert list(run.path.iterdir()) == []


@pytest.mark.parametrize("half", [b'{"step": 3, "lo', b"\0" * 500, b"[]", b'{"loss": 1}', b"\xff"])
def test_half_a_last_line_is_dropped(run, half):
    for step in (1, 2):
        run.append_metrics(step, {"loss": step / 10})
    whole = (run.path / "metrics.jsonl").read_bytes()
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(half)
    assert [line["step"] for line in read_metrics(run.path)] == [1, 2]
    run.cut_back(2)
    assert (run.path / "metrics.jsonl").read_bytes() == whole
    run.append_metrics(3, {"loss": 0.3})
    assert [line["step"] for line in read_metrics(run.path)] == [1, 2, 3]


def test_every_cut_of_a_killed_writer_is_read(run):
    for step in (1, 2):
        run.append_metrics(step, {"loss": step / 10})
    whole = (run.path / "metrics.jsonl").read_bytes()
    first = whole.index(b"\n")
    for end in range(len(whole) + 1):
        (run.path / "metrics.jsonl").write_bytes(whole[:end])
        steps = [line["step"] for line in read_metrics(run.path)]
        assert steps == [1, 2][: (end >= first) + (end >= len(whole) - 1)]
        run.cut_back(9)
        run.append_metrics(5, {})
        assert [line["step"] for line in read_metrics(run.path)] == [*steps, 5]


def test_a_damaged_line_in_the_middle_is_said(run):
    (run.path / "metrics.jsonl").write_text('{"step": 1}\noops\n{"step": 2}\n')
    with pytest.raises(RunError, match="line 2"):
        read_metrics(run.path)
    with pytest.raises(RunError, match="line 2"):
        run.cut_back(1)
    assert "oops" in (run.path / "metrics.jsonl").read_text()


# ---- traces -------------------------------------------------------------------------------------


def test_traces_come_back(run):
    late = row(3, closed=False, reward=math.nan, answer_logps=[])
    run.write_traces([row(2, k=1), row(1), late], 10)
    run.write_traces([], 10)  # nothing written
    run.write_traces([row(11)], 20)
    assert trace_files(run.path) == ["step-000001-000010.parquet", "step-000011-000020.parquet"]
    table = read_traces(run.path)
    assert table.schema.equals(TRACE_SCHEMA)
    assert table["step"].to_pylist() == [1, 2, 3, 11]
    rows = table.to_pylist()
    lists = ("answer_logps", "baseline_logps", "answer_tokens")
    assert TraceRow(**{**rows[1], **{name: tuple(rows[1][name]) for name in lists}}) == row(2, k=1)
    assert math.isnan(rows[2]["reward"])
    assert not rows[2]["closed"]
    assert rows[2]["answer_logps"] == []


def test_columns_and_their_types():
    found = {field.name: str(field.type) for field in TRACE_SCHEMA}
    assert found["reward"] == found["advantage"] == found["baseline_reward"] == "float"
    assert found["answer_logps"].startswith("list<") and "float" in found["answer_logps"]
    assert found["answer_tokens"].startswith("list<") and "string" in found["answer_tokens"]
    assert list(found) == [field.name for field in dataclasses.fields(TraceRow)]


@same_folder
@given(any_text, any_text, any_text)
def test_any_text_can_be_stored(tmp_path_factory, prompt, trace, token):
    run = RunFolder.create(tmp_path_factory.mktemp("run"), resume=False)
    run.write_traces([row(1, prompt=prompt, trace=trace, answer_tokens=[token])], 1)
    told = read_traces(run.path).to_pylist()[0]
    assert told["prompt"] == prompt.encode("utf-8", "replace").decode()
    assert told["trace"] == trace.encode("utf-8", "replace").decode()
    assert told["answer_tokens"] == [token.encode("utf-8", "replace").decode()]


def test_text_that_is_text_is_kept_as_it_is(run):
    text = "naïve \0 \x1b[31m \ufffd 思考 🙂 </think>\r\n"
    run.write_traces([row(1, trace=text), row(1, trace="a\udc80b")], 1)
    assert read_traces(run.path)["trace"].to_pylist() == [text, "a?b"]


def test_step_order_beyond_six_digits(run):
    for step in (999_999, 1_000_000, 2_000_000, 10_000_000):
        run.write_traces([row(step)], step)
    assert steps_of(run.path) == [999_999, 1_000_000, 2_000_000, 10_000_000]


def test_rows_outside_the_range_are_our_mistake(run):
    with pytest.raises(AssertionError):
        run.write_traces([row(11)], 10)
    run.write_traces([row(11)], 11)
    with pytest.raises(AssertionError):  # it would overwrite the file of step 11
        run.write_traces([row(11)], 11)


def test_a_damaged_traces_file_is_said(run):
    run.write_traces([row(1, trace="x" * 5000)], 1)
    file = run.path / "traces" / "step-000001-000001.parquet"
    whole = file.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(RunError, match="cannot be read as traces"):
            read_traces(run.path)
    pq.write_table(pa.table({"other": [1]}), file)
    with pytest.raises(RunError, match="cannot be read as traces"):
        read_traces(run.path)


# ---- evaluations --------------------------------------------------------------------------------


def test_evaluations_come_back(run):
    run.write_held_out([held_out_row(50, row_id=3, k=0), held_out_row(50, row_id=3, k=1)])
    run.write_held_out([held_out_row(0, row_id=8)])
    run.write_held_out([held_out_row(1_000_000), held_out_row(1_000_000, row_id=4)])
    names = ["step-000000.parquet", "step-000050.parquet", "step-1000000.parquet"]
    assert trace_files(run.path, "evaluations") == names
    table = read_held_out(run.path)
    assert table["step"].to_pylist() == [0, 50, 50, 1_000_000, 1_000_000]
    assert table["row_id"].to_pylist() == [8, 3, 3, 3, 4]
    told = table.to_pylist()[2]
    lists = ("answer_logps", "baseline_logps", "answer_tokens")
    told |= {name: tuple(told[name]) for name in lists}
    assert HeldOutRow(**told) == held_out_row(50, k=1)
    run.write_held_out([held_out_row(50, trace="later")])
    assert read_held_out(run.path)["trace"].to_pylist()[1] == "later"
    assert read_held_out(run.path).num_rows == 4


def test_columns_of_evaluations_and_their_types():
    assert [(field.name, str(field.type)) for field in HELD_OUT_SCHEMA] == [
        ("step", "int64"),
        ("row_id", "int64"),
        ("k", "int64"),
        ("prompt", "string"),
        ("trace", "string"),
        ("answer", "string"),
        ("sampled_answer", "string"),
        ("answer_no_think", "string"),
        ("closed", "bool"),
        ("length", "int64"),
        ("correct", "float"),
        ("correct_no_think", "float"),
        ("answer_logps", str(pa.list_(pa.float32()))),
        ("baseline_logps", str(pa.list_(pa.float32()))),
        ("answer_tokens", str(pa.list_(pa.string()))),
    ]


def test_an_evaluation_is_of_one_step(run):
    with pytest.raises(ValueError, match="unpack"):
        run.write_held_out([held_out_row(1), held_out_row(2)])


@same_folder
@given(any_text, any_text, any_text)
def test_any_text_of_an_evaluation_can_be_stored(tmp_path_factory, prompt, answer, token):
    run = RunFolder.create(tmp_path_factory.mktemp("run"), resume=False)
    texts = {"prompt": prompt, "answer_no_think": answer, "trace": "\0\x1b[31m\ud800"}
    run.write_held_out([held_out_row(1, **texts, answer_tokens=(token, "\udc80"))])
    told = read_held_out(run.path).to_pylist()[0]
    assert told["prompt"] == prompt.encode("utf-8", "replace").decode()
    assert told["answer_no_think"] == answer.encode("utf-8", "replace").decode()
    assert told["trace"] == "\0\x1b[31m?"
    assert told["answer_tokens"] == [token.encode("utf-8", "replace").decode(), "?"]


def test_a_damaged_evaluation_is_said(run):
    run.write_held_out([held_out_row(1, trace="x" * 5000)])
    file = run.path / "evaluations" / "step-000001.parquet"
    whole = file.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(RunError, match="cannot be read as evaluations"):
            read_held_out(run.path)
    pq.write_table(pa.table({"other": [1]}), file)
    with pytest.raises(RunError, match="cannot be read as evaluations"):
        read_held_out(run.path)


def test_a_killed_evaluation_leaves_the_one_before(run, monkeypatch):
    run.write_held_out([held_out_row(5)])
    with monkeypatch.context() as patch:
        patch.setattr(records.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.write_held_out([held_out_row(5, trace="never")])
    assert read_held_out(run.path)["trace"].to_pylist() == ["two and two"]
    run.cut_back(5)
    assert trace_files(run.path, "evaluations") == ["step-000005.parquet"]  # without the .tmp


def test_cut_back_forgets_later_evaluations(run):
    for step in (0, 5, 10):
        run.write_held_out([held_out_row(step)])
    (run.path / "evaluations" / "step-000010.parquet").write_bytes(b"damaged")
    (run.path / "evaluations" / "mine.parquet").write_bytes(b"not ours")
    before = contents(run.path)
    run.cut_back(10)
    assert contents(run.path) == before
    run.cut_back(9)
    kept = ["mine.parquet", "step-000000.parquet", "step-000005.parquet"]
    assert trace_files(run.path, "evaluations") == kept
    run.cut_back(0)
    assert trace_files(run.path, "evaluations") == kept[:2]
    run.write_held_out([held_out_row(5)])
    assert (
        contents(run.path)["evaluations/step-000005.parquet"]
        == before["evaluations/step-000005.parquet"]
    )


# ---- cut_back -----------------------------------------------------------------------------------


def write_steps(run: RunFolder, steps: range, flush_every: int) -> None:
    rows: list[TraceRow] = []
    for step in steps:
        run.append_metrics(step, {"loss": 1 / step})
        run.append_timings(step, {"seconds": 0.5})
        rows += [row(step, k=0), row(step, k=1)]
        if step % flush_every == 0:
            run.write_traces(rows, step)
            rows = []


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("step", [0, 1, 4, 5, 7, 10, 12])
def test_cut_back_then_going_on_equals_never_having_stopped(tmp_path, step):
    whole = RunFolder.create(tmp_path / "whole", resume=False)
    write_steps(whole, range(1, 13), 4)
    killed = RunFolder.create(tmp_path / "killed", resume=False)
    write_steps(killed, range(1, 13), 5)
    for name in ("metrics.jsonl.tmp", "traces/step-000011-000012.parquet.tmp"):
        (killed.path / name).write_bytes(b"half")
    resumed = RunFolder.create(tmp_path / "killed", resume=True)
    resumed.cut_back(step)
    assert [line["step"] for line in read_metrics(killed.path)] == list(range(1, step + 1))
    assert set(steps_of(killed.path)) == set(range(1, min(step, 10) + 1))
    first = min(step, 10) + 1
    resumed.cut_back(first - 1)  # step 11 and 12 were never flushed: as after a checkpoint at 10
    write_steps(resumed, range(first, 13), 4)
    assert not list(killed.path.rglob("*.tmp"))
    assert read_traces(killed.path).combine_chunks() == read_traces(whole.path).combine_chunks()
    for name in ("metrics.jsonl", "timings.jsonl"):
        assert (killed.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_cut_back_rewrites_only_the_file_that_straddles(run):
    write_steps(run, range(1, 16), 5)
    before = contents(run.path)
    run.cut_back(7)
    after = contents(run.path)
    assert trace_files(run.path) == ["step-000001-000005.parquet", "step-000006-000007.parquet"]
    assert after["traces/step-000001-000005.parquet"] == before["traces/step-000001-000005.parquet"]
    run.cut_back(7)
    assert contents(run.path) == after  # twice is once
    run.write_traces([row(8)], 8)
    assert steps_of(run.path) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]


def test_cut_back_of_a_sampled_range_that_says_nothing(run):
    run.write_traces([row(6), row(9)], 10)
    (run.path / "traces" / "mine.parquet").write_bytes(b"not ours")
    (run.path / "checkpoint-9.tmp").mkdir()
    run.cut_back(8)
    assert trace_files(run.path) == ["mine.parquet", "step-000006-000008.parquet"]
    run.cut_back(3)
    assert trace_files(run.path) == ["mine.parquet"]
    assert (run.path / "checkpoint-9.tmp").is_dir()  # folders are the trainer's


def test_cut_back_killed_between_writing_and_removing(run, monkeypatch):
    write_steps(run, range(1, 11), 10)
    with monkeypatch.context() as patch:
        patch.setattr(records.Path, "unlink", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.cut_back(4)
    RunFolder.create(run.path, resume=True).cut_back(4)
    assert trace_files(run.path) == ["step-000001-000004.parquet"]
    assert steps_of(run.path) == [1, 1, 2, 2, 3, 3, 4, 4]


# ---- whole files --------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "page"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(records.os, call, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["page"]


def test_lines_are_json_for_any_reader(run):
    write_steps(run, range(1, 4), 2)
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        assert next(iter(json.loads(line))) == "step"
