"""What evaluations leave in the run folder: the outcomes, of the run's own questions alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from native_reasoning import load_run
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.evaluation import held_out
from native_reasoning.evaluation.held_out import held_out_rows, summarise
from native_reasoning.records.folder import read_held_out, read_questions
from native_reasoning.rollout.engine import NoiseKey, Sampling
from native_reasoning.rollout.noise import EVALUATION
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model

HOSTILE = [
    {
        "question": "two \x1b[31m red \x00 \u202e </think> <|im_end|>",
        "answer": "\ufffd \x07 思考 🙂",
    },
    {"question": "is \u0301 a letter?\r\n", "answer": "no\x7f"},
]


def make(folder: Path, questions=QA[:4], **settings) -> NRTTrainer:
    values = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "num_generations": 2,
        "max_trace_length": 6,
        "max_answer_length": 24,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "eval_num_generations": 2,
        "save_strategy": "no",
        "use_cpu": True,
        **settings,
    }
    args = NRTConfig(output_dir=str(folder), **values)
    return NRTTrainer(tiny_model(), args, QA, questions, byte_tokenizer())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("evaluations/*"))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps that has evaluated itself before, in between and after."""
    trainer = make(
        tmp_path_factory.mktemp("run") / "run",
        eval_on_start=True,
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    return trainer


def test_the_entropy_of_traces_is_that_of_a_plain_forward(trained):
    args, engine = trained.args, trained.forwards.engine
    sampling = Sampling(2, args.max_trace_length, args.temperature)
    groups = trained.eval_groups
    outcomes = trained.evaluator.outcomes(groups)
    means = []
    for group, outcome in zip(groups, outcomes, strict=True):
        (traces,) = engine.rollout([group], sampling, NoiseKey(args.seed, 0, EVALUATION))
        total, count = 0.0, 0
        for ids, end in traces.stops():
            z = [*ids, *([] if end is None else [end])]
            with torch.no_grad():
                logits = trained.model(torch.tensor([[*group.prompt_ids, *z]])).logits[0]
            logps = logits[:, : trained.template.vocabulary].log_softmax(-1)
            at = range(len(group.prompt_ids) - 1, len(logits) - 1)
            total -= sum(float(logps[i, t]) for i, t in zip(at, z, strict=True))
            count += len(z)
        means.append(total / count)
        assert total == pytest.approx(-sum(outcome.trace_logps), rel=1e-4)
    assert summarise(outcomes)["trace_entropy"] == pytest.approx(np.mean(means), rel=1e-4)


def test_pass_at_k_is_the_share_of_questions_with_a_right_answer_among_k(trained):
    one, *rest = trained.evaluator.outcomes(trained.eval_groups)
    wrong = [replace(o, answers=("no", "no"), reference="7") for o in rest]
    half = replace(one, answers=("no", "7"), reference="7")
    found = summarise([half, *wrong])
    assert (found["pass_at_k"], found["accuracy"]) == (1 / 4, 1 / 8)
    assert found["pass_at_k_low"] == 0


def test_rows_are_what_the_outcomes_say(trained):
    rows = read_held_out(trained.folder).to_pylist()
    assert [row["step"] for row in rows] == [0] * 8 + [1] * 8 + [2] * 8
    outcomes = trained.evaluator.outcomes(trained.eval_groups)
    last = iter(row for row in rows if row["step"] == 2)
    for outcome, group in zip(outcomes, trained.eval_groups, strict=True):
        for k in range(2):
            row = next(last)
            assert (row["row_id"], row["k"]) == (outcome.row_id, k)
            assert (row["prompt"], row["answer"]) == (outcome.question, outcome.reference)
            assert (row["trace"], row["closed"]) == (outcome.traces[k], outcome.closed[k])
            assert row["sampled_answer"] == outcome.answers[k]
            assert row["answer_no_think"] == outcome.answer_no_think
            assert row["length"] == outcome.trace_lengths[k]
            assert tuple(row["answer_logps"]) == outcome.answer_logps[k]
            assert tuple(row["baseline_logps"]) == outcome.baseline_logps
            tokens = trained.template.token_texts(group.answer_ids)
            assert tuple(row["answer_tokens"]) == tokens
            assert len(tokens) == len(row["answer_logps"]) == len(row["baseline_logps"])
    assert next(last, None) is None


def test_means_of_the_rows_are_those_of_the_summary(trained):
    rows = read_held_out(trained.folder).to_pandas()
    for step, told in rows.groupby("step"):
        logged = [line for line in metrics(trained.folder) if line["step"] == step]
        (measured,) = (line for line in logged if "eval_uplift" in line)
        l, b = (told[name].map(np.mean) for name in ("answer_logps", "baseline_logps"))
        assert l.mean() == pytest.approx(measured["eval_answer_logp"], abs=1e-5)
        assert b.mean() == pytest.approx(measured["eval_answer_logp_no_think"], abs=1e-5)
        assert (l - b).mean() == pytest.approx(measured["eval_uplift"], abs=1e-5)
        assert told["correct"].mean() == pytest.approx(measured["eval_accuracy"])
        assert told["length"].mean() == pytest.approx(measured["eval_trace_length"])
        assert told["closed"].mean() == pytest.approx(measured["eval_closed"])


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_and_summary_have_one_correctness(trained, monkeypatch):
    outcomes = trained.evaluator.outcomes(trained.eval_groups)

    def length(answer: str, reference: str) -> float:
        return min(1.0, len(answer) / 100)

    monkeypatch.setattr(held_out, "accuracy", length)
    rows = held_out_rows(7, outcomes)
    summary = summarise(outcomes)
    assert {row.step for row in rows} == {7}
    assert np.mean([row.correct for row in rows]) == pytest.approx(summary["accuracy"])
    assert summary["accuracy"] > 0
    found = np.mean([row.correct_no_think for row in rows])
    assert found == pytest.approx(summary["accuracy_no_think"])


def test_at_one_step_the_later_evaluation_stays(trained):
    before = files(trained.folder)
    trained.evaluate()
    assert files(trained.folder) == before  # the same weights, the same bits
    (trained.folder / "evaluations" / "step-000002.parquet").write_bytes(b"another")
    trained.evaluate()
    assert files(trained.folder) == before


def test_other_questions_and_other_prefixes_are_not_recorded(trained):
    before = files(trained.folder)
    for path in trained.folder.glob("evaluations/*"):
        path.unlink()
    trained.evaluate(QA[4:6])
    trained.evaluate(QA[:4])  # nor its own as another data set: nobody can know that it is
    trained.evaluate(metric_key_prefix="test")
    assert files(trained.folder) == {}
    trained.evaluate()
    assert files(trained.folder) == {"step-000002.parquet": before["step-000002.parquet"]}
    for name, content in before.items():
        (trained.folder / "evaluations" / name).write_bytes(content)


def test_only_the_first_questions_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "RECORDED", 3)
    trainer = make(tmp_path / "run", QA[:5], max_steps=1)
    trainer.train()
    measured = trainer.evaluate()
    assert measured["eval_questions"] == 5
    assert read_held_out(tmp_path / "run")["row_id"].to_pylist() == [0, 0, 1, 1, 2, 2]
    rows = read_questions(tmp_path / "run")  # the numbers of all of them
    assert [(row["step"], row["row_id"]) for row in rows] == [(1, i) for i in range(5)]
    assert len({row["asked"] for row in rows}) == 5
    for name in ("accuracy", "answer_logp", "uplift", "trace_length"):
        mean = sum(row[name] for row in rows) / 5
        assert mean == pytest.approx(measured[f"eval_{name}"], abs=1e-6)


def test_an_evaluation_of_fewer_questions_records_those(tmp_path):
    trainer = make(tmp_path / "run", max_steps=1, eval_samples=2, eval_num_generations=1)
    trainer.train()
    trainer.evaluate()
    assert read_held_out(tmp_path / "run")["row_id"].to_pylist() == [0, 1]


def test_nothing_is_recorded_where_traces_are_not(tmp_path):
    trainer = make(
        tmp_path / "run", record_traces=False, eval_strategy="steps", eval_steps=1, max_steps=1
    )
    trainer.train()
    trainer.evaluate()
    assert not (tmp_path / "run" / "traces").exists()
    assert not (tmp_path / "run" / "evaluations").exists()
    assert any("eval_uplift" in line for line in metrics(tmp_path / "run"))


def test_nothing_is_written_before_there_is_a_run(tmp_path):
    trainer = make(tmp_path / "run")
    trainer.evaluate()
    assert not list((tmp_path / "run").iterdir())


def test_hostile_questions_are_stored_as_they_are(tmp_path):
    trainer = make(tmp_path / "run", HOSTILE, max_steps=1)
    trainer.train()
    trainer.evaluate()
    rows = read_held_out(tmp_path / "run").to_pylist()[::2]
    examples = [group.example for group in trainer.eval_groups]
    assert [row["prompt"] for row in rows] == [example.question for example in examples]
    assert [row["answer"] for row in rows] == [example.answer for example in examples]
    assert "\x1b[31m red \x00 \u202e </think>" in rows[0]["prompt"]


def test_the_best_model_is_recorded_at_the_step_that_made_it(tmp_path):
    """Loaded at the end, it is not what the last step made."""
    trainer = make(
        tmp_path / "run",
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_answer_logp",
        greater_is_better=False,  # learning makes answers likelier: the first step is the best
    )
    trainer.train()
    before = files(tmp_path / "run")
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert trainer.checkpoints.step_of_weights == 1
    assert before["step-000001.parquet"] != before["step-000003.parquet"]
    trainer.evaluate()
    assert files(tmp_path / "run") == before
    evaluated = load_run(tmp_path / "run").evaluations
    assert list(evaluated.index) == [1, 2, 3, 1]
    first, last = (evaluated["eval_answer_logp"].iloc[i] for i in (0, -1))
    assert first == pytest.approx(last)
