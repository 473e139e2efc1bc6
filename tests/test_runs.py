"""A run folder as tables, whole and in pieces."""

import json
import shutil

import numpy as np
import pytest

from native_reasoning import load_run
from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.records.folder import HELD_OUT_SCHEMA, read_held_out, read_traces
from native_reasoning.report.runs import NO_TRACES
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    args = NRTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_generations=2,
        max_trace_length=4,
        max_answer_length=16,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        eval_samples=2,
        eval_num_generations=2,
        eval_on_start=True,
        save_strategy="no",
        use_cpu=True,
    )
    NRTTrainer(tiny_model(), args, QA, QA[:2], byte_tokenizer()).train()
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_tables_of_a_run(run):
    found = load_run(run)
    assert found.problems == ()
    assert list(found.metrics.index) == [1, 2, 3]
    assert found.metrics["uplift"].notna().all()
    assert list(found.evaluations.index) == [0, 3]
    assert "eval_accuracy" in found.evaluations
    assert "eval_accuracy" not in found.metrics
    assert found.timings["step_seconds"].gt(0).sum() == 3
    assert found.traces.num_rows == 3 * 2 * 2
    assert found.config["config"]["max_steps"] == 3
    assert found.quarantine.empty


def test_evaluations_of_other_questions_are_not_those_of_the_run(run):
    before = load_run(run)
    other = {"step": 3, "eval_accuracy": 1.0, "eval_other_data": 1.0}
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(other) + "\n")
    assert load_run(run).evaluations.equals(before.evaluations)


def test_a_row_for_each_token(run):
    found = load_run(run)
    tokens = found.tokens()
    rows = found.traces.to_pylist()
    assert len(tokens) == sum(len(row["answer_tokens"]) for row in rows)
    row = rows[5]
    mine = tokens[(tokens.step == row["step"]) & (tokens.row_id == row["row_id"])]
    mine = mine[mine.k == row["k"]]
    assert list(mine.token) == row["answer_tokens"]
    assert list(mine.place) == list(range(len(mine)))
    expected = np.array(row["answer_logps"]) - np.array(row["baseline_logps"])
    assert np.allclose(mine.uplift, expected, atol=1e-6)


def test_uplift_is_that_of_the_metrics(run):
    found = load_run(run)
    per_question = found.tokens(last=1).groupby("row_id")["uplift"].mean()
    assert len(per_question) == 2  # questions of the last step
    # the metric averages traces, each over its own answer; both questions have as many traces
    assert per_question.mean() == pytest.approx(found.metrics["uplift"].loc[3], abs=1e-5)
    tokens = found.tokens()
    interval = found.uplift()
    assert interval.low <= interval.mean <= interval.high
    assert interval.n == tokens["row_id"].nunique()
    assert found.uplift().mean == pytest.approx(
        tokens.groupby("row_id")["uplift"].mean().mean(), abs=1e-6
    )


def test_held_out_questions_before_and_after(run):
    found = load_run(run)
    assert found.held_out.equals(read_held_out(run))
    rows = found.held_out.to_pandas()
    assert list(rows["step"]) == [0] * 4 + [3] * 4
    before, after = (rows[rows["step"] == step].reset_index() for step in (0, 3))
    for name in ("row_id", "k", "prompt", "answer"):
        assert list(before[name]) == list(after[name])
    assert not before["answer_logps"].map(list).equals(after["answer_logps"].map(list))
    for told, logged in ((before, 0), (after, 3)):
        gain = [np.mean(l - b) for l, b in zip(told.answer_logps, told.baseline_logps, strict=True)]
        measured = found.evaluations.loc[logged]
        assert np.mean(gain) == pytest.approx(measured["eval_uplift"], abs=1e-5)
        assert told["correct"].mean() == pytest.approx(measured["eval_accuracy"])
        first = told[told["k"] == 0]
        assert first["correct_no_think"].mean() == measured["eval_accuracy_no_think"]
        assert told["length"].mean() == pytest.approx(measured["eval_trace_length"])


def test_a_damaged_evaluation_is_told_and_the_others_are_there(run):
    (run / "evaluations" / "step-000000.parquet").write_bytes(b"harm")
    found = load_run(run)
    (problem,) = found.problems
    assert "step-000000.parquet cannot be read as evaluations" in problem
    assert set(found.held_out["step"].to_pylist()) == {3}


def test_a_run_without_evaluations_has_no_problem(run):
    shutil.rmtree(run / "evaluations")
    found = load_run(run)
    assert found.problems == ()
    assert found.held_out.equals(HELD_OUT_SCHEMA.empty_table())


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        load_run(tmp_path)
    with pytest.raises(RunError, match="holds no run"):
        load_run(tmp_path / "nowhere")


def test_what_is_missing_is_told_and_the_rest_is_there(run):
    shutil.rmtree(run / "traces")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "upl')
    found = load_run(run)
    assert found.problems == (NO_TRACES,)
    assert list(found.metrics.index) == [1, 2, 3]
    assert found.uplift() is None
    assert found.tokens().empty


def test_damaged_files_do_not_hide_the_others(run):
    (run / "config.yaml").write_text("- 1\n")
    next((run / "traces").iterdir()).write_bytes(b"harm")
    text = (run / "timings.jsonl").read_text()
    (run / "timings.jsonl").write_text("[]\n" + text)
    found = load_run(run)
    assert len(found.problems) == 3
    assert all(
        any(name in problem for problem in found.problems)
        for name in ("config.yaml", "traces", "timings.jsonl")
    )
    assert list(found.metrics.index) == [1, 2, 3]
    assert found.timings.empty


def test_a_run_that_has_only_just_begun(run):
    for name in ("metrics.jsonl", "timings.jsonl"):
        (run / name).unlink()
    shutil.rmtree(run / "traces")
    found = load_run(run)
    assert found.problems == ("no step has been logged yet", NO_TRACES)
    assert found.metrics.empty
    assert found.evaluations.empty


def test_traces_that_are_no_text_stay_what_they_are(run):
    """Whatever a model wrote comes back as it was."""
    table = read_traces(run)
    assert load_run(run).traces.equals(table)
    assert json.dumps(table.to_pylist())


def test_a_column_is_numbers_by_step(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "uplift": 7.5}\n{"step": 4, "uplift": null}\n')
    found = load_run(run)
    values = found.column("uplift")
    assert list(values.index) == [1, 2, 3]
    assert values.loc[3] == 7.5  # logged twice: the last one
    without = found.column("answer_logp_no_think")
    logp, uplift = (found.metrics[name].iloc[0] for name in ("answer_logp", "uplift"))
    assert without.loc[1] == pytest.approx(logp - uplift)
    assert list(found.column("eval_uplift").index) == [0, 3]
    assert found.column("none").empty
