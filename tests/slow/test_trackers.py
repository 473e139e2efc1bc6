"""Numbers and traces of a run in TensorBoard, W&B (offline) and trackio, read back from what the
real packages wrote: two ranks train, are skipped an update, and go on from a checkpoint."""

import json
import math
import os
import sqlite3
import struct
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from cli_helpers import SMALL, SOURCE, sums, write_rows
from launch import TESTS, free_port
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.records.folder import TraceRow, read_metrics, read_traces
from native_reasoning.records.progress import (
    CHARACTERS,
    COLUMNS,
    QUESTIONS,
    TRACES,
    TraceTables,
    cell_text,
    table,
)
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model
from tracker_worker import HOSTILE

HERE = [
    name
    for name in ("tensorboard", "trackio", "wandb")
    if (found := find_spec(name)) is not None and found.origin
]
tensorboard, trackio, wandb = (
    pytest.mark.skipif(name not in HERE, reason=f"{name} is not installed: pip install {name}")
    for name in ("tensorboard", "trackio", "wandb")
)


def surroundings(folder: Path) -> dict[str, str]:
    """The environment of a run that reports to places under ``folder``, without a network."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "TRACKIO"))}
    return kept | {
        "PYTHONPATH": f"{SOURCE}{os.pathsep}{TESTS}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder),
        "TRACKIO_DIR": str(folder / "trackio"),
        "WANDB_DIR": str(folder),
        "WANDB_MODE": "offline",
        "WANDB_CONSOLE": "off",
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """What two ranks left that reported to every tracker that is installed."""
    if not HERE:
        pytest.skip("no tracker is installed: pip install tensorboard wandb trackio")
    folder = tmp_path_factory.mktemp("tracked")
    command = [sys.executable, str(TESTS / "tracker_worker.py"), str(folder), ",".join(HERE)]
    base = surroundings(folder) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            command,
            env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate()
        assert rank.returncode == 0, errors
    return folder


# -- Reading back ---------------------------------------------------------------------------------


def tensorboard_runs(folder: Path) -> list:
    """One accumulator per event file."""
    module = import_module("tensorboard.backend.event_processing.event_accumulator")
    found = [
        module.EventAccumulator(str(file), size_guidance={module.TENSORS: 0, module.SCALARS: 0})
        for file in sorted(folder.rglob("events.out.tfevents*"))
    ]
    return [accumulator.Reload() for accumulator in found]


def wandb_history(folder: Path) -> list[dict]:
    """The logged lines of the one offline run: blocks of 32 KiB with records of a length and a kind
    (1: whole, 2: first, 3: middle, 4: last part), each a protobuf message."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    record = import_module("wandb.proto.wandb_internal_pb2").Record
    data, at, part, lines = file.read_bytes(), 7, b"", []
    while at < len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            found, part = record.FromString(part), b""
            items = {i.key or "/".join(i.nested_key): i.value_json for i in found.history.item}
            lines += [{name: json.loads(value) for name, value in items.items()}] if items else []
    return lines


def trackio_runs(folder: Path) -> dict[str, list[dict]]:
    """Run -> its logged lines."""
    runs: dict[str, list[dict]] = {}
    with sqlite3.connect(folder / "trackio" / "huggingface.db") as connection:
        rows = connection.execute("select run_id, metrics from metrics order by id")
        for name, line in rows:
            runs.setdefault(name, []).append(json.loads(line))
    connection.close()
    return runs


def named(line: dict) -> dict[str, float]:
    """A line of metrics.jsonl as trackers have it."""
    numbers = {name: value for name, value in line.items() if name not in ("step", "non_finite")}
    return {
        name.replace("eval_", "eval/", 1) if name.startswith("eval_") else f"train/{name}": (
            math.nan if value is None else value
        )
        for name, value in numbers.items()
    }


def check_lines(run: Path, lines: list[dict]) -> None:
    """Each line of metrics.jsonl was logged by its names, in order, at its step."""
    written = read_metrics(run / "run")
    assert [line["step"] for line in written] == [0, 1, 2, 2, 3, 4, 4, 4][-len(written) :]
    assert written[0]["non_finite"] == ["loss"]
    logged = [line for line in lines if {"train/uplift", "eval/uplift"} & set(line)]
    assert len(logged) == len(written)
    for line, expected in zip(logged, map(named, written), strict=True):
        assert {n: float(line[n]) for n in expected} == pytest.approx(expected, nan_ok=True)
    assert [line["train/global_step"] for line in logged] == [line["step"] for line in written]


def check_traces(run: Path, step: int, cells: list[list]) -> None:
    """A table has the traces of rank 0 at this step, three questions with two each."""
    assert [row[0] for row in cells] == [step] * 6
    assert [row[2] for row in cells[: len(HOSTILE)]] == [cell_text(text) for text in HOSTILE]
    recorded = {
        (row["prompt"], row["reward"]): row
        for row in read_traces(run / "run").to_pylist()
        if row["step"] == step
    }
    for _, question, _, reference, reward, advantage, uplift, length, closed in cells:
        row = next(
            r for (q, f), r in recorded.items() if q == question and f == pytest.approx(reward)
        )
        gains = [a - b for a, b in zip(row["answer_logps"], row["baseline_logps"], strict=True)]
        assert (reference, length, closed) == (row["answer"], row["length"], row["closed"])
        assert advantage == pytest.approx(row["advantage"], abs=1e-5)
        assert uplift == pytest.approx(sum(gains) / len(gains), abs=1e-5)


@wandb
def test_wandb_has_every_number_and_the_traces(run):
    lines = wandb_history(run)
    check_lines(run, lines)
    tables = [line for line in lines if line.get("traces/_type") == "table-file"]
    assert [line["train/global_step"] for line in tables] == [1, 3]
    (folder,) = run.glob("wandb/offline-run-*/files")
    for line in tables:
        found = json.loads((folder / line["traces/path"]).read_text("utf-8"))
        assert found["columns"] == list(COLUMNS)
        check_traces(run, line["train/global_step"], found["data"])


@trackio
def test_trackio_has_every_number_and_the_traces(run):
    runs = trackio_runs(run)
    assert len(runs) == 2  # the one that was stopped, and the one that went on, with its evaluation
    lines = [line for name in runs for line in runs[name]]
    check_lines(run, lines)
    tables = [line for line in lines if "traces" in line]
    assert [line["train/global_step"] for line in tables] == [1, 3]
    for line in tables:
        assert line["traces"]["_type"] == "trackio.table"
        rows = line["traces"]["_value"]
        assert {tuple(row) for row in rows} == {COLUMNS}
        check_traces(run, line["train/global_step"], [list(row.values()) for row in rows])


@tensorboard
def test_tensorboard_has_every_number(run):
    files = tensorboard_runs(run)
    events: dict[str, list[tuple[int, float]]] = {}
    for file in files:
        for tag in file.Tags()["scalars"]:
            events.setdefault(tag, []).extend((e.step, e.value) for e in file.Scalars(tag))
    wanted: dict[str, list[tuple[int, float]]] = {}
    for line in read_metrics(run / "run"):
        for name, value in named(line).items():
            wanted.setdefault(name, []).append((line["step"], value))
    del wanted["train/epoch"]  # transformers logs it once more with the whole run's time
    for name, pairs in wanted.items():
        steps, values = zip(*pairs, strict=True)
        seen, found = zip(*sorted(events[name], key=lambda pair: pair[0]), strict=True)
        assert seen == steps
        assert found == pytest.approx(values, rel=1e-5, abs=1e-6, nan_ok=True), name
    assert not any("traces/text_summary" in file.Tags()["tensors"] for file in files)


# -- The table -------------------------------------------------------------------------------------


def row(question: int = 0, k: int = 0, **changes) -> TraceRow:
    values = {
        "step": 1, "row_id": question, "k": k, "prompt": f"q{question}", "trace": f"t{k}",
        "answer": "a", "sampled_answer": "", "closed": True, "ended": False, "length": 3,
        "reward": 0.5, "baseline_reward": 0.25, "advantage": 1.0, "answer_logps": [-1.0, -2.0],
        "baseline_logps": [-2.0, -2.0], "answer_tokens": ["a", "."],
    }  # fmt: skip
    return TraceRow(**{**values, **changes})


def test_a_table_is_of_few_questions_and_few_traces_of_each():
    cells = table([[row(q, k) for k in range(TRACES + 3)] for q in range(QUESTIONS + 2)])
    assert [(c[1], c[2]) for c in cells] == [
        (f"q{q}", f"t{k}") for q in range(QUESTIONS) for k in range(TRACES)
    ]
    assert dict(zip(COLUMNS, cells[0], strict=True)) == {
        "step": 1, "question": "q0", "trace": "t0", "reference": "a", "reward": 0.5,
        "advantage": 1.0, "uplift": 0.5, "length": 3, "closed": True,
    }  # fmt: skip
    assert table([]) == []


def test_cells_are_short_plain_text():
    long = cell_text("x" * 100_000)
    assert long == "x" * CHARACTERS + f" … {100_000 - CHARACTERS} more characters"
    assert cell_text("\x1b[31m\ud800\u202e") == "\\x1b[31m\\ud800\\u202e"


class Log(list):
    """A run log with traces of its own; counts how often it is asked."""

    def newest(self):
        self.append("asked")
        return [[row()]]


def tables_at(monkeypatch, every: int, logged: list[int], begin=0, zero=True) -> list[int]:
    """The steps at which a table is written when these steps are logged."""
    lines: list[dict] = []
    tracker = SimpleNamespace(Table=lambda columns, data: data, log=lines.append)
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    tables = TraceTables(every, ["wandb"], Log().newest)
    state = TrainerState(global_step=begin, is_world_process_zero=zero)
    args = SimpleNamespace(run_name=None)
    tables.on_train_begin(args, state, TrainerControl())
    for state.global_step in logged:
        tables.on_log(args, state, TrainerControl(), logs={"loss": 1.0})
        tables.on_log(args, state, TrainerControl(), logs={"eval_uplift": 1.0})
    assert all(len(line["traces"]) == 1 for line in lines)
    return [line["train/global_step"] for line in lines]


def test_a_table_comes_with_the_first_logged_step_and_then_every_so_often(monkeypatch):
    assert tables_at(monkeypatch, 10, [*range(1, 31)]) == [1, 11, 21]
    assert tables_at(monkeypatch, 10, [*range(5, 31, 5)]) == [5, 15, 25]
    assert tables_at(monkeypatch, 3, [4, 8, 12]) == [4, 8, 12]
    assert tables_at(monkeypatch, 10, [*range(16, 31)], begin=15) == [21]
    assert tables_at(monkeypatch, 0, [*range(1, 31)]) == []
    assert tables_at(monkeypatch, 10, [*range(1, 31)], zero=False) == []


def test_without_a_tracker_nobody_asks_for_traces():
    log = Log()
    tables = TraceTables(1, ["tensorboard"], log.newest)
    state, args = TrainerState(global_step=1), NRTConfig(output_dir="unused", use_cpu=True)
    tables.on_train_begin(args, TrainerState(), TrainerControl())
    tables.on_log(args, state, TrainerControl(), logs={"loss": 1.0})
    assert log == []
    assert args.run_name is None


# -- Settings --------------------------------------------------------------------------------------


def small(folder: Path, **changes) -> NRTConfig:
    values = {
        "output_dir": str(folder), "per_device_train_batch_size": 6, "max_steps": 2,
        "gradient_accumulation_steps": 1, "num_generations": 2, "max_trace_length": 4,
        "max_answer_length": 16, "save_strategy": "no", "use_cpu": True,
    }  # fmt: skip
    return NRTConfig(**{**values, **changes})


@pytest.mark.parametrize(
    "off", [{"report_traces": False}, {"record_traces": False}, {"diagnostics_steps": 0}]
)
def test_traces_stay_at_home_where_they_shall(off, tmp_path):
    trainer = NRTTrainer(tiny_model(), small(tmp_path, **off), QA, None, byte_tokenizer())
    trainer.train()
    (tables,) = (c for c in trainer.recorder.callbacks if isinstance(c, TraceTables))
    assert tables.every == 0 or trainer.recorder.newest() == []


@trackio
def test_a_tracker_changes_no_number_and_has_the_rows_of_several_updates(tmp_path):
    """Where a step trains on traces of an earlier one, the table has those."""
    code = """
import sys
from test_trackers import *
settings = {"diagnostics_steps": 3, "num_iterations": 2, "max_steps": 4}
for name, report_to in (("with", "trackio"), ("without", "none")):
    args = small(Path(sys.argv[1]) / name, report_to=report_to, **settings)
    NRTTrainer(tiny_model(), args, QA, None, byte_tokenizer()).train()
"""
    env = surroundings(tmp_path)
    env["PYTHONPATH"] += f"{os.pathsep}{Path(__file__).parent}"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "with") == read_metrics(tmp_path / "without")
    (lines,) = trackio_runs(tmp_path).values()
    tables = [line for line in lines if "traces" in line]
    assert [line["train/global_step"] for line in tables] == [1, 4]
    assert [line["traces"]["_value"][0]["step"] for line in tables] == [1, 3]
    assert [len(line["traces"]["_value"]) for line in tables] == [QUESTIONS * 2] * 2


def test_trackers_are_none_one_or_several(tmp_path):
    for given in ("none", None, [], ["none"], ""):
        assert small(tmp_path, report_to=given).report_to == []
    for name in HERE:
        assert small(tmp_path, report_to=name).report_to == [name]
    assert small(tmp_path, report_to=", ".join(HERE)).report_to == HERE
    assert small(tmp_path).report_to == []


def test_trackers_get_the_settings_without_secrets(tmp_path):
    kwargs = {"token": "hf_plantedInTheArguments01", "dtype": torch.float32}
    args = small(tmp_path, model_init_kwargs=kwargs, hub_token="hf_plantedInTheArguments02")
    told = args.to_json_string()  # what transformers hands to TensorBoard
    assert "planted" not in told
    assert json.loads(told)["model_init_kwargs"] == {"dtype": "float32"}
    assert args.model_init_kwargs["token"] == kwargs["token"]


# -- The command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[str, str, str]:
    """A model folder, data and held-out questions."""
    folder = tmp_path_factory.mktemp("given")
    tiny_model().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    data, held_out = (write_rows(folder / f"{n}.jsonl", sums(*n)) for n in ((0, 3), (5, 6)))
    return str(folder / "model"), data, held_out


def command(given, out: Path, trackers: str) -> list[str]:
    model, data, held_out = given
    names = ["--model", model, "--data", data, "--eval-data", held_out, "--out", str(out)]
    return ["train", *names, *SMALL, "--json", "--report_to", trackers]


@pytest.mark.skipif(not HERE, reason="no tracker is installed: pip install tensorboard")
def test_the_result_of_the_command_is_the_last_line_of_stdout(given, tmp_path):
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "native_reasoning.cli", *command(given, out, ",".join(HERE))],
        cwd=tmp_path,
        env=surroundings(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("[INFO]")]
    assert len(lines) == 1  # transformers says [INFO] of WANDB_MODE=offline when it is imported
    assert json.loads(lines[0])["steps"] == 2
    if "trackio" in HERE:
        (logged,) = trackio_runs(tmp_path).values()  # the last evaluation is the same run's
        assert [line["train/global_step"] for line in logged if "eval/uplift" in line] == [0, 2]
    if "wandb" in HERE:
        logged = wandb_history(tmp_path)
        assert [line["train/global_step"] for line in logged if "eval/uplift" in line] == [0, 2]


@wandb
def test_a_tracker_that_refuses_the_run_is_told_in_three_lines(given, tmp_path):
    env = surroundings(tmp_path) | {"WANDB_MODE": "online"}
    done = subprocess.run(
        [sys.executable, "-m", "native_reasoning.cli", *command(given, tmp_path / "run", "wandb")],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    told = done.stderr.splitlines()[-3:]
    assert told[0].startswith("error: wandb: No API key"), done.stderr
    assert [line[:7] for line in told[1:]] == ["  why: ", "  fix: "]
