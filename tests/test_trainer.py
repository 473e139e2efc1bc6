"""The trainer end to end on tiny random models: what it writes, and what changes nothing."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from native_reasoning.config.errors import DataError, RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.evaluation import held_out
from native_reasoning.objective.credit import Objective
from native_reasoning.objective.types import Signal
from native_reasoning.records.folder import read_config, read_metrics, read_timings, read_traces
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, folded, tiny_model
from watchers import Gradients


def make(
    folder, model=None, callbacks=None, objective=None, rows=QA, held_out=QA[:4], **settings
) -> NRTTrainer:
    values = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_generations": 3,
        "max_trace_length": 6,
        "max_answer_length": 12,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "save_strategy": "no",
        "use_cpu": True,
        **settings,
    }
    return NRTTrainer(
        model or tiny_model(),
        NRTConfig(output_dir=str(folder), **folded(values)),
        rows,
        held_out,
        byte_tokenizer(),
        objective=objective,
        callbacks=callbacks,
    )


def first_gradient(folder, **settings) -> torch.Tensor:
    keep = Gradients()
    make(folder, callbacks=[keep], max_grad_norm=0, max_steps=1, **settings).train()
    return keep.seen[0]


def sampled(folder) -> list[tuple]:
    rows = read_traces(folder).to_pylist()
    return sorted((r["step"], r["row_id"], r["k"], r["trace"], r["closed"]) for r in rows)


# -- The run folder --------------------------------------------------------------------------------


def test_run_folder_holds_config_metrics_timings_and_traces(tmp_path):
    trainer = make(tmp_path / "run", hub_token="hf_planted_secret_0123456789")
    trainer.train()
    trainer.save_model(str(tmp_path / "run" / "final"))
    folder = tmp_path / "run"
    config = read_config(folder)
    assert config["config"]["preset"] == "nrt-ws"
    assert config["config"]["resolved_objective"]["reward"] == "weighted_neglog"
    assert len(config["data_hash"]) == 64
    metrics = read_metrics(folder)
    assert [m["step"] for m in metrics] == [1, 2]
    for m in metrics:
        assert not any("second" in name or "runtime" in name for name in m)
        assert m["loss"] == pytest.approx(
            m["loss_trace"] + m["loss_answer"] + m["loss_format"], rel=1e-5
        )
    assert any("step_seconds" in t for t in read_timings(folder))
    traces = read_traces(folder)
    assert traces.num_rows == 2 * 4 * 3
    row = traces.to_pylist()[0]
    assert len(row["answer_logps"]) == len(row["baseline_logps"]) == len(row["answer_tokens"])
    assert row["answer_tokens"][-1] == "<|im_end|>"
    for path in folder.rglob("*"):
        assert not path.is_file() or b"hf_planted" not in path.read_bytes(), path


def test_recorded_reward_and_advantage_follow_from_the_recorded_log_probabilities(tmp_path):
    make(tmp_path / "run", max_steps=1).train()
    rows = read_traces(tmp_path / "run").to_pylist()
    for row_id in {r["row_id"] for r in rows}:
        group = [r for r in rows if r["row_id"] == row_id]
        b = group[0]["baseline_logps"]

        def reward(logps, b=b):
            return sum(math.exp(x) * -y for x, y in zip(logps, b, strict=True)) / len(b)

        base = reward(b)
        gains = [max(0.0, reward(r["answer_logps"]) - base) for r in group]
        mean = sum(gains) / 3
        spread = math.sqrt(sum((g - mean) ** 2 for g in gains) / 2)
        for r, gain in zip(group, gains, strict=True):
            assert r["reward"] == pytest.approx(reward(r["answer_logps"]), rel=1e-4)
            assert r["baseline_reward"] == pytest.approx(base, rel=1e-4)
            expected = (gain - mean) / spread if spread else 0.0
            assert r["advantage"] == pytest.approx(expected, rel=1e-2, abs=1e-3)


def test_an_existing_run_is_refused_and_left_alone(tmp_path):
    make(tmp_path / "run").train()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match="already holds a run"):
        make(tmp_path / "run").train()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_resuming_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(RunError, match="no whole checkpoint"):
        make(tmp_path / "run").train(resume_from_checkpoint=True)


def test_training_and_evaluating_need_data(tmp_path):
    args = NRTConfig(output_dir=str(tmp_path / "run"), use_cpu=True)
    trainer = NRTTrainer(tiny_model(), args, processing_class=byte_tokenizer())
    with pytest.raises(DataError, match="no train_dataset"):
        trainer.train()
    with pytest.raises(DataError, match="no eval_dataset"):
        trainer.evaluate()


def test_a_broken_checkpoint_folder_is_passed_over(tmp_path):
    folder = tmp_path / "run"
    make(folder, save_strategy="steps", save_steps=1).train()
    (folder / "checkpoint-9").mkdir()
    make(folder, save_strategy="steps", save_steps=1, max_steps=3).train(True)
    assert [m["step"] for m in read_metrics(folder)] == [1, 2, 3]


def test_saved_model_is_an_ordinary_folder_that_opens_the_trace(tmp_path):
    trainer = make(tmp_path / "run")
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "final")
    assert model.config.use_cache
    assert set(trainer.template.end_ids) <= set(model.generation_config.eos_token_id)
    turns = [{"role": "user", "content": QA[0]["question"]}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert tuple(prompt) == next(
        g.prompt_ids for g in trainer.train_groups if g.example.question == QA[0]["question"]
    )
    ids = torch.tensor([prompt])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, trainer.model(ids).logits)
    assert not list((tmp_path / "final").glob("*.bin"))


# -- What changes nothing --------------------------------------------------------------------------


def test_micro_batch_size_does_not_change_the_sampled_traces(tmp_path):
    """In ten steps of one model: weights that learn would part by rounding."""
    runs = []
    for batch, most in ((1, 1), (2, 100), (4, None)):
        folder = tmp_path / str(batch)
        trainer = make(
            folder,
            max_steps=10,
            learning_rate=0.0,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=4 // batch,
            max_tokens_per_forward=most,
        )
        trainer.train()
        runs.append(sampled(folder))
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) == 10 * 12


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "qwen3"])
def test_activation_checkpointing_does_not_change_the_gradient(kind, tmp_path):
    """In float64: the rows lie otherwise then, and advantages enlarge what float32 rounds."""
    plain = first_gradient(tmp_path / "a", model=tiny_model(kind).double())
    saved = first_gradient(
        tmp_path / "b", model=tiny_model(kind).double(), activation_checkpointing=True
    )
    assert (plain - saved).norm() <= 1e-6 * plain.norm()


def test_scores_taken_once_give_the_gradient_of_the_fused_pass(tmp_path):
    fused = first_gradient(tmp_path / "a")
    # the first of two updates: same traces, scored beforehand, importance ratio 1
    apart = first_gradient(tmp_path / "b", num_iterations=2)
    assert (fused - apart).norm() <= 1e-5 * fused.norm()


def test_bfloat16_runs_and_is_not_silently_float32(tmp_path):
    exact = first_gradient(tmp_path / "a")
    rounded = first_gradient(tmp_path / "b", bf16=True)
    assert rounded.isfinite().all()
    error = (exact - rounded).norm() / exact.norm()
    assert 1e-4 < error < 1


# -- Objectives ------------------------------------------------------------------------------------


def test_sft_samples_nothing_and_its_loss_is_the_answers_cross_entropy(tmp_path):
    trainer = make(tmp_path / "run", preset="sft", max_steps=1, learning_rate=0.0)
    trainer.train()
    assert not (tmp_path / "run" / "traces").exists()
    rows = [trainer.train_groups[r] for r in trainer.schedule.step(0).rows]
    total = 0.0
    for group in rows:
        ids = [*group.prompt_ids, *trainer.template.empty_trace(), *group.answer_ids]
        start = len(ids) - len(group.answer_ids)
        with torch.no_grad():
            logits = trainer.model(torch.tensor([ids])).logits[0]
        logps = logits[:, : len(trainer.template.tokenizer)].log_softmax(-1)
        total -= sum(logps[i - 1, ids[i]].item() for i in range(start, len(ids)))
    (metrics,) = read_metrics(tmp_path / "run")
    assert metrics["loss"] == pytest.approx(total / 4, rel=1e-5)
    assert "reward" not in metrics  # none was computed: 0 would read as a failure


def test_format_warm_up_has_no_trace_term_and_then_it_begins(tmp_path):
    make(tmp_path / "run", format_warmup_steps=1, max_steps=2).train()
    first, second = read_metrics(tmp_path / "run")
    assert first["loss_trace"] == 0
    assert first["loss_answer"] > 0
    assert first["loss_format"] > 0
    assert second["loss_trace"] != 0


@pytest.mark.parametrize("weight", ["exact", "probability", "none"])
def test_an_answer_weighs_one_in_the_format_warm_up_where_it_is_trained(tmp_path, weight):
    settings = {"format_warmup_steps": 1, "max_steps": 2, "answer_gate": "relu"}
    make(tmp_path / "one", max_steps=1).train()
    make(tmp_path / "run", answer_weight=weight, **settings).train()
    first, second = read_metrics(tmp_path / "run")
    (one,) = read_metrics(tmp_path / "one")
    assert first["answer_weight"] == (0 if weight == "none" else one["answer_weight"])
    assert second["answer_weight"] < one["answer_weight"]


def test_a_custom_objective_is_any_callable(tmp_path):
    calls = []

    def first_trace_only(scores):
        calls.append(scores)
        advantages = torch.zeros(len(scores.answer))
        advantages[0] = 1.0
        return Signal(
            rewards=scores.answer.detach().sum(-1),
            baseline_reward=scores.baseline.detach().sum(),
            advantages=advantages,
            answer_weights=torch.zeros_like(scores.answer),
        )

    make(tmp_path / "run", objective=first_trace_only, max_steps=1).train()
    assert len(calls) == 4
    rows = read_traces(tmp_path / "run").to_pylist()
    assert {r["k"]: r["advantage"] for r in rows} == {0: 1.0, 1: 0.0, 2: 0.0}
    assert read_metrics(tmp_path / "run")[0]["loss_answer"] == 0


def test_leave_one_out_with_a_short_last_step(tmp_path):
    make(tmp_path / "run", centre="leave_one_out", per_device_train_batch_size=5).train()
    assert all(math.isfinite(m["loss"]) for m in read_metrics(tmp_path / "run"))


# -- Numbers that go wrong, and signals ------------------------------------------------------------


def test_a_gradient_that_is_not_finite_is_dropped_and_counted(tmp_path, capsys):
    class BreakSecondStep(Objective):
        steps = 0

        def __call__(self, scores):
            signal = super().__call__(scores)
            BreakSecondStep.steps += 1
            if 4 < BreakSecondStep.steps <= 8:
                signal.answer_weights.fill_(3e38)  # the sum of such terms is beyond float32
            return signal

    folder = tmp_path / "run"
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "max_steps": 3}
    make(folder, objective=BreakSecondStep(), warmup_steps=0, **settings).train()
    metrics = read_metrics(folder)
    assert [m["skipped_updates"] for m in metrics] == [0, 1, 0]
    assert metrics[1]["loss"] is None  # not a number, and said so
    assert math.isfinite(metrics[2]["loss"])
    assert metrics[2]["loss"] != 0
    weights = [load_file(folder / f"checkpoint-{i}" / "model.safetensors") for i in (1, 2, 3)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert any(not torch.equal(weights[1][k], weights[2][k]) for k in weights[1])
    assert "step 2: loss or gradient not finite, update skipped" in capsys.readouterr().err


class Send(TrainerCallback):
    """Sends this process a signal at the beginning of a step."""

    def __init__(self, number: int, step: int, times: int = 1) -> None:
        self.number, self.step, self.times = number, step, times

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_end_of_the_step_and_stops(number, tmp_path):
    before = signal.getsignal(number)
    trainer = make(
        tmp_path / "run", callbacks=[Send(number, 1)], max_steps=5, save_strategy="steps"
    )
    trainer.train()
    assert trainer.checkpoints.signals.received == number
    assert trainer.state.global_step == 2
    assert (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").exists()
    assert signal.getsignal(number) is before


def test_a_signal_after_the_last_step_is_not_lost(tmp_path):
    class Late(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == state.max_steps:
                os.kill(os.getpid(), signal.SIGTERM)

    trainer = make(tmp_path / "run", callbacks=[Late()], max_steps=2, save_strategy="steps")
    trainer.train()
    assert (trainer.state.global_step, trainer.checkpoints.signals.received) == (2, signal.SIGTERM)


def test_a_second_interrupt_leaves_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    trainer = make(tmp_path / "run", callbacks=[Send(signal.SIGINT, 1, times=2)], max_steps=5)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is before


# -- Evaluation ------------------------------------------------------------------------------------


def test_evaluate_reports_thinking_and_no_thinking_with_intervals(tmp_path):
    trainer = make(tmp_path / "run", eval_num_generations=2)
    metrics = trainer.evaluate()
    for name in ("accuracy", "accuracy_maj", "accuracy_greedy", "accuracy_no_think", "uplift"):
        value = metrics[f"eval_{name}"]
        assert metrics[f"eval_{name}_low"] <= value <= metrics[f"eval_{name}_high"]
    assert metrics["eval_questions"] == 4
    assert metrics["eval_uplift"] == pytest.approx(
        metrics["eval_answer_logp"] - metrics["eval_answer_logp_no_think"]
    )
    assert metrics == trainer.evaluate()  # the same noise, the same numbers


def test_evaluate_writes_to_the_run_and_does_not_disturb_it(tmp_path):
    make(tmp_path / "a").train()
    make(tmp_path / "b", eval_strategy="steps", eval_steps=1).train()
    plain, evaluated = read_metrics(tmp_path / "a"), read_metrics(tmp_path / "b")
    assert [m for m in evaluated if "eval_accuracy" not in m] == plain
    assert sum("eval_accuracy" in m for m in evaluated) == 2


def test_evaluation_does_not_depend_on_how_much_is_computed_at_once(tmp_path):
    outcomes = []
    for most in (1, 100, None):
        trainer = make(tmp_path / str(most), max_tokens_per_forward=most)
        outcomes.append(
            [
                (o.traces, o.answers, o.answer_greedy)
                for o in trainer.evaluator.outcomes(trainer.eval_groups)
            ]
        )
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_where_the_context_ends_does_not_depend_on_the_batch(tmp_path):
    """A question with little room for its answer must not cut those beside it."""
    rows = [*QA[:3], {"question": "a b c " * 20, "answer": "x"}]
    model = tiny_model()
    long = make(tmp_path / "plain", model, held_out=rows).eval_groups[3]
    room = 4
    model.config.max_position_embeddings = len(long.prompt_ids) + 6 + 1 + room
    answers = []
    for most in (1, None):
        settings = {"max_answer_length": 40, "max_tokens_per_forward": most}
        trainer = make(tmp_path / str(most), model, held_out=rows, **settings)
        asked = trainer.evaluator.outcomes(trainer.eval_groups)
        answers.append([(o.answers, o.answer_greedy, o.answer_no_think) for o in asked])
    assert answers[0] == answers[1]
    tokens = [len(byte_tokenizer().encode(few[1])) for few in answers[0]]
    assert max(tokens[:3]) > 2 * room >= tokens[3]


def test_answers_of_an_evaluation_are_cut_by_their_references(tmp_path):
    words = "one two three four five six seven"
    rows = [{"question": "2 + 2?", "answer": "4"}, {"question": "Count!", "answer": words}]
    long = 2 * (len(byte_tokenizer().encode(words)) + 1)  # with its end of turn
    most = {"max_answer_length": 512}
    given = make(tmp_path / "run", held_out=rows, eval_max_answer_length=long, **most)
    found = make(tmp_path / "run", held_out=rows, **most)
    outcomes = found.evaluator.outcomes(found.eval_groups)
    assert outcomes == given.evaluator.outcomes(given.eval_groups)
    longer = make(tmp_path / "run", held_out=rows, eval_max_answer_length=2 * long, **most)
    for one, other in zip(outcomes, longer.evaluator.outcomes(longer.eval_groups), strict=True):
        assert other.answer_greedy.startswith(one.answer_greedy.rstrip("\ufffd"))
        assert one.traces == other.traces
        tokens = len(byte_tokenizer().encode(one.answer_no_think))
        assert one.cut_no_think == (tokens >= long)
    assert found.evaluate()["eval_max_answer_length"] == long
    found.args.eval_samples = 1  # of the questions that are asked
    assert found.evaluate()["eval_max_answer_length"] == 16


def test_callbacks_hear_how_far_an_evaluation_is(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "TOLD", 3)
    heard = []

    class Counting(TrainerCallback):
        def on_prediction_step(self, args, state, control, **told):
            heard.append((told["answered"], told["questions"], told["max_answer_length"]))

    trainer = make(tmp_path / "run", callbacks=[Counting()])
    trainer.evaluate()
    assert heard == [(0, 4, 12), (3, 4, 12), (4, 4, 12)]


def test_a_checkpoints_time_is_that_of_records(tmp_path):
    heard = []

    class Part:
        def state(self):
            heard.append(trainer.recorder.clock.running)
            return {}

        def restore(self, state): ...

    trainer = make(tmp_path / "run", save_strategy="steps", save_steps=1)
    trainer.checkpoints.kept["part"] = Part()
    trainer.train()
    assert heard == ["records", "records"]
    assert trainer.recorder.clock.running is None


def test_metrics_are_json_that_a_stranger_can_read(tmp_path):
    make(tmp_path / "run").train()
    lines = Path(tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
